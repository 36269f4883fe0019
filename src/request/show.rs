//! What is printed: an outcome in words for people or as JSON for programs, and where it goes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use super::failure::{DONE, Failure, OUTPUT, REFUSED};
use super::progress;
use crate::json::Object;
use crate::lending::MOST_BOOKS_IN_HAND;
use crate::outcome::{BookList, Outcome, Verdict};
use crate::terminal;
use crate::text::push_escaped;

/// The cause of a denial that has a line of its own.
const TOO_MANY_BOOKS: &str = "too_many_books";

/// How answers are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line in words.
    Words,
    /// One JSON object on one line.
    Json,
    /// Nothing: the exit status says it.
    Quiet,
}

/// The exit status that an outcome stands for.
pub fn status(outcome: &Outcome) -> u8 {
    match outcome.verdict {
        Verdict::Accepted | Verdict::Returned => DONE,
        // Nobody has the books any more: what was wanted is so.
        Verdict::Unchanged if outcome.list(BookList::LentToAnother).is_empty() => DONE,
        Verdict::Unchanged | Verdict::Denied | Verdict::Rejected => REFUSED,
    }
}

/// Takes the user out of an outcome: who has a book is told only where that is asked for.
pub fn hide_user(outcome: &mut Outcome, form: Form) {
    if form == Form::Json {
        outcome.user_id.clear();
    } else if !outcome.user_id.is_empty() {
        outcome.user_id = "a user".into();
    }
}

/// One line in words: each book and what happened to it, never to whom else a book is lent.
pub fn words(outcome: &Outcome, colours: bool) -> String {
    let mut line = String::new();
    let good = status(outcome) == DONE;
    let (begin, end) = match (colours, good) {
        (false, _) => ("", ""),
        (true, true) => ("\x1b[32m", "\x1b[0m"),
        (true, false) => ("\x1b[33m", "\x1b[0m"),
    };
    line.push_str(begin);
    push_head(&mut line, outcome);
    line.push_str(end);
    for (list, reason) in [
        (BookList::AlreadyYours, "already lent to this user"),
        (BookList::LentToAnother, "lent to someone else"),
        (BookList::Unavailable, "nowhere to be found, please tell the staff"),
        (BookList::NotLent, "nobody has it"),
    ] {
        for book in outcome.list(list) {
            line.push_str("; ");
            push_escaped(&mut line, book);
            line.push_str(": ");
            line.push_str(reason);
        }
    }
    match outcome.in_hand {
        // Where there were too many, it is told already.
        Some(in_hand) if outcome.cause.as_deref() != Some(TOO_MANY_BOOKS) => {
            let _ = write!(line, " ({in_hand} in hand)");
        }
        _ => {}
    }
    line
}

/// What happened to the event as a whole.
fn push_head(line: &mut String, outcome: &Outcome) {
    let (before, books, between) = match (outcome.verdict, outcome.cause.as_deref()) {
        (Verdict::Accepted, _) => ("lent to ", outcome.list(BookList::Done), ": "),
        (Verdict::Returned, _) => ("taken back from ", outcome.list(BookList::Done), ": "),
        (Verdict::Unchanged, _) => ("nothing to take back from ", &[][..], ""),
        (Verdict::Denied, Some(TOO_MANY_BOOKS)) => {
            let more = outcome.list(BookList::PutBack).len();
            let in_hand = outcome.in_hand.unwrap_or_default();
            push_escaped(line, &outcome.user_id);
            let _ = write!(
                line,
                " has {in_hand} of {MOST_BOOKS_IN_HAND}, this asks for {more} more: nothing was lent"
            );
            return;
        }
        (Verdict::Denied, _) => ("nothing was lent to ", &[][..], ""),
        (Verdict::Rejected, cause) => {
            line.push_str("rejected");
            // An event may have none.
            if !outcome.user_id.is_empty() {
                line.push_str(", for ");
                push_escaped(line, &outcome.user_id);
            }
            line.push_str(": ");
            push_escaped(line, &cause.unwrap_or("no cause given").replace('_', " "));
            line.push_str("; the event went to the dead letters");
            return;
        }
    };
    line.push_str(before);
    push_escaped(line, &outcome.user_id);
    line.push_str(between);
    push_books(line, books);
}

fn push_books(line: &mut String, books: &[String]) {
    for (n, book) in books.iter().enumerate() {
        if n > 0 {
            line.push_str(", ");
        }
        push_escaped(line, book);
    }
}

