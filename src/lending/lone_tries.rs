//! What is noted in Redis of tries of events that instances died of: how often, and in which company.

use std::sync::LazyLock;

use super::suspects::DiedWith;
use crate::error::Error;
use crate::event::EventKey;
use crate::link::Connection;
use crate::script::{Script, lua};
use crate::session::Session;

static LONE_TRY: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("lone_try")));

/// What is noted of a try of events that were in hand when instances died. Each can be noted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoneStep {
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
pub fn note(
    session: &Session,
    connection: &mut Connection,
    keys: &[EventKey],
    step: LoneStep,
) -> Result<u64, Error> {
    const DOING: &str = "note a try";
    let mut call = LONE_TRY.keys(&[session.lock(), &session.keys.lone_tries]);
    call.arg(&session.token).arg(match step {
        LoneStep::InGroup => "group",
        LoneStep::Alone => "alone",
        LoneStep::Survived => "survived",
        LoneStep::Ended => "ended",
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
