//! The keeper: renews the lease, takes over what dead instances had in hand, and keeps house.
//!
//! It renews the lease only while every loop makes progress: an instance that is stuck would
//! otherwise hold up the refusals of all others for ever. It ends when its orders say so, after
//! the workers: until then the lease must live.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{debug, error, info, warn};
use redis::Connection;

use super::{lease, setup, takeover};
use crate::daemon::LOG;
use crate::error::Error;
use crate::event::{Action, EventKey};
use crate::ids::EventId;
use crate::keys::{LENDING_GROUP, SHELVING_GROUP};
use crate::lending::{self, SUSPICIOUS_DELIVERIES};
use crate::script::{self, Script, lua, text};
use crate::session::{Neighbours, Session};
use crate::shelving;
use crate::stream::{self, Consumer, Lease};
use crate::text::counted;

static SWEEP: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "groups", "sweep")));
static CLEAR: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "last_given", "clear")));
static OLD_TRIES: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "old_tries")));
static RETAIN: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("retain")));
static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("forget")));

/// A loop that has not come round for so long is stuck: longer than every timeout of a reply.
pub const STALL: Duration = Duration::from_secs(20);

/// An event that is pending for this instance for so long and in nobody's hands was delivered in a
/// reply that got lost: longer than a reply can be under way.
const LOST_AFTER_MS: u64 = 10_000;

/// How often own pending events are compared with those in hand.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);

/// The time that tidying up may take in each turn: about 1 % of Redis.
const TIDY_TIME: Duration = Duration::from_millis(20);

/// Entries looked at in one step of tidying up; well under a millisecond each.
const TIDY_PAGE: usize = 500;

/// A consumer without pending entries whose instance is gone for so long is removed.
const FORGET_AFTER_MS: u64 = 3_600_000;

/// Fields of a hash and their values. Others can write there too: they need be no text.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What the supervisor tells the keeper.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// Pass nothing on to the workers any more.
    LetGo,
    /// End.
    End,
}

/// The keeper.
pub struct Keeper<'a> {
    /// What the threads share.
    pub session: &'a Session,
    /// Its own connection.
    pub connection: Connection,
    /// The way to the lending worker.
    pub to_lending: Option<Sender<Vec<lending::Delivered>>>,
    /// The way to the shelving worker.
    pub to_shelving: Option<Sender<Vec<shelving::reader::Delivered>>>,
    /// What the supervisor says.
    pub orders: Receiver<Order>,
}

/// One of the three streams with its group.
#[derive(Clone, Copy)]
enum Stream {
    Events(Action),
    HandOffs,
}

impl Stream {
    fn name_and_group(self, session: &Session) -> (&str, &'static str) {
        match self {
            Self::Events(action) => (session.keys.stream(action), LENDING_GROUP),
            Self::HandOffs => (&session.keys.handoffs, SHELVING_GROUP),
        }
    }
}

const STREAMS: [Stream; 3] =
    [Stream::Events(Action::Request), Stream::Events(Action::Return), Stream::HandOffs];

