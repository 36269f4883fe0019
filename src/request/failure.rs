//! How a run of `library-req` ends: its exit statuses, and the words that tell a person what went
//! wrong, what was sent and what to do about it.

use std::fmt;

use crate::connect::Target;
use crate::error::Error;
use crate::event::EventKey;

/// Accepted, returned, or nobody had the book any more; or queued, with `--no-wait`.
pub const DONE: u8 = 0;
/// Denied; or a return of books that others have; or rejected.
pub const REFUSED: u8 = 1;
/// The command line or an input file is wrong; nothing was sent.
pub const USAGE: u8 = 2;
/// Queued, but no outcome came in time.
pub const UNANSWERED: u8 = 3;
/// Redis could not be reached, or refused.
pub const REDIS: u8 = 4;
/// Redis did its part, but what came of it could not be written (`EX_IOERR`).
pub const OUTPUT: u8 = 74;

/// A run that ends without an answer: one line for stderr, and the exit status.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is said.
    pub message: String,
    /// What the process ends with.
    pub status: u8,
}

/// What is known about an event when Redis fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It did not leave, or Redis refused it.
    Nothing,
    /// It left, and the reply was lost.
    Unknown,
    /// It is in its stream, or was worked on already.
    Queued(EventKey),
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing was sent"),
            Self::Unknown => write!(f, "it is not known whether it was queued"),
            Self::Queued(event) => write!(f, "it is queued as {} {}", event.action, event.id),
        }
    }
}

impl Failure {
    /// A wrong command line or input file.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: USAGE }
    }

    /// The same failure, with what became of the event.
    pub fn with_fate(self, fate: &str) -> Self {
        Self { message: format!("{}; {fate}", self.message), ..self }
    }

    /// Redis failed: what it said, what is known to be sent, what to do.
    pub fn redis(error: &Error, target: &Target, sent: &dyn fmt::Display) -> Self {
        Self { message: format!("{}; {sent}", target.failed(error)), status: REDIS }
    }
}
