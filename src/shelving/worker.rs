//! ShelvingService's worker: puts the books of hand-offs on their shelves. A well-formed hand-off
//! is never given up.
//!
//! It ends when the reader and the keeper have let go of its channel, or when the session breaks.

use std::sync::LazyLock;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{debug, warn};

use super::reader::Delivered;
use crate::error::Error;
use crate::event::{Fault, HandOff};
use crate::ids::EventId;
use crate::keys::SHELVING_GROUP;
use crate::link::{self, Connection};
use crate::script::{Script, ScriptCall, lua, text};
use crate::session::{Session, Thread};
use crate::shelving::LOG;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("shelve")));
static DISCARD: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("letters", "discard")));

/// The most books that one script puts on their shelves, a hand-off more or less.
const CHUNK_BOOKS: usize = 1_000;

/// How often an idle worker looks up, to show that it is alive, and its link too.
const IDLE: Duration = Duration::from_secs(1);

/// Works until there is nothing more to come. Tells `shelved` when books have arrived.
///
/// # Errors
/// What Redis or the link said; the session is then over.
pub fn run(
    session: &Session,
    mut connection: Connection,
    from_readers: &Receiver<Vec<Delivered>>,
    shelved: &Sender<()>,
) -> Result<(), Error> {
    while !session.is_broken() {
        session.beat(Thread::ShelvingWorker);
        let batch = match from_readers.recv_timeout(IDLE) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => {
                link::ping(&mut connection)?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut chunk: Vec<HandOff> = Vec::new();
        let mut books = 0;
        for one in batch {
            // A call for each malformed one, and for each thousand books.
            session.beat(Thread::ShelvingWorker);
            match one {
                Ok(hand_off) => {
                    books += hand_off.books.len();
                    chunk.push(hand_off);
                }
                Err((id, fault)) => give_up(session, &mut connection, id, fault)?,
            }
            if books >= CHUNK_BOOKS {
                shelve(session, &mut connection, &chunk)?;
                chunk.clear();
                books = 0;
            }
        }
        if !chunk.is_empty() {
            shelve(session, &mut connection, &chunk)?;
        }
        // One token is enough, however many batches it stands for.
        let _ = shelved.try_send(());
    }
    Ok(())
}

/// The call that puts the books of hand-offs on their shelves.
pub fn call(session: &Session, chunk: &[HandOff]) -> ScriptCall {
    let keys = &session.keys;
    let mut call = SCRIPT.call(3);
    call.arg(session.lock()).arg(&keys.handoffs).arg(&keys.shelves);
    call.arg(&session.token).arg(SHELVING_GROUP).arg(session.decided_events());
    call.arg(&keys.bell).arg(session.consumer());
    for hand_off in chunk {
        call.arg(hand_off.id).arg(hand_off.books.len());
        for book in &hand_off.books {
            call.arg(book.as_str());
        }
    }
    call
}

fn shelve(session: &Session, connection: &mut Connection, chunk: &[HandOff]) -> Result<(), Error> {
    const DOING: &str = "put books on their shelves";
    let reply = call(session, chunk).run(connection, DOING)?;
    if reply.word != "SHELVED" || reply.rest.len() != chunk.len() {
        return Err(reply.unexpected(DOING));
    }
    for (word, hand_off) in reply.rest.iter().zip(chunk) {
        debug!(target: LOG,
            "hand-off {} of {} books: {}",
            hand_off.id,
            hand_off.books.len(),
            text(word).unwrap_or("?")
        );
    }
    Ok(())
}

/// The call that moves a hand-off to the dead letters.
pub fn discard(session: &Session, id: EventId, cause: &str) -> ScriptCall {
    let keys = &session.keys;
    let mut call = DISCARD.keys(&[session.lock(), &keys.handoffs, &keys.dead_letters]);
    call.arg(&session.token).arg(SHELVING_GROUP).arg(session.decided_events());
    call.arg(&keys.bell).arg(session.consumer()).arg(id).arg(cause);
    call
}

fn give_up(
    session: &Session,
    connection: &mut Connection,
    id: EventId,
    fault: Fault,
) -> Result<(), Error> {
    const DOING: &str = "move a hand-off to the dead letters";
    let reply = discard(session, id, fault.cause()).run(connection, DOING)?;
    match reply.word.as_str() {
        "DISCARDED" => {
            warn!(target: LOG, "hand-off {id} is in the dead letters: {}", fault.cause());
            Ok(())
        }
        "STALE" => Ok(()),
        _ => Err(reply.unexpected(DOING)),
    }
}
