//! How a run of `library-admin` ends: its exit statuses, and the words that tell a person what
//! went wrong and what to do about it.

use crate::error::Error;

/// Done; of a check: nothing is wrong.
pub const DONE: u8 = 0;
/// Of a check: something is wrong. Else: it cannot be done as things are.
pub const WRONG: u8 = 1;
/// The command line is wrong; nothing was done.
pub const USAGE: u8 = 2;
/// Of a check: something looked wrong and changed too fast to be sure of it.
pub const UNSETTLED: u8 = 3;
/// Redis could not be reached or refused.
pub const REDIS: u8 = 4;
/// Redis did its part, but what came of it could not be written (`EX_IOERR`).
pub const OUTPUT: u8 = 74;

/// A run that ends before its end.
#[derive(Debug)]
pub enum Failure {
    /// One line for stderr, and the exit status.
    Said {
        /// What is said.
        message: String,
        /// What the process ends with.
        status: u8,
    },
    /// Redis could not be reached or refused.
    Redis(Error),
    /// Whoever read stdout has gone away: no failure, but nothing more to do.
    Closed,
}

impl Failure {
    /// It cannot be done as things are.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self::Said { message: message.into(), status: WRONG }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}
