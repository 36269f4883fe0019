//! The log of outcomes: a line for each event that is decided or given up.
//!
//! These lines do not go through `log` one by one: stderr is unbuffered, and at full speed a write for each would
//! cost more than the decision; those of a chunk go out in one write. Text that users sent is escaped: it can
//! neither forge a line nor send codes to a terminal.

use log::{Level, LevelFilter, log_enabled};

use super::LOG;
use crate::event::EventKey;
use crate::logging::{self, Head};
use crate::outcome::BookList;
use crate::settings::LogOutcomes;
use crate::text::{push_escaped, push_printable};

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
        if log_enabled!(target: LOG, Level::Warn) {
            self.push_head(Level::Warn);
            push_printable(&mut self.lines, warning);
            self.lines.push('\n');
        }
    }

    fn push_head(&mut self, level: Level) {
        let time = self.time.get_or_insert_with(logging::now);
        self.head.push_to(&mut self.lines, level, LOG, time);
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
            logging::say(&self.lines);
            self.lines.clear();
        }
        self.time = None;
    }
}

/// The rest of a line: who, what, accepted or denied, which books, why not. Returns whether anything was
/// refused.
fn push_line<'a>(
    line: &mut String,
    key: EventKey,
    user: Option<&str>,
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> bool {
    let mut refused = false;
    let mut separator = ": ";
    line.extend([key.action.as_str(), " "]);
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
        let text = "request 17-0 by user1 ACCEPTED: geb,momo; lent to another: alice\n";
        assert_eq!(line("user1", &fields), (text.into(), true));
        let fields = [("outcome", "accepted"), ("book_ids", "geb"), ("in_hand", "1")];
        let text = "request 17-0 by user1 ACCEPTED: geb; in hand: 1\n";
        assert_eq!(line("user1", &fields), (text.into(), false));
        let fields = [("outcome", "denied"), ("cause", "too_many_books")];
        let text = "request 17-0 by user1 DENIED: too_many_books\n";
        assert_eq!(line("user1", &fields), (text.into(), true));
    }

    #[test]
    fn what_users_send_forges_no_line() {
        let (line, _) = line("a\nINFO b\u{1b}[2J", &[("outcome", "unchanged")]);
        assert_eq!(line, "request 17-0 by a\\u{a}INFO b\\u{1b}[2J UNCHANGED\n");
    }
}
