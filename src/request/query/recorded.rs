//! The stream of outcomes, read in steps.

use super::STEP;
use crate::error::Error;
use crate::ids::EventId;
use crate::link::{AskAgain, Connection};
use crate::outcome::Outcome;
use crate::request::options::Run;
use crate::stream::{self, Entry};

/// The outcome of an entry; none if a later version wrote what we do not know.
pub fn outcome(entry: &Entry) -> Option<Outcome> {
    let texts: Vec<_> = entry
        .fields()
        .map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
        .collect();
    Outcome::from_fields(texts.iter().map(|(name, value)| (&**name, &**value))).ok()
}

/// Calls `each` for the outcomes from `from` on, the oldest first, until it has enough.
///
/// # Errors
/// What Redis or the link said.
pub fn forward(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    each: &mut dyn FnMut(EventId, Outcome) -> bool,
) -> Result<(), Error> {
    let mut after = from.previous();
    loop {
        let page = stream::page(&mut AskAgain(connection), &run.keys.outcomes, after, STEP)?;
        for entry in &page {
            if let Some(outcome) = outcome(entry)
                && !each(entry.id, outcome)
            {
                return Ok(());
            }
        }
        match page.last() {
            Some(last) if page.len() == STEP => after = Some(last.id),
            _ => return Ok(()),
        }
    }
}

/// The last `number` outcomes from `from` on that are `wanted`, the youngest first.
///
/// # Errors
/// What Redis or the link said.
pub fn backward(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    number: usize,
    wanted: impl Fn(&Outcome) -> bool,
) -> Result<Vec<(EventId, Outcome)>, Error> {
    let mut found = Vec::new();
    let mut before = None;
    loop {
        let page = stream::page_back(&mut AskAgain(connection), &run.keys.outcomes, before, STEP)?;
        for entry in &page {
            if entry.id < from {
                return Ok(found);
            }
            if let Some(outcome) = outcome(entry).filter(&wanted) {
                found.push((entry.id, outcome));
                if found.len() == number {
                    return Ok(found);
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == STEP => before = Some(last.id),
            _ => return Ok(found),
        }
    }
}

/// The id of the oldest outcome that is kept.
///
/// # Errors
/// What Redis or the link said.
pub fn oldest(run: &Run, connection: &mut Connection) -> Result<Option<EventId>, Error> {
    let page = stream::page(&mut AskAgain(connection), &run.keys.outcomes, None, 1)?;
    Ok(page.first().map(|entry| entry.id))
}
