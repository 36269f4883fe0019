//! The daemon: the command line, and what comes after it.

mod blocked_reads;
mod keeper;
mod lease;
mod lost_group;
mod neighbours;
mod notify;
pub mod options;
pub mod setup;
mod supervisor;
mod threads;
pub mod tidy;

use std::process::ExitCode;

use crate::cli::{Args, Usage};
use crate::logging;
use crate::signals;
use crate::terminal;
use options::Command;

/// How what is neither lending nor shelving is called in the log.
pub const LOG: &str = "libraryd";

/// The command line or a file that it names is wrong.
pub const EXIT_USAGE: u8 = 2;
/// The help could not be written.
const EXIT_OUTPUT: u8 = 74;

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
