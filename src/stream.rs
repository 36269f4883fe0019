//! Reading streams: their entries, by page or through a consumer group, and what groups and consumers they have.
//!
//! Replies are taken apart by hand: an entry's content may be anything that a client sent, and an
//! entry that was deleted while it was pending comes without any.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use redis::{ConnectionLike, Value};

use crate::error::Error;
use crate::event::{self, Field};
use crate::ids::EventId;
use crate::link::Connection;
use crate::script::{self, Script, bytes, lua};

static LAST_ID: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("last_given", "last_id")));

/// How long a reader waits for something new, in milliseconds. The read timeout is larger; a link on
/// which nothing arrives any more is noticed after both.
pub const BLOCK_MS: u64 = 2_000;

/// An entry of a stream as it came.
#[derive(Debug)]
pub struct Entry {
    /// Its id.
    pub id: EventId,
    /// Names and values in turn, as the server sent them; empty if the entry was deleted.
    values: Vec<Value>,
}

impl Entry {
    /// The fields: names and values.
    pub fn fields(&self) -> impl Iterator<Item = Field<'_>> + Clone {
        self.values.chunks_exact(2).map(|pair| (bytes(&pair[0]), bytes(&pair[1])))
    }

    /// The value of the first field of that name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        event::field(self.fields(), name)
    }

    /// Whether it has no fields: it was deleted.
    pub fn is_gone(&self) -> bool {
        self.values.is_empty()
    }

    fn read(entry: Value, doing: &'static str) -> Result<Self, Error> {
        let (id, values) = pair(entry, doing)?;
        Self::from_parts(&id, values, doing)
    }

    /// An entry from its parts in a reply.
    ///
    /// # Errors
    /// They are none.
    pub fn from_parts(id: &Value, values: Value, doing: &'static str) -> Result<Self, Error> {
        let parsed = script::text(id).and_then(|id| id.parse().ok());
        let id = parsed.ok_or_else(|| Error::Reply { doing, got: format!("id {id:?}") })?;
        let values = match values {
            Value::Array(values) => values,
            _ => Vec::new(),
        };
        Ok(Self { id, values })
    }
}

/// Reads new entries of a group, at most `count` from each stream. One XREADGROUP is sent for each of
/// `waits`, all in one write; it blocks for up to that many milliseconds, or with `None` not at all.
/// Returns the entries of each read, each with the index of its stream.
///
/// # Errors
/// What Redis or the link said. Some replies may not be read then: the connection is to be given up.
pub fn read_new(
    connection: &mut Connection,
    group: &str,
    consumer: &str,
    streams: &[&str],
    count: usize,
    waits: &[Option<u64>],
) -> Result<Vec<Vec<(usize, Entry)>>, Error> {
    const DOING: &str = "read new events";
    let mut packed = Vec::new();
    for wait_ms in waits {
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(count);
        if let Some(wait_ms) = wait_ms {
            cmd.arg("BLOCK").arg(wait_ms);
        }
        cmd.arg("STREAMS").arg(streams).arg(vec![">"; streams.len()]);
        cmd.write_packed_command(&mut packed);
    }
    connection.send_packed_command(&packed).map_err(Error::redis(DOING))?;
    let read_one = |_: &Option<u64>| {
        let reply = connection.recv_response().and_then(script::unless_refused);
        entries_of(reply.map_err(Error::redis(DOING))?, streams, DOING)
    };
    waits.iter().map(read_one).collect()
}

/// The entries in the reply to a read of streams, each with the index of its stream.
///
/// # Errors
/// It is no such reply.
pub fn entries_of(
    reply: Value,
    streams: &[&str],
    doing: &'static str,
) -> Result<Vec<(usize, Entry)>, Error> {
    let reply = match reply {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(reply) => reply,
        other => return Err(Error::Reply { doing, got: format!("{other:?}") }),
    };
    let mut entries = Vec::new();
    for stream in reply {
        let (name, list) = pair(stream, doing)?;
        let n = streams.iter().position(|stream| Some(*stream) == script::text(&name));
        let n = n.ok_or_else(|| Error::Reply { doing, got: format!("{name:?}") })?;
        let Value::Array(list) = list else { continue };
        entries.reserve(list.len());
        for entry in list {
            entries.push((n, Entry::read(entry, doing)?));
        }
    }
    Ok(entries)
}

fn pair(value: Value, doing: &'static str) -> Result<(Value, Value), Error> {
    match value {
        Value::Array(list) => {
            let two: Result<[Value; 2], _> = list.try_into();
            let [first, second] =
                two.map_err(|list| Error::Reply { doing, got: format!("{list:?}") })?;
            Ok((first, second))
        }
        other => Err(Error::Reply { doing, got: format!("{other:?}") }),
    }
}