/// Whether what goes to stdout may be coloured: a person looks at it and has not said no.
pub fn colours() -> bool {
    io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to stdout. Returns whether there is still somebody who reads.
///
/// # Errors
/// The output could not be written.
pub fn print(text: &str) -> Result<bool, Failure> {
    terminal::print(text).map_err(|error| Failure {
        message: format!("could not write the answer: {error}"),
        status: OUTPUT,
    })
}

/// Writes one line to stderr, instead of the progress that may stand there.
pub fn say(line: &str) {
    progress::clear();
    terminal::say("library-req", line);
}

/// Prints the answer in the form that was asked for.
///
/// # Errors
/// The output could not be written.
pub fn print_outcome(outcome: &Outcome, form: Form) -> Result<(), Failure> {
    let text = match form {
        Form::Words => words(outcome, colours()) + "\n",
        Form::Json => outcome.describe(Object::new()).line(),
        Form::Quiet => return Ok(()),
    };
    print(&text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(fields: &[(&str, &str)]) -> (String, u8) {
        let outcome = Outcome::from_fields(
            [("event_id", "17-0"), ("user_id", "u")].into_iter().chain(fields.iter().copied()),
        )
        .unwrap();
        (words(&outcome, false), status(&outcome))
    }

    #[test]
    fn each_outcome_is_told_in_words_and_by_the_exit_status() {
        for (fields, line, status) in [
            (
                &[
                    ("action", "request"),
                    ("outcome", "accepted"),
                    ("book_ids", "geb,momo"),
                    ("lent_to_another", "alice"),
                    ("already_yours", "emil"),
                    ("in_hand", "3"),
                ][..],
                "lent to u: geb, momo; emil: already lent to this user; \
                 alice: lent to someone else (3 in hand)",
                DONE,
            ),
            (
                &[
                    ("action", "request"),
                    ("outcome", "denied"),
                    ("cause", "none_available"),
                    ("lent_to_another", "geb"),
                    ("in_hand", "0"),
                ],
                "nothing was lent to u; geb: lent to someone else (0 in hand)",
                REFUSED,
            ),
            (
                &[
                    ("action", "request"),
                    ("outcome", "denied"),
                    ("cause", "too_many_books"),
                    ("put_back", "geb,momo"),
                    ("in_hand", "4"),
                ],
                "u has 4 of 5, this asks for 2 more: nothing was lent",
                REFUSED,
            ),
            (
                &[
                    ("action", "return"),
                    ("outcome", "returned"),
                    ("book_ids", "geb"),
                    ("not_lent", "momo"),
                    ("in_hand", "0"),
                ],
                "taken back from u: geb; momo: nobody has it (0 in hand)",
                DONE,
            ),
            (
                &[("action", "return"), ("outcome", "unchanged"), ("not_lent", "geb")],
                "nothing to take back from u; geb: nobody has it",
                DONE,
            ),
            (
                &[("action", "return"), ("outcome", "unchanged"), ("lent_to_another", "geb")],
                "nothing to take back from u; geb: lent to someone else",
                REFUSED,
            ),
            (
                &[("action", "request"), ("outcome", "rejected"), ("cause", "book_id_empty")],
                "rejected, for u: book id empty; the event went to the dead letters",
                REFUSED,
            ),
            (
                &[
                    ("user_id", ""),
                    ("action", "request"),
                    ("outcome", "rejected"),
                    ("cause", "user_id_missing"),
                ],
                "rejected: user id missing; the event went to the dead letters",
                REFUSED,
            ),
        ] {
            assert_eq!(shown(fields), (line.to_owned(), status));
        }
    }

    #[test]
    fn no_user_is_made_of_none() {
        let fields = [("event_id", "17-0"), ("action", "return"), ("outcome", "rejected")];
        let mut outcome = Outcome::from_fields(fields).unwrap();
        hide_user(&mut outcome, Form::Words);
        assert_eq!(outcome.user_id, "");
    }

    #[test]
    fn a_book_id_cannot_send_codes_to_a_terminal() {
        let (line, _) = shown(&[
            ("action", "return"),
            ("outcome", "returned"),
            ("book_ids", "a\u{202e}b\u{9b}31m"),
        ]);
        assert_eq!(line, "taken back from u: a\\u{202e}b\\u{9b}31m");
    }
}
