//! What the threads of one session share.
//!
//! A session is everything between taking the lease with a fresh token and the first error on any
//! of its connections: then all threads end, all that was in hand is dropped, and the next session
//! begins with the events that are pending for this instance. Nothing that a connection which was
//! given up still carries can do harm, since its token is not valid any more (I7).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::event::EventKey;
use crate::keys::Keys;
use crate::settings::Settings;
use crate::workload::{Workload, locked};

/// The threads of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Reads requests and returns.
    LendingReader,
    /// Decides them.
    LendingWorker,
    /// Hears of other instances.
    LendingListener,
    /// Reads hand-offs.
    ShelvingReader,
    /// Puts books on their shelves.
    ShelvingWorker,
    /// Renews the lease, and keeps house.
    Keeper,
}

impl Thread {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LendingReader,
        Self::LendingWorker,
        Self::LendingListener,
        Self::ShelvingReader,
        Self::ShelvingWorker,
        Self::Keeper,
    ];

    /// Those that block in Redis, and have to be woken.
    pub const READERS: [Self; 2] = [Self::LendingReader, Self::ShelvingReader];
    /// Those that decide and put back.
    pub const WORKERS: [Self; 2] = [Self::LendingWorker, Self::ShelvingWorker];

    /// Its name, for the system and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::LendingReader => "lending-reader",
            Self::LendingWorker => "lending-worker",
            Self::LendingListener => "lending-listener",
            Self::ShelvingReader => "shelving-reader",
            Self::ShelvingWorker => "shelving-worker",
            Self::Keeper => "keeper",
        }
    }

    /// Whether it is one of [`Thread::READERS`].
    pub fn is_reader(self) -> bool {
        Self::READERS.contains(&self)
    }
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Shared by the threads of one session.
pub struct Session {
    /// The names in Redis.
    pub keys: Keys,
    /// What its operator has set.
    pub settings: Settings,
    /// The token of the lease in this session.
    pub token: String,
    /// The events that this instance works on.
    pub workload: Workload,
    /// Whether this is the first session of the process.
    pub first: bool,
    lock: String,
    neighbours: Mutex<Arc<Neighbours>>,
    // Outlives the session.
    tried: Arc<Mutex<Vec<EventKey>>>,
    started: Instant,
    // Set once each, never taken back.
    stopping: AtomicBool,
    broken: AtomicBool,
    pulses: [AtomicU64; Thread::ALL.len()],
    replied_ms: AtomicU64,
    worked: AtomicBool,
}

/// Other instances that decisions have to know about.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Without a lease, and nothing was heard of them for long: they hold up no refusal.
    pub silent: Vec<Vec<u8>>,
    /// Without a lease, working: instances of the reference application, or dead ones with events
    /// in hand that may have been such. They tell nobody what they have reserved.
    pub reference: Vec<Vec<u8>>,
    /// With a lock without a TTL, as the reference application leaves it, silent or not.
    pub without_ttl: Vec<Vec<u8>>,
}

impl Session {
    /// A session about to begin.
    pub fn new(
        keys: Keys,
        settings: Settings,
        token: String,
        tried: Arc<Mutex<Vec<EventKey>>>,
        first: bool,
    ) -> Self {
        Self {
            lock: keys.lock(&settings.name),
            keys,
            settings,
            token,
            workload: Workload::default(),
            neighbours: Mutex::default(),
            tried,
            first,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            pulses: Default::default(),
            replied_ms: AtomicU64::new(0),
            worked: AtomicBool::new(false),
        }
    }

    /// This instance's name as a consumer.
    pub fn consumer(&self) -> &str {
        self.settings.name.as_str()
    }

    /// The key of this instance's lock.
    pub fn lock(&self) -> &str {
        &self.lock
    }

    /// "keep" or "delete" decided events, for scripts.
    pub fn decided_events(&self) -> &'static str {
        if self.settings.keep_events { "keep" } else { "delete" }
    }

    /// Asks for a graceful end: nothing new is read, what is in work is finished.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether a graceful end was asked for, or the session is broken.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.is_broken()
    }

    /// Ends the session at once: what is in hand is dropped.
    pub fn break_off(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Whether the session is to end at once.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Says that the loop of a thread has come round.
    pub fn beat(&self, thread: Thread) {
        let now = self.started.elapsed().as_millis() as u64;
        self.pulses[thread as usize].store(now, Ordering::Relaxed);
    }

    /// The thread whose loop has not come round for longest, and for how long.
    pub fn slowest(&self) -> (Thread, Duration) {
        let pulse = |thread: Thread| self.pulses[thread as usize].load(Ordering::Relaxed);
        let of_each = Thread::ALL.map(|thread| (thread, pulse(thread)));
        let (thread, beat) =
            of_each.into_iter().min_by_key(|(_, beat)| *beat).expect("there are threads");
        (thread, self.started.elapsed().saturating_sub(Duration::from_millis(beat)))
    }

    /// Says that Redis has answered.
    pub fn note_reply(&self) {
        self.replied_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Says that something was decided, or found to have to wait.
    pub fn note_work(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// Whether anything was decided, or found to have to wait.
    pub fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// When Redis last answered, as far as it was noted: every two seconds or so even where nothing
    /// is to be done.
    pub fn last_reply(&self) -> Instant {
        self.started + Duration::from_millis(self.replied_ms.load(Ordering::Relaxed))
    }

    /// The other instances, as the keeper last saw them.
    pub fn neighbours(&self) -> Arc<Neighbours> {
        Arc::clone(&locked(&self.neighbours))
    }

    /// Notes which other instances there are.
    pub fn note_neighbours(&self, found: Neighbours) {
        *locked(&self.neighbours) = Arc::new(found);
    }

    /// The events that are being tried under a note, or were when the last session ended.
    pub fn tried(&self) -> Vec<EventKey> {
        locked(&self.tried).clone()
    }

    /// Remembers which events are being tried under a note.
    pub fn remember_tried(&self, keys: Vec<EventKey>) {
        *locked(&self.tried) = keys;
    }
}
