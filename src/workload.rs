//! Which events this instance works on, or has in hand: delivered and not decided yet.
//!
//! For four questions: may a stream be read on (memory does not grow with the backlog), is an
//! event that is pending for us in somebody's hands (the reply to a read can get lost), is it in hand
//! already (then it is not taken twice), and are those just read all there is (then they need not
//! queue).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::event::{ByAction, EventKey};
use crate::ids::EventId;

/// How many events of one stream are in hand at most. Per stream, not shared: returns must be read
/// on while requests wait for them. Many more than the events that one millisecond can bring, which
/// may all wait for each other. Events claimed from dead instances are taken in hand beyond that as well:
/// one of them may be what all others wait for.
pub const MOST_EVENTS: usize = 8_192;

/// With how many books among them a stream is not read on: sixteen each. Memory goes with the books, and
/// an event may name a thousand.
const MOST_BOOKS: usize = 16 * MOST_EVENTS;

/// How long nothing of a stream that has as many books in hand has to change for it to be read on, if all it
/// has in hand is of one millisecond. Those may wait for each other (library-lending(7), Order), and one
/// that is not read yet may be among them.
const STUCK_FOR: Duration = Duration::from_secs(1);

/// The events in hand.
#[derive(Debug, Default)]
pub struct Workload {
    streams: Mutex<ByAction<InHand>>,
    fewer: Condvar,
}

/// What is in hand of one stream.
#[derive(Debug, Default)]
struct InHand {
    /// How many books each event names.
    events: HashMap<EventId, usize>,
    books: usize,
    /// When an event was let go the last time, or taken while there was room for its books, if ever.
    changed: Option<Instant>,
}

impl InHand {
    /// Takes an event; tells whether it was not in hand before.
    fn take(&mut self, id: EventId, books: usize, now: Instant) -> bool {
        let Entry::Vacant(place) = self.events.entry(id) else { return false };
        place.insert(books);
        // What is read on because nothing moves does not make it wait for as long again.
        if self.books < MOST_BOOKS {
            self.changed = Some(now);
        }
        self.books += books;
        true
    }

    fn release(&mut self, id: EventId, now: Instant) {
        if let Some(books) = self.events.remove(&id) {
            self.books -= books;
            self.changed = Some(now);
        }
    }

    /// How many more events may be taken.
    fn free(&self) -> usize {
        if self.books >= MOST_BOOKS && !self.is_stuck() {
            return 0;
        }
        MOST_EVENTS.saturating_sub(self.events.len())
    }

    fn is_stuck(&self) -> bool {
        let mut milliseconds = self.events.keys().map(|id| id.ms);
        let first = milliseconds.next();
        self.changed.is_none_or(|changed| changed.elapsed() >= STUCK_FOR)
            && milliseconds.all(|ms| Some(ms) == first)
    }
}

/// Locks what threads share. A panic ends the process: nobody finds what one has left half done.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workload {
    /// Takes events in hand, each with how many books it names; drops from the list those that are in hand
    /// already.
    pub fn take<T>(&self, list: &mut Vec<T>, what: impl Fn(&T) -> (EventKey, usize)) {
        let now = Instant::now();
        let mut streams = locked(&self.streams);
        list.retain(|one| {
            let (key, books) = what(one);
            streams[key.action].take(key.id, books, now)
        });
    }

    /// Lets events go: they are decided, or somebody else's.
    pub fn release(&self, keys: impl IntoIterator<Item = EventKey>) {
        let now = Instant::now();
        let mut streams = locked(&self.streams);
        // Nobody waits otherwise, and to wake nobody is a system call as well.
        let were_full = are_full(&streams);
        for key in keys {
            streams[key.action].release(key.id, now);
        }
        if were_full {
            self.fewer.notify_all();
        }
    }

    /// Whether an event is in hand.
    pub fn contains(&self, key: EventKey) -> bool {
        locked(&self.streams)[key.action].events.contains_key(&key.id)
    }

    /// How many events are in hand.
    pub fn count(&self) -> usize {
        locked(&self.streams).iter().map(|stream| stream.events.len()).sum()
    }

    /// How many more events of each stream may be taken.
    pub fn free(&self) -> ByAction<usize> {
        let streams = locked(&self.streams);
        ByAction::of(|action| streams[action].free())
    }

    /// Waits as long as no more events of either stream may be taken, for `timeout` at most.
    pub fn wait_while_full(&self, timeout: Duration) {
        drop(
            self.fewer
                .wait_timeout_while(locked(&self.streams), timeout, |streams| are_full(streams)),
        );
    }
}

