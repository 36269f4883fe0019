//! What is printed, and where it goes: lines for people on which nothing that a client sent can
//! pass for something else.

use std::fmt::Write as _;

use super::failure::{Failure, OUTPUT};
use crate::terminal;
use crate::text::push_escaped;

/// Writes to stdout.
///
/// # Errors
/// The output could not be written, or nobody reads it any more.
pub fn print(text: &str) -> Result<(), Failure> {
    match terminal::print(text) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Closed),
        Err(error) => {
            let message = format!("could not write the answer: {error}");
            Err(Failure::Said { message, status: OUTPUT })
        }
    }
}

/// Writes to stdout what is true whether it is read or not: a closed pipe is no reason to stop.
///
/// # Errors
/// The output could not be written.
pub fn tell(text: &str) -> Result<(), Failure> {
    match print(text) {
        Err(Failure::Closed) => Ok(()),
        told => told,
    }
}

/// Writes one line to stderr.
pub fn say(line: &str) {
    terminal::say("library-admin", line);
}

/// What a client sent, fit for a line: what is no plain text is escaped, and so are backslashes, so
/// that no two texts are shown alike.
pub fn shown(bytes: &[u8]) -> String {
    let mut line = String::new();
    for chunk in bytes.utf8_chunks() {
        push_escaped(&mut line, chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
    line
}

/// A length of time, as a person says it.
pub fn span(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const UNITS: [(u64, &str); 4] =
        [(86_400 * SECOND, "d"), (3600 * SECOND, "h"), (60 * SECOND, "min"), (SECOND, "s")];
    // In the largest unit of which there are two at least: 90 s, 2 min.
    match UNITS.into_iter().find(|(unit, _)| ms >= 2 * unit) {
        Some((unit, name)) => format!("{} {name}", ms / unit),
        None if ms >= SECOND => "1 s".into(),
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_the_largest_unit_that_says_enough() {
        for (ms, text) in [
            (999, "999 ms"),
            (1999, "1 s"),
            (90_000, "90 s"),
            (120_000, "2 min"),
            (7_199_999, "119 min"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn what_a_client_sent_stays_on_its_line() {
        assert_eq!(shown(b"a\nb\xff\xc3\xa9\x1b"), "a\\u{a}b\\xff\u{e9}\\u{1b}");
    }

    /// `a\xffb` could be three bytes or six.
    #[test]
    fn no_two_texts_are_shown_alike() {
        for (text, words) in [
            (&b"a\xffb"[..], r"a\xffb"),
            (b"a\xfeb", r"a\xfeb"),
            (br"a\xffb", r"a\\xffb"),
            ("\u{fffd}".as_bytes(), "\u{fffd}"),
        ] {
            assert_eq!(shown(text), words);
        }
    }
}
