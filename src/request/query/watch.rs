//! `watch`: outcomes as they happen.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use redis::{Cmd, Value};

use super::filter::Filter;
use super::{STEP, failed, recorded};
use crate::clock::rfc3339;
use crate::error::{Error, Remedy};
use crate::ids::EventId;
use crate::link::{Connection, ask, ask_at_once};
use crate::request::answer::PAUSE;
use crate::request::failure::{DONE, Failure};
use crate::request::options::Run;
use crate::request::show::{self, print, say};
use crate::script;
use crate::stream::{self, Entry, number};

/// How long one command blocks at most: so soon a half-open link is noticed.
const SLICE: Duration = Duration::from_secs(2);

/// What XINFO tells, by its names.
type Info = HashMap<String, Value>;

/// `watch`: until Ctrl-C, or until whoever reads it goes away.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn watch(run: &Run, filter: &Filter) -> Result<u8, Failure> {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut first = run.target.connect(SLICE).map_err(failed(run))?;
    let mut mark = newest(run, &mut first).map_err(failed(run))?;
    let mut connection = Some(first);
    let colours = show::colours();
    // Of an outage, which is told once: how long the next pause is.
    let mut outage: Option<Duration> = None;
    loop {
        let step = match &mut connection {
            Some(connection) => watch_step(run, connection, &mut mark),
            None => run.target.connect(SLICE).and_then(|new| {
                let connection = connection.insert(new);
                watch_step(run, connection, &mut mark)
            }),
        };
        match step {
            Ok((entries, trimmed)) => {
                if outage.take().is_some() {
                    say(&format!("Redis at {} is back", run.target));
                }
                if let Some(oldest) = trimmed {
                    say(&format!(
                        "outcomes before {} were dropped before they could be read",
                        rfc3339(oldest.ms)
                    ));
                }
                let mut text = String::new();
                for entry in entries {
                    let outcome = recorded::outcome(&entry);
                    if let Some(outcome) = outcome.filter(|outcome| filter.lets(outcome)) {
                        text.push_str(&filter.line(run.form, entry.id, outcome, colours));
                    }
                }
                if !print(&text)? {
                    return Ok(DONE);
                }
            }
            Err(error) if error.remedy() == Remedy::Retry => {
                if outage.is_none() {
                    say(&format!("lost Redis at {}, trying again: {error}", run.target));
                }
                connection = None;
                // Nothing tells when a server is back: asking again is all there is.
                let pause = outage.unwrap_or(PAUSE);
                thread::sleep(pause);
                outage = Some((pause * 2).min(LONGEST_PAUSE));
            }
            Err(error) => return Err(failed(run)(error)),
        }
    }
}

/// How far the outcomes were read.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Up to this one.
    seen: EventId,
    /// How many outcomes had ever been added then. Redis tells that since version 7.
    count: Option<u64>,
}

/// Behind the newest outcome there has been.
fn newest(run: &Run, connection: &mut Connection) -> Result<Mark, Error> {
    let info: Info = match ask(connection, "look at the outcomes", &outcomes_info(run)) {
        // There is no stream before the first.
        Err(error) if error.code() == Some("ERR") => Info::new(),
        info => info?,
    };
    let last = info.get("last-generated-id").and_then(script::text).and_then(|id| id.parse().ok());
    let count = if info.is_empty() { Some(0) } else { number(&info, "entries-added") };
    Ok(Mark { seen: last.unwrap_or_default(), count })
}

fn outcomes_info(run: &Run) -> Cmd {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(&run.keys.outcomes);
    command
}

/// What was read, and where the kept outcomes begin if some were dropped before they could be read.
type Watched = (Vec<Entry>, Option<EventId>);

/// The outcomes behind a mark, which is moved. Some may have been dropped: the link was lost, or whoever
/// reads us was slow.
fn watch_step(run: &Run, connection: &mut Connection, mark: &mut Mark) -> Result<Watched, Error> {
    const DOING: &str = "read the outcomes";
    let mut read_on = redis::cmd("XREAD");
    read_on.arg("COUNT").arg(STEP);
    let mut wait = read_on.clone();
    wait.arg("BLOCK").arg(SLICE.as_millis() as u64);
    for command in [&mut read_on, &mut wait] {
        command.arg("STREAMS").arg(&run.keys.outcomes).arg(mark.seen.to_string());
    }
    // Nothing is dropped in between.
    let both = ask_at_once(connection, DOING, &[outcomes_info(run), read_on]);
    let (info, mut read): (Info, Value) = match both {
        Err(error) if error.code() == Some("ERR") => (Info::new(), Value::Nil),
        both => both?,
    };
    if read == Value::Nil {
        read = ask(connection, DOING, &wait)?;
    }
    let entries = stream::entries_of(read, &[&run.keys.outcomes], DOING)?;
    let entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
    let oldest: Option<EventId> = match info.get("first-entry") {
        Some(Value::Array(entry)) => {
            entry.first().and_then(script::text).and_then(|id| id.parse().ok())
        }
        _ => None,
    };
    let (added, kept) = (number(&info, "entries-added"), number(&info, "length"));
    let has_missed = match (added.zip(kept), &mut mark.count) {
        (Some((added, kept)), Some(count)) => {
            // The oldest are dropped first: these are the newest of them.
            let missed = added.saturating_sub(kept).saturating_sub(*count);
            *count += missed + entries.len() as u64;
            missed > 0
        }
        // The stream has only just begun: nothing was dropped from it yet.
        (None, Some(count)) if info.is_empty() => {
            *count = entries.len() as u64;
            false
        }
        // Before version 7 none but the id tells.
        _ => oldest > Some(mark.seen) && mark.seen != EventId::default(),
    };
    if let Some(last) = entries.last() {
        mark.seen = last.id;
    }
    let oldest = oldest.filter(|_| has_missed);
    Ok((entries, oldest))
}
