//! `outcome EVENT_ID`: what became of an event.

use redis::Value;

use super::{connect, failed, recorded};
use crate::error::Error;
use crate::event::EventKey;
use crate::ids::EventId;
use crate::keys::LENDING_GROUP;
use crate::link::{AskAgain, Connection, ask};
use crate::outcome::Outcome;
use crate::request::answer;
use crate::request::failure::{Failure, REFUSED, UNANSWERED};
use crate::request::options::Run;
use crate::request::show::{self, print_outcome};
use crate::stream;

/// `outcome EVENT_ID`: from its own answer, else from the stream of outcomes.
///
/// # Errors
/// There is none, or none yet; what Redis or the link said, or the output.
pub fn outcome(run: &Run, events: &[EventKey], show_user: bool) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let connection = &mut connection;
    let tell = |mut outcome: Outcome| {
        if !show_user {
            show::hide_user(&mut outcome, run.form);
        }
        print_outcome(&outcome, run.form)?;
        Ok(show::status(&outcome))
    };
    if let Some(outcome) = find(run, connection, events, true).map_err(failed(run))? {
        return tell(outcome);
    }
    for event in events {
        if is_undecided(run, connection, *event).map_err(failed(run))? {
            return Err(Failure {
                message: format!("{} {} is still queued: no outcome yet", event.action, event.id),
                status: UNANSWERED,
            });
        }
    }
    // It may have been decided between the two looks.
    if let Some(outcome) = find(run, connection, events, false).map_err(failed(run))? {
        return tell(outcome);
    }
    let event = match events {
        [event] => format!("{} {}", event.action, event.id),
        _ => events.first().map(|event| format!("event {}", event.id)).unwrap_or_default(),
    };
    Err(Failure {
        message: format!(
            "nothing is known about {event}: there was none, or its outcome is not kept any more"
        ),
        status: REFUSED,
    })
}

/// The outcome of one of these events. `recent`: only where it nearly always is.
fn find(
    run: &Run,
    connection: &mut Connection,
    events: &[EventKey],
    recent: bool,
) -> Result<Option<Outcome>, Error> {
    for &event in events {
        let mut command = redis::cmd("LINDEX");
        command.arg(run.keys.answer(event)).arg(0);
        let answer: Option<Vec<u8>> = ask(connection, "look for the outcome", &command)?;
        let found = match answer {
            Some(text) => Some(answer::parse(&text)?),
            None => in_stream(run, connection, event, recent)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether an event is in its stream and will be decided. Decided ones may be there as well: where they
/// are kept, and for a while those that the reference application has decided.
fn is_undecided(run: &Run, connection: &mut Connection, event: EventKey) -> Result<bool, Error> {
    const DOING: &str = "look for the event";
    let (stream, id) = (run.keys.stream(event.action), event.id.to_string());
    let mut command = redis::cmd("XRANGE");
    command.arg(stream).arg(&id).arg(&id);
    let entries: Vec<Value> = ask(connection, DOING, &command)?;
    let group = stream::group(&mut AskAgain(connection), stream, LENDING_GROUP)?;
    if group.is_none_or(|group| group.last_delivered < event.id) {
        return Ok(!entries.is_empty());
    }
    // Also if somebody has deleted it: it ends in the dead letters then.
    let mut command = redis::cmd("XPENDING");
    command.arg(stream).arg(LENDING_GROUP).arg(&id).arg(&id).arg(1);
    let pending: Vec<Value> = ask(connection, DOING, &command)?;
    Ok(!pending.is_empty())
}

/// An outcome in the stream of outcomes. Nearly always it comes behind its event: its id is the clock's,
/// `*`. But those of events can be ahead of the clock, within their millisecond (submit.lua gives them
/// high sequence numbers), and by any time after it was put back.
fn in_stream(
    run: &Run,
    connection: &mut Connection,
    event: EventKey,
    recent: bool,
) -> Result<Option<Outcome>, Error> {
    let mut found = None;
    let id = event.id.to_string();
    let ms = if recent { event.id.ms } else { 0 };
    recorded::forward(run, connection, EventId { ms, seq: 0 }, &mut |_, outcome| {
        if outcome.event_id == id && outcome.action == event.action.as_str() {
            found = Some(outcome);
            return false;
        }
        true
    })?;
    Ok(found)
}
