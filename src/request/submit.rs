//! Adding events to their streams: `lua/submit.lua` and its one typed caller.
//!
//! The script is sent whole each time (EVAL): Redis keeps the compiled form by the text's digest,
//! and making that digest costs microseconds for a chunk. So there is no NOSCRIPT to recover from
//! after a restart or a flush of scripts, and no chunk of a pipeline can overtake one that was
//! sent before it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;

use redis::{Cmd, ErrorKind, RedisResult, Value};

use crate::error::Error;
use crate::event::{Action, AnswerWish, EventKey};
use crate::ids::{BookId, UserId};
use crate::keys::{ANSWER_FIELD, BOOK_IDS_FIELD, Keys, USER_ID_FIELD};

const SCRIPT: &str = include_str!("../../lua/submit.lua");
const GUARD: &str = include_str!("../../lua/guard.lua");
/// Action, user id, book ids, wish for an answer.
const PER_EVENT: usize = 4;
const DOING: &str = "queue the event";

/// How long Redis remembers what was sent under a name: a day.
const SUBMISSION_TTL_MS: u64 = 24 * 3_600_000;

/// A request or a return that has no id yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What it asks for.
    pub action: Action,
    /// Who asks.
    pub user: UserId,
    /// Distinct books.
    pub books: Vec<BookId>,
}

impl Draft {
    /// The field `book_ids`.
    pub fn book_ids(&self) -> String {
        let mut list = String::new();
        for book in &self.books {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(book.as_str());
        }
        list
    }
}

/// Events that are added together.
#[derive(Debug)]
pub struct Chunk {
    /// [`PER_EVENT`] for each event, as the script wants them.
    arguments: Vec<Cow<'static, str>>,
    bytes: usize,
    wish: AnswerWish,
    fingerprint: Fingerprint,
}

/// Where the script put a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The chunk's first event. The others have the next sequence numbers, whatever their stream.
    pub first: EventKey,
    /// It was there already, from a submission under the same name.
    pub known: bool,
}

/// Why a chunk was not added.
#[derive(Debug)]
pub enum Refused {
    /// Another content was sent under the same name, as this event.
    OtherContent(EventKey),
    /// Redis said no.
    Error(Error),
    /// The reply did not come or was not understood: the chunk may have been added.
    Lost(Error),
}

impl Chunk {
    /// The most events of a chunk. Redis does nothing else while it adds them, which is a
    /// millisecond or two for so many; more would save nothing that can be measured.
    pub const MAX_EVENTS: usize = 500;
    /// So many events of one kind in a row are worth a call of the script less.
    const LONG_RUN: usize = 32;

    /// A chunk that has so many bytes gets no more events: a thousand books with long ids in each
    /// of its events would be 50 MB in one command.
    const MAX_BYTES: usize = 1 << 18;

    /// An empty chunk of events with this wish for an answer.
    pub fn new(wish: AnswerWish) -> Self {
        Self { arguments: Vec::new(), bytes: 0, wish, fingerprint: Fingerprint::new() }
    }

    /// Adds an event at the end, its books joined as the field wants them.
    pub fn push(&mut self, action: Action, user: String, books: String) {
        for part in [action.as_str(), &user, &books] {
            self.bytes += part.len();
            self.fingerprint.add(part.as_bytes());
            // No id has a line break in it: parts cannot be shifted into one another.
            self.fingerprint.add(b"\n");
        }
        let wish = self.wish.word().unwrap_or_default();
        self.arguments.extend([action.as_str().into(), user.into(), books.into(), wish.into()]);
    }

    /// How many events are in it.
    pub fn len(&self) -> usize {
        self.arguments.len() / PER_EVENT
    }

    /// Whether it is big enough to be sent: by the number of events, or by their bytes.
    pub fn is_full(&self) -> bool {
        self.len() >= Self::MAX_EVENTS || self.bytes >= Self::MAX_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.arguments.is_empty()
    }

    /// The command that adds it. With a `submission` (a key), at most once within a day.
    pub fn command(&self, keys: &Keys, submission: Option<&str>) -> Cmd {
        self.command_for(keys, submission, &self.arguments)
    }

    /// The command that adds some of its events.
    fn command_for(
        &self,
        keys: &Keys,
        submission: Option<&str>,
        events: &[Cow<'static, str>],
    ) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(2 + usize::from(submission.is_some()));
        command.arg(&keys.requests).arg(&keys.returns).arg(submission);
        command.arg(SUBMISSION_TTL_MS).arg(self.fingerprint.to_string());
        for argument in events {
            command.arg(argument.as_bytes());
        }
        command
    }

