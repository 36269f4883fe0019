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
use crate::error::Error;
use crate::link::Connection;

/// How many entries one command reads: a few milliseconds of the server's time.
const STEP: usize = 1_000;

fn connect(run: &Run) -> Result<Connection, Failure> {
    run.target.connect(Duration::ZERO).map_err(failed(run))
}

/// Nothing is queued by a question.
fn failed(run: &Run) -> impl Fn(Error) -> Failure + '_ {
    |error| Failure::redis(&error, &run.target, &"no answer")
}
