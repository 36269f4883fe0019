//! LendingService's reader: a blocking XREADGROUP loop on requests and returns.
//!
//! It reads what is pending for this instance first, then what is new, and hands both over to the
//! worker in the order of ids. It ends when the session stops or breaks; being woken from its
//! blocking read is the supervisor's business.

use std::time::Duration;

use crossbeam_channel::Sender;
use redis::Connection;

use super::in_hand::MOST_IN_HAND;
use super::{Delivered, SUSPICIOUS_DELIVERIES};
use crate::daemon::takeover;
use crate::error::Error;
use crate::event::{Action, EventKey};
use crate::ids::EventId;
use crate::keys::LENDING_GROUP;
use crate::session::Session;
use crate::stream::{self, Read};

/// How long a read waits for something new, in milliseconds. The read timeout is larger; a link on
/// which nothing arrives any more is noticed after both.
pub const BLOCK_MS: u64 = 2_000;

/// How long a read waits while a stream is left out because too many of its events are in hand.
const SHORT_BLOCK_MS: u64 = 20;

/// The most events that one read takes from each stream: enough to keep the worker busy while the
/// next read is under way.
const MOST_IN_A_READ: usize = 512;

/// Reads until the session stops.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    mut connection: Connection,
    to_worker: &Sender<Vec<Delivered>>,
    mut reading: impl FnMut(),
) -> Result<(), Error> {
    for action in [Action::Request, Action::Return] {
        read_own_pending(session, &mut connection, action, to_worker)?;
    }
    reading();
    while !session.is_stopping() {
        session.beat("lending-reader");
        let room = session.in_hand.room();
        let reads: Vec<(Action, Read<'_>)> = [Action::Request, Action::Return]
            .into_iter()
            .filter(|action| room[*action as usize] > 0)
            .map(|action| {
                let count = room[action as usize].min(MOST_IN_A_READ);
                (action, Read { stream: session.keys.stream(action), count })
            })
            .collect();
        if reads.is_empty() {
            session.in_hand.wait_for_fewer(Duration::from_millis(BLOCK_MS));
            continue;
        }
        let block_ms = if reads.len() == 2 { BLOCK_MS } else { SHORT_BLOCK_MS };
        let (actions, reads): (Vec<_>, Vec<_>) = reads.into_iter().unzip();
        let entries =
            stream::read_new(&mut connection, LENDING_GROUP, session.consumer(), &reads, block_ms)?;
        let mut batch: Vec<Delivered> =
            entries.iter().map(|(n, entry)| Delivered::read(actions[*n], entry, true)).collect();
        hand_over(session, &mut batch, to_worker);
    }
    Ok(())
}

/// Passes events to the worker, oldest first, those that are not in hand already.
fn hand_over(session: &Session, batch: &mut Vec<Delivered>, to_worker: &Sender<Vec<Delivered>>) {
    session.in_hand.take(batch, |delivered| delivered.key);
    if batch.is_empty() {
        return;
    }
    batch.sort_unstable_by_key(|delivered| delivered.key);
    // The channel is closed only when the worker has ended with an error, and with it the session.
    let _ = to_worker.send(std::mem::take(batch));
}

/// What was delivered to this instance before and not decided. In the first session of a process
/// that is what a process of this name had in hand when it died: it is counted.
fn read_own_pending(
    session: &Session,
    connection: &mut Connection,
    action: Action,
    to_worker: &Sender<Vec<Delivered>>,
) -> Result<(), Error> {
    let stream = session.keys.stream(action);
    if session.first {
        let own = session.consumer();
        return takeover::claim_all(session, connection, stream, LENDING_GROUP, own, |claimed| {
            session.beat("lending-reader");
            let mut batch = claimed.into_iter().map(|one| delivered(action, one)).collect();
            hand_over(session, &mut batch, to_worker);
            !session.is_stopping()
        });
    }
    let mut after: Option<EventId> = None;
    while !session.is_stopping() {
        session.beat("lending-reader");
        let page = stream::pending(
            connection,
            stream,
            LENDING_GROUP,
            session.consumer(),
            after,
            MOST_IN_HAND,
        )?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        let (suspects, others): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|pending| pending.deliveries >= SUSPICIOUS_DELIVERIES);
        let ids: Vec<EventId> = others.iter().map(|pending| pending.id).collect();
        let entries = stream::contents(connection, stream, &ids)?;
        let suspects =
            suspects.iter().map(|one| Delivered::suspect(EventKey { id: one.id, action }));
        let mut batch: Vec<Delivered> = entries
            .iter()
            .map(|entry| Delivered::read(action, entry, false))
            .chain(suspects)
            .collect();
        hand_over(session, &mut batch, to_worker);
    }
    Ok(())
}

/// A claimed event on its way to the worker.
pub fn delivered(action: Action, claimed: takeover::Claimed) -> Delivered {
    match claimed.entry {
        Some(entry) => Delivered::read(action, &entry, false),
        None => Delivered::suspect(EventKey { id: claimed.id, action }),
    }
}