    /// The same, for whoever does not need to know the events' ids: a transaction in which the
    /// script adds only the first event of every long run of requests or of returns. What follows
    /// it in its own stream by a plain XADD gets a greater id than all before it anyway, for half
    /// the server's time.
    pub fn transaction(&self, keys: &Keys, submission: &str) -> Transaction {
        let mut transaction = Transaction { bytes: Vec::new(), replies: 0 };
        transaction.add(redis::cmd("WATCH").arg(submission));
        let mut guard = redis::cmd("EVAL");
        guard.arg(GUARD).arg(3).arg(&keys.requests).arg(&keys.returns).arg(submission);
        transaction.add(&guard);
        transaction.add(&redis::cmd("MULTI"));
        let mut submission = Some(submission);
        let (mut scripted_from, mut at) = (0, 0);
        while at < self.arguments.len() {
            let action = &self.arguments[at];
            let mut end = at;
            while self.arguments.get(end).is_some_and(|next| next == action) {
                end += PER_EVENT;
            }
            if end - at >= Self::LONG_RUN * PER_EVENT {
                let first = at + PER_EVENT;
                let scripted = &self.arguments[scripted_from..first];
                transaction.add(&self.command_for(keys, submission.take(), scripted));
                let stream =
                    if action == Action::Request.as_str() { &keys.requests } else { &keys.returns };
                for event in self.arguments[first..end].chunks_exact(PER_EVENT) {
                    transaction.add_plain(stream, event);
                }
                scripted_from = end;
            }
            at = end;
        }
        if scripted_from < self.arguments.len() {
            let scripted = &self.arguments[scripted_from..];
            transaction.add(&self.command_for(keys, submission, scripted));
        }
        transaction.add(&redis::cmd("EXEC"));
        transaction
    }

    /// What came of the transaction.
    ///
    /// # Errors
    /// Nothing was added, or that is not known.
    pub fn transacted(&self, mut replies: Vec<RedisResult<Value>>) -> Result<Placed, Refused> {
        let last = replies.pop();
        let mut replies = replies.into_iter();
        let guard = replies.nth(1);
        // The server refuses a command of the transaction as soon as it comes, and then the whole.
        let refused = replies.find_map(|reply| reply.and_then(Value::extract_error).err());
        let lost = || Refused::Lost(Error::Reply { doing: DOING, got: "no reply".into() });
        let verdict = guard.ok_or_else(lost)?;
        if !is_word(&verdict, "NEW") {
            return self.placed(verdict);
        }
        if let Some(source) = refused {
            return self.placed(Err(source));
        }
        match last.ok_or_else(lost)? {
            // Somebody else has added it just now: asked again, the guard says so.
            Ok(Value::Nil) => Err(lost()),
            Ok(Value::Array(mut added)) if !added.is_empty() => {
                let first = added.swap_remove(0);
                for reply in added {
                    if let Err(source) = reply.extract_error() {
                        return Err(Refused::Lost(Error::Redis { doing: DOING, source }));
                    }
                }
                self.placed(Ok(first))
            }
            other => self.placed(other),
        }
    }

    /// What came of the command.
    ///
    /// # Errors
    /// Nothing was added, or that is not known.
    pub fn placed(&self, reply: RedisResult<Value>) -> Result<Placed, Refused> {
        let reply = reply.and_then(Value::extract_error).map_err(|source| {
            // The script can fail only before its first write. A reply that is no error of the
            // server's says nothing about what it did.
            let known = matches!(source.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
            let error = Error::Redis { doing: DOING, source };
            if known { Refused::Error(error) } else { Refused::Lost(error) }
        })?;
        let unknown = |got: String| Refused::Lost(Error::Reply { doing: DOING, got });
        let words: Vec<String> =
            redis::from_redis_value(reply).map_err(|error| unknown(error.to_string()))?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let action = self.arguments.first().and_then(|word| Action::from_word(word));
        match (&words[..], action) {
            (["ADDED", id], Some(action)) => {
                if let Ok(id) = id.parse() {
                    return Ok(Placed { first: EventKey { id, action }, known: false });
                }
            }
            (["KNOWN", kept], _) => {
                if let Some((first, fingerprint)) = parse_submission(kept) {
                    if fingerprint != self.fingerprint.to_string() {
                        return Err(Refused::OtherContent(first));
                    }
                    return Ok(Placed { first, known: true });
                }
            }
            (["WRONG_TYPE", key], _) => {
                let why = format!("the key {key} holds something that is no stream");
                return Err(Refused::Error(Error::Unfit(why)));
            }
            (["NO_IDS_LEFT"], _) => {
                let why = "a stream of events has used up all ids".to_owned();
                return Err(Refused::Error(Error::Unfit(why)));
            }
            _ => {}
        }
        Err(unknown(format!("{words:?}")))
    }
}

/// The commands of a transaction, packed.
#[derive(Debug)]
pub struct Transaction {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// How many replies come back.
    pub replies: usize,
}

impl Transaction {
    fn add(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.bytes);
        self.replies += 1;
    }

