//! Typed calls of reject.lua: requests and returns that cannot be worked on go to the dead letters.

use std::sync::LazyLock;

use redis::Value;

use super::STORAGE_CAPACITY;
use crate::error::Error;
use crate::event::{Action, AnswerWish, EventKey};
use crate::keys::{LENDING_GROUP, SHELVING_GROUP};
use crate::script::{Reply, Script, ScriptCall, lua, text};
use crate::session::Session;

static SCRIPT: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "letters", "reject")));

/// The keys that belong to no single event, and how many belong to each.
const KEYS: usize = 10;
const KEYS_OF_EACH: usize = 2;

/// The most events that one call gives up: each costs Redis some 20 microseconds.
pub const MOST_AT_ONCE: usize = 64;

/// An event that is given up, and the cause.
pub type GivenUp = (EventKey, String);

/// The call that moves events, all requests or all returns, to the dead letters.
pub fn call(session: &Session, events: &[GivenUp]) -> ScriptCall {
    build(session, "reject", events)
}

/// The call that tells which books a request may have fetched from the main storage.
pub fn look(session: &Session, event: &GivenUp) -> ScriptCall {
    build(session, "look", std::slice::from_ref(event))
}

fn build(session: &Session, step: &str, events: &[GivenUp]) -> ScriptCall {
    let keys = &session.keys;
    let action = events.first().map_or(Action::Request, |(key, _)| key.action);
    let mut call = SCRIPT.call(KEYS + KEYS_OF_EACH * events.len());
    call.arg(session.lock()).arg(keys.stream(action)).arg(&keys.dead_letters).arg(&keys.outcomes);
    call.arg(&keys.handoffs).arg(&keys.book_states).arg(&keys.storage).arg(&keys.loans);
    call.arg(&keys.lone_tries).arg(&keys.ties);
    for (key, _) in events {
        call.arg(keys.reservation(key.id)).arg(keys.answer(*key));
    }
    call.arg(&session.token).arg(LENDING_GROUP).arg(action.as_str()).arg(session.decided_events());
    call.arg(STORAGE_CAPACITY).arg(session.settings.outcomes_kept).arg(AnswerWish::Keep.ttl_ms());
    call.arg(step).arg(SHELVING_GROUP).arg(&keys.bell).arg(session.consumer());
    // Not the dead ones, which may have been ours: such a one reserves nothing any more.
    let neighbours = session.neighbours();
    call.arg(neighbours.without_ttl.len()).arg(&neighbours.without_ttl);
    for (key, cause) in events {
        call.arg(key.id).arg(cause);
    }
    call
}

/// What came of it.
#[derive(Debug)]
pub enum Rejected {
    /// The books that the request may have fetched.
    MayHave(Vec<Vec<u8>>),
    /// What became of each event; nothing if somebody else has decided it. Those at the end that are
    /// left out are as they were.
    Done(Vec<Option<DeadLetter>>),
}

/// An event that is in the dead letters now.
#[derive(Debug)]
pub struct DeadLetter {
    /// The user that its outcome names, if there is one to be shown.
    pub user: Option<String>,
}

/// What the script's reply says.
///
/// # Errors
/// [`Error::Fenced`], or the reply is none of this script.
pub fn read(reply: Value) -> Result<Rejected, Error> {
    const DOING: &str = "move events to the dead letters";
    let reply = Reply::read(reply, DOING)?;
    match reply.word.as_str() {
        "DONE" => {
            let letters = reply.rest.into_iter().map(|one| match one {
                Value::Int(0) => None,
                // 1 if it names none; and what is no text cannot be shown.
                user => {
                    let user = text(&user).filter(|user| !user.is_empty());
                    Some(DeadLetter { user: user.map(str::to_owned) })
                }
            });
            Ok(Rejected::Done(letters.collect()))
        }
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
