//! `library-admin regroup`: creates a consumer group that was lost while events that are decided
//! were still in its stream. The daemon does not dare to: from the beginning of the stream it
//! would lend twice, from its end it would lose events.
//!
//! The operator names the first event that is not decided. Of those behind it, some may be decided
//! nevertheless, for an event waits while a later one does not; they are known by their outcomes.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::Connection;

use super::failure::{DONE, Failure};
use super::options::{Run, Stream};
use super::show::{Object, print, say};
use super::status::waiting;
use crate::connect::{AskAgain, ask};
use crate::error::Error;
use crate::event::Action;
use crate::ids::EventId;
use crate::script::{Script, lua};
use crate::stream;

static REGROUP: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("regroup")));

/// Entries that one step reads.
const PAGE: usize = 250;

/// The consumer that undecided events are pending for until an instance takes them over. No
/// instance has this name: it has a comma in it.
const NOBODY: &str = "library-admin, regroup";

/// Creates the groups that are lost, or the one that is named.
///
/// # Errors
/// None is lost; what Redis or the link said.
pub fn run(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    only: Option<Stream>,
) -> Result<u8, Failure> {
    let mut lost = Vec::new();
    for stream in Stream::ALL {
        if only.is_some_and(|only| only != stream) {
            continue;
        }
        let key = stream.key(&run.keys);
        let exists: bool = ask(connection, "look for a stream", redis::cmd("EXISTS").arg(key))?;
        // Of a stream that is not there, nothing is lost: the daemon creates both.
        if exists && stream::group(&mut AskAgain(connection), key, stream.group())?.is_none() {
            lost.push(stream);
        }
    }
    if lost.is_empty() {
        return Err(Failure::wrong(match only {
            Some(stream) => format!("the group of {} is not lost: nothing was done", stream.word()),
            None => "no group is lost: nothing was done".to_owned(),
        }));
    }
    for stream in lost {
        regroup(run, connection, from, stream)?;
    }
    Ok(DONE)
}

fn regroup(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    stream: Stream,
) -> Result<(), Failure> {
    const DOING: &str = "create the consumer group";
    let action = match stream {
        Stream::Requests => Some(Action::Request),
        Stream::Returns => Some(Action::Return),
        // A hand-off has no outcome.
        Stream::HandOffs => None,
    };
    let decided = match action {
        Some(action) => decided_from(run, connection, action, from)?,
        None => HashSet::new(),
    };
    let before = from.previous().unwrap_or_default();
    let begin = decided.iter().copied().max().unwrap_or(before);
    let key = stream.key(&run.keys);
    let undecided = undecided(connection, key, before, begin, &decided)?;

    let call = REGROUP.keys(&[key]).arg(stream.group()).arg(begin.to_string()).arg(NOBODY);
    let ids: Vec<String> = undecided.iter().map(EventId::to_string).collect();
    let reply = call.arg(&ids).run(connection, DOING)?;
    match reply.word.as_str() {
        "REGROUPED" => {}
        "EXISTS" => {
            return Err(Failure::wrong(format!(
                "the group of {} is not lost any more: nothing was done with it",
                stream.word()
            )));
        }
        _ => return Err(reply.unexpected(DOING).into()),
    }
    let waiting = waiting(connection, &run.keys, stream)?;
    let (to_do, skipped) = (waiting.backlog + waiting.pending, decided.len() as u64);
    print(&if run.json {
        let object = Object::new().text("regrouped", stream.word()).text("from", from.to_string());
        object.number("waiting", to_do).number("decided", skipped).end() + "\n"
    } else {
        format!(
            "{}: the group {} is back; {to_do} events from {from} on are worked on, {skipped} have \
             their outcome\n",
            stream.word(),
            stream.group()
        )
    })
}

/// The events from `from` on that have an outcome.
fn decided_from(
    run: &Run,
    connection: &mut Connection,
    action: Action,
    from: EventId,
) -> Result<HashSet<EventId>, Error> {
    let mut decided = HashSet::new();
    let mut after = None;
    loop {
        let page = stream::page(&mut AskAgain(connection), &run.keys.outcomes, after, PAGE)?;
        let Some(last) = page.last() else { return Ok(decided) };
        if let (None, Some(first)) = (after, page.first())
            && first.id.ms > from.ms
        {
            say(&format!(
                "the outcomes reach back to {} only: events before that, from {from} on, count as \
                 undecided",
                first.id
            ));
        }
        after = Some(last.id);
        let of_action =
            page.iter().filter(|it| it.field("action") == Some(action.as_str().as_bytes()));
        let ids = of_action
            .filter_map(|it| std::str::from_utf8(it.field("event_id")?).ok()?.parse().ok());
        decided.extend(ids.filter(|id: &EventId| *id >= from));
    }
}

/// The entries behind `after`, up to `last`, that are not decided.
fn undecided(
    connection: &mut Connection,
    key: &str,
    after: EventId,
    last: EventId,
    decided: &HashSet<EventId>,
) -> Result<Vec<EventId>, Error> {
    let mut undecided = Vec::new();
    let mut after = Some(after).filter(|after| *after != EventId::default());
    loop {
        let page = stream::page(&mut AskAgain(connection), key, after, PAGE)?;
        let Some(newest) = page.last() else { return Ok(undecided) };
        after = Some(newest.id);
        for entry in &page {
            if entry.id > last {
                return Ok(undecided);
            }
            if !decided.contains(&entry.id) {
                undecided.push(entry.id);
            }
        }
    }
}