impl Keeper<'_> {
    /// Keeps house until told to end.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is lost; what Redis or the link said.
    pub fn run(mut self) -> Result<(), Error> {
        let turn = self.session.options.lease / 3;
        let mut next_reconcile = Instant::now() + RECONCILE_EVERY;
        let mut cursor = 0;
        let mut old_tries = 0;
        let mut stalled = false;
        let mut next_turn = Instant::now();
        while !self.session.is_broken() {
            match self.orders.recv_deadline(next_turn) {
                Ok(Order::LetGo) => {
                    self.to_lending = None;
                    self.to_shelving = None;
                    continue;
                }
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => next_turn = Instant::now() + turn,
            }
            self.session.beat("keeper");
            let (thread, since) = self.session.slowest();
            if since > STALL {
                if !stalled {
                    error!(target: LOG,
                        "the thread {thread} has made no progress for {} s: the lease is not \
                         renewed, so that others take over",
                        since.as_secs()
                    );
                }
                stalled = true;
                continue;
            }
            stalled = false;
            lease::renew(self.session, &mut self.connection)?;
            self.session.note_reply();
            if self.to_lending.is_none() {
                continue;
            }
            setup::check_ids(&mut self.connection, &self.session.keys, false)?;
            self.look_after_others()?;
            if Instant::now() >= next_reconcile {
                self.reconcile()?;
                old_tries = self.remove_old_tries(old_tries)?;
                next_reconcile = Instant::now() + RECONCILE_EVERY;
            }
            self.clear()?;
            self.retain()?;
            cursor = self.sweep(cursor)?;
        }
        Ok(())
    }

    fn name_and_group(&self, stream: Stream) -> (&str, &'static str) {
        stream.name_and_group(self.session)
    }

    /// Looks at the other instances: takes over from the dead, forgets those that are long gone,
    /// and notes which hold up no refusal.
    fn look_after_others(&mut self) -> Result<(), Error> {
        let others = others(self.session, &mut self.connection)?;
        note_neighbours(self.session, &others);
        let abandoned_ms = self.session.options.abandoned_after.as_millis() as u64;
        // What is taken over goes as fast as the workers take it, and there may be very many to forget;
        // meanwhile the lease is not renewed. What is left has its turn after that.
        let until = Instant::now() + self.session.options.lease / 3;
        for other in others {
            if Instant::now() >= until {
                break;
            }
            let (name, group) = self.name_and_group(other.stream);
            let name = name.to_owned();
            let gone = match other.lease {
                Lease::Gone => true,
                Lease::None => other.idle_ms > abandoned_ms,
                Lease::Left(_) => false,
            };
            if gone && other.pending > 0 {
                self.take_over(other.stream, &name, group, &other.name, until)?;
            } else if other.lease == Lease::Gone && other.idle_ms > FORGET_AFTER_MS {
                FORGET
                    .keys(&[
                        self.session.lock().as_bytes(),
                        name.as_bytes(),
                        &self.session.keys.lock_of(&other.name),
                        self.session.keys.fetch_answers.as_bytes(),
                    ])
                    .arg(&self.session.token)
                    .arg(group)
                    .arg(&other.name)
                    .run(&mut self.connection, "remove a consumer that is gone")?;
                debug!(target: LOG, "consumer {:?} of {name} is long gone: removed", shown(&other.name));
            }
        }
        Ok(())
    }

    /// Takes over what an instance that is gone has in hand. Stops at `until`; the rest comes next time.
    fn take_over(
        &mut self,
        stream: Stream,
        name: &str,
        group: &str,
        from: &[u8],
        until: Instant,
    ) -> Result<(), Error> {
        let session = self.session;
        let (to_lending, to_shelving) = (&self.to_lending, &self.to_shelving);
        let mut count = 0;
        takeover::claim_all(session, &mut self.connection, name, group, from, |claimed| {
            count += claimed.len();
            // A channel is closed only when its worker has ended with an error, and with it the
            // session.
            match stream {
                Stream::Events(action) => {
                    let mut batch: Vec<_> = claimed
                        .into_iter()
                        .map(|one| lending::reader::delivered(action, one))
                        .collect();
                    session.in_hand.take(&mut batch, |delivered| delivered.key);
                    if let Some(to_lending) = to_lending {
                        let _ = to_lending.send(batch);
                    }
                }
                Stream::HandOffs => {
                    let entries = claimed.iter().filter_map(|one| one.entry.as_ref());
                    if let Some(to_shelving) = to_shelving {
                        let _ =
                            to_shelving.send(entries.map(shelving::reader::delivered).collect());
                    }
                }
            }
            !session.is_stopping() && Instant::now() < until
        })?;
        if count > 0 {
            info!(target: LOG, "took over {} of {name} from instance {:?}, which is gone", counted(count, "event"), shown(from));
        }
        Ok(())
    }

    /// Takes up own pending events that are in nobody's hands: the reply to a read can get lost
    /// while the lease lives on.
    fn reconcile(&mut self) -> Result<(), Error> {
        for stream in STREAMS {
            let (name, group) = self.name_and_group(stream);
            let name = name.to_owned();
            let mut after: Option<EventId> = None;
            loop {
                let (session, connection) = (self.session, &mut self.connection);
                let mut look = |after| {
                    let consumer = session.consumer();
                    stream::pending(connection, &name, group, consumer, after, TIDY_PAGE)
                };
                let page = look(after)?;
                let Some(last) = page.last() else { break };
                let mut lost: Vec<_> = page
                    .iter()
                    .filter(|pending| pending.idle_ms > LOST_AFTER_MS)
                    .filter(|pending| match stream {
                        Stream::Events(action) => {
                            !self.session.in_hand.contains(EventKey { id: pending.id, action })
                        }
                        Stream::HandOffs => true,
                    })
                    .collect();
                if !lost.is_empty() {
                    // What was decided after the first look is not in hand any more, nor lost.
                    let still = look(after)?;
                    lost.retain(|one| still.iter().any(|it| it.id == one.id));
                }
                after = Some(last.id);
                if !lost.is_empty() {
                    warn!(target: LOG, "{} of {name} did not arrive: read again", counted(lost.len(), "delivered event"));
                    let readable: Vec<EventId> = lost
                        .iter()
                        .filter(|one| match stream {
                            Stream::Events(_) => one.deliveries < SUSPICIOUS_DELIVERIES,
                            Stream::HandOffs => true,
                        })
                        .map(|one| one.id)
                        .collect();
                    let entries = stream::contents(&mut self.connection, &name, &readable)?;
                    match stream {
                        Stream::Events(action) => {
                            let suspects =
                                lost.iter().filter(|one| !readable.contains(&one.id)).map(|one| {
                                    lending::Delivered::suspect(EventKey { id: one.id, action })
                                });
                            let mut batch: Vec<_> = entries
                                .iter()
                                .map(|entry| lending::Delivered::read(action, entry, false))
                                .chain(suspects)
                                .collect();
                            self.session.in_hand.take(&mut batch, |delivered| delivered.key);
                            if let Some(to_lending) = &self.to_lending {
                                let _ = to_lending.send(batch);
                            }
                        }
                        Stream::HandOffs => {
                            if let Some(to_shelving) = &self.to_shelving {
                                let batch = entries.iter().map(shelving::reader::delivered);
                                let _ = to_shelving.send(batch.collect());
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes decided events that are still in their streams.
    fn clear(&mut self) -> Result<(), Error> {
        const DOING: &str = "clear decided events away";
        let until = Instant::now() + TIDY_TIME;
        for stream in STREAMS {
            let (name, group) = self.name_and_group(stream);
            let name = name.to_owned();
            loop {
                let reply = CLEAR
                    .keys(&[self.session.lock(), &name, &self.session.keys.kept_events])
                    .arg(&self.session.token)
                    .arg(group)
                    .arg(TIDY_PAGE)
                    .arg(self.session.decided_events())
                    .run(&mut self.connection, DOING)?;
                let more = reply.rest.get(1).and_then(text) == Some("more");
                if !more || Instant::now() > until {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Drops outcomes that are older than they are to be kept.
    fn retain(&mut self) -> Result<(), Error> {
        const DOING: &str = "drop old outcomes";
        let Some(retained) = self.session.options.retained else { return Ok(()) };
        // Ids are given by the clock of Redis.
        let (seconds, _): (u64, u64) =
            redis::cmd("TIME").query(&mut self.connection).map_err(Error::redis(DOING))?;
        let oldest_ms = seconds.saturating_sub(retained.as_secs()) * 1_000;
        let until = Instant::now() + TIDY_TIME;
        loop {
            let reply = RETAIN
                .keys(&[self.session.lock(), &self.session.keys.outcomes])
                .arg(&self.session.token)
                .arg(oldest_ms)
                .run(&mut self.connection, DOING)?;
            let more = reply.rest.get(1).and_then(text) == Some("more");
            if !more || Instant::now() > until {
                return Ok(());
            }
        }
    }

    /// Removes states of books that mean nothing any more, a part of them in each turn. Returns
    /// where to go on.
    fn sweep(&mut self, mut cursor: u64) -> Result<u64, Error> {
        const DOING: &str = "sweep the states of books";
        let until = Instant::now() + TIDY_TIME;
        loop {
            let (next, page): (u64, Fields) = redis::cmd("HSCAN")
                .arg(&self.session.keys.book_states)
                .arg(cursor)
                .arg("COUNT")
                .arg(TIDY_PAGE)
                .query(&mut self.connection)
                .map_err(Error::redis(DOING))?;
            cursor = next;
            // A small hash comes whole, however large the page.
            for page in page.chunks(TIDY_PAGE) {
                let orphans = self.sweep_page(page, "look")?;
                if orphans.is_empty() {
                    continue;
                }
                warn!(target: LOG, "{} books are reserved for requests that are decided", orphans.len());
                let fetched: Vec<(&[u8], EventId)> = orphans
                    .iter()
                    .filter_map(|(book, state)| {
                        let id = std::str::from_utf8(state.strip_prefix(b"?")?).ok()?;
                        Some((book.as_slice(), id.parse().ok()?))
                    })
                    .collect();
                let (session, connection) = (self.session, &mut self.connection);
                let command = |by_text| {
                    shelving::fetch::undo_command(session, fetched.iter().copied(), by_text)
                };
                script::run(connection, command, DOING)?;
                self.sweep_page(&orphans, "unfetched")?;
            }
            if cursor == 0 || Instant::now() > until {
                return Ok(cursor);
            }
        }
    }

    /// Removes the notes of tries of events that are decided, a page in each turn. Returns where to
    /// go on.
    fn remove_old_tries(&mut self, cursor: u64) -> Result<u64, Error> {
        const DOING: &str = "remove old notes of tries";
        let keys = &self.session.keys;
        let (next, page): (u64, Fields) = redis::cmd("HSCAN")
            .arg(&keys.lone_tries)
            .arg(cursor)
            .arg("COUNT")
            .arg(TIDY_PAGE)
            .query(&mut self.connection)
            .map_err(Error::redis(DOING))?;
        for page in page.chunks(TIDY_PAGE) {
            let lock = self.session.lock();
            let touched = [lock, &keys.lone_tries, &keys.requests, &keys.returns];
            let mut call = OLD_TRIES.keys(&touched).arg(&self.session.token).arg(LENDING_GROUP);
            for (event, _) in page {
                // What names no event, somebody else has put there.
                let parts = std::str::from_utf8(event).ok().and_then(|it| it.split_once(':'));
                if let Some((action, id)) = parts
                    && let Ok(id) = id.parse::<EventId>()
                {
                    call = call.arg(event).arg(action).arg(id);
                }
            }
            call.run(&mut self.connection, DOING)?;
        }
        Ok(next)
    }

    /// Sweeps some books. Returns those that are reserved for decided requests.
    fn sweep_page(&mut self, page: &[(Vec<u8>, Vec<u8>)], step: &str) -> Result<Fields, Error> {
        const DOING: &str = "sweep the states of books";
        let keys = &self.session.keys;
        let lock = self.session.lock();
        let touched =
            [lock, &keys.book_states, &keys.loans, &keys.handoffs, &keys.requests, &keys.storage];
        let mut call = SWEEP.keys(&touched).arg(&self.session.token);
        call = call.arg(LENDING_GROUP).arg(SHELVING_GROUP).arg(step);
        for (book, state) in page {
            call = call.arg(book).arg(state);
        }
        let reply = call.run(&mut self.connection, DOING)?;
        let mut words = reply.rest.into_iter().skip(1).map(|word| match word {
            redis::Value::BulkString(bytes) => bytes,
            _ => Vec::new(),
        });
        Ok(std::iter::from_fn(|| Some((words.next()?, words.next()?))).collect())
    }
}

/// A consumer's name for the log, where it is escaped.
fn shown(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// Another instance, as a consumer of one stream.
struct Other {
    stream: Stream,
    name: Vec<u8>,
    pending: u64,
    idle_ms: u64,
    lease: Lease,
}

/// Finds out which other instances there are, before a session's first decision.
///
/// # Errors
/// What Redis or the link said.
pub fn meet_neighbours(session: &Session, connection: &mut Connection) -> Result<(), Error> {
    note_neighbours(session, &others(session, connection)?);
    Ok(())
}

fn others(session: &Session, connection: &mut Connection) -> Result<Vec<Other>, Error> {
    let mut others = Vec::new();
    for of in STREAMS {
        let (name, group) = of.name_and_group(session);
        let mut consumers = stream::consumers(connection, name, group)?;
        consumers.retain(|consumer| consumer.name != session.consumer().as_bytes());
        let leases = stream::leases(connection, &session.keys, &consumers)?;
        for (consumer, lease) in consumers.into_iter().zip(leases) {
            let Consumer { name, pending, idle_ms } = consumer;
            others.push(Other { stream: of, name, pending, idle_ms, lease });
        }
    }
    Ok(others)
}

/// Notes which instances hold up no refusal, and which run the reference application.
fn note_neighbours(session: &Session, others: &[Other]) {
    let silent_ms = session.options.silent_after.as_millis() as u64;
    // Who is heard of in one stream is not silent because of the others.
    let heard: HashSet<&[u8]> =
        others.iter().filter(|one| one.idle_ms <= silent_ms).map(|one| &one.name[..]).collect();
    let mut found = Neighbours::default();
    for other in others {
        let list = match other.lease {
            Lease::Left(_) => continue,
            Lease::None if !heard.contains(&other.name[..]) => &mut found.silent,
            Lease::None => &mut found.reference,
            // Which kind it was, nobody knows any more.
            Lease::Gone if other.pending > 0 => &mut found.reference,
            Lease::Gone => continue,
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
                session.options.silent_after.as_secs()
            );
        }
    }
    if *before != found {
        *session.neighbours.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
    }
}
