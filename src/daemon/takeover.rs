//! Taking over what an instance that died had in hand, and counting what such events cost.

use std::sync::LazyLock;

use redis::Value;

use crate::error::Error;
use crate::event::EventKey;
use crate::ids::EventId;
use crate::keys::LENDING_GROUP;
use crate::lending::SUSPICIOUS_DELIVERIES;
use crate::lending::suspects::DiedWith;
use crate::link::Connection;
use crate::script::{Script, lua, text};
use crate::session::Session;
use crate::stream::Entry;

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "claim")));
static LONE_TRY: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("lone_try")));

/// The most events that one script claims; it takes about a millisecond.
const MOST_IN_A_CLAIM: usize = 500;

/// An event taken over.
#[derive(Debug)]
pub struct Claimed {
    /// Its id.
    pub id: EventId,
    /// Its entry; none if it is suspected of killing who reads it.
    pub entry: Option<Entry>,
}

/// Claims everything that is pending for the consumer `from` (this instance's own name at the
/// start of a process), page by page, as long as `pass_on` wants more. Nothing happens if that
/// instance is alive. Hand-offs are never suspected: they are never given up, and refusals wait for
/// them.
///
/// # Errors
/// What Redis or the link said.
pub fn claim_all(
    session: &Session,
    connection: &mut Connection,
    stream: &str,
    group: &str,
    from: &[u8],
    mut pass_on: impl FnMut(Vec<Claimed>) -> bool,
) -> Result<(), Error> {
    const DOING: &str = "take over events";
    let suspicious = if group == LENDING_GROUP { SUSPICIOUS_DELIVERIES } else { u64::MAX };
    let mut seen = "-".to_owned();
    loop {
        let reply = CLAIM
            .keys(&[session.lock().as_bytes(), stream.as_bytes(), &session.keys.lock_of(from)])
            .arg(&session.token)
            .arg(group)
            .arg(session.consumer())
            .arg(from)
            .arg(MOST_IN_A_CLAIM)
            .arg(&seen)
            .arg(suspicious)
            .arg(session.options.abandoned_after.as_millis() as u64)
            .run(connection, DOING)?;
        if reply.word == "ALIVE" {
            return Ok(());
        }
        let mut parts = reply.rest.into_iter();
        let last = parts.next().as_ref().and_then(text).unwrap_or_default().to_owned();
        let mut claimed = Vec::new();
        while let (Some(id), Some(_), Some(fields)) = (parts.next(), parts.next(), parts.next()) {
            let suspected = !matches!(fields, Value::Array(_));
            let entry = Entry::from_parts(&id, fields, DOING)?;
            claimed.push(Claimed { id: entry.id, entry: (!suspected).then_some(entry) });
        }
        if (!claimed.is_empty() && !pass_on(claimed)) || last.is_empty() {
            return Ok(());
        }
        seen = last;
    }
}

/// What is noted of a try of events that were in hand when instances died. Each can be noted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryStep {
    /// They are about to be tried, apart from others.
    InGroup,
    /// It is about to be tried alone.
    Alone,
    /// They are not decided, and the process survived.
    Survived,
    /// They are decided.
    Ended,
}

/// Notes a try. Returns how many tries alone there are now, of the last event.
///
/// # Errors
/// What Redis or the link said.
pub fn note_try(
    session: &Session,
    connection: &mut Connection,
    keys: &[EventKey],
    step: TryStep,
) -> Result<u64, Error> {
    const DOING: &str = "note a try";
    let mut call = LONE_TRY.keys(&[session.lock(), &session.keys.lone_tries]);
    call.arg(&session.token).arg(match step {
        TryStep::InGroup => "group",
        TryStep::Alone => "alone",
        TryStep::Survived => "survived",
        TryStep::Ended => "ended",
    });
    for key in keys {
        call.arg(key.to_string());
    }
    let reply = call.run(connection, DOING)?;
    let tries = reply.number(0).ok_or_else(|| reply.unexpected(DOING))?;
    Ok(u64::try_from(tries).unwrap_or(0))
}

/// Of each event, how many processes died while they tried it apart from others.
///
/// # Errors
/// What Redis or the link said.
pub fn died_with(
    session: &Session,
    connection: &mut Connection,
    keys: &[EventKey],
) -> Result<Vec<DiedWith>, Error> {
    let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let notes: Vec<Option<Vec<u8>>> = redis::cmd("HMGET")
        .arg(&session.keys.lone_tries)
        .arg(names)
        .query(connection)
        .map_err(Error::redis("look at notes of tries"))?;
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok()).unwrap_or(0);
    Ok(notes
        .iter()
        .map(|note| {
            // What is no text was not noted by us.
            let note = note.as_deref().and_then(|note| std::str::from_utf8(note).ok());
            let mut parts = note.unwrap_or_default().split(' ');
            DiedWith { in_group: number(parts.next()), alone: number(parts.next()) }
        })
        .collect())
}
