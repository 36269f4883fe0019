//! Typed call of reject.lua: an event that cannot be worked on goes to the dead letters.

use std::sync::LazyLock;

use redis::{Cmd, Value};

use super::STORAGE_CAPACITY;
use crate::error::Error;
use crate::event::{AnswerWish, EventKey};
use crate::ids::EventId;
use crate::keys::{LENDING_GROUP, SHELVING_GROUP};
use crate::script::{Reply, Script};
use crate::session::Session;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(include_str!("../../lua/order.lua"), include_str!("../../lua/reject.lua")))
});

const KEYS: usize = 12;

/// The command that moves a request or return to the dead letters; or, to `look`, tells which
/// books it may have fetched from the main storage.
pub fn command(session: &Session, key: EventKey, cause: &str, look: bool, by_text: bool) -> Cmd {
    let keys = &session.keys;
    let stream = keys.stream(key.action);
    let own = [keys.reservation(key), keys.answer(key)];
    let step = if look { "look" } else { "reject" };
    let action = key.action.as_str();
    build(session, stream, LENDING_GROUP, key.id, action, cause, own, step, by_text)
}

/// The command that moves a hand-off to the dead letters.
pub fn hand_off_command(session: &Session, id: EventId, cause: &str, by_text: bool) -> Cmd {
    let keys = &session.keys;
    // A hand-off has neither a reservation nor an answer; the stream itself stands in for them.
    let own = [keys.handoffs.clone(), keys.handoffs.clone()];
    let (stream, step) = (&keys.handoffs, "reject");
    build(session, stream, SHELVING_GROUP, id, "handoff", cause, own, step, by_text)
}

#[allow(clippy::too_many_arguments)] // Two callers, both above.
fn build(
    session: &Session,
    stream: &str,
    group: &str,
    id: EventId,
    action: &str,
    cause: &str,
    [reservation, answer]: [String; 2],
    step: &str,
    by_text: bool,
) -> Cmd {
    let keys = &session.keys;
    let mut cmd = if by_text { SCRIPT.by_text(KEYS) } else { SCRIPT.by_digest(KEYS) };
    cmd.arg(session.lock()).arg(stream).arg(&keys.dead_letters).arg(&keys.outcomes);
    cmd.arg(&keys.handoffs).arg(&keys.book_states).arg(&keys.storage).arg(&keys.loans);
    cmd.arg(&keys.lone_tries).arg(reservation).arg(answer).arg(&keys.ties);
    cmd.arg(&session.token).arg(group).arg(id.to_string()).arg(action).arg(cause);
    cmd.arg(session.decided_events()).arg(STORAGE_CAPACITY).arg(session.options.outcomes_kept);
    cmd.arg(AnswerWish::Keep.ttl_ms()).arg(step).arg(SHELVING_GROUP);
    cmd.arg(&keys.bell).arg(session.consumer());
    cmd
}

/// What came of it.
#[derive(Debug)]
pub enum Rejected {
    /// The books that the request may have fetched.
    MayHave(Vec<Vec<u8>>),
    /// It is in the dead letters: the outcome's fields, names and values in turn.
    Done(Vec<Value>),
    /// Somebody else has decided the event.
    Stale,
}

/// What the script's reply says.
///
/// # Errors
/// [`Error::Fenced`], or the reply is none of this script.
pub fn read(reply: Value) -> Result<Rejected, Error> {
    const DOING: &str = "move an event to the dead letters";
    let reply = Reply::read(reply, DOING)?;
    match reply.word.as_str() {
        "DONE" => Ok(Rejected::Done(reply.rest)),
        "STALE" => Ok(Rejected::Stale),
        "MAY_HAVE" => {
            let books = reply.rest.into_iter().filter_map(|book| match book {
                Value::BulkString(book) => Some(book),
                _ => None,
            });
            Ok(Rejected::MayHave(books.collect()))
        }
        _ => Err(reply.unexpected(DOING)),
    }
}
