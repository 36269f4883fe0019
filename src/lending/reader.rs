//! LendingService's reader: a blocking XREADGROUP loop on requests and returns.
//!
//! It reads what is pending for this instance first, then what is new, and gives both to [`Intake`] in
//! the order of ids. Where one stream is read further than the other, because that one has more events,
//! what is ahead is held back until the other is read as far: else returns would come to the worker
//! before their requests, and wait there at the cost of many tries. As long as several events come at a
//! time, it looks into both streams once more before it gives away what it was woken with.
//!
//! It ends when the session stops or breaks; being woken from its blocking read is the supervisor's
//! business.

use std::time::Duration;

use super::Delivered;
use super::intake::Intake;
use crate::claim::{Claimed, SUSPICIOUS_DELIVERIES, claim_all};
use crate::error::Error;
use crate::event::{Action, ByAction, EventKey};
use crate::ids::EventId;
use crate::keys::{LENDING_GROUP, Stream};
use crate::link::Connection;
use crate::session::{Session, Thread};
use crate::stream::{self, BLOCK_MS, Entry, Pending};

/// How long a read waits while a stream is left out because too many of its events are in hand.
const SHORT_BLOCK_MS: u64 = 20;

/// The most events that one read takes from each stream: as many as a script decides unless it is told
/// otherwise, and enough to keep the worker busy while the next read is under way. With more, each of
/// several instances would be at work in a stretch of the backlog of its own; only where everything
/// older is decided can a stream be trimmed at once, instead of an XDEL for each event.
const MOST_IN_A_READ: usize = 128;

/// How many events that were read ahead are held back while both streams are still read on.
const FEW_HELD_BACK: usize = 64;

/// Redis wakes a read of both streams with what has come into one, even if the same transaction fills
/// the other. After a read that brought several events, the next ones look once more as soon as they are
/// woken: what was sent together is decided in one call then.
const SEVERAL: usize = 2;

/// If a read that may have been woken so brings so many events, and all of one stream, the other one is read
/// before any of them is given away. A user's requests would be decided without the returns between them:
/// the first five are granted, the others wait, and when the returns are there, those that come next are
/// granted before the others are tried again, which the user may not have then. For fewer events a read of
/// its own costs too much.
const MANY: usize = 64;

/// How many reads after that look twice. Not one: it may bring the few that were left of that transaction.
const LOOKS: usize = 2;

/// Reads until the session stops.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    mut connection: Connection,
    mut intake: Intake<'_>,
    reading: impl FnOnce(),
) -> Result<(), Error> {
    for action in Action::ALL {
        read_own_pending(session, &mut connection, action, &intake)?;
    }
    reading();
    let mut merge = Merge::default();
    let mut looks_left: usize = 0;
    while !session.is_stopping() {
        session.beat(Thread::LendingReader);
        let Some(read) = merge.next_read(session.workload.free(), looks_left > 0) else {
            // What is in hand of one stream may wait for what is held back of the other.
            let held_back = merge.take_all();
            if held_back.is_empty() {
                session.workload.wait_while_full(Duration::from_millis(BLOCK_MS));
            }
            intake.queue(held_back);
            continue;
        };
        let batches = read_new(session, &mut connection, &read)?;
        for (n, batch) in batches.iter().enumerate() {
            merge.note(&read.streams, read.count, batch);
            if n == 0 && read.waits[0].is_some() {
                merge.note_wake_up(&read.streams, batch);
            }
        }
        let is_backlog = batches.iter().any(|batch| batch.len() >= read.count);
        let mut batch: Vec<Delivered> = batches.into_iter().flatten().collect();
        let several = batch.len() >= SEVERAL;
        looks_left = if several && !is_backlog { LOOKS } else { looks_left.saturating_sub(1) };
        take_on(session, &mut batch);
        intake.serve(merge.take_ready(batch))?;
    }
    // It was read, so it is finished.
    intake.queue(merge.take_all());
    Ok(())
}

/// What is asked of Redis in one write.
struct Read {
    /// Of which streams.
    streams: Vec<Action>,
    /// How many events of each, at most.
    count: usize,
    /// How long each read of it waits for the first event, in milliseconds, if at all.
    waits: &'static [Option<u64>],
}

/// Brings what is read of both streams into one order.
#[derive(Default)]
struct Merge {
    /// For each stream, up to where it was read, if it probably has more.
    read_to: ByAction<Option<EventKey>>,
    held_back: Vec<Delivered>,
}

