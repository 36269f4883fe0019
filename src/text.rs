//! Text as people get to see it: counts, and what others have sent, escaped.

use std::fmt::Display;

/// `1 line`, `2 lines`.
pub fn counted<N: Copy + Display + From<u8> + PartialEq>(number: N, what: &str) -> String {
    format!("{number} {what}{}", if number == N::from(1) { "" } else { "s" })
}

/// Appends what somebody has sent or typed, with everything escaped that could forge a line, send codes
/// to a terminal, or make it look like another: control characters, those that are not seen, and the
/// backslash, so that what is printed tells what was escaped.
pub fn push_escaped(line: &mut String, text: &str) {
    for (n, part) in text.split('\\').enumerate() {
        if n > 0 {
            line.push_str("\\\\");
        }
        push_printable(line, part);
    }
}

/// The same by itself.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    push_escaped(&mut escaped, text);
    escaped
}

/// What somebody typed, in quotes, for a message: escaped, and cut short where it is long.
pub fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 60;
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    let mut quoted = String::from('"');
    push_escaped(&mut quoted, &cut);
    quoted.push_str(if cut.len() < text.len() { "...\"" } else { "\"" });
    quoted
}

/// Appends a message as it goes out, in which what others have sent is escaped already, and commands
/// are to be typed as they stand: backslashes stay.
pub fn push_printable(line: &mut String, text: &str) {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        line.push_str(text);
        return;
    }
    for c in text.chars() {
        if c.is_control() || is_unseen(c) {
            line.extend(c.escape_unicode());
        } else {
            line.push(c);
        }
    }
}

/// Whether a character breaks a line, turns the direction of writing, or may not be seen at all: with
/// it, two different books look alike.
///
/// From the Unicode Character Database, version 16.0: the line and paragraph separators, all of the
/// category Cf (`UnicodeData.txt`), and what has the property `Default_Ignorable_Code_Point`
/// (`DerivedCoreProperties.txt`). Words of Persian and of Indic scripts, and emoji, do have U+200C,
/// U+200D or U+FE0F in them: these are hard to read then, but cannot be taken for others.
pub(crate) fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(0_u64, "bad line"), "0 bad lines");
        assert_eq!(counted(1_usize, "book"), "1 book");
    }

    #[test]
    fn escaped_text_forges_no_line_and_sends_no_escape_code() {
        let mut line = String::new();
        push_escaped(&mut line, "a\nb\u{1b}[31m\u{202e}é");
        assert_eq!(line, "a\\u{a}b\\u{1b}[31m\\u{202e}é");
        line.clear();
        push_printable(&mut line, "a\nb\u{1b}[31m 'it'\\''s'");
        assert_eq!(line, "a\\u{a}b\\u{1b}[31m 'it'\\''s'");
    }

    /// A user of six characters, `a\xffb`, and one of three bytes were printed alike.
    #[test]
    fn what_was_sent_with_a_backslash_is_not_taken_for_what_was_escaped() {
        let mut line = String::new();
        push_escaped(&mut line, "a\\u{a}b\\\n\\");
        assert_eq!(line, r"a\\u{a}b\\\u{a}\\");
    }

    /// Two books that differ in a character without a width were printed alike.
    #[test]
    fn what_is_not_seen_is_escaped_and_what_is_seen_is_not() {
        for (text, words) in [
            ("ge\u{200b}b", "ge\\u{200b}b"),
            ("\u{ad}\u{180e}\u{2060}\u{feff}", "\\u{ad}\\u{180e}\\u{2060}\\u{feff}"),
            ("\u{200c}\u{200d}\u{fffb}", "\\u{200c}\\u{200d}\\u{fffb}"),
            ("\u{e0041}", "\\u{e0041}"),
            ("\u{3164}\u{fe0f}", "\\u{3164}\\u{fe0f}"),
            ("Märchen 童話 سلام 😀", "Märchen 童話 سلام 😀"),
        ] {
            let mut line = String::new();
            push_escaped(&mut line, text);
            assert_eq!(line, words);
        }
    }
}
