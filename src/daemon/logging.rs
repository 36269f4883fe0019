//! The daemon's log: messages by `log`, as far as simple_logger's levels let them through, and a line for
//! each outcome.
//!
//! All goes to stderr, plain, since journald adds time and name. Where stderr is the journal, each
//! line begins with its priority, so that `journalctl -p warning` finds what needs somebody.
//!
//! Outcome lines do not go through `log` one by one: stderr is unbuffered, and at full speed a write
//! for each would cost more than the decision; those of a batch go out in one write. Text that users
//! sent is escaped: it can neither forge a line nor send codes to a terminal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

use super::options::LogOutcomes;
use crate::event::EventKey;
use crate::outcome::push_escaped;

/// Sets up `log` for this process.
pub fn start(level: LevelFilter) {
    // Of the libraries below only their troubles are of interest.
    let levels = SimpleLogger::new().with_level(LevelFilter::Warn);
    let ours = [crate::daemon::LOG, crate::lending::LOG, crate::shelving::LOG];
    let levels = ours.iter().fold(levels, |levels, name| levels.with_module_level(name, level));
    let most = levels.max_level();
    // It fails only if there is a logger already, which then is as good.
    if log::set_boxed_logger(Box::new(Logger { levels, to_journal: is_journal() })).is_ok() {
        log::set_max_level(most);
    }
}

/// Writes plain lines, with their priority in front if they go to the journal.
struct Logger {
    levels: SimpleLogger,
    to_journal: bool,
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
        let priority = if self.to_journal { priority(record.level()) } else { "" };
        let (level, target, what) = (record.level(), record.target(), record.args());
        say(&format!("{priority}{level:<5} [{target}] {what}\n"));
    }

    fn flush(&self) {}
}

/// Writes to stderr, in one write.
pub fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// What a line that goes to the journal begins with, see sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether stderr is the journal. systemd says which file is, by device and inode: a process may have
/// inherited that and write to another.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let file = stderr.and_then(|stderr| stderr.metadata());
    file.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// Collects the lines of a batch of outcomes, and the warnings that belong to them, and writes them in one
/// go.
pub struct OutcomeLog {
    which: LogOutcomes,
    to_journal: bool,
    lines: String,
}

impl OutcomeLog {
    /// Collects the outcomes that are asked for, if the level lets them through at all.
    pub fn new(which: LogOutcomes) -> Self {
        let which = if log::max_level() < LevelFilter::Info { LogOutcomes::None } else { which };
        Self { which, to_journal: is_journal(), lines: String::new() }
    }

    /// Adds a warning.
    pub fn warn(&mut self, warning: &str) {
        if log::log_enabled!(target: crate::lending::LOG, Level::Warn) {
            self.push_priority(Level::Warn);
            // Writing to a string cannot fail.
            let _ = write!(self.lines, "WARN  [{}] ", crate::lending::LOG);
            push_escaped(&mut self.lines, warning);
            self.lines.push('\n');
        }
    }

    fn push_priority(&mut self, level: Level) {
        if self.to_journal {
            self.lines.push_str(priority(level));
        }
    }

    /// Adds the outcome of an event: its user, where that is known, and the fields from `outcome`
    /// on, names and values.
    pub fn add<'a>(
        &mut self,
        key: EventKey,
        user: Option<&str>,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        if self.which == LogOutcomes::None {
            return;
        }
        let start = self.lines.len();
        self.push_priority(Level::Info);
        let refused = push_line(&mut self.lines, key, user, fields);
        if self.which == LogOutcomes::Refused && !refused {
            self.lines.truncate(start);
        }
    }

    /// Writes what was added.
    pub fn write(&mut self) {
        if !self.lines.is_empty() {
            say(&self.lines);
            self.lines.clear();
        }
    }
}

/// One line: who, what, accepted or denied, which books, why not. Returns whether anything was
/// refused.
fn push_line<'a>(
    line: &mut String,
    key: EventKey,
    user: Option<&str>,
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> bool {
    let mut refused = false;
    let mut separator = ": ";
    // Not by write!, which takes longer: each event has such a line.
    line.extend(["INFO  [", crate::lending::LOG, "] ", key.action.as_str(), " "]);
    key.id.push_to(line);
    if let Some(user) = user {
        line.push_str(" by ");
        push_escaped(line, user);
    }
    for (name, value) in fields {
        if name == "outcome" {
            line.push(' ');
            let word = line.len();
            line.push_str(value);
            line[word..].make_ascii_uppercase();
            refused |= !matches!(value, "accepted" | "returned");
            continue;
        }
        line.push_str(separator);
        separator = "; ";
        match name {
            "book_ids" => {}
            "already_yours" => line.push_str("already theirs: "),
            "lent_to_another" => line.push_str("lent to another: "),
            "unavailable" => line.push_str("unavailable: "),
            "not_lent" => line.push_str("not lent: "),
            "put_back" => line.push_str("put back: "),
            "in_hand" => line.push_str("in hand: "),
            _ => {}
        }
        refused |= matches!(name, "already_yours" | "lent_to_another" | "unavailable" | "not_lent");
        push_escaped(line, value);
    }
    line.push('\n');
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;
    use crate::ids::EventId;

    fn line(user: &str, fields: &[(&str, &str)]) -> (String, bool) {
        let key = EventKey { id: EventId { ms: 17, seq: 0 }, action: Action::Request };
        let mut line = String::new();
        let refused = push_line(&mut line, key, Some(user), fields.iter().copied());
        (line, refused)
    }

    #[test]
    fn a_line_says_who_what_which_and_why_not() {
        let fields =
            [("outcome", "accepted"), ("book_ids", "geb,momo"), ("lent_to_another", "alice")];
        let text =
            "INFO  [lending] request 17-0 by user1 ACCEPTED: geb,momo; lent to another: alice\n";
        assert_eq!(line("user1", &fields), (text.into(), true));
        let fields = [("outcome", "accepted"), ("book_ids", "geb"), ("in_hand", "1")];
        let text = "INFO  [lending] request 17-0 by user1 ACCEPTED: geb; in hand: 1\n";
        assert_eq!(line("user1", &fields), (text.into(), false));
        let fields = [("outcome", "denied"), ("cause", "too_many_books")];
        let text = "INFO  [lending] request 17-0 by user1 DENIED: too_many_books\n";
        assert_eq!(line("user1", &fields), (text.into(), true));
    }

    #[test]
    fn what_users_send_forges_no_line() {
        let (line, _) = line("a\nINFO b\u{1b}[2J", &[("outcome", "unchanged")]);
        assert_eq!(line, "INFO  [lending] request 17-0 by a\\u{a}INFO b\\u{1b}[2J UNCHANGED\n");
    }
}
