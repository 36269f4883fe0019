//! Taking over what an instance that died had in hand.

use std::sync::LazyLock;

use redis::Value;

use crate::error::Error;
use crate::ids::EventId;
use crate::keys::Stream;
use crate::link::Connection;
use crate::script::{Script, lua, text};
use crate::session::Session;
use crate::stream::Entry;

static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "claim")));

/// The most events that one script claims; it takes about a millisecond.
const MOST_IN_A_CLAIM: usize = 500;

/// An event taken over.
#[derive(Debug)]
pub struct Claimed {
    /// Its id.
    pub id: EventId,
    /// Its entry; none if it is suspected of killing who reads it.
    pub entry: Option<Entry>,
}

/// Claims everything that is pending for the consumer `from` (this instance's own name at the
/// start of a process), page by page, as long as `pass_on` wants more. Nothing happens if that
/// instance is alive. From so many deliveries on an entry is `suspicious`, and not read.
///
/// # Errors
/// What Redis or the link said.
pub fn claim_all(
    session: &Session,
    connection: &mut Connection,
    stream: Stream,
    suspicious: u64,
    from: &[u8],
    mut pass_on: impl FnMut(Vec<Claimed>) -> bool,
) -> Result<(), Error> {
    const DOING: &str = "take over events";
    let key = stream.key(&session.keys);
    let mut seen = "-".to_owned();
    loop {
        let reply = CLAIM
            .keys(&[session.lock().as_bytes(), key.as_bytes(), &session.keys.lock_of(from)])
            .arg(&session.token)
            .arg(stream.group())
            .arg(session.consumer())
            .arg(from)
            .arg(MOST_IN_A_CLAIM)
            .arg(&seen)
            .arg(suspicious)
            .arg(session.settings.abandoned_after.as_millis() as u64)
            .run(connection, DOING)?;
        if reply.word == "ALIVE" {
            return Ok(());
        }
        let mut parts = reply.rest.into_iter();
        let last = parts.next().as_ref().and_then(text).unwrap_or_default().to_owned();
        let mut claimed = Vec::new();
        while let (Some(id), Some(_), Some(fields)) = (parts.next(), parts.next(), parts.next()) {
            let suspected = !matches!(fields, Value::Array(_));
            let entry = Entry::from_parts(&id, fields, DOING)?;
            claimed.push(Claimed { id: entry.id, entry: (!suspected).then_some(entry) });
        }
        if (!claimed.is_empty() && !pass_on(claimed)) || last.is_empty() {
            return Ok(());
        }
        seen = last;
    }
}
