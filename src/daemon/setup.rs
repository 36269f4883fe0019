//! What a session needs of Redis before it may work: a version that is new enough, shared keys of
//! the right types, the consumer groups. And what an operator should know of its settings.

use std::sync::LazyLock;

use log::warn;

use crate::daemon::LOG;
use crate::error::Error;
use crate::event::{Action, EventKey};
use crate::ids::EventId;
use crate::info::Section;
use crate::keys::{Keys, Stream};
use crate::link::Connection;
use crate::script::{Script, lua, text};
use crate::session::Session;
use crate::stream::{ahead, group as group_of, is_used_up, last_id};

static PERMITS: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("permits")));

/// The oldest Redis that has what is used here (SMISMEMBER, BLMOVE, XTRIM MINID, ranges without their ends).
const OLDEST_REDIS: (u64, u64) = (6, 2);

/// Whether this Redis is new enough, and no cluster if the library has no branch.
///
/// # Errors
/// [`Error::Unfit`] if it is not; what Redis or the link said.
pub fn check_version(connection: &mut Connection, has_branch: bool) -> Result<(), Error> {
    let server = Section::of(connection, "server")?;
    // The second is Valkey's.
    let modes = ["redis_mode", "server_mode"].map(|name| server.get(name));
    if !has_branch && modes.contains(&Some("cluster")) {
        return Err(Error::Unfit(
            "this Redis is a cluster, where all keys of a library have to be in one slot: it needs \
             --branch NAME there"
                .to_owned(),
        ));
    }
    let version = server.get("redis_version").unwrap_or("unknown");
    let mut parts = version.split('.').map_while(|part| part.parse::<u64>().ok());
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_REDIS => {
            let (major, minor) = OLDEST_REDIS;
            Err(Error::Unfit(format!(
                "this Redis is version {version}; {major}.{minor} or newer is needed"
            )))
        }
        _ => Ok(()),
    }
}

/// Whether scripts may run every command that is in them: one that may not go on in the middle would
/// leave half of its work.
///
/// # Errors
/// The permission that is missing; [`Error::Fenced`] if the lease has run out; what Redis or the link said.
pub fn check_permissions(connection: &mut Connection, session: &Session) -> Result<(), Error> {
    const DOING: &str = "go to work";
    // No event has this id.
    let absent = session.keys.answer(EventKey { id: EventId::default(), action: Action::Request });
    let reply =
        PERMITS.keys(&[session.lock(), &absent]).arg(&session.token).run(connection, DOING)?;
    match (reply.word.as_str(), reply.rest.first().and_then(text)) {
        ("PERMITTED", _) => Ok(()),
        ("DENIED", Some(command)) => {
            let what = format!("this user may not run {command} in scripts");
            Err(Error::redis(DOING)(redis::make_extension_error("NOPERM".into(), Some(what))))
        }
        ("MISSING", Some(command)) => Err(Error::Unfit(format!(
            "this Redis has no {command}, without which scripts would stop in the middle of their \
             work: take its rename-command out of redis.conf"
        ))),
        _ => Err(reply.unexpected(DOING)),
    }
}

/// Whether the keys that all share, and this instance's lock, have the types that they should have.
///
/// # Errors
/// [`Error::Unfit`] if one has not: nothing may be decided on half a library.
pub fn check_types(connection: &mut Connection, keys: &Keys, lock: &str) -> Result<(), Error> {
    let wanted: Vec<_> = keys.types().into_iter().chain([(lock, "string")]).collect();
    let mut pipe = redis::pipe();
    for (key, _) in &wanted {
        pipe.cmd("TYPE").arg(key);
    }
    let types: Vec<String> =
        pipe.query(connection).map_err(Error::redis("look at the types of keys"))?;
    for ((key, wanted), is) in wanted.iter().zip(types) {
        if is != *wanted && is != "none" {
            return Err(Error::Unfit(format!(
                "the key {key} is a {is} where a {wanted} is expected: nothing is decided while it \
                 is so; mend or remove it, then start again"
            )));
        }
    }
    Ok(())
}

/// Whether what the scripts add to still takes something. They have acknowledged the event by then, and
/// take nothing back. `thorough`: also where the entry with the last id is not there any more, which takes
/// Redis longer where others are large.
///
/// # Errors
/// [`Error::Unfit`] if a stream has given its last id; what Redis or the link said.
pub fn check_ids(connection: &mut Connection, keys: &Keys, thorough: bool) -> Result<(), Error> {
    for stream in [&keys.outcomes, &keys.handoffs, &keys.dead_letters] {
        let is_used_up = if thorough {
            last_id(connection, stream)? == Some(EventId::LAST)
        } else {
            is_used_up(connection, stream)?
        };
        if is_used_up {
            return Err(Error::Unfit(format!(
                "the stream {stream} has given the last id that there is, and takes no more: \
                 copy what you need of it and remove it, then start again"
            )));
        }
    }
    Ok(())
}

