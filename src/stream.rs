//! Reading streams through a consumer group: new entries, and those that are pending.
//!
//! Replies are taken apart by hand: an entry's content may be anything that a client sent, and an
//! entry that was deleted while it was pending comes without any.

use redis::{Connection, Value};

use crate::error::Error;
use crate::ids::EventId;
use crate::script;

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
    pub fn fields(&self) -> Vec<(&[u8], &[u8])> {
        self.values.chunks_exact(2).map(|pair| (bytes(&pair[0]), bytes(&pair[1]))).collect()
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

fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(bytes) => bytes,
        _ => b"",
    }
}

/// One stream's part of a read.
pub struct Read<'a> {
    /// The stream.
    pub stream: &'a str,
    /// The most entries to read from it.
    pub count: usize,
}

/// Reads new entries of a group from one or more streams, waiting up to `block_ms` milliseconds
/// for the first if it is to wait at all. Returns the entries of each stream, by its index in `reads`.
///
/// COUNT goes for each stream by itself, so the smallest of the counts is used.
///
/// # Errors
/// What Redis or the link said.
pub fn read_new(
    connection: &mut Connection,
    group: &str,
    consumer: &str,
    reads: &[Read<'_>],
    block_ms: Option<u64>,
) -> Result<Vec<(usize, Entry)>, Error> {
    const DOING: &str = "read new events";
    let count = reads.iter().map(|read| read.count).min().unwrap_or(1);
    let mut cmd = redis::cmd("XREADGROUP");
    cmd.arg("GROUP").arg(group).arg(consumer).arg("COUNT").arg(count);
    if let Some(block_ms) = block_ms {
        cmd.arg("BLOCK").arg(block_ms);
    }
    cmd.arg("STREAMS");
    for read in reads {
        cmd.arg(read.stream);
    }
    for _ in reads {
        cmd.arg(">");
    }
    let streams = match cmd.query(connection).map_err(Error::redis(DOING))? {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        other => return Err(Error::Reply { doing: DOING, got: format!("{other:?}") }),
    };
    let mut entries = Vec::new();
    for stream in streams {
        let (name, list) = pair(stream, DOING)?;
        let n = reads.iter().position(|read| Some(read.stream) == script::text(&name));
        let n = n.ok_or_else(|| Error::Reply { doing: DOING, got: format!("{name:?}") })?;
        let Value::Array(list) = list else { continue };
        entries.reserve(list.len());
        for entry in list {
            let (id, values) = pair(entry, DOING)?;
            entries.push((n, Entry::from_parts(&id, values, DOING)?));
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

/// Up to `count` entries pending for `consumer`, oldest first, after the id `after`.
///
/// # Errors
/// What Redis or the link said.
pub fn pending(
    connection: &mut Connection,
    stream: &str,
    group: &str,
    consumer: &str,
    after: Option<EventId>,
    count: usize,
) -> Result<Vec<Pending>, Error> {
    const DOING: &str = "look at pending events";
    let start = after.map_or("-".to_owned(), |id| format!("({id}"));
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

/// The contents of entries by their ids, in one pipeline; without fields where one is gone.
///
/// # Errors
/// What Redis or the link said.
pub fn contents(
    connection: &mut Connection,
    stream: &str,
    ids: &[EventId],
) -> Result<Vec<Entry>, Error> {
    const DOING: &str = "read pending events";
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("XRANGE").arg(stream).arg(id.to_string()).arg(id.to_string());
    }
    let found: Vec<Value> = pipe.query(connection).map_err(Error::redis(DOING))?;
    ids.iter()
        .zip(found)
        .map(|(id, entry)| match entry {
            Value::Array(mut list) if list.len() == 1 => {
                let (_, values) = pair(list.remove(0), DOING)?;
                Entry::from_parts(&Value::BulkString(id.to_string().into()), values, DOING)
            }
            _ => Ok(Entry { id: *id, values: Vec::new() }),
        })
        .collect()
}
