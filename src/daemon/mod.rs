//! The daemon: the command line, and what comes after it.

// What was asked for.
pub mod options;
// Sessions: their beginning, their threads, their end.
mod supervisor;
mod outage;
mod lease;
pub mod setup;
mod lost_group;
mod blocked_reads;
mod threads;
// What is done beside the two services.
mod keeper;
mod neighbours;
pub mod tidy;
// What systemd is told.
mod notify;

use std::process::ExitCode;

use crate::cli::{Args, Usage};
use crate::logging;
use crate::signals;
use crate::terminal;
use options::Command;

/// How what is neither lending nor shelving is called in the log.
pub const LOG: &str = "libraryd";

// What it ends with; libraryd(8) has the whole list.
/// Stopped at once by a second signal.
const EXIT_AT_ONCE: i32 = 1;
/// The command line or a file that it names is wrong.
const EXIT_USAGE: u8 = 2;
/// The lease was lost to another process; or Redis is not there, for those who do not want to wait.
const EXIT_UNAVAILABLE: u8 = 69;
/// The system does not give what every process needs.
const EXIT_SYSTEM: u8 = 71;
/// The help could not be written.
const EXIT_OUTPUT: u8 = 74;
/// An instance of that name is running.
const EXIT_RUNNING: u8 = 75;
/// Wrong password or missing permission.
const EXIT_CREDENTIALS: u8 = 77;
/// A state or a Redis that must not be worked on.
const EXIT_UNFIT: u8 = 78;

/// `libraryd`.
pub fn main() -> ExitCode {
    signals::outlive_file_limits();
    let command = match options::parse(Args::from_env()) {
        Ok(command) => command,
        Err(usage) => return complain(&usage),
    };
    match command {
        Command::Help => print(&options::help()),
        Command::Version => print(&format!("libraryd {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Run(options) => match options.connect.resolve(&|name| std::env::var_os(name)) {
            Ok(target) => supervisor::run(*options, target),
            Err(usage) => complain(&usage),
        },
    }
}

fn print(text: &str) -> ExitCode {
    match terminal::print(text) {
        // Whoever has read enough wants no more.
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::say("libraryd", &format!("could not write: {error}"));
            ExitCode::from(EXIT_OUTPUT)
        }
    }
}

fn complain(Usage(fault): &Usage) -> ExitCode {
    terminal::say("libraryd", fault);
    logging::say(&format!("{}\n", options::USAGE));
    ExitCode::from(EXIT_USAGE)
}
