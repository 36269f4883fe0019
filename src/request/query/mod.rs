//! Questions, read-only: what became of an event, who has what, where a book is, what happened. A file for
//! each.
//!
//! They read in steps of a bounded size, so that Redis is never held up by one, however large the
//! library is.

mod filter;
mod history;
mod loans;
mod outcome;
mod place;
mod recorded;
mod watch;

use std::time::Duration;

pub use filter::Filter;
pub use history::history;
pub use loans::loans;
pub use outcome::outcome;
pub use place::whereabouts;
pub use watch::watch;

use super::failure::Failure;
use super::options::Run;
use super::show::say;
use crate::error::Error;
use crate::link::{Connection, ask};

/// How many entries one command reads: a few milliseconds of the server's time.
const STEP: usize = 1_000;

fn connect(run: &Run) -> Result<Connection, Failure> {
    run.target.connect(Duration::ZERO).map_err(failed(run))
}

/// Says if nothing of a library is there, where every book would be on its shelf. Who may not ask is not told.
fn say_if_nothing_is_there(run: &Run, connection: &mut Connection) {
    let keys = &run.keys;
    let mut question = redis::cmd("EXISTS");
    question.arg(&[&keys.requests, &keys.returns, &keys.outcomes, &keys.loans, &keys.shelves]);
    if let Ok(0_u64) = ask(connection, "look for a library", &question) {
        say(&run.target.has_no_library(&run.part));
    }
}

/// Nothing is queued by a question.
fn failed(run: &Run) -> impl Fn(Error) -> Failure + '_ {
    |error| Failure::redis(&error, &run.target, &"no answer")
}
