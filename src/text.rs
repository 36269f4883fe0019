//! Text as people and programs get to see it: counts, and what others have sent, escaped.

use std::fmt::{Display, Write as _};

/// `1 line`, `2 lines`.
pub fn counted<N: Copy + Display + From<u8> + PartialEq>(number: N, what: &str) -> String {
    format!("{number} {what}{}", if number == N::from(1) { "" } else { "s" })
}

/// Appends `text` with everything escaped that could forge a line or send codes to a terminal:
/// control characters, and the marks that turn the direction of writing.
pub fn push_escaped(line: &mut String, text: &str) {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        line.push_str(text);
        return;
    }
    for c in text.chars() {
        if c.is_control() || turns(c) {
            line.extend(c.escape_unicode());
        } else {
            line.push(c);
        }
    }
}

/// Appends the name of a JSON object's member, with a comma before it where one is due.
pub fn push_json_name(json: &mut String, name: &str) {
    if !json.ends_with('{') {
        json.push(',');
    }
    push_json_string(json, name);
    json.push(':');
}

/// Appends `text` as a JSON string. Control characters are escaped, as RFC 8259 asks, and so is what
/// turns the direction of writing: somebody may look at it on a terminal.
pub fn push_json_string(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if c.is_control() || turns(c) => {
                let _ = write!(json, "\\u{:04x}", c as u32);
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

/// Whether a character turns the direction of writing, or breaks a line.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}'
        | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
    }

    #[test]
    fn json_strings_neither_end_early_nor_send_codes() {
        let mut json = String::new();
        push_json_string(&mut json, "a\nb\u{1b}\\");
        assert_eq!(json, r#""a\nb\u001b\\""#);
    }
}
