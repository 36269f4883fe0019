//! The daemon: the command line, and what comes after it.

pub mod keeper;
pub mod lease;
pub mod logging;
pub mod notify;
pub mod options;
pub mod readers;
pub mod setup;
pub mod supervisor;
pub mod takeover;

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::{Args, Usage};
use options::Command;

/// How what is neither lending nor shelving is called in the log.
pub const LOG: &str = "libraryd";

/// The command line or a file that it names is wrong.
pub const EXIT_USAGE: u8 = 2;

/// `libraryd`.
pub fn main() -> ExitCode {
    let command = match options::parse(Args::from_env()) {
        Ok(command) => command,
        Err(usage) => return complain(&usage),
    };
    // A closed pipe is no reason to complain about help.
    match command {
        Command::Help => {
            let _ = write!(std::io::stdout(), "{}", options::help());
            ExitCode::SUCCESS
        }
        Command::Version => {
            let _ = writeln!(std::io::stdout(), "libraryd {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Run(options) => match options.connect.resolve(&|name| std::env::var_os(name)) {
            Ok(target) => supervisor::run(*options, target),
            Err(usage) => complain(&usage),
        },
    }
}

fn complain(usage: &Usage) -> ExitCode {
    logging::say(&format!("libraryd: {usage}\n{}\n", options::USAGE));
    ExitCode::from(EXIT_USAGE)
}