/// How far a consumer group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The last entry that was delivered to any of its consumers.
    pub last_delivered: EventId,
    /// How many entries are delivered and not acknowledged.
    pub pending: u64,
}

/// The group of that name on a stream; none if there is no such group, or no stream.
///
/// # Errors
/// What Redis or the link said.
pub fn group(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
) -> Result<Option<Group>, Error> {
    const DOING: &str = "look at the consumer groups";
    let groups = redis::cmd("XINFO")
        .arg("GROUPS")
        .arg(stream)
        .query::<Vec<HashMap<String, Value>>>(connection);
    let groups = match groups {
        Ok(groups) => groups,
        // The stream does not exist.
        Err(error) if error.code() == Some("ERR") => return Ok(None),
        Err(error) => return Err(Error::redis(DOING)(error)),
    };
    let named = |info: &&HashMap<_, _>| info.get("name").and_then(script::text) == Some(group);
    let Some(info) = groups.iter().find(named) else { return Ok(None) };
    let last = info.get("last-delivered-id").and_then(script::text).and_then(|id| id.parse().ok());
    let last_delivered =
        last.ok_or_else(|| Error::Reply { doing: DOING, got: format!("{info:?}") })?;
    Ok(Some(Group { last_delivered, pending: number(info, "pending").unwrap_or(0) }))
}

/// The last id that a stream has given; none if there is no stream. Reads no entry.
///
/// # Errors
/// What Redis or the link said.
pub fn last_id(
    connection: &mut impl ConnectionLike,
    stream: &str,
) -> Result<Option<EventId>, Error> {
    const DOING: &str = "look at a stream";
    let reply = LAST_ID.keys(&[stream]).run(connection, DOING)?;
    match (reply.word.as_str(), reply.rest.first().and_then(script::text)) {
        ("NONE", _) => Ok(None),
        ("LAST", Some(id)) => id.parse().map(Some).map_err(|_| reply.unexpected(DOING)),
        _ => Err(reply.unexpected(DOING)),
    }
}

/// Whether a stream has an entry with the last id of all, and takes no more.
///
/// # Errors
/// What Redis or the link said.
pub fn is_used_up(connection: &mut impl ConnectionLike, stream: &str) -> Result<bool, Error> {
    let last = EventId::LAST.to_string();
    let mut cmd = redis::cmd("XRANGE");
    // Nearly never there, so nothing is read.
    cmd.arg(stream).arg(&last).arg(&last);
    Ok(!entries(connection, &cmd)?.is_empty())
}

/// A group that somebody has set to an id which its stream has not given yet: what is added up to
/// there is never delivered.
#[derive(Debug)]
pub struct Ahead<'a> {
    stream: &'a str,
    group: &'a str,
    /// What counts as delivered.
    pub delivered: EventId,
    /// The last id that the stream has given.
    pub last: EventId,
}

impl fmt::Display for Ahead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, group, delivered, last } = self;
        write!(
            f,
            "the consumer group {group} of {stream} is ahead of its stream: it is at {delivered}, the \
             last event is {last}, and what is added up to there is never worked on. Stop all \
             instances, XGROUP DESTROY {stream} {group}, then start libraryd; where decided events \
             are kept, after library-admin regroup, which tells how"
        )
    }
}

/// Whether a group, as it was just looked at, is ahead of its stream.
///
/// # Errors
/// What Redis or the link said.
pub fn ahead<'a>(
    connection: &mut impl ConnectionLike,
    stream: &'a str,
    name: &'a str,
    group: Group,
) -> Result<Option<Ahead<'a>>, Error> {
    let delivered = group.last_delivered;
    // The stream after the group: both only grow.
    let last = last_id(connection, stream)?.filter(|last| *last < delivered);
    Ok(last.map(|last| Ahead { stream, group: name, delivered, last }))
}

/// An instance as a group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name; whatever somebody called himself.
    pub name: Vec<u8>,
    /// How many entries it has in hand.
    pub pending: u64,
    /// Milliseconds since it last asked for something.
    pub idle_ms: u64,
}

/// The consumers of a group. Those whose names are no text are among them: what they have in hand
/// holds up refusals like anybody's.
///
/// # Errors
/// What Redis or the link said; there is no such group.
pub fn consumers(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
) -> Result<Vec<Consumer>, Error> {
    let list: Vec<HashMap<String, Value>> = redis::cmd("XINFO")
        .arg("CONSUMERS")
        .arg(stream)
        .arg(group)
        .query(connection)
        .map_err(Error::redis("look at the instances"))?;
    Ok(list
        .iter()
        .filter_map(|info| {
            let name = bytes(info.get("name")?).to_owned();
            let count = |field| number(info, field).unwrap_or(0);
            Some(Consumer { name, pending: count("pending"), idle_ms: count("idle") })
        })
        .collect())
}

