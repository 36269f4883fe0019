//! `library-req`, the command of staff and scripts: it queues requests and returns and tells what
//! became of them.

use std::process::ExitCode;

use crate::cli::Args;
use crate::signals;

// What was asked for.
mod draft;
mod lines;
mod options;
// Sending one event or many, and waiting for what comes of them.
mod answer;
mod batch;
mod interrupt;
mod send;
mod spool;
pub mod submit;
// Questions.
mod query;
// What is said.
mod failure;
mod private_file;
mod progress;
mod results;
mod show;

use failure::DONE;
use options::{Job, Task};
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
    let status = match task {
        Task::Print(text) => print(&text).map(|_| DONE),
        Task::Run(run) => match &run.job {
            Job::Send(order) => send::run(&run, order),
            Job::Batch(order) => batch::run(&run, order),
            Job::Outcome { events, show_user } => query::outcome(&run, events, *show_user),
            Job::Loans(user) => query::loans(&run, user),
            Job::Where { book, show_user } => query::whereabouts(&run, book, *show_user),
            Job::History { filter, since, last } => query::history(&run, filter, *since, *last),
            Job::Watch(filter) => query::watch(&run, filter),
        },
    };
    match status {
        Ok(status) => status.into(),
        Err(failure) => {
            say(&failure.message);
            failure.status.into()
        }
    }
}
