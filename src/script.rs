//! Calling Lua scripts: by digest, so that a call does not carry the text; whole where Redis does
//! not know it (a restart, a failover, SCRIPT FLUSH). NOSCRIPT means that nothing was executed, so
//! sending the text then neither loses nor doubles a step.
//!
//! Each script's typed caller stands in the module whose work it does; the texts are in `lua/`.

use std::io::Write as _;

use redis::{Arg, Cmd, ConnectionLike, RedisResult, RedisWrite, ToRedisArgs, Value};

use crate::error::Error;
use crate::ids::EventId;

/// The text of a script, put together from files of `lua/` in that order: as Redis gets it, see
/// [`write_bare`].
macro_rules! lua {
    ($($file:literal),+) => {{
        const TEXT: &str =
            concat!($(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/lua/", $file, ".lua"))),+);
        const BARE: [u8; $crate::script::write_bare(TEXT, &mut [])] = {
            let mut bare = [0; $crate::script::write_bare(TEXT, &mut [])];
            $crate::script::write_bare(TEXT, &mut bare);
            bare
        };
        const {
            match std::str::from_utf8(&BARE) {
                Ok(text) => text,
                Err(_) => panic!("only whole characters are left out"),
            }
        }
    }};
}
pub(crate) use lua;

/// Writes a script's text without comments and indentation, which are for its readers: they would
/// be a third of it in the binary and on the wire. Its lines stay what they are, since errors name
/// them. Returns how long it is, even if `bare` has no room for it.
///
/// For texts without long comments, and with strings that end on their line.
pub const fn write_bare(text: &str, bare: &mut [u8]) -> usize {
    let text = text.as_bytes();
    let (mut at, mut length) = (0, 0);
    let (mut quote, mut is_escaped, mut is_line_begun) = (0, false, false);
    while at < text.len() {
        let byte = text[at];
        let is_comment = quote == 0 && byte == b'-' && at + 1 < text.len() && text[at + 1] == b'-';
        if is_comment {
            assert!(at + 2 >= text.len() || text[at + 2] != b'[', "a long comment");
            while at < text.len() && text[at] != b'\n' {
                at += 1;
            }
            continue;
        }
        if byte == b'\n' {
            assert!(quote == 0, "a string that does not end on its line");
        } else if quote == 0 {
            quote = if byte == b'\'' || byte == b'"' { byte } else { 0 };
        } else if is_escaped {
            is_escaped = false;
        } else if byte == b'\\' {
            is_escaped = true;
        } else if byte == quote {
            quote = 0;
        }
        if is_line_begun || byte != b' ' {
            if length < bare.len() {
                bare[length] = byte;
            }
            length += 1;
        }
        is_line_begun = byte != b'\n' && (is_line_begun || byte != b' ');
        at += 1;
    }
    length
}

/// A script's text as Redis gets it, see [`write_bare`]; for tests, which put texts together as they
/// run.
pub fn bare(text: &str) -> String {
    let mut bare = vec![0; write_bare(text, &mut [])];
    write_bare(text, &mut bare);
    String::from_utf8(bare).expect("only whole characters are left out")
}

/// A script, compiled in.
pub struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    /// A script of that text.
    pub fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Begins a call: the caller adds `keys` keys, then the arguments.
    pub fn call(&self, keys: usize) -> ScriptCall {
        // Room for about as many arguments as keys, of some thirty bytes each.
        let mut cmd = Cmd::with_capacity(2 * keys + 16, self.digest.len() + 64 * keys + 256);
        cmd.arg("EVALSHA").arg(&self.digest).arg(keys);
        ScriptCall { text: self.text, cmd }
    }

    /// Begins a call with these keys: the caller adds the arguments.
    pub fn keys<K: AsRef<[u8]>>(&self, keys: &[K]) -> ScriptCall {
        let mut call = self.call(keys.len());
        for key in keys {
            call.arg(key.as_ref());
        }
        call
    }
}

/// How Redis is told which script to run.
#[derive(Clone, Copy)]
pub enum By {
    /// By its digest: NOSCRIPT, and nothing done, where Redis does not know it.
    Digest,
    /// By its text.
    Text,
}

/// A call of a script: its keys, then its arguments.
pub struct ScriptCall {
    text: &'static str,
    cmd: Cmd,
}

impl ScriptCall {
    /// Adds a key, or an argument; several if it stands for several.
    pub fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.cmd.arg(arg);
        self
    }

    /// Appends it to what is to be sent.
    pub fn pack(&self, by: By, packed: &mut Vec<u8>) {
        match by {
            By::Digest => self.cmd.write_packed_command(packed),
            By::Text => self.by_text().write_packed_command(packed),
        }
    }

    /// The command that runs it by its text.
    pub fn by_text(&self) -> Cmd {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(self.text);
        for arg in self.cmd.args_iter().skip(2) {
            let Arg::Simple(bytes) = arg else { unreachable!("scripts are given no cursor") };
            cmd.arg(bytes);
        }
        cmd
    }

    /// Makes the call and waits for its reply.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn query(
        &self,
        connection: &mut impl ConnectionLike,
        doing: &'static str,
    ) -> Result<Value, Error> {
        let reply = match self.cmd.query(connection) {
            Err(error) if error.code() == Some("NOSCRIPT") => self.by_text().query(connection),
            other => other,
        };
        reply.map_err(Error::redis(doing))
    }

    /// Makes the call and waits for its reply: a list whose first element is a word.
    ///
    /// # Errors
    /// What Redis or the link said; [`Error::Fenced`] if the script found another token.
    pub fn run(
        &self,
        connection: &mut impl ConnectionLike,
        doing: &'static str,
    ) -> Result<Reply, Error> {
        Reply::read(self.query(connection, doing)?, doing)
    }
}

