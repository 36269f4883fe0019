//! The lease of an instance's name: a string with a TTL, whose value is the token of the session
//! that may write.
//!
//! A token is used once. Every session takes the lease with a new one, so that whatever a
//! connection that was given up still carries finds another token and changes nothing (I7).

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::Error;
use crate::keys::Stream;
use crate::link::Connection;
use crate::script::{Script, lua, text};
use crate::session::Session;

static ACQUIRE: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("acquire")));
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("renew")));
static RESIGN: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("resign")));

/// What a try to take the lease came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Ours {
        /// Under this token.
        token: String,
        /// Another held it.
        is_forced: bool,
    },
    /// Another holds it.
    Held {
        /// The lock's value; whatever somebody has put there.
        value: Vec<u8>,
        /// What is left of it; none if it has no TTL.
        left: Option<Duration>,
    },
}

/// The leases of one process, one after the other.
pub struct Lease {
    lock: String,
    length: Duration,
    // Nobody else's: two processes of one name must not take each other's tokens for their own.
    process: String,
    number: u64,
}

impl Lease {
    /// The lease under the key `lock`.
    pub fn new(lock: String, length: Duration) -> Self {
        use std::hash::{BuildHasher as _, Hasher as _};
        // RandomState is seeded by the system; the process id tells which process it is.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let process = format!("{}.{random:016x}", std::process::id());
        Self { lock, length, process, number: 0 }
    }

    /// The key of the lock.
    pub fn lock(&self) -> &str {
        &self.lock
    }

    /// Tries to take the lease with a new token: if it is free or ours from an earlier session; by force
    /// from anybody.
    ///
    /// # Errors
    /// What Redis or the link said.
    pub fn acquire(&mut self, connection: &mut Connection, force: bool) -> Result<Acquired, Error> {
        const DOING: &str = "take the lease";
        self.number += 1;
        let reply = ACQUIRE
            .keys(&[&self.lock])
            .arg(&self.process)
            .arg(self.number)
            .arg(self.length.as_millis() as u64)
            .arg(if force { "force" } else { "" })
            .run(connection, DOING)?;
        match (reply.word.as_str(), reply.rest.first(), reply.number(1)) {
            ("ACQUIRED", Some(how), _) => Ok(Acquired::Ours {
                token: format!("{}:{}", self.process, self.number),
                is_forced: text(how) == Some("forced"),
            }),
            ("HELD", Some(Value::BulkString(value)), Some(ms)) => Ok(Acquired::Held {
                value: value.clone(),
                left: u64::try_from(ms).ok().map(Duration::from_millis),
            }),
            _ => Err(reply.unexpected(DOING)),
        }
    }
}

/// Watches a lock that another holds: does its holder live, and renew it?
pub struct Watch {
    value: Vec<u8>,
    left: Option<Duration>,
    since: Instant,
    /// When it was first found renewed.
    renewed: Option<Instant>,
}

impl Watch {
    /// Begins to watch a lock as it was found.
    pub fn new(value: Vec<u8>, left: Option<Duration>) -> Self {
        Self { value, left, since: Instant::now(), renewed: None }
    }

    /// Whether the lock as it is found now shows that its holder lives: it has no TTL (whoever
    /// left it cannot be told from one that works); or it has another value, or more time than it
    /// should have left, for the second time. The first may be the last word of a process that
    /// has died since; what it had under way comes all at once.
    pub fn shows_life(&mut self, value: &[u8], left: Option<Duration>) -> bool {
        // Times on the way to Redis and back differ; a renewal adds a third of a lease or more.
        const SLACK: Duration = Duration::from_millis(100);
        const AT_ONCE: Duration = Duration::from_millis(200);
        let (Some(before), Some(now)) = (self.left, left) else { return true };
        if value == self.value && now + self.since.elapsed() <= before + SLACK {
            return false;
        }
        let first = *self.renewed.get_or_insert_with(Instant::now);
        self.value = value.to_owned();
        self.left = left;
        self.since = Instant::now();
        first.elapsed() > AT_ONCE
    }
}

/// Prolongs the lease of a session.
///
/// # Errors
/// [`Error::Fenced`] if it is not ours any more; what Redis or the link said.
pub fn renew(session: &Session, connection: &mut Connection) -> Result<(), Error> {
    let lease_ms = session.settings.lease.as_millis() as u64;
    let mut call = RENEW.keys(&[session.lock()]);
    call.arg(&session.token).arg(lease_ms).run(connection, "renew the lease").map(drop)
}

/// Gives the lease of a session back, and removes this instance's consumers where nothing is
/// pending for them. Returns how many events are left pending, for others to take over.
///
/// # Errors
/// What Redis or the link said; the lease then runs out by itself.
pub fn resign(session: &Session, connection: &mut Connection) -> Result<i64, Error> {
    const DOING: &str = "give the lease back";
    let keys = &session.keys;
    let streams = Stream::ALL.map(|stream| stream.key(keys));
    let reply = RESIGN
        .keys(&[&[session.lock(), &keys.fetch_answers][..], &streams].concat())
        .arg(&session.token)
        .arg(session.consumer())
        .arg(&Stream::ALL.map(Stream::group))
        .run(connection, DOING)?;
    reply.number(0).ok_or_else(|| reply.unexpected(DOING))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_shows_life_when_it_is_renewed_or_replaced_twice_or_without_a_ttl() {
        let secs = |s| Some(Duration::from_secs(s));
        let pause = || std::thread::sleep(Duration::from_millis(250));
        let mut watch = Watch::new(b"a:1".into(), secs(4));
        assert!(!watch.shows_life(b"a:1", secs(4)));
        assert!(!watch.shows_life(b"a:1", secs(3)));
        assert!(!watch.shows_life(b"a:1", secs(6)), "perhaps its last word");
        assert!(!watch.shows_life(b"a:2", secs(6)), "and this came with it");
        pause();
        assert!(!watch.shows_life(b"a:2", secs(5)));
        assert!(watch.shows_life(b"a:2", secs(6)));
        let mut watch = Watch::new(b"a:1".into(), secs(4));
        assert!(!watch.shows_life(b"a:2", secs(3)));
        pause();
        assert!(watch.shows_life(b"a:3", secs(3)));
        assert!(watch.shows_life(b"a:3", None));
        assert!(Watch::new(b"locked".into(), None).shows_life(b"locked", None));
    }
}
