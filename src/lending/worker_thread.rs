//! In which thread LendingService's worker works: its own, which takes events from channels, or the
//! reader's.
//!
//! To wake a thread takes as long as a fifth of all that is done for an event that comes alone, and
//! somebody waits for that one. So the reader works on a few events itself if nothing else is in hand.
//! Whatever comes meanwhile, whatever has to wait and whatever comes in numbers goes through the channel,
//! while the reader reads on.
//!
//! The worker's thread ends when the reader and the keeper have let go of its channel and everything
//! under way is answered, or at once when the session breaks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};

use super::worker::Worker;
use super::{Delivered, FEW};
use crate::error::Error;
use crate::session::Session;

/// How often an idle worker looks up, to show that it is alive.
const IDLE: Duration = Duration::from_secs(1);

/// What the worker's thread hears of, and whom it lets know.
pub struct Channels {
    /// Events. None at all tell that the reader has left something to be waited for.
    pub from_readers: Receiver<Vec<Delivered>>,
    /// Books have been put on their shelves.
    pub shelved: Receiver<()>,
    /// Another instance has rung.
    pub rung: Receiver<()>,
    /// The worker waits for what others may decide.
    pub to_listener: Sender<()>,
}

/// Works until there is nothing more to come.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    worker: &Mutex<Worker<'_>>,
    mut channels: Channels,
) -> Result<(), Error> {
    while !session.is_broken() {
        session.beat("lending-worker");
        let mut at_work = lock(worker);
        let is_open = channels.take_what_has_come(&mut at_work);
        if !is_open && at_work.has_finished() {
            // What waits stays pending; whoever serves it next finds it.
            break;
        }
        if at_work.turn()? {
            continue;
        }
        let next_round = at_work.next_round();
        drop(at_work);
        channels.wait(worker, next_round);
    }
    Ok(())
}

impl Channels {
    /// Hands the worker what lies in the channels. Tells whether more events may come.
    fn take_what_has_come(&self, worker: &mut Worker<'_>) -> bool {
        while !worker.has_a_batch() {
            match self.from_readers.try_recv() {
                Ok(batch) => worker.take(batch),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        if self.shelved.try_recv().is_ok() {
            worker.shelved();
        }
        if self.rung.try_recv().is_ok() {
            worker.rung();
        }
        if worker.next_round().is_some() {
            // One token is enough.
            let _ = self.to_listener.try_send(());
        }
        true
    }

    /// Waits for something to do.
    fn wait(&mut self, worker: &Mutex<Worker<'_>>, next_round: Option<Instant>) {
        let Some(next_round) = next_round else {
            // Whatever the others have to tell concerns nobody. One channel is quicker to wake up from
            // than several: those take their locks once more.
            if let Ok(batch) = self.from_readers.recv_timeout(IDLE) {
                lock(worker).take(batch);
            }
            return;
        };
        let patience = IDLE.min(next_round.saturating_duration_since(Instant::now()));
        select! {
            recv(self.from_readers) -> batch => if let Ok(batch) = batch {
                lock(worker).take(batch);
            },
            recv(self.shelved) -> done => match done {
                Ok(()) => lock(worker).shelved(),
                // The shelving worker has ended: so will this one.
                Err(_) => self.shelved = crossbeam_channel::never(),
            },
            recv(self.rung) -> ring => match ring {
                Ok(()) => lock(worker).rung(),
                Err(_) => self.rung = crossbeam_channel::never(),
            },
            default(patience) => {}
        }
    }
}

/// The reader's way to the worker.
pub struct Intake<'a> {
    /// The session of both.
    pub session: &'a Session,
    /// The worker, when its own thread is not at work.
    pub worker: Arc<Mutex<Worker<'a>>>,
    /// To the worker's thread.
    pub to_thread: Sender<Vec<Delivered>>,
}

impl Intake<'_> {
    /// Passes events on to the worker's thread.
    pub fn pass_on(&self, batch: Vec<Delivered>) {
        if !batch.is_empty() {
            self.send(batch);
        }
    }

    /// Works on events in this thread, if they are few and nothing else is in hand; else passes them on.
    ///
    /// # Errors
    /// What Redis or the link said; the session is then over.
    pub fn work_on(&self, batch: Vec<Delivered>) -> Result<(), Error> {
        // What is in the channel, or waits, is in hand as well: nothing is overtaken.
        let is_all = batch.len() == self.session.in_hand.count();
        if batch.is_empty() || batch.len() > FEW || !is_all {
            self.pass_on(batch);
            return Ok(());
        }
        // It may be about to go to sleep.
        let Ok(mut worker) = self.worker.try_lock() else {
            self.pass_on(batch);
            return Ok(());
        };
        worker.take(batch);
        while worker.turn()? && worker.next_round().is_none() {}
        let something_waits = worker.next_round().is_some();
        drop(worker);
        if something_waits {
            // The thread has not been told of it.
            self.send(Vec::new());
        }
        Ok(())
    }

    fn send(&self, batch: Vec<Delivered>) {
        // The channel is closed only when the worker has ended with an error, and with it the session.
        let _ = self.to_thread.send(batch);
    }
}

fn lock<'a, 'b>(worker: &'a Mutex<Worker<'b>>) -> MutexGuard<'a, Worker<'b>> {
    // A panic ends the process.
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}
