//! The keeper: renews the lease, takes over what dead instances had in hand, and keeps house.
//!
//! It renews the lease only while every loop makes progress: an instance that is stuck would
//! otherwise hold up the refusals of all others for ever. It ends when its orders say so, after
//! the workers: until then the lease must live.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{debug, error, info, warn};

use super::neighbours::{note_neighbours, others, shown};
use super::tidy::Tidy;
use super::{lease, setup};
use crate::claim;
use crate::daemon::LOG;
use crate::error::Error;
use crate::event::EventKey;
use crate::ids::EventId;
use crate::info::Memory;
use crate::keys::Stream;
use crate::lending;
use crate::link::{self, Connection};
use crate::lock::Lock;
use crate::script::{Script, lua};
use crate::session::{Session, Thread};
use crate::shelving;
use crate::stream::{self, Entry, Pending};
use crate::text::counted;

static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("forget")));

/// A loop that has not come round for so long is stuck: longer than every timeout of a reply.
pub const STALL: Duration = Duration::from_secs(20);

/// How long the link is silent at most: a lease may be an hour.
const IDLE: Duration = Duration::from_secs(1);

/// An event that is pending for this instance for so long and in nobody's hands was delivered in a
/// reply that got lost: longer than a reply can be under way.
const LOST_AFTER_MS: u64 = 10_000;

/// Own pending events looked at in one step; well under a millisecond.
const PENDING_PAGE: usize = 500;

/// How often own pending events are compared with those in hand.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);

/// A consumer without pending entries whose instance is gone for so long is removed.
const FORGET_AFTER_MS: u64 = 3_600_000;

/// The part of its time that is for keeping house: one in so many.
const TIDY_SHARE: u32 = 100;

/// What the supervisor tells the keeper.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// Pass nothing on to the workers any more.
    LetGo,
    /// End.
    End,
}

/// The ways to the workers of both services. They are closed only when a worker has ended with an error,
/// and with it the session.
pub struct Workers {
    /// To LendingService's.
    pub to_lending: Sender<Vec<lending::Delivered>>,
    /// To ShelvingService's.
    pub to_shelving: Sender<Vec<shelving::reader::Delivered>>,
}

impl Workers {
    /// Passes on what is not in hand already.
    fn pass_events(&self, session: &Session, mut batch: Vec<lending::Delivered>) {
        session.workload.take(&mut batch, lending::Delivered::key_and_books);
        let _ = self.to_lending.send(batch);
    }

    fn pass_hand_offs<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        let _ = self.to_shelving.send(entries.map(shelving::reader::delivered).collect());
    }
}

/// The keeper.
pub struct Keeper<'a> {
    /// What the threads share.
    pub session: &'a Session,
    /// Its own connection.
    pub connection: Connection,
    /// What the supervisor says.
    pub orders: Receiver<Order>,
}

