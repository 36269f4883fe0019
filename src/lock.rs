//! An instance's lock, as others find it. How the instance itself takes and keeps it: `daemon/lease.rs`.

use redis::ConnectionLike;

use crate::error::Error;
use crate::keys::Keys;

/// How many locks are asked for at once: there may be consumers by the ten thousand.
const LOCKS_AT_ONCE: usize = 500;

/// An instance's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// An instance runs, or has died a moment ago: milliseconds until its lease runs out.
    Held(u64),
    /// An instance of the reference application, running or killed.
    WithoutTtl,
    /// There is none: the instance is not running.
    Gone,
}

/// The locks of instances, in the order of their names.
///
/// # Errors
/// What Redis or the link said.
pub fn locks<'n>(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    names: impl Iterator<Item = &'n [u8]>,
) -> Result<Vec<Lock>, Error> {
    let names: Vec<&[u8]> = names.collect();
    let mut locks = Vec::with_capacity(names.len());
    for page in names.chunks(LOCKS_AT_ONCE) {
        let mut pipe = redis::pipe();
        for name in page {
            pipe.cmd("PTTL").arg(keys.lock_of(name));
        }
        let left: Vec<i64> = pipe.query(connection).map_err(Error::redis("look at the locks"))?;
        locks.extend(left.into_iter().map(|left| match left {
            -1 => Lock::WithoutTtl,
            left => u64::try_from(left).map_or(Lock::Gone, Lock::Held),
        }));
    }
    Ok(locks)
}
