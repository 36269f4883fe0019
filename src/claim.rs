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

/// From how many deliveries on an event is suspected of killing whoever reads it, and tried apart from
/// others, see `suspects.rs`.
/// A delivery more than one means that an instance died with the event in hand: one such death
/// says little about one of hundreds of events.
pub const SUSPICIOUS_DELIVERIES: u64 = 3;

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
/// instance is alive. A request or a return that was delivered [`SUSPICIOUS_DELIVERIES`] times or more is
/// not read.
///
/// # Errors
/// What Redis or the link said.
pub fn claim_all(
    session: &Session,
    connection: &mut Connection,
    stream: Stream,
    from: &[u8],
    mut pass_on: impl FnMut(Vec<Claimed>) -> bool,
) -> Result<(), Error> {
    const DOING: &str = "take over events";
    let key = stream.key(&session.keys);
    // Hand-offs are never given up, and refusals wait for them.
    let suspicious = stream.action().map_or(u64::MAX, |_| SUSPICIOUS_DELIVERIES);
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
        while let (Some(id), Some(fields)) = (parts.next(), parts.next()) {
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
