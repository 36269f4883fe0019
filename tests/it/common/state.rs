//! All that Redis holds, to compare whole states and to check the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use redis::{RedisError, Value, from_redis_value};

use super::{Ledger, REQUESTS, RETURNS, Redis, SHELVING};

/// How many books automated storage holds.
const CAPACITY: usize = 20;
/// How many books a user may have.
const LIMIT: usize = 5;

/// Every key with its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State(pub BTreeMap<String, Content>);

/// The content of a key. Bytes that are not UTF-8 are escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    String(String),
    List(Vec<String>),
    Set(BTreeSet<String>),
    Hash(BTreeMap<String, String>),
    Stream(Stream),
    Other(String),
}

/// A stream's entries, and of each group what it was last given and what it has in hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub entries: Vec<(String, Vec<(String, String)>)>,
    pub groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub last_delivered: String,
    /// Event -> consumer.
    pub pending: BTreeMap<String, String>,
}

/// Bytes as text; what is not UTF-8 is escaped.
pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| e.into_bytes().escape_ascii().to_string())
}

/// An id as two numbers, to compare.
pub fn numbers(id: &str) -> (u64, u64) {
    let (ms, seq) = id.split_once('-').expect("an id");
    (ms.parse().expect("a number"), seq.parse().expect("a number"))
}

impl State {
    /// Reads all keys. Not atomic: of a system at work it is a blurred picture.
    pub fn read(redis: &Redis) -> Result<Self, RedisError> {
        let mut state = BTreeMap::new();
        let keys: Vec<Vec<u8>> = redis.try_ask(&["KEYS", "*"])?;
        for key in keys {
            if let Some(content) = Content::read(redis, &key)? {
                state.insert(text(key), content);
            }
        }
        Ok(Self(state))
    }

    /// The part under one prefix, without it; for the empty prefix, what is in no branch.
    pub fn branch(self, prefix: &str) -> Self {
        let strip = |key: String| match prefix {
            "" => (!key.starts_with('{')).then_some(key),
            _ => key.strip_prefix(prefix).map(str::to_owned),
        };
        Self(self.0.into_iter().filter_map(|(key, c)| Some((strip(key)?, c))).collect())
    }

    /// The part that is not under this beginning of a key.
    pub fn without(mut self, beginning: &str) -> Self {
        self.0.retain(|key, _| !key.starts_with(beginning));
        self
    }

    pub fn stream(&self, key: &str) -> Stream {
        match self.0.get(key) {
            Some(Content::Stream(stream)) => stream.clone(),
            None => Stream::default(),
            Some(other) => panic!("{key} is no stream but {other:?}"),
        }
    }

    pub fn hash(&self, key: &str) -> BTreeMap<String, String> {
        match self.0.get(key) {
            Some(Content::Hash(hash)) => hash.clone(),
            None => BTreeMap::new(),
            Some(other) => panic!("{key} is no hash but {other:?}"),
        }
    }

    pub fn set(&self, key: &str) -> BTreeSet<String> {
        match self.0.get(key) {
            Some(Content::Set(set)) => set.clone(),
            None => BTreeSet::new(),
            Some(other) => panic!("{key} is no set but {other:?}"),
        }
    }

    /// Whether every event is delivered and acknowledged. An event without a group counts as
    /// waiting.
    pub fn is_drained(&self) -> bool {
        [
            (REQUESTS, "lending_service"),
            (RETURNS, "lending_service"),
            (SHELVING, "shelving_service"),
        ]
        .into_iter()
        .all(|(key, group)| {
            let stream = self.stream(key);
            let last = stream.entries.last().map(|(id, _)| numbers(id));
            match stream.groups.get(group) {
                None => last.is_none(),
                Some(group) => {
                    group.pending.is_empty()
                        && last.is_none_or(|last| last <= numbers(&group.last_delivered))
                }
            }
        })
    }

