//! Adding events to their streams: `lua/submit.lua` and its one typed caller.
//!
//! The script is sent whole each time (EVAL): Redis keeps the compiled form by the text's digest,
//! and making that digest costs microseconds for a chunk. So there is no NOSCRIPT to recover from
//! after a restart or a flush of scripts, and no chunk of a pipeline can overtake one that was
//! sent before it.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use redis::{ErrorKind, RedisResult, Value};
use xxhash_rust::xxh3::xxh3_128;

use super::draft::Draft;
use crate::error::Error;
use crate::event::{ANSWER_FIELD, Action, AnswerWish, BOOK_IDS_FIELD, EventKey, USER_ID_FIELD};
use crate::ids::{EventId, SEQ_STEP};
use crate::keys::Keys;
use crate::script::lua;

const SCRIPT: &str = lua!("order", "last_given", "submit");
/// In front of the events of a chunk that are added without the script.
const GATE: &str = lua!("order", "last_given", "gate");
const DOING: &str = "queue the event";

/// Behind a larger one the script goes on in the next millisecond: its numbers are exact up to 14 digits.
pub const MAX_SEQ: u64 = 99_999_999_999_999;

/// What a chunk is known by, so that it is added once however often it is sent.
#[derive(Clone, Debug)]
pub struct Name {
    /// The key under which Redis keeps where the chunk was put.
    pub key: String,
    /// For how long.
    pub ttl_ms: u64,
    /// Tells another content under the same name.
    pub fingerprint: Fingerprint,
}

/// Events that are added together.
#[derive(Debug)]
pub struct Chunk {
    actions: Vec<Action>,
    /// Users and books in turn, and where each of them ends.
    text: String,
    ends: Vec<usize>,
    wish: AnswerWish,
}

/// Where the script put a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The chunk's first event. The others' sequence numbers grow by [`SEQ_STEP`],
    /// whatever their stream.
    pub first: EventKey,
    /// It was there already, from a submission under the same name.
    pub known: bool,
}

/// Why a chunk was not added.
#[derive(Debug)]
pub enum Refused {
    /// Another content was sent under the same name, as this event.
    OtherContent(EventKey),
    /// Redis does not know the chunk before it, which it had.
    OutOfTurn,
    /// Redis said no.
    Error(Error),
    /// The reply did not come or was not understood: the chunk may have been added.
    Lost(Error),
}

impl Chunk {
    /// The most events of a chunk. Redis does nothing else while it adds them, which takes it
    /// about a millisecond; more would save nothing that can be measured.
    pub const MAX_EVENTS: usize = 500;

    /// A chunk that has so many bytes gets no more events: a thousand books with long ids in each
    /// of its events would be 125 MB in one command.
    const MAX_BYTES: usize = 1 << 18;

    /// An empty chunk of events with this wish for an answer.
    pub fn new(wish: AnswerWish) -> Self {
        Self { actions: Vec::new(), text: String::new(), ends: Vec::new(), wish }
    }

    /// Adds an event at the end, its books joined as the field wants them.
    pub fn push(&mut self, action: Action, user: &str, books: &str) {
        self.actions.push(action);
        for part in [user, books] {
            self.text.push_str(part);
            self.ends.push(self.text.len());
        }
    }

