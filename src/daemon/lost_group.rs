//! A consumer group that was lost: somebody has destroyed it, or Redis came back without it. It is made
//! again from the beginning of its stream, and all that is undecided is delivered anew.
//!
//! Before that every instance has to have noticed. What one of them has sent while it had not (a link can
//! stall for as long as a lease) still has a valid token, and would be done to events that others decide
//! by then. So each that notices takes its lease with a new token first and leaves that here, and a group
//! is made again once every lease that runs is one of those.

use crate::error::Error;
use crate::keys::Stream;
use crate::link::{Connection, Fields};
use crate::lock::{self, Lock};
use crate::session::Session;
use crate::stream;

const DOING: &str = "find out who has noticed that a consumer group is lost";

/// Leaves word that this instance has noticed.
///
/// # Errors
/// What Redis or the link said.
pub fn notice(session: &Session, connection: &mut Connection) -> Result<(), Error> {
    redis::cmd("HSET")
        .arg(&session.keys.lost_groups)
        .arg(session.consumer())
        .arg(&session.token)
        .query(connection)
        .map_err(Error::redis(DOING))
}

/// Takes that word back: the next loss is another one.
///
/// # Errors
/// What Redis or the link said.
pub fn forget(session: &Session, connection: &mut Connection) -> Result<(), Error> {
    redis::cmd("HDEL")
        .arg(&session.keys.lost_groups)
        .arg(session.consumer())
        .query(connection)
        .map_err(Error::redis(DOING))
}

/// One that may not have noticed, if there is any: its lock runs out some time, and has not.
///
/// # Errors
/// What Redis or the link said.
pub fn unaware(session: &Session, connection: &mut Connection) -> Result<Option<Vec<u8>>, Error> {
    let keys = &session.keys;
    let mut others: Vec<Vec<u8>> = Vec::new();
    for stream in Stream::ALL {
        let (name, group) = (stream.key(keys), stream.group());
        if stream::group(connection, name, group)?.is_some() {
            let consumers = stream::consumers(connection, name, group)?;
            others.extend(consumers.into_iter().map(|consumer| consumer.name));
        }
    }
    // Where all three groups are lost, these are known still, and the answers of the main storage are
    // what a late call could do most harm with.
    others.extend(all_of(connection, &keys.fetch_answers)?.into_iter().map(|(name, _)| name));
    others.retain(|name| name != session.consumer().as_bytes());
    let noticed = all_of(connection, &keys.lost_groups)?;
    let locks = lock::locks(connection, keys, others.iter().map(Vec::as_slice))?;
    for (name, lock) in others.iter().zip(locks) {
        // An instance of the reference application has no token that could be waited for.
        if !matches!(lock, Lock::Held(_)) {
            continue;
        }
        let token: Option<Vec<u8>> = redis::cmd("GET")
            .arg(keys.lock_of(name))
            .query(connection)
            .map_err(Error::redis(DOING))?;
        let word = noticed.iter().find(|(noticer, _)| noticer == name).map(|(_, token)| token);
        if token.is_some() && token.as_ref() != word {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

fn all_of(connection: &mut Connection, hash: &str) -> Result<Fields, Error> {
    redis::cmd("HGETALL").arg(hash).query(connection).map_err(Error::redis(DOING))
}