/// A number in what XINFO tells; none if there is none of that name.
pub fn number(info: &HashMap<String, Value>, field: &str) -> Option<u64> {
    match info.get(field) {
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// An entry that is pending for a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id.
    pub id: EventId,
    /// Milliseconds since it was last delivered.
    pub idle_ms: u64,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// The oldest entry that is pending in a group, for whomever.
///
/// # Errors
/// What Redis or the link said.
pub fn oldest_pending(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
) -> Result<Option<EventId>, Error> {
    let mut cmd = redis::cmd("XPENDING");
    cmd.arg(stream).arg(group).arg(&["-", "+", "1"]);
    // The name of the consumer may be any.
    let list: Vec<(String, Vec<u8>, u64, u64)> =
        cmd.query(connection).map_err(Error::redis("look for the oldest pending event"))?;
    Ok(list.first().and_then(|(id, ..)| id.parse().ok()))
}

/// Up to `count` entries pending for `consumer`, oldest first, after the id `after`.
///
/// # Errors
/// What Redis or the link said.
pub fn pending(
    connection: &mut impl ConnectionLike,
    stream: &str,
    group: &str,
    consumer: &str,
    after: Option<EventId>,
    count: usize,
) -> Result<Vec<Pending>, Error> {
    const DOING: &str = "look at pending events";
    let Some(start) = behind(after) else { return Ok(Vec::new()) };
    let mut cmd = redis::cmd("XPENDING");
    cmd.arg(stream).arg(group).arg(start).arg("+").arg(count).arg(consumer);
    let list: Vec<(String, String, u64, u64)> =
        cmd.query(connection).map_err(Error::redis(DOING))?;
    list.into_iter()
        .map(|(id, _, idle_ms, deliveries)| {
            let id = id.parse().map_err(|_| Error::Reply { doing: DOING, got: id.clone() })?;
            Ok(Pending { id, idle_ms, deliveries })
        })
        .collect()
}

/// Up to `count` entries of a stream after the id `after`, oldest first.
///
/// # Errors
/// What Redis or the link said.
pub fn page(
    connection: &mut impl ConnectionLike,
    stream: &str,
    after: Option<EventId>,
    count: usize,
) -> Result<Vec<Entry>, Error> {
    let Some(start) = behind(after) else { return Ok(Vec::new()) };
    let mut cmd = redis::cmd("XRANGE");
    cmd.arg(stream).arg(start).arg("+").arg("COUNT").arg(count);
    entries(connection, &cmd)
}

/// Up to `count` entries of a stream before the id `before`, newest first.
///
/// # Errors
/// What Redis or the link said.
pub fn page_back(
    connection: &mut impl ConnectionLike,
    stream: &str,
    before: Option<EventId>,
    count: usize,
) -> Result<Vec<Entry>, Error> {
    let start = before.map_or("+".to_owned(), |id| format!("({id}"));
    let mut cmd = redis::cmd("XREVRANGE");
    cmd.arg(stream).arg(start).arg("-").arg("COUNT").arg(count);
    entries(connection, &cmd)
}

/// The beginning of a range behind an id; none if nothing can be there.
fn behind(after: Option<EventId>) -> Option<String> {
    match after {
        None => Some("-".to_owned()),
        Some(EventId::LAST) => None,
        Some(id) => Some(format!("({id}")),
    }
}

fn entries(connection: &mut impl ConnectionLike, cmd: &redis::Cmd) -> Result<Vec<Entry>, Error> {
    const DOING: &str = "read a stream";
    let list: Vec<Value> = cmd.query(connection).map_err(Error::redis(DOING))?;
    list.into_iter().map(|entry| Entry::read(entry, DOING)).collect()
}

/// The contents of entries by their ids, in one pipeline; without fields where one is gone.
///
/// # Errors
/// What Redis or the link said.
pub fn contents(
    connection: &mut impl ConnectionLike,
    stream: &str,
    ids: &[EventId],
) -> Result<Vec<Entry>, Error> {
    const DOING: &str = "read pending events";
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("XRANGE").arg(stream).arg(id).arg(id);
    }
    let found: Vec<Value> = pipe.query(connection).map_err(Error::redis(DOING))?;
    ids.iter()
        .zip(found)
        .map(|(id, entry)| match entry {
            Value::Array(mut list) if list.len() == 1 => Entry::read(list.remove(0), DOING),
            _ => Ok(Entry { id: *id, values: Vec::new() }),
        })
        .collect()
}
