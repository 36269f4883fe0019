//! The thread of LendingService's worker: it takes events from a channel, and the worker works on them. A
//! few that come alone never get here, see [`super::intake`].
//!
//! It ends when the reader and the keeper have let go of the channel and everything under way is
//! answered, or at once when the session breaks.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};

use super::Delivered;
use super::news::News;
use super::worker::Worker;
use crate::error::Error;
use crate::session::{Session, Thread};
use crate::workload::locked;

/// How often an idle worker looks up, to show that it is alive, and its link too.
const IDLE: Duration = Duration::from_secs(1);

/// What the worker's thread hears of, and whom it lets know.
pub struct Channels {
    /// Events; an empty batch only wakes the thread.
    pub events: Receiver<Vec<Delivered>>,
    /// Books have been put on their shelves.
    pub shelved: Receiver<()>,
    /// Another instance has rung.
    pub rung: Receiver<News>,
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
        session.beat(Thread::LendingWorker);
        let mut at_work = locked(worker);
        let is_open = channels.take_what_has_come(&mut at_work);
        if !is_open && at_work.has_finished() {
            // What waits, and suspects, stay pending; whoever serves them next finds them.
            break;
        }
        if at_work.turn()? {
            continue;
        }
        let next_round = at_work.next_round();
        drop(at_work);
        match next_round {
            Some(at) => channels.wait_until(at, worker),
            None if !channels.wait_for_events(worker) => locked(worker).keep_alive()?,
            None => {}
        }
    }
    Ok(())
}

impl Channels {
    /// Hands the worker what lies in the channels. Tells whether more events may come.
    fn take_what_has_come(&self, worker: &mut Worker<'_>) -> bool {
        let mut is_open = true;
        while is_open && !worker.has_a_batch() {
            match self.events.try_recv() {
                Ok(batch) => worker.take(batch),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => is_open = false,
            }
        }
        if self.shelved.try_recv().is_ok() {
            worker.shelved();
        }
        // What is told meanwhile has time until the next turn.
        for news in self.rung.try_iter().take(self.rung.len()) {
            worker.heard(news);
        }
        if worker.has_waiting() {
            // One token is enough.
            let _ = self.to_listener.try_send(());
        }
        is_open
    }

    /// Waits for events alone: nothing waits here, so what the other channels tell concerns nobody. One
    /// channel wakes up quicker than a `select!` over several, which takes the lock of each again. Tells
    /// whether any came.
    fn wait_for_events(&self, worker: &Mutex<Worker<'_>>) -> bool {
        let batch = self.events.recv_timeout(IDLE);
        batch.map(|batch| locked(worker).take(batch)).is_ok()
    }

    /// Waits for something to do, or for the next round.
    fn wait_until(&mut self, next_round: Instant, worker: &Mutex<Worker<'_>>) {
        let patience = IDLE.min(next_round.saturating_duration_since(Instant::now()));
        select! {
            recv(self.events) -> batch => if let Ok(batch) = batch {
                locked(worker).take(batch);
            },
            recv(self.shelved) -> done => match done {
                Ok(()) => locked(worker).shelved(),
                // The shelving worker has ended: so will this one.
                Err(_) => self.shelved = crossbeam_channel::never(),
            },
            recv(self.rung) -> ring => match ring {
                Ok(news) => locked(worker).heard(news),
                Err(_) => self.rung = crossbeam_channel::never(),
            },
            default(patience) => {}
        }
    }
}