/// The first stream, if there is one, whose consumer group was lost: it is missing, and there are outcomes, so
/// it was there.
///
/// # Errors
/// What Redis or the link said.
pub fn first_lost(connection: &mut Connection, keys: &Keys) -> Result<Option<Stream>, Error> {
    let outcomes: u64 = redis::cmd("XLEN")
        .arg(&keys.outcomes)
        .query(connection)
        .map_err(Error::redis("look at the outcomes"))?;
    if outcomes == 0 {
        return Ok(None);
    }
    for stream in Stream::ALL {
        if group_of(connection, stream.key(keys), stream.group())?.is_none() {
            return Ok(Some(stream));
        }
    }
    Ok(None)
}

/// Creates the consumer groups that are missing, from the beginning of their streams: what was
/// sent before the first start is served. Returns how many.
///
/// # Errors
/// [`Error::Unfit`] where a group was lost and decided events are still in its stream: they would
/// be decided again; and where a group is ahead of its stream: what is sent would be passed over.
/// What Redis or the link said.
pub fn ensure_groups(connection: &mut Connection, keys: &Keys) -> Result<usize, Error> {
    const DOING: &str = "create the consumer groups";
    let mut number = 0;
    for (stream, group) in Stream::ALL.map(|stream| (stream.key(keys), stream.group())) {
        if let Some(found) = group_of(connection, stream, group)? {
            match ahead(connection, stream, group, found)? {
                Some(ahead) => return Err(Error::Unfit(ahead.to_string())),
                None => continue,
            }
        }
        let (length, kept): (u64, bool) = redis::pipe()
            .cmd("XLEN")
            .arg(stream)
            .cmd("HEXISTS")
            .arg(&keys.kept_events)
            .arg(stream)
            .query(connection)
            .map_err(Error::redis(DOING))?;
        if length > 0 && kept {
            return Err(Error::Unfit(format!(
                "the consumer group {group} of {stream} is lost, and events that were decided are \
                 still in that stream: created anew it would decide them again. library-admin \
                 regroup, with the address and the branch of this libraryd, tells which event is the \
                 first that is not decided, and how to go on"
            )));
        }
        let created = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(stream)
            .arg(group)
            .arg("0")
            .arg("MKSTREAM")
            .query::<()>(connection);
        match created {
            // Another instance was faster.
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            other => {
                other.map_err(Error::redis(DOING))?;
                number += 1;
            }
        }
    }
    Ok(number)
}

/// Makes this instance known as a consumer of all groups. Older versions of Redis would do so only
/// when it is given its first event, and until then nobody could tell that it runs.
///
/// # Errors
/// What Redis or the link said.
pub fn make_known(connection: &mut Connection, keys: &Keys, name: &str) -> Result<(), Error> {
    for (stream, group) in Stream::ALL.map(|stream| (stream.key(keys), stream.group())) {
        let known = redis::cmd("XGROUP")
            .arg("CREATECONSUMER")
            .arg(stream)
            .arg(group)
            .arg(name)
            .query::<()>(connection);
        match known {
            // Memory is full. It can be known later; returns that make room are to be served now.
            Err(error) if error.code() == Some("OOM") => {}
            known => known.map_err(Error::redis("make this instance known"))?,
        }
    }
    Ok(())
}

/// Notes that decided events stay in the streams: a lost group must not be recreated at 0.
///
/// # Errors
/// What Redis or the link said.
pub fn note_kept_events(connection: &mut Connection, keys: &Keys) -> Result<(), Error> {
    const DOING: &str = "note that events are kept";
    let streams = Stream::ALL.map(|stream| stream.key(keys));
    // Where memory is full it could not be written once more.
    let noted: Vec<Option<Vec<u8>>> = redis::cmd("HMGET")
        .arg(&keys.kept_events)
        .arg(&streams)
        .query(connection)
        .map_err(Error::redis(DOING))?;
    if noted.iter().all(Option::is_some) {
        return Ok(());
    }
    let mut cmd = redis::cmd("HSET");
    cmd.arg(&keys.kept_events);
    for stream in streams {
        cmd.arg(stream).arg("decided events are kept");
    }
    cmd.query(connection).map_err(Error::redis(DOING))
}

/// Warns of settings under which Redis itself loses loans. What it may not tell us is passed over.
pub fn warn_of_settings(connection: &mut Connection) {
    if let Ok(persistence) = Section::of(connection, "persistence")
        && persistence.get("aof_enabled") == Some("0")
    {
        warn!(target: LOG,
            "Redis keeps no append-only file: when it dies, loans since its last snapshot are lost \
             (appendonly yes)"
        );
    }
    if let Ok(memory) = Section::of(connection, "memory")
        && let Some(policy) = memory.get("maxmemory_policy")
        && policy != "noeviction"
    {
        warn!(target: LOG,
            "Redis may throw keys away when memory is short (maxmemory-policy {policy}): a library \
             needs noeviction"
        );
    }
    if let Ok(replication) = Section::of(connection, "replication")
        && replication.get("role") == Some("slave")
    {
        // One that takes no writes gives no lease, and says so.
        warn!(target: LOG,
            "this Redis is a replica: loans are lost when it takes over what its master has \
             (replica-read-only yes)"
        );
    }
}
