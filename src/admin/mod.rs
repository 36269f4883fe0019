//! `library-admin`, the operator's command: how the library is, whether it is as it must be, what
//! lies in the dead letters, and how to go on after a consumer group was lost.
//!
//! It looks at what both services own, as otherwise only `library-req where` does. What belongs to
//! ShelvingService it never changes, though: books go back to the shelves as they always do, in a hand-off.

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::Args;
use crate::connect::Target;
use crate::ids::EventId;
use crate::signals;

// What was asked for.
mod options;
// How it is done.
mod check;
pub mod dead_letters;
mod instances;
mod regroup;
mod status;
// What is said about it.
mod failure;
mod show;

use failure::{DONE, Failure, WRONG};
use options::{Job, Run, Task};
use show::{print, say};

/// The whole program.
pub fn main() -> ExitCode {
    signals::outlive_file_limits();
    let task = match options::parse(Args::from_env(), &|name| std::env::var_os(name)) {
        Ok(task) => task,
        Err(wrong) => {
            say(&wrong.fault.0);
            say(&wrong.usage);
            return failure::USAGE.into();
        }
    };
    match task {
        Task::Print(text) => end(print(&text).map(|()| DONE), None),
        Task::Run(run) => end(perform(&run), Some(&run.target)),
    }
}

fn end(result: Result<u8, Failure>, target: Option<&Target>) -> ExitCode {
    let status = match result {
        Ok(status) => status,
        // Whoever read the answer has gone away and wants no more.
        Err(Failure::Closed) => DONE,
        Err(Failure::Said { message, status }) => {
            say(&message);
            status
        }
        Err(Failure::Redis(error)) => {
            match target {
                Some(target) => say(&target.failed(&error)),
                None => say(&error.to_string()),
            }
            failure::REDIS
        }
    };
    status.into()
}

fn perform(run: &Run) -> Result<u8, Failure> {
    let connection = &mut run.target.connect(Duration::ZERO)?;
    match &run.job {
        Job::Status => status::run(run, connection),
        Job::Check { repair } => check::run(run, connection, *repair),
        Job::List { last } => dead_letters::list(run, connection, *last),
        Job::Retry(ids) => of_each(ids, |id| dead_letters::retry(run, connection, id)),
        Job::Drop(ids) => of_each(ids, |id| dead_letters::drop(run, connection, id)),
        Job::Regroup(order) => regroup::run(run, connection, *order),
    }
}

/// Does something with each. One with which it cannot be done is told, and the others have their turn.
fn of_each(
    ids: &[EventId],
    mut job: impl FnMut(EventId) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut status = DONE;
    for id in ids {
        match job(*id) {
            Err(Failure::Said { message, status: WRONG }) => {
                say(&message);
                status = WRONG;
            }
            done => done?,
        }
    }
    Ok(status)
}
