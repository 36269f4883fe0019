//! Where the events go that LendingService's reader has read: into the channel of the worker's thread,
//! or through the worker's hands in the reader's own thread.
//!
//! To wake a second thread takes a good part of the time in which an event that comes alone is decided,
//! and somebody waits for that one. So the reader sees to a few events itself if nothing else is in hand.
//! Whatever comes meanwhile or in numbers goes through the channel, and the reader reads on; what has to
//! wait is left in the worker's waiting room, and its thread is woken.

use std::sync::{Arc, Mutex};

use crossbeam_channel::Sender;

use super::in_hand::InHand;
use super::worker::Worker;
use super::{Delivered, FEW};
use crate::error::Error;

/// The reader's way to the worker.
pub struct Intake<'a> {
    /// The events that this instance works on.
    pub in_hand: &'a InHand,
    /// The worker, shared with its thread.
    pub worker: Arc<Mutex<Worker<'a>>>,
    /// The channel of that thread.
    pub to_thread: Sender<Vec<Delivered>>,
}

impl Intake<'_> {
    /// Passes events on to the worker's thread.
    pub fn queue(&self, batch: Vec<Delivered>) {
        if !batch.is_empty() {
            self.send(batch);
        }
    }

    /// Has events decided in this thread, if they are few and nothing else is in hand; else queues them.
    ///
    /// # Errors
    /// What Redis or the link said; the session is then over.
    pub fn serve(&self, batch: Vec<Delivered>) -> Result<(), Error> {
        // What is in the channel, under way or waiting is in hand as well: nothing is overtaken.
        let is_alone = batch.len() <= FEW && batch.len() == self.in_hand.count();
        // Even so the worker's thread may have the lock for a moment, when it looks up.
        let Some(Ok(mut worker)) = is_alone.then(|| self.worker.try_lock()) else {
            self.queue(batch);
            return Ok(());
        };
        worker.take(batch);
        while worker.turn()? && !worker.has_waiting() {}
        let wake = worker.has_waiting();
        // The channel may be full, and who empties it needs the lock.
        drop(worker);
        if wake {
            self.send(Vec::new());
        }
        Ok(())
    }

    fn send(&self, batch: Vec<Delivered>) {
        // The channel is closed only when the session is over.
        let _ = self.to_thread.send(batch);
    }
}
