//! The other instances: which there are, whether they live, and which of them decisions have to know about.

use std::collections::HashSet;

use log::warn;

use crate::daemon::LOG;
use crate::error::Error;
use crate::keys::Stream;
use crate::link::Connection;
use crate::lock::{self, Lock};
use crate::session::{Neighbours, Session};
use crate::stream::{self, Consumer};

/// Another instance, as a consumer of one stream.
pub struct Other {
    /// The stream.
    pub stream: Stream,
    /// Its name.
    pub name: Vec<u8>,
    /// How many entries it has in hand.
    pub pending: u64,
    /// Milliseconds since it was last heard of there.
    pub idle_ms: u64,
    /// Its lock.
    pub lock: Lock,
}

/// The other instances.
///
/// # Errors
/// What Redis or the link said.
pub fn others(session: &Session, connection: &mut Connection) -> Result<Vec<Other>, Error> {
    let mut others = Vec::new();
    for of in Stream::ALL {
        let (name, group) = (of.key(&session.keys), of.group());
        let mut consumers = stream::consumers(connection, name, group)?;
        consumers.retain(|consumer| consumer.name != session.consumer().as_bytes());
        let names = consumers.iter().map(|consumer| &consumer.name[..]);
        let locks = lock::locks(connection, &session.keys, names)?;
        for (consumer, lock) in consumers.into_iter().zip(locks) {
            let Consumer { name, pending, idle_ms } = consumer;
            others.push(Other { stream: of, name, pending, idle_ms, lock });
        }
    }
    Ok(others)
}

/// Notes which instances hold up no refusal, and which run the reference application.
pub fn note_neighbours(session: &Session, others: &[Other]) {
    let silent_ms = session.settings.silent_after.as_millis() as u64;
    // Who is heard of in one stream is not silent because of the others.
    let heard: HashSet<&[u8]> =
        others.iter().filter(|one| one.idle_ms <= silent_ms).map(|one| &one.name[..]).collect();
    let mut found = Neighbours::default();
    for other in others {
        if other.lock == Lock::WithoutTtl && !found.without_ttl.contains(&other.name) {
            found.without_ttl.push(other.name.clone());
        }
        let list = match other.lock {
            Lock::Held(_) => continue,
            Lock::WithoutTtl if !heard.contains(&other.name[..]) => &mut found.silent,
            Lock::WithoutTtl => &mut found.reference,
            // Which kind it was, nobody knows any more.
            Lock::Gone if other.pending > 0 => &mut found.reference,
            Lock::Gone => continue,
        };
        if !list.contains(&other.name) {
            list.push(other.name.clone());
        }
    }
    let before = session.neighbours();
    for name in found.silent.iter().filter(|name| !before.silent.contains(name)) {
        if others.iter().any(|other| other.name == *name && other.pending > 0) {
            warn!(
                target: LOG,
                "instance {:?} has events in hand, no lease, and did nothing for {} s: it holds \
                 up no refusal any longer",
                shown(name),
                session.settings.silent_after.as_secs()
            );
        }
    }
    if *before != found {
        session.note_neighbours(found);
    }
}

/// A consumer's name for the log, where it is escaped.
pub fn shown(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::keys::Keys;
    use crate::settings::Settings;

    /// An instance that was idle in one stream, as all are, held up no refusal though it was at work in the
    /// other.
    #[test]
    fn who_is_heard_of_in_one_stream_is_not_silent_and_who_is_dead_and_has_nothing_is_nobody() {
        let settings = Settings::of("worker1".parse().unwrap());
        let silent_ms = settings.silent_after.as_millis() as u64;
        let session = Session::new(Keys::new(None), settings, "p:1".into(), Arc::default(), true);
        let other = |name: &str, stream, pending, idle_ms, lock| Other {
            stream,
            name: name.into(),
            pending,
            idle_ms,
            lock,
        };
        note_neighbours(
            &session,
            &[
                other("busy", Stream::Requests, 1, silent_ms + 1, Lock::WithoutTtl),
                other("busy", Stream::Returns, 0, silent_ms, Lock::WithoutTtl),
                other("silent", Stream::Requests, 1, silent_ms + 1, Lock::WithoutTtl),
                other("silent", Stream::Returns, 0, silent_ms + 1, Lock::WithoutTtl),
                other("leased", Stream::Requests, 1, silent_ms + 1, Lock::Held(1)),
                other("dead", Stream::Requests, 1, silent_ms + 1, Lock::Gone),
                other("done", Stream::Requests, 0, 0, Lock::Gone),
            ],
        );
        let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
        let expected = Neighbours {
            silent: names(&["silent"]),
            reference: names(&["busy", "dead"]),
            without_ttl: names(&["busy", "silent"]),
        };
        assert_eq!(*session.neighbours(), expected);
    }
}
