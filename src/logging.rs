//! The daemon's log: messages by `log`, as far as simple_logger's levels let them through, and how each line
//! begins. What becomes of events is LendingService's to tell (`lending/outcome_log.rs`).
//!
//! All goes to stderr, plain. Each line begins with its time; or, where stderr is the journal, which has
//! times of its own, with its priority, so that `journalctl -p warning` finds what needs somebody.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

use crate::clock::rfc3339;
use crate::text::push_printable;

/// Sets up `log` for this process, for messages of these targets from that level on.
pub fn start(level: LevelFilter, targets: &[&str]) {
    // Of the libraries below only their troubles are of interest.
    let levels = SimpleLogger::new().with_level(LevelFilter::Warn);
    let levels = targets.iter().fold(levels, |levels, name| levels.with_module_level(name, level));
    let most = levels.max_level();
    // It fails only if there is a logger already, which then is as good.
    if log::set_boxed_logger(Box::new(Logger { levels, head: Head::of_stderr() })).is_ok() {
        log::set_max_level(most);
    }
}

/// Writes plain lines.
struct Logger {
    levels: SimpleLogger,
    head: Head,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.levels.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // As simple_logger writes it. But that panics where stderr is a full disk, or a pipe that nobody
        // reads any more: nothing can be done about a log that cannot be written, and lending goes on.
        let mut line = String::new();
        self.head.push_to(&mut line, record.level(), record.target(), &now());
        // Whatever is in it: an address, words of a server.
        push_printable(&mut line, &record.args().to_string());
        line.push('\n');
        say(&line);
    }

    fn flush(&self) {}
}

/// Writes to stderr, in one write.
pub fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// How each line begins.
#[derive(Clone, Copy)]
pub enum Head {
    /// With its priority, see sd-daemon(3).
    Priority,
    /// With its time.
    Time,
}

impl Head {
    /// How lines on this process's stderr begin.
    pub fn of_stderr() -> Self {
        if is_journal() { Self::Priority } else { Self::Time }
    }

    /// Appends the beginning of a line: time or priority, level, and target. Not by write!, which takes longer:
    /// each event has a line.
    pub fn push_to(self, line: &mut String, level: Level, target: &str, time: &str) {
        match (self, level) {
            (Self::Time, _) => line.extend([time, " "]),
            (Self::Priority, Level::Error) => line.push_str("<3>"),
            (Self::Priority, Level::Warn) => line.push_str("<4>"),
            (Self::Priority, Level::Info) => line.push_str("<6>"),
            (Self::Priority, Level::Debug | Level::Trace) => line.push_str("<7>"),
        }
        // As wide as the longest.
        let gap = if matches!(level, Level::Info | Level::Warn) { "  [" } else { " [" };
        line.extend([level.as_str(), gap, target, "] "]);
    }
}

/// The time by the clock of this machine, for a line.
pub fn now() -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
}

/// Whether stderr is the journal. systemd says which file is, by device and inode: a process may have
/// inherited that and write to another.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let file = stderr.and_then(|stderr| stderr.metadata());
    file.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_its_time_or_for_the_journal_with_its_priority() {
        for (level, in_file, in_journal) in [
            (Level::Error, "NOW ERROR [lending] ", "<3>ERROR [lending] "),
            (Level::Warn, "NOW WARN  [lending] ", "<4>WARN  [lending] "),
            (Level::Info, "NOW INFO  [lending] ", "<6>INFO  [lending] "),
            (Level::Debug, "NOW DEBUG [lending] ", "<7>DEBUG [lending] "),
            (Level::Trace, "NOW TRACE [lending] ", "<7>TRACE [lending] "),
        ] {
            for (head, words) in [(Head::Time, in_file), (Head::Priority, in_journal)] {
                let mut line = String::new();
                head.push_to(&mut line, level, "lending", "NOW");
                assert_eq!(line, words);
            }
        }
    }
}
