//! The instances that a library has, as their consumers and locks tell.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::keys::{Keys, Stream};
use crate::link::{AskAgain, Connection};
use crate::lock::{self, Lock};
use crate::stream::{self, Consumer};

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name.
    pub name: Vec<u8>,
    /// Its lock.
    pub lock: Lock,
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
    let mut found: BTreeMap<Vec<u8>, Consumer> = BTreeMap::new();
    for stream in Stream::ALL {
        let consumers =
            match stream::consumers(&mut AskAgain(connection), stream.key(keys), stream.group()) {
                Ok(consumers) => consumers,
                // No such group, or no such stream.
                Err(error) if matches!(error.code(), Some("NOGROUP" | "ERR")) => continue,
                Err(error) => return Err(error),
            };
        for consumer in consumers {
            match found.get_mut(&consumer.name) {
                Some(known) => {
                    known.pending += consumer.pending;
                    known.idle_ms = known.idle_ms.min(consumer.idle_ms);
                }
                None => drop(found.insert(consumer.name.clone(), consumer)),
            }
        }
    }
    let found: Vec<Consumer> = found.into_values().collect();
    let names = found.iter().map(|consumer| &consumer.name[..]);
    let locks = lock::locks(&mut AskAgain(connection), keys, names)?;
    let instance = |(consumer, lock): (Consumer, Lock)| Instance {
        name: consumer.name,
        lock,
        in_hand: consumer.pending,
        idle_ms: consumer.idle_ms,
    };
    Ok(found.into_iter().zip(locks).map(instance).collect())
}

/// Whether an instance of the reference application may be running.
///
/// # Errors
/// What Redis or the link said.
pub fn has_reference(connection: &mut Connection, keys: &Keys) -> Result<bool, Error> {
    Ok(instances(connection, keys)?.iter().any(|instance| instance.lock == Lock::WithoutTtl))
}
