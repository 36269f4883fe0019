//! The lines of a batch file: `request USER BOOK...` or `return USER BOOK...`, blanks between the
//! words, quotes around a word with blanks in it, `#` before a comment.
//!
//! A file may be anything: no line is kept that is longer than the longest event, and nothing is
//! taken to be text before it was looked at.

use std::io::{self, BufRead, Read as _};

use super::draft::Draft;
use crate::event::{Action, MAX_BOOKS};
use crate::ids::MAX_ID_BYTES;
use crate::text::quoted;

/// The longest line: an event of all books and the longest ids, in quotes with a blank between.
pub const MAX_LINE_BYTES: usize = (MAX_BOOKS + 2) * (MAX_ID_BYTES + 3);

/// Reads lines one after the other, each no longer than [`MAX_LINE_BYTES`].
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    /// Whether a line that was cut has more to read.
    more: bool,
}

/// One line.
#[derive(Debug)]
pub struct Line<'a> {
    /// Counted from 1.
    pub number: u64,
    /// Its bytes without the line break; of one that is too long only the beginning.
    pub text: &'a [u8],
    /// Whether there was more of it than [`MAX_LINE_BYTES`].
    pub cut: bool,
}

impl<R: BufRead> Lines<R> {
    /// The lines of `input`.
    pub fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, more: false }
    }

    /// The next line, `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    #[allow(clippy::should_implement_trait)] // It lends its buffer out: no iterator.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        if std::mem::take(&mut self.more) {
            self.input.skip_until(b'\n')?;
        }
        self.line.clear();
        let most = MAX_LINE_BYTES + 1;
        if (&mut self.input).take(most as u64).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        // The last line need not end with a line break.
        let whole = self.line.pop_if(|last| *last == b'\n').is_some();
        let cut = !whole && self.line.len() == most;
        self.more = cut;
        self.number += 1;
        if !cut && self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        let mut text = &self.line[..];
        if self.number == 1 {
            // Some editors begin a file with a mark that says it is UTF-8.
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        Ok(Some(Line { number: self.number, text, cut }))
    }

    /// The next piece of a line that was cut, `None` at its end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn more(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        if !self.more {
            return Ok(None);
        }
        (&mut self.input).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut self.line)?;
        self.more = !self.line.is_empty() && self.line.pop_if(|last| *last == b'\n').is_none();
        Ok(Some(&self.line))
    }
}

impl Line<'_> {
    /// Reads the event that the line asks for; `false` for a blank line or a comment.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(&self, words: &mut Words, draft: &mut Draft) -> Result<bool, String> {
        if self.cut {
            return Err(format!("is longer than {MAX_LINE_BYTES} bytes"));
        }
        words.split(self.text)?;
        let mut words = words.iter();
        let Some(first) = words.next() else {
            return Ok(false);
        };
        let Some(action) = std::str::from_utf8(first).ok().and_then(Action::from_word) else {
            let first = quoted(&String::from_utf8_lossy(first));
            return Err(format!("begins with {first}, not with request or return"));
        };
        draft.action = action;
        draft.read(words)?;
        Ok(true)
    }
}

/// What is wrong with a word that looks like an option: taken for an id, it would be lent as a book.
fn option_fault(word: &[u8]) -> String {
    let word = quoted(&String::from_utf8_lossy(word));
    format!(
        "has an option, {word}: options come after batch, not in a line (quote an id like that)"
    )
}

