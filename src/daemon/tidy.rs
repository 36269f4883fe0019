//! Keeping house in Redis: decided events, old outcomes and notes that mean nothing any more are removed, a
//! page in each turn.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use log::warn;

use crate::daemon::LOG;
use crate::error::Error;
use crate::event::EventKey;
use crate::ids::EventId;
use crate::keys::{LENDING_GROUP, SHELVING_GROUP, Stream};
use crate::link::{self, Connection, Fields};
use crate::script::{Script, bytes, lua, text};
use crate::session::Session;
use crate::shelving;

static SWEEP: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "groups", "sweep")));
static CLEAR: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "last_given", "clear")));
static OLD_TRIES: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "old_tries")));
static RETAIN: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("retain")));

/// Entries looked at in one step of tidying up; well under a millisecond each.
const PAGE: usize = 500;

const SWEEPING: &str = "sweep the states of books";

/// How far the house is kept.
pub struct Tidy<'a> {
    session: &'a Session,
    // Where HSCAN goes on.
    swept_to: u64,
    old_tries_to: u64,
}

impl<'a> Tidy<'a> {
    /// Nothing is kept yet.
    pub fn new(session: &'a Session) -> Self {
        Self { session, swept_to: 0, old_tries_to: 0 }
    }

    /// One turn, which takes about so long at most. Of all that there is to do, a step is done in each.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is lost; what Redis or the link said.
    pub fn turn(&mut self, connection: &mut Connection, time: Duration) -> Result<(), Error> {
        let until = Instant::now() + time;
        self.clear(connection, until)?;
        self.retain(connection, until)?;
        self.sweep(connection, until)
    }

    /// Deletes decided events that are still in their streams.
    fn clear(&self, connection: &mut Connection, until: Instant) -> Result<(), Error> {
        const DOING: &str = "clear decided events away";
        let has_reference = !self.session.neighbours().without_ttl.is_empty();
        for stream in Stream::ALL {
            let (name, group) = (stream.key(&self.session.keys), stream.group());
            loop {
                let reply = CLEAR
                    .keys(&[self.session.lock(), name, &self.session.keys.kept_events])
                    .arg(&self.session.token)
                    .arg(group)
                    .arg(PAGE)
                    .arg(self.session.decided_events())
                    .arg(if has_reference { "reference" } else { "none" })
                    .run(connection, DOING)?;
                let more = reply.rest.get(1).and_then(text) == Some("more");
                if !more || Instant::now() > until {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Drops outcomes that are older than they are to be kept.
    fn retain(&self, connection: &mut Connection, until: Instant) -> Result<(), Error> {
        const DOING: &str = "drop old outcomes";
        let Some(retained) = self.session.settings.retained else { return Ok(()) };
        let oldest_ms = link::now_ms(connection)?.saturating_sub(retained.as_millis() as u64);
        loop {
            let reply = RETAIN
                .keys(&[self.session.lock(), &self.session.keys.outcomes])
                .arg(&self.session.token)
                .arg(oldest_ms)
                .run(connection, DOING)?;
            let more = reply.rest.get(1).and_then(text) == Some("more");
            if !more || Instant::now() > until {
                return Ok(());
            }
        }
    }

    /// Removes states of books that mean nothing any more, a part of them in each turn.
    fn sweep(&mut self, connection: &mut Connection, until: Instant) -> Result<(), Error> {
        loop {
            let states = &self.session.keys.book_states;
            let (next, page) = scan(connection, states, self.swept_to, SWEEPING)?;
            self.swept_to = next;
            for page in page.chunks(PAGE) {
                let orphans = self.sweep_page(connection, page, "look")?;
                if orphans.is_empty() {
                    continue;
                }
                warn!(target: LOG, "{} books are reserved for requests that are decided", orphans.len());
                let fetched: Vec<(&[u8], EventId)> = orphans
                    .iter()
                    .filter_map(|(book, state)| {
                        Some((book.as_slice(), EventId::from_bytes(state.strip_prefix(b"?")?)?))
                    })
                    .collect();
                shelving::fetch::undo(self.session, fetched).run(connection, SWEEPING)?;
                self.sweep_page(connection, &orphans, "unfetched")?;
            }
            if self.swept_to == 0 || Instant::now() > until {
                return Ok(());
            }
        }
    }

    /// Removes the notes of tries of events that are decided, a page at each call.
    ///
    /// # Errors
    /// As for a [turn](Self::turn).
    pub fn remove_old_tries(&mut self, connection: &mut Connection) -> Result<(), Error> {
        const DOING: &str = "remove old notes of tries";
        let keys = &self.session.keys;
        let (next, page) = scan(connection, &keys.lone_tries, self.old_tries_to, DOING)?;
        for page in page.chunks(PAGE) {
            let lock = self.session.lock();
            let touched = [lock, &keys.lone_tries, &keys.requests, &keys.returns];
            let mut call = OLD_TRIES.keys(&touched);
            call.arg(&self.session.token).arg(LENDING_GROUP);
            for (event, _) in page {
                // What names no event, somebody else has put there.
                let key = std::str::from_utf8(event).ok().and_then(EventKey::parse);
                if let Some(EventKey { id, action }) = key {
                    call.arg(event).arg(action.as_str()).arg(id);
                }
            }
            call.run(connection, DOING)?;
        }
        self.old_tries_to = next;
        Ok(())
    }

    /// Sweeps some books. Returns those that are reserved for decided requests.
    fn sweep_page(
        &self,
        connection: &mut Connection,
        page: &[(Vec<u8>, Vec<u8>)],
        step: &str,
    ) -> Result<Fields, Error> {
        let keys = &self.session.keys;
        let lock = self.session.lock();
        let touched =
            [lock, &keys.book_states, &keys.loans, &keys.handoffs, &keys.requests, &keys.storage];
        let mut call = SWEEP.keys(&touched);
        call.arg(&self.session.token).arg(LENDING_GROUP).arg(SHELVING_GROUP).arg(step);
        for (book, state) in page {
            call.arg(book).arg(state);
        }
        let reply = call.run(connection, SWEEPING)?;
        let mut words = reply.rest.iter().skip(1).map(|word| bytes(word).to_vec());
        Ok(std::iter::from_fn(|| Some((words.next()?, words.next()?))).collect())
    }
}

/// A part of a hash, and where the next begins. A small one comes whole, however large the page.
fn scan(
    connection: &mut Connection,
    hash: &str,
    from: u64,
    doing: &'static str,
) -> Result<(u64, Fields), Error> {
    let mut scan = redis::cmd("HSCAN");
    scan.arg(hash).arg(from).arg("COUNT").arg(PAGE);
    scan.query(connection).map_err(Error::redis(doing))
}
