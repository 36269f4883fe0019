//! Which events this instance works on, or has in hand: delivered and not decided yet.
//!
//! For four questions: may a stream be read on (memory does not grow with the backlog), is an
//! event that is pending for us in somebody's hands (the reply to a read can get lost), is it in hand
//! already (then it is not taken twice), and are those just read all there is (then they need not
//! queue).

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event::{ByAction, EventKey};
use crate::ids::EventId;

/// How many events of one stream are in hand at most. Per stream, not shared: returns must be read
/// on while requests wait for them. Many more than the events that one millisecond can bring, which
/// may all wait for each other. Events claimed from dead instances are taken in hand beyond that as well:
/// one of them may be what all others wait for.
pub const MOST_EVENTS: usize = 8_192;

/// The events in hand.
#[derive(Debug, Default)]
pub struct Workload {
    events: Mutex<ByAction<HashSet<EventId>>>,
    fewer: Condvar,
}

impl Workload {
    fn events(&self) -> MutexGuard<'_, ByAction<HashSet<EventId>>> {
        // A set is whole after every operation; whoever panicked did not break it.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes events in hand; drops from the list those that are in hand already.
    pub fn take<T>(&self, list: &mut Vec<T>, key: impl Fn(&T) -> EventKey) {
        let mut events = self.events();
        list.retain(|one| {
            let key = key(one);
            events[key.action].insert(key.id)
        });
    }

    /// Lets events go: they are decided, or somebody else's.
    pub fn release(&self, keys: impl IntoIterator<Item = EventKey>) {
        let mut events = self.events();
        // Nobody waits otherwise, and to wake nobody is a system call as well.
        let were_full = are_full(&events);
        for key in keys {
            events[key.action].remove(&key.id);
        }
        if were_full {
            self.fewer.notify_all();
        }
    }

    /// Whether an event is in hand.
    pub fn contains(&self, key: EventKey) -> bool {
        self.events()[key.action].contains(&key.id)
    }

    /// How many events are in hand.
    pub fn count(&self) -> usize {
        self.events().iter().map(HashSet::len).sum()
    }

    /// How many more events of each stream may be taken.
    pub fn free(&self) -> ByAction<usize> {
        let events = self.events();
        ByAction::of(|action| MOST_EVENTS.saturating_sub(events[action].len()))
    }

    /// Waits as long as no more events of either stream may be taken, for `timeout` at most.
    pub fn wait_while_full(&self, timeout: Duration) {
        drop(self.fewer.wait_timeout_while(self.events(), timeout, |events| are_full(events)));
    }
}

fn are_full(events: &ByAction<HashSet<EventId>>) -> bool {
    events.iter().all(|events| events.len() >= MOST_EVENTS)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::event::Action;

    #[test]
    fn events_are_taken_once_and_counted_by_stream() {
        let workload = Workload::default();
        let key = |ms, action| EventKey { id: EventId { ms, seq: 0 }, action };
        let mut list =
            vec![key(1, Action::Request), key(1, Action::Return), key(1, Action::Return)];
        workload.take(&mut list, |key| *key);
        assert_eq!(list, [key(1, Action::Request), key(1, Action::Return)]);
        assert_eq!(workload.count(), 2);
        workload.take(&mut list, |key| *key);
        assert!(list.is_empty());
        assert_eq!(workload.free(), ByAction::of(|_| MOST_EVENTS - 1));
        workload.release([key(1, Action::Return)]);
        let free = workload.free();
        assert_eq!(free[Action::Request], MOST_EVENTS - 1);
        assert_eq!(free[Action::Return], MOST_EVENTS);
        assert!(!workload.contains(key(1, Action::Return)));
    }

    /// A reader that saw both streams full, and began to wait when that was over, slept for two seconds.
    #[test]
    fn nobody_waits_but_while_both_streams_are_full() {
        const LONG: Duration = Duration::from_secs(60);
        let workload = Workload::default();
        let key = |ms, action| EventKey { id: EventId { ms, seq: 0 }, action };
        let fill = |action| {
            let mut list: Vec<_> = (0..MOST_EVENTS as u64).map(|ms| key(ms, action)).collect();
            workload.take(&mut list, |key| *key);
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