impl Merge {
    /// The next read, with room for so many events of each stream; none if there is room for none of those
    /// that may be read. `looks_twice`: both streams are read again as soon as something has come.
    fn next_read(&self, free: ByAction<usize>, looks_twice: bool) -> Option<Read> {
        let behind = self.behind();
        // Where both streams have as much, they are read on side by side: instances that each read
        // on in one of them would get the requests of a user and another the returns.
        let only =
            behind.filter(|behind| self.held_back.len() > FEW_HELD_BACK || free[*behind] == 0);
        let may_be_read =
            |action: &Action| free[*action] > 0 && only.is_none_or(|only| only == *action);
        let streams: Vec<Action> = Action::ALL.into_iter().filter(may_be_read).collect();
        let least_free = streams.iter().map(|action| free[*action]).min()?;
        let are_both_free = free.iter().all(|free| *free >= 2 * MOST_IN_A_READ);
        let waits: &[_] = match (behind, streams.len()) {
            (Some(_), _) => &[None],
            (None, 2) if looks_twice && are_both_free => &[Some(BLOCK_MS), None],
            (None, 2) => &[Some(BLOCK_MS)],
            (None, _) => &[Some(SHORT_BLOCK_MS)],
        };
        Some(Read { streams, count: least_free.min(MOST_IN_A_READ), waits })
    }

    /// The stream that is to be read before anything is read of the other.
    fn behind(&self) -> Option<Action> {
        if self.held_back.is_empty() { None } else { self.until().map(|key| key.action) }
    }

    fn until(&self) -> Option<EventKey> {
        self.read_to.iter().flatten().min().copied()
    }

    /// Notes how far streams were read by a read that asked for `count` of each.
    fn note(&mut self, streams: &[Action], count: usize, batch: &[Delivered]) {
        for action in streams {
            let keys = batch.iter().map(|one| one.key).filter(|key| key.action == *action);
            let full = keys.clone().count() >= count;
            self.read_to[*action] = if full { keys.max() } else { None };
        }
    }

    /// Notes that a read may have been woken by one of the streams: what the other has, it does not tell.
    fn note_wake_up(&mut self, streams: &[Action], batch: &[Delivered]) {
        if batch.len() < MANY {
            return;
        }
        for &action in streams {
            if !batch.iter().any(|one| one.key.action == action) {
                self.read_to[action] = Some(EventKey { id: EventId::default(), action });
            }
        }
    }

    /// Of what was read now and before, in order, what both streams were read as far as.
    fn take_ready(&mut self, batch: Vec<Delivered>) -> Vec<Delivered> {
        let mut ready = self.take_all();
        ready.extend(batch);
        // Each stream is in order already, and the stable sort merges such runs.
        ready.sort_by_key(|delivered| delivered.key);
        if let Some(until) = self.until() {
            let first_ahead = ready.partition_point(|delivered| delivered.key <= until);
            self.held_back = ready.split_off(first_ahead);
        }
        ready
    }

    fn take_all(&mut self) -> Vec<Delivered> {
        std::mem::take(&mut self.held_back)
    }
}

/// Reads new events. Returns what came of each read.
fn read_new(
    session: &Session,
    connection: &mut Connection,
    read: &Read,
) -> Result<Vec<Vec<Delivered>>, Error> {
    let (group, consumer) = (LENDING_GROUP, session.consumer());
    let Read { streams, count, waits } = read;
    let keys: Vec<&str> = streams.iter().map(|action| session.keys.stream(*action)).collect();
    let batches = stream::read_new(connection, group, consumer, &keys, *count, waits)?;
    session.note_reply();
    let delivered = |(n, entry): &(usize, Entry)| Delivered::read(streams[*n], entry, true);
    Ok(batches.iter().map(|entries| entries.iter().map(delivered).collect()).collect())
}

/// Takes events in hand; drops those that are in hand already.
fn take_on(session: &Session, batch: &mut Vec<Delivered>) {
    session.workload.take(batch, Delivered::key_and_books);
}

/// Takes events in hand and queues them, oldest first.
fn take_and_queue(session: &Session, mut batch: Vec<Delivered>, intake: &Intake<'_>) {
    take_on(session, &mut batch);
    batch.sort_unstable_by_key(|delivered| delivered.key);
    intake.queue(batch);
}