impl Keeper<'_> {
    /// Keeps house until told to end, and passes on to the workers what it finds until told to let go of them.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is lost; what Redis or the link said.
    pub fn run(mut self, workers: Workers) -> Result<(), Error> {
        let mut workers = Some(workers);
        let turn = self.session.settings.lease / 3;
        let mut next_reconcile = Instant::now() + RECONCILE_EVERY;
        let mut tidy = Tidy::new(self.session);
        let (mut stalled, mut full) = (false, false);
        let mut next_turn = Instant::now();
        while !self.session.is_broken() {
            match self.orders.recv_deadline(next_turn.min(Instant::now() + IDLE)) {
                Ok(Order::LetGo) => {
                    workers = None;
                    continue;
                }
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.session.beat(Thread::Keeper);
            if Instant::now() < next_turn {
                link::ping(&mut self.connection)?;
                continue;
            }
            next_turn = Instant::now() + turn;
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
            let Some(workers) = &workers else { continue };
            setup::check_ids(&mut self.connection, &self.session.keys, false)?;
            self.look_after_others(workers)?;
            if Instant::now() >= next_reconcile {
                self.reconcile(workers)?;
                tidy.remove_old_tries(&mut self.connection)?;
                full = self.tell_if_full(full)?;
                next_reconcile = Instant::now() + RECONCILE_EVERY;
            }
            tidy.turn(&mut self.connection, turn / TIDY_SHARE)?;
        }
        Ok(())
    }

    /// Tells when Redis' memory has become full, or has room again. Nothing else would: what is queued is
    /// decided all the same, and it is those who ask who are refused. Returns whether it is full.
    fn tell_if_full(&mut self, was: bool) -> Result<bool, Error> {
        let Some(memory) = Memory::of(&mut self.connection)? else { return Ok(was) };
        let is = memory.is_full();
        match (was, is) {
            (false, true) => warn!(
                target: LOG,
                "the memory of Redis is full (maxmemory): new requests and returns are refused; what is \
                 queued is decided"
            ),
            (true, false) => info!(target: LOG, "the memory of Redis has room again"),
            _ => {}
        }
        Ok(is)
    }

    /// Looks at the other instances: takes over from the dead, forgets those that are long gone,
    /// and notes which hold up no refusal.
    fn look_after_others(&mut self, workers: &Workers) -> Result<(), Error> {
        let others = others(self.session, &mut self.connection)?;
        note_neighbours(self.session, &others);
        let abandoned_ms = self.session.settings.abandoned_after.as_millis() as u64;
        // What is taken over goes as fast as the workers take it, and there may be very many to forget;
        // meanwhile the lease is not renewed. What is left has its turn after that.
        let until = Instant::now() + self.session.settings.lease / 3;
        for other in others {
            if Instant::now() >= until {
                break;
            }
            let gone = match other.lock {
                Lock::Gone => true,
                Lock::WithoutTtl => other.idle_ms > abandoned_ms,
                Lock::Held(_) => false,
            };
            if gone && other.pending > 0 {
                self.take_over(workers, other.stream, &other.name, until)?;
            } else if other.lock == Lock::Gone && other.idle_ms > FORGET_AFTER_MS {
                self.forget(other.stream, &other.name)?;
            }
        }
        Ok(())
    }

    /// Removes the consumer of an instance that is long gone.
    fn forget(&mut self, stream: Stream, consumer: &[u8]) -> Result<(), Error> {
        let Session { keys, token, .. } = self.session;
        let (lock, name) = (self.session.lock(), stream.key(keys));
        let lock_of_other = keys.lock_of(consumer);
        let touched =
            [lock.as_bytes(), name.as_bytes(), &lock_of_other, keys.fetch_answers.as_bytes()];
        let mut call = FORGET.keys(&touched);
        call.arg(token).arg(stream.group()).arg(consumer);
        let reply = call.run(&mut self.connection, "remove a consumer that is gone")?;
        if reply.word == "FORGOTTEN" {
            debug!(target: LOG, "consumer {:?} of {name} is long gone: removed", shown(consumer));
        }
        Ok(())
    }

    /// Takes over what an instance that is gone has in hand. Stops at `until`; the rest comes next time.
    fn take_over(
        &mut self,
        workers: &Workers,
        stream: Stream,
        from: &[u8],
        until: Instant,
    ) -> Result<(), Error> {
        let session = self.session;
        let mut count = 0;
        claim::claim_all(session, &mut self.connection, stream, from, |claimed| {
            count += claimed.len();
            match stream.action() {
                Some(action) => {
                    let delivered = |one| lending::reader::delivered(action, one);
                    workers.pass_events(session, claimed.into_iter().map(delivered).collect());
                }
                None => {
                    let entries = claimed.iter().filter_map(|one| one.entry.as_ref());
                    workers.pass_hand_offs(entries);
                }
            }
            !session.is_stopping() && Instant::now() < until
        })?;
        if count > 0 {
            info!(target: LOG, "took over {} of {} from instance {:?}, which is gone", counted(count, "event"), stream.key(&session.keys), shown(from));
        }
        Ok(())
    }

    /// Takes up own pending events that are in nobody's hands: the reply to a read can get lost
    /// while the lease lives on.
    fn reconcile(&mut self, workers: &Workers) -> Result<(), Error> {
        for stream in Stream::ALL {
            let mut after: Option<EventId> = None;
            loop {
                let page = self.own_pending(stream, after)?;
                let Some(last) = page.last() else { break };
                let in_hand = |id| {
                    let key = stream.action().map(|action| EventKey { id, action });
                    key.is_some_and(|key| self.session.workload.contains(key))
                };
                let is_lost = |one: &&Pending| one.idle_ms > LOST_AFTER_MS && !in_hand(one.id);
                let mut lost: Vec<Pending> = page.iter().filter(is_lost).copied().collect();
                if !lost.is_empty() {
                    // What was decided after the first look is not in hand any more, nor lost.
                    let still = self.own_pending(stream, after)?;
                    lost.retain(|one| still.iter().any(|it| it.id == one.id));
                }
                after = Some(last.id);
                if !lost.is_empty() {
                    self.take_up(workers, stream, &lost)?;
                }
            }
        }
        Ok(())
    }

    fn own_pending(
        &mut self,
        stream: Stream,
        after: Option<EventId>,
    ) -> Result<Vec<Pending>, Error> {
        let Session { keys, .. } = self.session;
        let (name, consumer) = (stream.key(keys), self.session.consumer());
        stream::pending(&mut self.connection, name, stream.group(), consumer, after, PENDING_PAGE)
    }

    /// Reads what was delivered to this instance and did not arrive.
    fn take_up(
        &mut self,
        workers: &Workers,
        stream: Stream,
        lost: &[Pending],
    ) -> Result<(), Error> {
        let (session, connection) = (self.session, &mut self.connection);
        let name = stream.key(&session.keys);
        let number = counted(lost.len(), "delivered event");
        warn!(target: LOG, "{number} of {name} did not arrive: read again");
        match stream.action() {
            Some(action) => {
                let batch = lending::reader::read_pending(session, connection, action, lost)?;
                workers.pass_events(session, batch);
            }
            None => {
                let ids: Vec<EventId> = lost.iter().map(|one| one.id).collect();
                workers.pass_hand_offs(stream::contents(connection, name, &ids)?.iter());
            }
        }
        Ok(())
    }
}
