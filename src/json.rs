//! JSON for programs: objects that are put together member by member (RFC 8259).

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::text::is_unseen;

/// An object under construction.
#[derive(Debug)]
pub struct Object(String);

impl Object {
    /// An empty one.
    #[allow(clippy::new_without_default)] // Nothing takes a default of it.
    pub fn new() -> Self {
        Self::behind(String::new())
    }

    /// An empty one, behind what is in `text` already.
    pub fn behind(mut text: String) -> Self {
        text.push('{');
        Self(text)
    }

    /// Adds a text. JSON has no place for bytes that are not UTF-8: they are replaced, and the whole
    /// follows in hexadecimal, under the name with `_hex` behind it.
    pub fn text(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let text = String::from_utf8_lossy(value);
        self.name(name);
        push_string(&mut self.0, &text);
        if matches!(text, Cow::Owned(_)) {
            self.name(&format!("{name}_hex"));
            self.0.push('"');
            for byte in value {
                let _ = write!(self.0, "{byte:02x}");
            }
            self.0.push('"');
        }
        self
    }

    /// Adds a number.
    pub fn number(mut self, name: &str, value: u64) -> Self {
        self.name(name);
        let _ = write!(self.0, "{value}");
        self
    }

    /// Adds true or false.
    pub fn flag(self, name: &str, value: bool) -> Self {
        self.raw(name, if value { "true" } else { "false" })
    }

    /// Adds an array of texts.
    pub fn texts(self, name: &str, values: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.array(name, values, |json, value| push_string(json, value.as_ref()))
    }

    /// Adds an array of objects.
    pub fn objects(self, name: &str, values: impl IntoIterator<Item = Self>) -> Self {
        self.array(name, values, |json, value| json.push_str(&value.end()))
    }

    fn array<T>(
        mut self,
        name: &str,
        values: impl IntoIterator<Item = T>,
        push: impl Fn(&mut String, T),
    ) -> Self {
        self.name(name);
        self.0.push('[');
        for (n, value) in values.into_iter().enumerate() {
            if n > 0 {
                self.0.push(',');
            }
            push(&mut self.0, value);
        }
        self.0.push(']');
        self
    }

    /// Adds what is JSON already.
    pub fn raw(mut self, name: &str, json: &str) -> Self {
        self.name(name);
        self.0.push_str(json);
        self
    }

    fn name(&mut self, name: &str) {
        if !self.0.ends_with('{') {
            self.0.push(',');
        }
        push_string(&mut self.0, name);
        self.0.push(':');
    }

    /// The object.
    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }

    /// The object on a line.
    pub fn line(self) -> String {
        self.end() + "\n"
    }
}

/// Control characters are escaped, as RFC 8259 asks, and so is what is not seen: somebody may look at it on
/// a terminal.
fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if c.is_control() || is_unseen(c) => {
                // Two of them beyond U+FFFF.
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(json, "\\u{unit:04x}");
                }
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_in_their_order_with_commas_between() {
        let inner = ["x", "y"].map(|name| Object::new().number(name, 1));
        let texts: [&str; 2] = ["a", "b,\""];
        let object = Object::behind("0\n".into()).text("t", "é").number("n", 3).flag("f", false);
        let object = object.texts("l", texts).objects("o", inner).objects("e", []).raw("r", "{}");
        assert_eq!(
            object.line(),
            "0\n{\"t\":\"é\",\"n\":3,\"f\":false,\"l\":[\"a\",\"b,\\\"\"],\
             \"o\":[{\"x\":1},{\"y\":1}],\"e\":[],\"r\":{}}\n"
        );
    }

    #[test]
    fn strings_neither_end_early_nor_send_codes() {
        let object = Object::new().text("a", "a\nb\u{1b}\\");
        assert_eq!(object.end(), r#"{"a":"a\nb\u001b\\"}"#);
    }

    /// Nobody could tell 0xFF from 0xFE.
    #[test]
    fn bytes_that_are_no_text_follow_in_hexadecimal() {
        for (text, json) in [
            (&b"a\xffb"[..], "{\"a\":\"a\u{fffd}b\",\"a_hex\":\"61ff62\"}"),
            (b"a\xfeb", "{\"a\":\"a\u{fffd}b\",\"a_hex\":\"61fe62\"}"),
            (br"a\xffb", r#"{"a":"a\\xffb"}"#),
            ("\u{fffd}".as_bytes(), "{\"a\":\"\u{fffd}\"}"),
        ] {
            assert_eq!(Object::new().text("a", text).end(), json);
        }
    }

    /// Two books that differ in a character without a width were printed alike.
    #[test]
    fn what_is_not_seen_is_escaped_and_what_is_seen_is_not() {
        for (text, json) in [
            ("ge\u{200b}b", r#"{"a":"ge\u200bb"}"#),
            ("\u{e0041}", r#"{"a":"\udb40\udc41"}"#),
            ("Märchen 童話 سلام 😀", r#"{"a":"Märchen 童話 سلام 😀"}"#),
        ] {
            assert_eq!(Object::new().text("a", text).end(), json);
        }
    }
}