fn are_full(streams: &ByAction<InHand>) -> bool {
    streams.iter().all(|stream| stream.free() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;

    fn key(ms: u64, action: Action) -> EventKey {
        EventKey { id: EventId { ms, seq: 0 }, action }
    }

    /// Takes a request that has half the books that may be in hand.
    fn take_half(workload: &Workload, id: EventId) {
        let mut list = vec![EventKey { id, action: Action::Request }];
        workload.take(&mut list, |key| (*key, MOST_BOOKS / 2));
    }

    #[test]
    fn events_are_taken_once_and_counted_by_stream() {
        let workload = Workload::default();
        let mut list =
            vec![key(1, Action::Request), key(1, Action::Return), key(1, Action::Return)];
        workload.take(&mut list, |key| (*key, 1));
        assert_eq!(list, [key(1, Action::Request), key(1, Action::Return)]);
        assert_eq!(workload.count(), 2);
        workload.take(&mut list, |key| (*key, 1));
        assert!(list.is_empty());
        assert_eq!(workload.free(), ByAction::of(|_| MOST_EVENTS - 1));
        workload.release([key(1, Action::Return)]);
        let free = workload.free();
        assert_eq!(free[Action::Request], MOST_EVENTS - 1);
        assert_eq!(free[Action::Return], MOST_EVENTS);
        assert!(!workload.contains(key(1, Action::Return)));
    }

    /// Eight thousand requests for four hundred books each took 1.3 GB.
    #[test]
    fn a_stream_of_large_events_is_read_on_when_enough_were_let_go() {
        let workload = Workload::default();
        take_half(&workload, EventId { ms: 1, seq: 0 });
        assert_eq!(workload.free()[Action::Request], MOST_EVENTS - 1);
        take_half(&workload, EventId { ms: 2, seq: 0 });
        assert_eq!(workload.free()[Action::Request], 0);
        assert_eq!(workload.free()[Action::Return], MOST_EVENTS);
        workload.release([key(1, Action::Request), key(7, Action::Request)]);
        assert_eq!(workload.free()[Action::Request], MOST_EVENTS - 1);
    }

    #[test]
    fn of_large_events_only_those_of_one_millisecond_are_read_on_when_nothing_moves() {
        let [tied, untied] = [Workload::default(), Workload::default()];
        for n in 0..3 {
            take_half(&tied, EventId { ms: 1, seq: n });
            take_half(&untied, EventId { ms: n, seq: 0 });
        }
        let full = Instant::now();
        while tied.free()[Action::Request] == 0 {
            assert!(full.elapsed() < 20 * STUCK_FOR, "it is never read on");
            std::thread::sleep(STUCK_FOR / 100);
        }
        assert!(full.elapsed() >= STUCK_FOR, "it was read on while something moved");
        assert_eq!(untied.free()[Action::Request], 0);
        // Each read began the wait anew: nine hundred requests for 400 books took six seconds to be read.
        take_half(&tied, EventId { ms: 1, seq: 3 });
        assert_eq!(tied.free()[Action::Request], MOST_EVENTS - 4);
        tied.release([EventKey { id: EventId { ms: 1, seq: 0 }, action: Action::Request }]);
        assert_eq!(tied.free()[Action::Request], 0, "something moves again");
    }

    /// A reader that saw both streams full, and began to wait when that was over, slept for two seconds.
    #[test]
    fn nobody_waits_but_while_both_streams_are_full() {
        const LONG: Duration = Duration::from_secs(60);
        let workload = Workload::default();
        let fill = |action| {
            let mut list: Vec<_> = (0..MOST_EVENTS as u64).map(|ms| key(ms, action)).collect();
            workload.take(&mut list, |key| (*key, 1));
        };
        let start = Instant::now();
        fill(Action::Request);
        workload.wait_while_full(LONG);
        fill(Action::Return);
        std::thread::scope(|scope| {
            scope.spawn(|| workload.wait_while_full(LONG));
            workload.release([key(7, Action::Return)]);
        });
        workload.wait_while_full(LONG);
        assert!(start.elapsed() < LONG, "it waited for its time");
        fill(Action::Return);
        let short = Duration::from_millis(10);
        let start = Instant::now();
        workload.wait_while_full(short);
        assert!(start.elapsed() >= short, "it did not wait");
    }
}