    /// What violates I1, I2, I3 or I6 of the state at rest, a line each.
    pub fn violations(&self) -> Vec<String> {
        let ledger = Ledger::of(self);
        let mut found = Vec::new();
        let books: BTreeSet<_> =
            ledger.loans.keys().chain(&ledger.storage).chain(ledger.shelves.keys()).collect();
        for book in books {
            let lent = ledger.loans.get(book);
            let stored = ledger.storage.contains(book);
            let out = ledger.shelves.contains_key(book);
            match (lent, stored, out) {
                (Some(user), true, _) => {
                    found.push(format!("I1: {book} is lent to {user} and in storage"));
                }
                (Some(user), _, false) => {
                    found.push(format!("I1: {book} is lent to {user} and on its shelf"));
                }
                (None, true, false) => {
                    found.push(format!("I1: {book} is in storage and on its shelf"));
                }
                (None, false, true) => found.push(format!("I1: {book} is nowhere")),
                (Some(_), false, true) | (None, true, true) | (None, false, false) => {}
            }
        }
        let users: BTreeSet<_> = ledger.loans.values().chain(ledger.counts.keys()).collect();
        for user in users {
            let lent = ledger.loans.values().filter(|lent_to| *lent_to == user).count();
            let count = ledger.counts.get(user).map_or("0", String::as_str);
            if count != lent.to_string() {
                found.push(format!("I2: the count of {user} is {count}, with {lent} books lent"));
            }
            if lent > LIMIT {
                found.push(format!("I2: {user} has {lent} books"));
            }
        }
        if ledger.storage.len() > CAPACITY {
            found.push(format!("I3: {} books in storage", ledger.storage.len()));
        }
        for key in self.0.keys() {
            if key.starts_with("request:") && key.ends_with(":temp") {
                found.push(format!("I6: {key} is left"));
            }
        }
        for (book, state) in self.hash("lending_book_states") {
            match state.split_at_checked(1) {
                Some(("?", request)) => {
                    found.push(format!("I6: {book} is still reserved by {request}"));
                }
                Some(("=" | ">", _)) => {}
                _ => found.push(format!("{book} has the state {state:?}, which means nothing")),
            }
        }
        found
    }
}

impl Content {
    /// None if the key went away meanwhile.
    fn read(redis: &Redis, key: &[u8]) -> Result<Option<Self>, RedisError> {
        let kind: String = redis.try_ask(&[b"TYPE", key])?;
        let texts = |list: Vec<Vec<u8>>| list.into_iter().map(text);
        Ok(Some(match kind.as_str() {
            "none" => return Ok(None),
            "string" => match redis.try_ask::<Option<Vec<u8>>>(&[b"GET", key])? {
                None => return Ok(None),
                Some(value) => Self::String(text(value)),
            },
            "list" => Self::List(texts(redis.try_ask(&[b"LRANGE", key, b"0", b"-1"])?).collect()),
            "set" => Self::Set(texts(redis.try_ask(&[b"SMEMBERS", key])?).collect()),
            "hash" => {
                let pairs: Vec<(Vec<u8>, Vec<u8>)> = redis.try_ask(&[b"HGETALL", key])?;
                Self::Hash(pairs.into_iter().map(|(f, v)| (text(f), text(v))).collect())
            }
            "stream" => Self::Stream(Stream::read(redis, key)?),
            other => Self::Other(other.to_owned()),
        }))
    }
}

/// A stream's entries as they stand in Redis, from `XRANGE`.
pub type RawEntries = Vec<(String, RawFields)>;
/// One entry's fields, byte by byte.
pub type RawFields = Vec<(Vec<u8>, Vec<u8>)>;

impl Stream {
    fn read(redis: &Redis, key: &[u8]) -> Result<Self, RedisError> {
        let entries: RawEntries = redis.try_ask(&[b"XRANGE", key, b"-", b"+"])?;
        let entries = entries
            .into_iter()
            .map(|(id, fields)| (id, fields.into_iter().map(|(f, v)| (text(f), text(v))).collect()))
            .collect();
        let infos: Vec<BTreeMap<String, Value>> =
            match redis.try_ask(&[&b"XINFO"[..], b"GROUPS", key]) {
                Ok(infos) => infos,
                // A stream that went away meanwhile has no groups.
                Err(error) if !error.is_io_error() => Vec::new(),
                Err(error) => return Err(error),
            };
        let mut groups = BTreeMap::new();
        for mut info in infos {
            let mut take =
                |name: &str| -> String { from_redis_value(info.remove(name).unwrap()).unwrap() };
            let name = take("name");
            let pending: Vec<(String, String, u64, u64)> = redis
                .try_ask(&[&b"XPENDING"[..], key, name.as_bytes(), b"-", b"+", b"100000"])
                .unwrap_or_default();
            let pending = pending.into_iter().map(|(id, who, _, _)| (id, who)).collect();
            groups.insert(name, Group { last_delivered: take("last-delivered-id"), pending });
        }
        Ok(Self { entries, groups })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The last of what may be long.
        const LONG: usize = 40;
        for (key, content) in &self.0 {
            match content {
                Content::Stream(stream) => {
                    writeln!(f, "{key}: {} entries", stream.entries.len())?;
                    for (id, fields) in &stream.entries[stream.entries.len().saturating_sub(LONG)..]
                    {
                        let fields: Vec<_> =
                            fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                        writeln!(f, "    {id} {:.300}", fields.join(" "))?;
                    }
                    for (name, group) in &stream.groups {
                        writeln!(f, "    group {name}: {:.300}", format!("{group:?}"))?;
                    }
                }
                other => writeln!(f, "{key}: {:.2000}", format!("{other:?}"))?,
            }
        }
        Ok(())
    }
}