/// What was delivered to this instance before and not decided. In the first session of a process
/// that is what a process of this name had in hand when it died: it is counted.
fn read_own_pending(
    session: &Session,
    connection: &mut Connection,
    action: Action,
    intake: &Intake<'_>,
) -> Result<(), Error> {
    if session.first {
        let own = session.consumer().as_bytes();
        let stream = Stream::from(action);
        return claim_all(session, connection, stream, own, |claimed| {
            session.beat(Thread::LendingReader);
            let batch = claimed.into_iter().map(|one| delivered(action, one)).collect();
            take_and_queue(session, batch, intake);
            !session.is_stopping()
        });
    }
    let stream = session.keys.stream(action);
    let mut after: Option<EventId> = None;
    while !session.is_stopping() {
        session.beat(Thread::LendingReader);
        let page = stream::pending(
            connection,
            stream,
            LENDING_GROUP,
            session.consumer(),
            after,
            // Their contents come in one write: some may be large.
            MOST_IN_A_READ,
        )?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        let batch = read_pending(session, connection, action, &page)?;
        take_and_queue(session, batch, intake);
    }
    Ok(())
}

/// Reads what was delivered before. What several instances have died with is not looked at.
///
/// # Errors
/// What Redis or the link said.
pub fn read_pending(
    session: &Session,
    connection: &mut Connection,
    action: Action,
    pending: &[Pending],
) -> Result<Vec<Delivered>, Error> {
    let (suspects, others): (Vec<&Pending>, Vec<_>) =
        pending.iter().partition(|one| one.deliveries >= SUSPICIOUS_DELIVERIES);
    let ids: Vec<EventId> = others.iter().map(|one| one.id).collect();
    let entries = stream::contents(connection, session.keys.stream(action), &ids)?;
    let read = entries.iter().map(|entry| Delivered::read(action, entry, false));
    let suspects = suspects.iter().map(|one| Delivered::suspect(EventKey { id: one.id, action }));
    Ok(read.chain(suspects).collect())
}

/// A claimed event on its way to the worker.
pub fn delivered(action: Action, claimed: Claimed) -> Delivered {
    match claimed.entry {
        Some(entry) => Delivered::read(action, &entry, false),
        None => Delivered::suspect(EventKey { id: claimed.id, action }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(action: Action, ms: impl Iterator<Item = u64>) -> Vec<Delivered> {
        ms.map(|ms| Delivered::suspect(EventKey { id: EventId { ms, seq: 0 }, action })).collect()
    }

    fn ready(merge: &mut Merge, streams: &[Action], batch: Vec<Delivered>) -> Vec<u64> {
        merge.note(streams, 3, &batch);
        merge.take_ready(batch).iter().map(|delivered| delivered.key.id.ms).collect()
    }

    #[test]
    fn many_requests_wait_for_a_look_at_the_returns_and_a_few_do_not() {
        use Action::{Request, Return};
        let both = [Request, Return];
        for (number, waits) in [(MANY as u64 - 1, false), (MANY as u64, true)] {
            let mut merge = Merge::default();
            let batch = read(Request, 1..=number);
            merge.note(&both, 1_000, &batch);
            merge.note_wake_up(&both, &batch);
            assert_eq!(merge.take_ready(batch).is_empty(), waits, "{number}");
            assert_eq!(merge.behind(), waits.then_some(Return));
            // Two came with them.
            let both_read = ready(&mut merge, &[Return], read(Return, [2, 9].into_iter()));
            let expected = if waits { number as usize + 2 } else { 2 };
            assert_eq!(both_read.len(), expected);
            assert!(both_read.is_sorted());
        }
        let mut merge = Merge::default();
        let mut batch = read(Request, 1..100);
        batch.extend(read(Return, 7..8));
        merge.note(&both, 1_000, &batch);
        merge.note_wake_up(&both, &batch);
        assert_eq!(merge.take_ready(batch).len(), 100, "both were looked at");
    }

    #[test]
    fn returns_that_were_read_ahead_wait_until_requests_are_read_as_far() {
        use Action::{Request, Return};
        let both = [Request, Return];
        let mut merge = Merge::default();
        let mut batch = read(Request, 1..4);
        batch.extend(read(Return, [2, 8, 9].into_iter()));
        assert_eq!(ready(&mut merge, &both, batch), [1, 2, 2, 3]);
        assert_eq!(merge.behind(), Some(Request));
        // Now the requests are ahead: returns may have more between 9 and 10.
        assert_eq!(
            ready(&mut merge, &[Request], read(Request, [7, 8, 10].into_iter())),
            [7, 8, 8, 9]
        );
        assert_eq!(merge.behind(), Some(Return));
        // They have not: both streams are at their ends.
        assert_eq!(ready(&mut merge, &[Return], Vec::new()), [10]);
        assert_eq!(merge.behind(), None);
        assert_eq!(ready(&mut merge, &both, read(Return, 11..12)), [11]);
    }
}