/// A reply, or the error that Redis gave instead of one. Unlike [`Value::extract_error`] this does not take
/// lists apart to look for errors in them: only the reply to a transaction has any there.
///
/// # Errors
/// What Redis said.
pub fn unless_refused(reply: Value) -> RedisResult<Value> {
    match reply {
        Value::ServerError(error) => Err(error.into()),
        reply => Ok(reply),
    }
}

impl ToRedisArgs for EventId {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        let mut number = itoa::Buffer::new();
        let mut arg = out.writer_for_next_arg();
        // Writing to memory cannot fail.
        let _ = arg.write_all(number.format(self.ms).as_bytes());
        let _ = arg.write_all(b"-");
        let _ = arg.write_all(number.format(self.seq).as_bytes());
    }
}

/// A script's reply: a word, and what follows it.
#[derive(Debug)]
pub struct Reply {
    /// The first element.
    pub word: String,
    /// The others.
    pub rest: Vec<Value>,
}

impl Reply {
    /// Takes a reply apart.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the script found another token; else it is no list that begins with a
    /// word.
    pub fn read(value: Value, doing: &'static str) -> Result<Self, Error> {
        let Value::Array(list) = value else {
            return Err(Error::Reply { doing, got: format!("{value:?}") });
        };
        let mut rest = list;
        match rest.first().and_then(text) {
            Some("FENCED") => Err(Error::Fenced),
            Some(word) => {
                let word = word.to_owned();
                rest.remove(0);
                Ok(Self { word, rest })
            }
            None => Err(Error::Reply { doing, got: format!("{rest:?}") }),
        }
    }

    /// The error for a word that the caller does not know.
    pub fn unexpected(&self, doing: &'static str) -> Error {
        Error::Reply { doing, got: format!("{} {:?}", self.word, self.rest) }
    }

    /// The element at `n` after the word, as a number.
    pub fn number(&self, n: usize) -> Option<i64> {
        match self.rest.get(n)? {
            Value::Int(number) => Some(*number),
            other => text(other)?.parse().ok(),
        }
    }
}

/// A reply's element as bytes; none if it is something else.
pub fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.as_bytes(),
        _ => b"",
    }
}

/// A reply's element as text, if it is some.
pub fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Okay => Some("OK"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_indentation_are_left_out_and_nothing_else() {
        let text = "-- What it does.\n\nlocal a = 1  -- one\n  if a - -1 == '--\\'--' then\n\n";
        assert_eq!(bare(text), "\n\nlocal a = 1  \nif a - -1 == '--\\'--' then\n\n");
        assert_eq!(bare("x = \"it's\" -- \"\n    -- it's\n\ty()"), "x = \"it's\" \n\n\ty()");
    }

    #[test]
    fn a_text_that_is_put_together_has_the_lines_of_its_parts() {
        let parts = [include_str!("../lua/order.lua"), include_str!("../lua/gate.lua")];
        assert_eq!(lua!("order", "gate"), bare(&parts.concat()));
        assert_eq!(lua!("gate").lines().count(), parts[1].lines().count());
        assert!(lua!("gate").len() * 4 < parts[1].len() * 3);
    }
}