    /// How many events are in it.
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Whether it is big enough to be sent: by the number of events, or by their bytes.
    pub fn is_full(&self) -> bool {
        self.len() >= Self::MAX_EVENTS || self.text.len() >= Self::MAX_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// The events: what they ask for, their users, their books.
    fn events(&self) -> impl Iterator<Item = (Action, &str, &str)> {
        let mut from = 0;
        self.actions.iter().zip(self.ends.chunks_exact(2)).map(move |(action, ends)| {
            let (user, books) = (&self.text[from..ends[0]], &self.text[ends[0]..ends[1]]);
            from = ends[1];
            (*action, user, books)
        })
    }

    /// The command that adds it, by the script. Under a name, at most once while that is
    /// remembered; behind the chunk with the key `before`, only if that is there.
    pub fn command(&self, keys: &Keys, name: Option<&Name>, before: Option<&str>) -> Vec<u8> {
        let mut packed = Packed::default();
        let key_count = 2 + usize::from(name.is_some()) + usize::from(before.is_some());
        packed.command(5 + key_count + 4 * self.len());
        packed.text("EVAL");
        packed.text(SCRIPT);
        packed.text(&key_count.to_string());
        packed.text(&keys.requests);
        packed.text(&keys.returns);
        let (mut ttl_ms, mut fingerprint) = (String::new(), String::new());
        if let Some(name) = name {
            packed.text(&name.key);
            ttl_ms = name.ttl_ms.to_string();
            fingerprint = name.fingerprint.to_string();
        }
        if let Some(before) = before {
            packed.text(before);
        }
        packed.text(&ttl_ms);
        packed.text(&fingerprint);
        let wish = self.wish.word().unwrap_or_default();
        for (action, user, books) in self.events() {
            for argument in [action.as_str(), user, books, &wish] {
                packed.text(argument);
            }
        }
        packed.0
    }

    /// The commands that add it without the script, under ids of our own from `first` on: if all
    /// is as expected (see gate.lua), which the last of two replies tells.
    pub fn plain_commands(
        &self,
        keys: &Keys,
        name: &Name,
        before: Option<&str>,
        first: EventId,
    ) -> Vec<u8> {
        let last = nth_id(first, self.len() - 1);
        let mut packed = Packed::default();
        // The events' replies say nothing that the gate does not know before.
        packed.words(&["CLIENT", "REPLY", "OFF"]);
        packed.words(&["MULTI"]);
        let kept = self.kept(name, first);
        let draft = format!("{kept} {:016x}", RandomState::new().build_hasher().finish());
        packed.words(&["SET", &name.key, &draft, "NX", "PX", &name.ttl_ms.to_string()]);
        packed.command(10 + usize::from(before.is_some()));
        packed.text("EVAL");
        packed.text(GATE);
        packed.text(if before.is_some() { "4" } else { "3" });
        packed.text(&keys.requests);
        packed.text(&keys.returns);
        packed.text(&name.key);
        if let Some(before) = before {
            packed.text(before);
        }
        packed.id(first);
        packed.id(last);
        packed.text(&draft);
        packed.text(&kept);
        let wish = self.wish.word();
        for (n, (action, user, books)) in self.events().enumerate() {
            packed.command(if wish.is_some() { 9 } else { 7 });
            packed.text("XADD");
            packed.text(keys.stream(action));
            packed.id(nth_id(first, n));
            for field in [USER_ID_FIELD, user, BOOK_IDS_FIELD, books] {
                packed.text(field);
            }
            if let Some(wish) = &wish {
                packed.text(ANSWER_FIELD);
                packed.text(wish);
            }
        }
        packed.words(&["EXEC"]);
        packed.words(&["CLIENT", "REPLY", "ON"]);
        packed.words(&["GET", &name.key]);
        packed.0
    }

    /// What Redis remembers of a chunk whose first event got this id.
    pub fn kept(&self, name: &Name, first: EventId) -> String {
        format!("{} {}", EventKey { id: first, action: self.first_action() }, name.fingerprint)
    }

    /// What the first event asks for: in its stream is the id that the chunk is known by.
    pub fn first_action(&self) -> Action {
        self.actions.first().copied().unwrap_or(Action::Request)
    }

    /// What came of the command.
    ///
    /// # Errors
    /// Nothing was added, or that is not known.
    pub fn placed(
        &self,
        reply: RedisResult<Value>,
        name: Option<&Name>,
    ) -> Result<Placed, Refused> {
        let reply = reply.and_then(Value::extract_error).map_err(|source| {
            // The script can fail only before its first write. A reply that is no error of the
            // server's says nothing about what it did.
            let known = matches!(source.kind(), ErrorKind::Server(_) | ErrorKind::Extension);
            let error = Error::Redis { doing: DOING, source };
            if known { Refused::Error(error) } else { Refused::Lost(error) }
        })?;
        let unknown = |got: String| Refused::Lost(Error::Reply { doing: DOING, got });
        let words: Vec<String> =
            redis::from_redis_value_ref(&reply).map_err(|_| unknown(format!("{reply:?}")))?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match &words[..] {
            ["ADDED", id] => {
                if let Ok(id) = id.parse() {
                    let first = EventKey { id, action: self.first_action() };
                    return Ok(Placed { first, known: false });
                }
            }
            ["KNOWN", kept] => {
                if let Some((first, fingerprint)) = parse_submission(kept) {
                    if name.is_none_or(|name| fingerprint != name.fingerprint.to_string()) {
                        return Err(Refused::OtherContent(first));
                    }
                    return Ok(Placed { first, known: true });
                }
            }
            ["OUT_OF_TURN"] => return Err(Refused::OutOfTurn),
            ["WRONG_TYPE", key] => {
                let why = format!("the key {key} holds something that is no stream");
                return Err(Refused::Error(Error::Unfit(why)));
            }
            ["NO_IDS_LEFT"] => {
                let why = "a stream of events has used up all ids".to_owned();
                return Err(Refused::Error(Error::Unfit(why)));
            }
            _ => {}
        }
        Err(unknown(format!("{words:?}")))
    }
}

/// The id of a chunk's event, counted from 0, as the script gives it.
pub fn nth_id(first: EventId, n: usize) -> EventId {
    EventId { seq: first.seq + n as u64 * SEQ_STEP, ..first }
}

/// Reads what is kept about a submission; of a draft too (see gate.lua), which has a third word.
fn parse_submission(kept: &str) -> Option<(EventKey, &str)> {
    let mut words = kept.split(' ');
    let (event, fingerprint) = (words.next()?, words.next()?);
    Some((EventKey::parse(event)?, fingerprint))
}

/// Tells one content from another: XXH3 with 128 bits. It guards against mistakes, not against
/// somebody who looks for a collision: he could only fool himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// That of one event.
    pub fn of(draft: &Draft) -> Self {
        // No id has a line break in it: parts cannot be shifted into one another.
        Self(xxh3_128(format!("{}\n{}\n{}\n", draft.action, draft.user, draft.books).as_bytes()))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Commands as they go over the wire. Where a million of them are sent, redis' own way of putting
/// one together costs more than Redis needs for it.
#[derive(Debug, Default)]
pub struct Packed(Vec<u8>);

impl Packed {
    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Begins a command of so many parts.
    pub fn command(&mut self, parts: usize) {
        self.number(b'*', parts as u64);
    }

    /// A whole command.
    pub fn words(&mut self, words: &[&str]) {
        self.command(words.len());
        words.iter().for_each(|word| self.text(word));
    }

    /// The command's next part.
    pub fn text(&mut self, text: &str) {
        self.number(b'$', text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(b"\r\n");
    }

    /// The command's next part: an event's id.
    pub fn id(&mut self, id: EventId) {
        let mut numbers = [itoa::Buffer::new(); 2];
        let [ms, seq] = &mut numbers;
        let (ms, seq) = (ms.format(id.ms).as_bytes(), seq.format(id.seq).as_bytes());
        self.number(b'$', (ms.len() + 1 + seq.len()) as u64);
        [ms, b"-", seq, b"\r\n"].iter().for_each(|part| self.0.extend_from_slice(part));
    }

    fn number(&mut self, kind: u8, number: u64) {
        self.0.push(kind);
        self.0.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.0.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(books: &str) -> Chunk {
        let mut chunk = Chunk::new(AnswerWish::Keep);
        chunk.push(Action::Return, "user1", books);
        chunk
    }

    fn name() -> Name {
        Name { key: "name".into(), ttl_ms: 86_400_000, fingerprint: Fingerprint(0xf) }
    }

    fn taken(words: &[&str]) -> RedisResult<Value> {
        Ok(Value::Array(words.iter().map(|w| Value::BulkString(w.as_bytes().to_vec())).collect()))
    }

    /// Commands, each as its words.
    fn unpacked(packed: &[u8]) -> Vec<Vec<String>> {
        let mut lines = std::str::from_utf8(packed).unwrap().split("\r\n");
        let mut commands = Vec::new();
        while let Some(parts) = lines.next().and_then(|line| line.strip_prefix('*')) {
            let part = |_| {
                let bytes = lines.next().unwrap().strip_prefix('$').unwrap().parse().unwrap();
                let text = lines.next().unwrap();
                assert_eq!(text.len(), bytes);
                text.to_owned()
            };
            commands.push((0..parts.parse().unwrap()).map(part).collect());
        }
        commands
    }

    #[test]
    fn the_command_has_as_many_keys_and_arguments_as_the_header_says() {
        let packed = |name: Option<&Name>| {
            let commands = unpacked(&chunk("geb,momo").command(&Keys::new(None), name, None));
            assert_eq!(commands.len(), 1);
            assert_eq!(commands[0][1], SCRIPT);
            commands[0][2..].to_vec()
        };
        let event = ["return", "user1", "geb,momo", "keep"];
        let named = packed(Some(&name()));
        assert_eq!(named[..2], ["3", "lending_requests_event_stream"]);
        assert_eq!(named[3..5], ["name", "86400000"]);
        assert_eq!(named[6..], event);
        let unnamed = packed(None);
        assert_eq!(unnamed[0], "2");
        assert_eq!(unnamed[5..], event);
    }

    #[test]
    fn without_the_script_a_chunk_is_one_transaction_that_begins_with_the_gate() {
        let mut chunk = chunk("geb,momo");
        chunk.push(Action::Request, "user2", "geb");
        let first = EventId { ms: 17, seq: 5 * SEQ_STEP };
        for (before, keys) in [(None, 3), (Some("before"), 4)] {
            let packed = chunk.plain_commands(&Keys::new(None), &name(), before, first);
            let commands = unpacked(&packed);
            let verbs: Vec<&str> = commands.iter().map(|command| &*command[0]).collect();
            let around =
                ["CLIENT", "MULTI", "SET", "EVAL", "XADD", "XADD", "EXEC", "CLIENT", "GET"];
            assert_eq!(verbs, around);
            let (set, eval, xadd) = (&commands[2], &commands[3], &commands[5]);
            let kept = format!("return:17-5000000 {:032x}", 0xf);
            let draft = &set[2];
            assert!(draft.starts_with(&format!("{kept} ")), "{draft}");
            assert_eq!(parse_submission(draft), parse_submission(&kept));
            assert_eq!(set[3..], ["NX", "PX", "86400000"]);
            assert_eq!(eval[1..3], [GATE, &keys.to_string()]);
            assert_eq!((&*set[1], &*eval[5]), ("name", "name"));
            assert_eq!(eval.get(6).filter(|_| keys == 4).map(|key| &**key), before);
            assert_eq!(eval[3 + keys..], ["17-5000000", "17-6000000", draft, &kept]);
            assert_eq!(xadd[1..3], ["lending_requests_event_stream", "17-6000000"]);
            assert_eq!(xadd[3..], ["user_id", "user2", "book_ids", "geb", "answer", "keep"]);
        }
    }

    #[test]
    fn every_word_that_the_script_returns_is_understood() {
        const TEXT: &str = include_str!("../../lua/submit.lua");
        for word in ["ADDED", "KNOWN", "OUT_OF_TURN", "WRONG_TYPE", "NO_IDS_LEFT"] {
            assert!(
                TEXT.contains(&format!("-- Returns {{\"{word}\""))
                    || TEXT.contains(&format!("--     | {{\"{word}\"")),
                "{word} in the header"
            );
            assert!(SCRIPT.contains(&format!("return {{'{word}'")), "{word} in the code");
        }
        let (chunk, name) = (chunk("geb"), name());
        let placed = |words: &[&str]| chunk.placed(taken(words), Some(&name));
        let first = EventKey { id: "17-3".parse().unwrap(), action: Action::Return };
        assert_eq!(placed(&["ADDED", "17-3"]).unwrap(), Placed { first, known: false });
        let kept = chunk.kept(&name, first.id);
        assert_eq!(placed(&["KNOWN", &kept]).unwrap(), Placed { first, known: true });
        let other = placed(&["KNOWN", "request:9-0 abc"]);
        assert!(matches!(other, Err(Refused::OtherContent(event)) if event.id.ms == 9));
        assert!(matches!(placed(&["OUT_OF_TURN"]), Err(Refused::OutOfTurn)));
        for words in [&["WRONG_TYPE", "key"][..], &["NO_IDS_LEFT"]] {
            assert!(matches!(placed(words), Err(Refused::Error(_))), "{words:?}");
        }
        for words in [&["ADDED", "x"][..], &["KNOWN", ""], &["?"], &[]] {
            assert!(matches!(placed(words), Err(Refused::Lost(_))), "{words:?}");
        }
    }

    #[test]
    fn a_chunk_is_full_by_the_number_of_its_events_or_by_their_bytes() {
        for (books, events) in [("geb", 500), (&"b".repeat(Chunk::MAX_BYTES / 2), 2)] {
            let mut chunk = Chunk::new(AnswerWish::None);
            while !chunk.is_full() {
                chunk.push(Action::Request, "user1", books);
            }
            assert_eq!(chunk.len(), events);
        }
    }

    #[test]
    fn a_fingerprint_tells_books_from_their_neighbours() {
        let of = |user: &str, books: &str| {
            let draft = Draft { user: user.into(), books: books.into(), ..Draft::new() };
            Fingerprint::of(&draft)
        };
        assert_eq!(of("u", "a,b"), of("u", "a,b"));
        assert_ne!(of("u", "a,b"), of("u", "b,a"));
        assert_ne!(of("u", "ab"), of("ua", "b"));
    }
}
