//! ShelvingService's reader: a blocking XREADGROUP loop on the books that are handed over.
//!
//! What is pending for this instance comes first, then what is new, gathered for two milliseconds at a
//! time. It ends when the session stops or breaks; being woken from its blocking read is the supervisor's
//! business.

use std::time::Duration;

use crossbeam_channel::Sender;

use crate::error::Error;
use crate::event::{Fault, HandOff};
use crate::ids::EventId;
use crate::keys::SHELVING_GROUP;
use crate::link::Connection;
use crate::session::{Session, Thread};
use crate::stream::{self, BLOCK_MS, Entry};

/// The most hand-offs that one read takes. A hand-off nearly always has a few books.
const MOST_IN_A_READ: usize = 128;

/// After a read that was not full the reader sleeps so long, and the next one brings what came
/// meanwhile. To be woken for each hand-off costs Redis more than all the rest of it, and nobody waits
/// for one but a request for one of its books. Whether more will come is nothing to wait for.
pub const GATHER: Duration = Duration::from_millis(2);

/// A hand-off on its way to the worker: well-formed, or what is wrong with it.
pub type Delivered = Result<HandOff, (EventId, Fault)>;

/// A hand-off from its entry.
///
/// # Errors
/// Its id, and the first rule that it breaks.
pub fn delivered(entry: &Entry) -> Delivered {
    HandOff::parse(entry.id, entry.fields()).map_err(|fault| (entry.id, fault))
}

/// Reads until the session stops.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    mut connection: Connection,
    to_worker: &Sender<Vec<Delivered>>,
    reading: impl FnOnce(),
) -> Result<(), Error> {
    let stream = session.keys.handoffs.as_str();
    let consumer = session.consumer();
    let mut after = None;
    while !session.is_stopping() {
        session.beat(Thread::ShelvingReader);
        let count = MOST_IN_A_READ;
        let page =
            stream::pending(&mut connection, stream, SHELVING_GROUP, consumer, after, count)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        let ids: Vec<EventId> = page.iter().map(|pending| pending.id).collect();
        let entries = stream::contents(&mut connection, stream, &ids)?;
        hand_over(entries.iter().map(delivered).collect(), to_worker);
    }
    reading();
    while !session.is_stopping() {
        session.beat(Thread::ShelvingReader);
        let reads = stream::read_new(
            &mut connection,
            SHELVING_GROUP,
            consumer,
            &[stream],
            MOST_IN_A_READ,
            &[Some(BLOCK_MS)],
        )?;
        session.note_reply();
        let entries: Vec<_> = reads.into_iter().flatten().collect();
        let is_full = entries.len() == MOST_IN_A_READ;
        hand_over(entries.iter().map(|(_, entry)| delivered(entry)).collect(), to_worker);
        if !is_full {
            std::thread::sleep(GATHER);
        }
    }
    Ok(())
}

fn hand_over(batch: Vec<Delivered>, to_worker: &Sender<Vec<Delivered>>) {
    if !batch.is_empty() {
        // The channel is closed only when the worker has ended with an error, and with it the
        // session.
        let _ = to_worker.send(batch);
    }
}
