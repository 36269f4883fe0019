//! The instances that a library has, as their consumers and locks tell.

use redis::Connection;

use super::options::Stream;
use crate::error::Error;
use crate::keys::Keys;
use crate::stream::{self, Consumer};

/// An instance's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It has so many milliseconds left.
    Left(u64),
    /// A lock without a TTL: an instance of the reference application, running or killed.
    None,
    /// No lock: the instance is not running.
    Gone,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: Vec<u8>,
    /// Its lock.
    pub lease: Lease,
    /// How many events it has in hand.
    pub in_hand: u64,
    /// Milliseconds since it last asked for something.
    pub idle_ms: u64,
}

/// All instances, by name.
///
/// # Errors
/// What Redis or the link said.
pub fn instances(connection: &mut Connection, keys: &Keys) -> Result<Vec<Instance>, Error> {
    let mut found: Vec<Consumer> = Vec::new();
    for stream in Stream::ALL {
        let consumers = match stream::consumers(connection, stream.key(keys), stream.group()) {
            Ok(consumers) => consumers,
            // No such group, or no such stream.
            Err(error) if matches!(error.code(), Some("NOGROUP" | "ERR")) => continue,
            Err(error) => return Err(error),
        };
        for consumer in consumers {
            match found.iter_mut().find(|known| known.name == consumer.name) {
                Some(known) => {
                    known.pending += consumer.pending;
                    known.idle_ms = known.idle_ms.min(consumer.idle_ms);
                }
                None => found.push(consumer),
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let mut pipe = redis::pipe();
    for consumer in &found {
        pipe.cmd("PTTL").arg(keys.lock_of(&consumer.name));
    }
    let left: Vec<i64> = match found.len() {
        0 => Vec::new(),
        _ => pipe.query(connection).map_err(Error::redis("look at the locks"))?,
    };
    let instance = |(consumer, left): (Consumer, i64)| Instance {
        name: consumer.name,
        lease: match left {
            -1 => Lease::None,
            left => u64::try_from(left).map_or(Lease::Gone, Lease::Left),
        },
        in_hand: consumer.pending,
        idle_ms: consumer.idle_ms,
    };
    Ok(found.into_iter().zip(left).map(instance).collect())
}

/// Whether an instance of the reference application may be running.
///
/// # Errors
/// What Redis or the link said.
pub fn has_reference(connection: &mut Connection, keys: &Keys) -> Result<bool, Error> {
    Ok(instances(connection, keys)?.iter().any(|instance| instance.lease == Lease::None))
}