    /// Adds the XADD of one event. Written out here because it is done a million times.
    fn add_plain(&mut self, stream: &str, event: &[Cow<'static, str>]) {
        let wish = if event[3].is_empty() { &[][..] } else { &[ANSWER_FIELD, &event[3]] };
        let words = ["XADD", stream, "*", USER_ID_FIELD, &event[1], BOOK_IDS_FIELD, &event[2]];
        let _ = write!(self.bytes, "*{}\r\n", words.len() + wish.len());
        for word in words.iter().chain(wish) {
            let _ = write!(self.bytes, "${}\r\n", word.len());
            self.bytes.extend_from_slice(word.as_bytes());
            self.bytes.extend_from_slice(b"\r\n");
        }
        self.replies += 1;
    }
}

/// Whether a reply is a list of this word only.
fn is_word(reply: &RedisResult<Value>, word: &str) -> bool {
    matches!(reply, Ok(Value::Array(words))
        if matches!(&words[..], [Value::BulkString(text)] if text == word.as_bytes()))
}

/// Reads what the script kept about a submission.
fn parse_submission(kept: &str) -> Option<(EventKey, &str)> {
    let (event, fingerprint) = kept.split_once(' ')?;
    let (action, id) = event.split_once(':')?;
    Some((EventKey { id: id.parse().ok()?, action: Action::from_word(action)? }, fingerprint))
}

/// Tells one content from another: 128 bits of FNV-1a. It guards against mistakes, not against
/// somebody who looks for a collision: he could only fool himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// That of no bytes.
    pub fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Takes more bytes in.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Appends what somebody typed, in quotes, for a message: escaped, and cut short where it is long.
pub fn push_quoted(message: &mut String, text: &str) {
    const SHOWN_CHARS: usize = 60;
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    message.push('"');
    crate::outcome::push_escaped(message, &cut);
    let _ = message.write_str(if cut.len() < text.len() { "...\"" } else { "\"" });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(books: &[&str]) -> Chunk {
        let mut chunk = Chunk::new(AnswerWish::Keep);
        chunk.push(Action::Return, "user1".into(), books.join(","));
        chunk
    }

    fn taken(words: &[&str]) -> RedisResult<Value> {
        Ok(Value::Array(words.iter().map(|w| Value::BulkString(w.as_bytes().to_vec())).collect()))
    }

    #[test]
    fn the_command_has_as_many_keys_and_arguments_as_the_header_says() {
        let packed = |submission| {
            let command = chunk(&["geb", "momo"]).command(&Keys::new(None), submission);
            let args: Vec<String> = command
                .args_iter()
                .map(|arg| match arg {
                    redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                    _ => panic!("no cursor here"),
                })
                .collect();
            assert_eq!(args[1], SCRIPT);
            args[2..].to_vec()
        };
        let event = ["return", "user1", "geb,momo", "keep"];
        let named = packed(Some("name"));
        assert_eq!(named[..2], ["3", "lending_requests_event_stream"]);
        assert_eq!(named[3..5], ["name", "86400000"]);
        assert_eq!(named[6..], event);
        let unnamed = packed(None);
        assert_eq!(unnamed[0], "2");
        assert_eq!(unnamed[5..], event);
        assert!(SCRIPT.starts_with("-- submit.lua:"));
    }

    #[test]
    fn every_word_that_the_scripts_return_is_understood() {
        for (script, words) in [
            (SCRIPT, &["ADDED", "KNOWN", "WRONG_TYPE", "NO_IDS_LEFT"]),
            (GUARD, &["NEW", "KNOWN", "WRONG_TYPE", "NO_IDS_LEFT"]),
        ] {
            for word in words {
                let header = script.lines().take_while(|line| line.starts_with("--"));
                let header: Vec<&str> = header.collect();
                assert!(header.join("\n").contains(&format!("{{\"{word}\"")), "{word}");
                assert!(script.contains(&format!("{{'{word}'")), "{word}");
            }
            assert_eq!(script.matches("{\"").count(), words.len());
        }
        let chunk = chunk(&["geb"]);
        let first = EventKey { id: "17-3".parse().unwrap(), action: Action::Return };
        let placed = chunk.placed(taken(&["ADDED", "17-3"])).unwrap();
        assert_eq!(placed, Placed { first, known: false });
        let kept = format!("return:17-3 {}", chunk.fingerprint);
        let placed = chunk.placed(taken(&["KNOWN", &kept])).unwrap();
        assert_eq!(placed, Placed { first, known: true });
        let other = chunk.placed(taken(&["KNOWN", "request:9-0 abc"]));
        assert!(matches!(other, Err(Refused::OtherContent(event)) if event.id.ms == 9));
        for words in [&["WRONG_TYPE", "key"][..], &["NO_IDS_LEFT"]] {
            assert!(matches!(chunk.placed(taken(words)), Err(Refused::Error(_))), "{words:?}");
        }
        for words in [&["ADDED", "x"][..], &["KNOWN", ""], &["?"], &[]] {
            assert!(matches!(chunk.placed(taken(words)), Err(Refused::Lost(_))), "{words:?}");
        }
    }

    #[test]
    fn a_transaction_leaves_to_the_script_what_begins_a_long_run_and_all_short_ones() {
        let mut chunk = Chunk::new(AnswerWish::None);
        for (action, run) in [
            (Action::Request, 100),
            (Action::Return, 3),
            (Action::Request, 1),
            (Action::Return, Chunk::LONG_RUN),
            (Action::Request, 2),
        ] {
            for n in 0..run {
                chunk.push(action, format!("u{n}"), "b".into());
            }
        }
        let transaction = chunk.transaction(&Keys::new(None), "name");
        let text = String::from_utf8(transaction.bytes).unwrap();
        assert_eq!(text.matches("\r\nXADD\r\n").count(), 99 + Chunk::LONG_RUN - 1);
        // The guard; one request; three returns, a request and a return; two requests.
        assert_eq!(text.matches("\r\nEVAL\r\n").count(), 4);
        assert_eq!(text.matches("\r\nname\r\n").count(), 3, "watched, guarded, set once");
        assert_eq!(transaction.replies, 4 + 3 + 99 + Chunk::LONG_RUN - 1);
    }

    #[test]
    fn a_transaction_that_was_refused_or_overtaken_is_told_from_one_that_was_not() {
        let chunk = chunk(&["geb"]);
        let ok = || Ok(Value::Okay);
        let queued = || Ok(Value::SimpleString("QUEUED".into()));
        let error = || Err(redis::make_extension_error("OOM".into(), None));
        let transacted =
            |guard, queue, exec| chunk.transacted(vec![ok(), guard, ok(), queue, queued(), exec]);
        let new = || taken(&["NEW"]);
        let added = |words: &[&str]| Ok(Value::Array(vec![taken(words).unwrap(), Value::Okay]));
        let placed = transacted(new(), queued(), added(&["ADDED", "17-3"])).unwrap();
        assert_eq!(placed.first.id.to_string(), "17-3");
        let kept = format!("return:17-3 {}", chunk.fingerprint);
        let placed = transacted(taken(&["KNOWN", &kept]), queued(), Ok(Value::Nil)).unwrap();
        assert!(placed.known);
        let overtaken = transacted(new(), queued(), Ok(Value::Nil));
        assert!(matches!(overtaken, Err(Refused::Lost(_))));
        let wrong = transacted(taken(&["WRONG_TYPE", "key"]), queued(), Ok(Value::Nil));
        assert!(matches!(wrong, Err(Refused::Error(Error::Unfit(_)))));
        let refused = transacted(new(), error(), error());
        assert!(matches!(refused, Err(Refused::Error(error)) if error.code() == Some("OOM")));
        assert!(matches!(chunk.transacted(vec![]), Err(Refused::Lost(_))));
    }

    #[test]
    fn a_fingerprint_tells_books_from_their_neighbours() {
        assert_eq!(chunk(&["a", "b"]).fingerprint, chunk(&["a", "b"]).fingerprint);
        assert_ne!(chunk(&["a", "b"]).fingerprint, chunk(&["b", "a"]).fingerprint);
        assert_ne!(chunk(&["ab"]).fingerprint, chunk(&["a", "b"]).fingerprint);
        let mut text = Fingerprint::new();
        text.add(b"foobar");
        // From the published test vectors of FNV-1a.
        assert_eq!(text.to_string(), "343e1662793c64bf6f0d3597ba446f18");
    }
}