/// The words of a line. One is used for all lines, so that they cost no allocation.
#[derive(Debug, Default)]
pub struct Words {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Words {
    fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut from = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut from, end)..end])
    }

    /// A quote counts only where a word begins, so `rock'n'roll` needs none.
    fn split(&mut self, line: &[u8]) -> Result<(), String> {
        let blank = |byte: u8| byte == b' ' || byte == b'\t';
        self.text.clear();
        self.ends.clear();
        let mut rest = line;
        loop {
            let start = rest.iter().position(|&byte| !blank(byte)).unwrap_or(rest.len());
            rest = &rest[start..];
            match rest.first() {
                None | Some(b'#') => return Ok(()),
                Some(&quote @ (b'"' | b'\'')) => {
                    rest = self.quoted(&rest[1..], quote)?;
                    if rest.first().is_some_and(|&byte| !blank(byte)) {
                        return Err("has no blank after a closing quote".into());
                    }
                }
                Some(_) => {
                    let end = rest.iter().position(|&byte| blank(byte)).unwrap_or(rest.len());
                    let (word, behind) = rest.split_at(end);
                    if word.starts_with(b"--") {
                        return Err(option_fault(word));
                    }
                    self.text.extend_from_slice(word);
                    rest = behind;
                }
            }
            self.ends.push(self.text.len());
        }
    }

    /// Takes what stands before the closing quote and returns what follows it. Within double
    /// quotes a backslash takes the special meaning from the quote and the backslash behind it.
    fn quoted<'a>(&mut self, text: &'a [u8], quote: u8) -> Result<&'a [u8], String> {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            if byte == quote {
                return Ok(&text[at + 1..]);
            }
            if quote == b'"' && byte == b'\\' && matches!(text.get(at + 1), Some(b'"' | b'\\')) {
                at += 1;
            }
            self.text.push(text[at]);
            at += 1;
        }
        Err("has a quote that is not closed".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Result<Option<(String, Vec<String>)>, String> {
        let line = Line { number: 1, text, cut: false };
        let mut draft = Draft::new();
        let found = line.parse(&mut Words::default(), &mut draft)?;
        Ok(found.then(|| (draft.user, draft.books.split(',').map(str::to_owned).collect())))
    }

    #[test]
    fn words_are_parted_by_blanks_and_held_together_by_quotes() {
        let (user, books) = parsed(
            br#"request "Jorge Luis" 'a "b"' "c \"d\" \\" rock'n'roll geb#1 geb#1 # why not"#,
        )
        .unwrap()
        .unwrap();
        assert_eq!(user, "Jorge Luis");
        assert_eq!(books, ["a \"b\"", "c \"d\" \\", "rock'n'roll", "geb#1"]);
        let (user, books) =
            parsed(b"return '--no-wait' -5 a--b \"--\" # --quiet").unwrap().unwrap();
        assert_eq!(
            (user.as_str(), books),
            ("--no-wait", vec!["-5".into(), "a--b".into(), "--".into()])
        );
        for nothing in [&b""[..], b"  \t", b"# request u b", b"  # x"] {
            assert_eq!(parsed(nothing), Ok(None));
        }
    }

    #[test]
    fn a_bad_line_says_what_is_wrong_with_it() {
        for (text, fault) in [
            (&b"lend u b"[..], "begins with \"lend\", not with request or return"),
            (b"request", "the user and the books are missing"),
            (b"request u", "the books are missing"),
            (b"request u a,b", "book id \"a,b\" has a comma in it"),
            (b"request \xff b", "user id \"\u{fffd}\" is not UTF-8"),
            (b"request u \"b", "has a quote that is not closed"),
            (b"request u \"b\"c", "has no blank after a closing quote"),
            (b"request u ' b'", "book id \" b\" begins or ends with white space"),
            (b"request u ''", "book id \"\" is empty"),
            (
                b"request u b --timeout 5",
                "has an option, \"--timeout\": options come after batch, not in a line (quote an id like that)",
            ),
            (
                b"request -- u b",
                "has an option, \"--\": options come after batch, not in a line (quote an id like that)",
            ),
            (b"\x00\x01", "begins with \"\\u{0}\\u{1}\", not with request or return"),
        ] {
            assert_eq!(parsed(text), Err(fault.to_owned()));
        }
        let many = format!("request u {}", "b ".repeat(MAX_BOOKS + 1));
        assert_eq!(parsed(many.as_bytes()), Err("more than 1000 books".into()));
    }

    #[test]
    fn lines_are_read_whatever_they_end_with_and_a_long_one_is_cut() {
        let mut input = b"\xef\xbb\xbfa\r\n\n".to_vec();
        input.resize(input.len() + 2 * MAX_LINE_BYTES, b'x');
        input.extend_from_slice(b"\nlast");
        let mut lines = Lines::new(io::BufReader::with_capacity(7, &input[..]));
        let mut seen = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            seen.push((line.number, line.text.len(), line.cut));
        }
        let begun = MAX_LINE_BYTES + 1;
        assert_eq!(seen, [(1, 1, false), (2, 0, false), (3, begun, true), (4, 4, false)]);

        let mut lines = Lines::new(io::BufReader::with_capacity(7, &input[..]));
        let mut long = 0;
        while let Some(line) = lines.next().unwrap() {
            if line.number == 3 {
                long += line.text.len();
                while let Some(piece) = lines.more().unwrap() {
                    long += piece.len();
                }
            } else {
                assert_eq!(lines.more().unwrap(), None);
            }
        }
        assert_eq!(long, 2 * MAX_LINE_BYTES);
    }

    #[test]
    fn no_byte_of_a_line_is_lost_that_could_be_a_part_of_its_end_or_of_the_files_beginning() {
        let begin = [&[b'x'; MAX_LINE_BYTES][..], b"\r"].concat();
        let input = [&begin[..], b"x\n\xef\xbb\xbfa"].concat();
        let mut lines = Lines::new(&input[..]);
        let text = |line: Option<Line<'_>>| line.unwrap().text.to_vec();
        assert!(text(lines.next().unwrap()) == begin);
        assert_eq!(text(lines.next().unwrap()), b"\xef\xbb\xbfa");
    }
}
