//! The daemon's log: messages by `log`, as far as simple_logger's levels let them through, and a line for
//! each outcome.
//!
//! All goes to stderr, plain. Each line begins with its time; or, where stderr is the journal, which has
//! times of its own, with its priority, so that `journalctl -p warning` finds what needs somebody.
//!
//! Outcome lines do not go through `log` one by one: stderr is unbuffered, and at full speed a write
//! for each would cost more than the decision; those of a batch go out in one write. Text that users
//! sent is escaped: it can neither forge a line nor send codes to a terminal.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

use crate::clock::rfc3339;
use crate::event::EventKey;
use crate::outcome::BookList;
use crate::text::{push_escaped, push_printable};

/// Which outcomes are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutcomes {
    /// All of them.
    All,
    /// Denied, unchanged and rejected ones, and accepted ones with a book refused.
    Refused,
    /// None.
    None,
}

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
        self.head.push_to(&mut line, record.level(), &now());
        // Writing to a string cannot fail.
        let _ = write!(line, "{:<5} [{}] ", record.level(), record.target());
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

/// What each line begins with.
#[derive(Clone, Copy)]
enum Head {
    /// Its priority, see sd-daemon(3).
    Priority,
    /// Its time.
    Time,
}

impl Head {
    /// What lines on this process's stderr begin with.
    fn of_stderr() -> Self {
        if is_journal() { Self::Priority } else { Self::Time }
    }

    fn push_to(self, line: &mut String, level: Level, time: &str) {
        match (self, level) {
            (Self::Time, _) => line.extend([time, " "]),
            (Self::Priority, Level::Error) => line.push_str("<3>"),
            (Self::Priority, Level::Warn) => line.push_str("<4>"),
            (Self::Priority, Level::Info) => line.push_str("<6>"),
            (Self::Priority, Level::Debug | Level::Trace) => line.push_str("<7>"),
        }
    }
}

/// The time by the clock of this machine.
fn now() -> String {
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

/// Collects the lines of a batch of outcomes, and the warnings that belong to them, and writes them in one
/// go.
pub struct OutcomeLog {
    which: LogOutcomes,
    head: Head,
    /// When the first line came that is not written yet. They all have this time.
    time: Option<String>,
    lines: String,
}

impl OutcomeLog {
    /// Collects the outcomes that are asked for, if the level lets them through at all.
    pub fn new(which: LogOutcomes) -> Self {
        let which = if log::max_level() < LevelFilter::Info { LogOutcomes::None } else { which };
        Self { which, head: Head::of_stderr(), time: None, lines: String::new() }
    }

    /// Adds a warning.
    pub fn warn(&mut self, warning: &str) {
        if log::log_enabled!(target: crate::lending::LOG, Level::Warn) {
            self.push_head(Level::Warn);
            // Writing to a string cannot fail.
            let _ = write!(self.lines, "WARN  [{}] ", crate::lending::LOG);
            push_printable(&mut self.lines, warning);
            self.lines.push('\n');
        }
    }

    fn push_head(&mut self, level: Level) {
        let time = self.time.get_or_insert_with(now);
        self.head.push_to(&mut self.lines, level, time);
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
        self.push_head(Level::Info);
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
        self.time = None;
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
        if name == "in_hand" {
            line.push_str("in hand: ");
        } else if let Some(list) = BookList::from_name(name) {
            line.push_str(match list {
                BookList::Done => "",
                BookList::AlreadyYours => "already theirs: ",
                BookList::LentToAnother => "lent to another: ",
                BookList::Unavailable => "unavailable: ",
                BookList::NotLent => "not lent: ",
                BookList::PutBack => "put back: ",
            });
            refused |= list.is_refusal();
        }
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
