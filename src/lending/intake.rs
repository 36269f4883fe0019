//! Where the events go that LendingService's reader has read: into the channel of the worker's thread,
//! or through the worker's hands in the reader's own thread.
//!
//! To wake a second thread takes a good part of the time in which an event that comes alone is decided,
//! and somebody waits for that one. So the reader sees to a few events itself if nothing else is in hand.
//! Whatever comes meanwhile or in numbers goes through the channel, and the reader reads on; what has to
//! wait is left in the worker's waiting room, and its thread is woken. The same where Redis is slow or
//! far away: to wake a thread is nothing there, and what comes meanwhile had better be asked for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::worker::Worker;
use super::{Delivered, FEW};
use crate::error::Error;
use crate::workload::Workload;

/// How long this thread goes on with the worker's work: many times what it takes beside Redis.
const QUICK: Duration = Duration::from_millis(1);

/// After it took longer, so many times events go to the worker's thread before some are decided here again:
/// that a Redis has become quick is found out soon, and with one that stays slow the reader is held up
/// seldom.
const PASSED_ON_WHEN_SLOW: u32 = 16;

/// The reader's way to the worker.
pub struct Intake<'a> {
    /// The events that this instance works on.
    workload: &'a Workload,
    /// The worker, shared with its thread.
    worker: Arc<Mutex<Worker<'a>>>,
    /// The channel of that thread.
    to_thread: Sender<Vec<Delivered>>,
    /// How many times events still go to the thread because Redis was slow.
    still_passed_on: u32,
}

impl<'a> Intake<'a> {
    /// The way to a worker, and to its thread.
    pub fn new(
        workload: &'a Workload,
        worker: Arc<Mutex<Worker<'a>>>,
        to_thread: Sender<Vec<Delivered>>,
    ) -> Self {
        Self { workload, worker, to_thread, still_passed_on: 0 }
    }

    /// Passes events on to the worker's thread.
    pub fn queue(&self, batch: Vec<Delivered>) {
        if !batch.is_empty() {
            self.send(batch);
        }
    }

    /// Has events decided in this thread, if they are few, nothing else is in hand and Redis is quick;
    /// else queues them.
    ///
    /// # Errors
    /// What Redis or the link said; the session is then over.
    pub fn serve(&mut self, batch: Vec<Delivered>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        // What is in the channel, under way or waiting is in hand as well: nothing is overtaken.
        let is_alone = batch.len() <= FEW && batch.len() == self.workload.count();
        if !is_alone || self.still_passed_on > 0 {
            self.still_passed_on = self.still_passed_on.saturating_sub(u32::from(is_alone));
            self.queue(batch);
            return Ok(());
        }
        // The worker's thread has the lock for a moment now and then, when it looks up.
        let Ok(mut worker) = self.worker.try_lock() else {
            self.queue(batch);
            return Ok(());
        };
        worker.take(batch);
        let start = Instant::now();
        let mut is_left = true;
        while is_left && !worker.has_waiting() && start.elapsed() < QUICK {
            is_left = worker.turn()?;
        }
        let wake = is_left || worker.has_waiting();
        // The channel may be full, and who empties it needs the lock.
        drop(worker);
        if wake {
            self.send(Vec::new());
        }
        if start.elapsed() >= QUICK {
            self.still_passed_on = PASSED_ON_WHEN_SLOW;
        }
        Ok(())
    }

    fn send(&self, batch: Vec<Delivered>) {
        // The channel is closed only when the session is over.
        let _ = self.to_thread.send(batch);
    }
}
