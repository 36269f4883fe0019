//! LendingService's worker: decides events, in the order of their ids as far as it can.
//!
//! One thread with one connection, and several calls under way on it: while Redis works on one
//! chunk, the reply to the last is read and the next is packed, so that neither waits for the
//! other. Replies come in the order of the calls; what a reply asks for (books to be fetched, then
//! a second try) goes out behind the calls that are under way. An event alone is served at once, a
//! backlog in large chunks.
//!
//! The worker ends when the reader and the keeper have let go of its channel and everything under
//! way is answered, or at once when the session breaks.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, select};
use log::{debug, error, warn};
use redis::{Cmd, Connection, Value};

use super::decide::{self, Fetched, Try, Verdict};
use super::waiting::{Waiting, WaitingRoom};
use super::{Content, Delivered, reject};
use crate::daemon::logging::OutcomeLog;
use crate::daemon::takeover;
use crate::error::Error;
use crate::event::{Event, EventKey};
use crate::script::text;
use crate::session::{Neighbours, Session};
use crate::shelving::fetch;
use crate::stream;

/// The most events that one script decides: it then takes well under a millisecond, and what a
/// call costs beside its events no longer shows.
const CHUNK: usize = 128;

/// The most books in a chunk of several events, since a script's time grows with them.
const CHUNK_BOOKS: usize = 1_000;

/// Calls under way at a time: one that Redis works on, and more that wait for it.
const DEPTH: usize = 4;

/// How often an idle worker looks up, to show that it is alive.
const IDLE: Duration = Duration::from_secs(1);

/// A call whose reply has not been read yet.
enum Call {
    Decide(Arc<Neighbours>, Vec<Try>),
    Fetch(Vec<Reserved>),
    Reject(EventKey, String),
}

/// A try whose books are reserved and have to be fetched.
struct Reserved {
    event: Event,
    doubt: String,
    books: Vec<usize>,
}

/// The worker.
pub struct Worker<'a> {
    session: &'a Session,
    connection: Connection,
    from_readers: Receiver<Vec<Delivered>>,
    shelved: Receiver<()>,
    open: bool,
    fresh: VecDeque<Delivered>,
    suspects: VecDeque<EventKey>,
    room: WaitingRoom,
    under_way: VecDeque<Call>,
    log: OutcomeLog,
}

impl<'a> Worker<'a> {
    /// A worker that takes events from one channel, and from the other that books have been put on
    /// their shelves.
    pub fn new(
        session: &'a Session,
        connection: Connection,
        from_readers: Receiver<Vec<Delivered>>,
        shelved: Receiver<()>,
    ) -> Self {
        Self {
            session,
            connection,
            from_readers,
            shelved,
            open: true,
            fresh: VecDeque::new(),
            suspects: VecDeque::new(),
            room: WaitingRoom::default(),
            under_way: VecDeque::new(),
            log: OutcomeLog::new(session.options.log_outcomes),
        }
    }

    /// Works until there is nothing more to come.
    ///
    /// # Errors
    /// What Redis or the link said; the session is then over.
    pub fn run(mut self) -> Result<(), Error> {
        while !self.session.is_broken() {
            self.session.beat("lending-worker");
            self.gather();
            self.room.tick(Instant::now());
            if self.under_way.is_empty() {
                if let Some(key) = self.suspects.pop_front() {
                    self.try_alone(key)?;
                    continue;
                }
                if !self.open && self.fresh.is_empty() {
                    // What waits stays pending; whoever serves it next finds it.
                    break;
                }
            }
            // A suspect is tried when nothing else is under way.
            while self.suspects.is_empty() && self.under_way.len() < DEPTH {
                let Some(call) = self.next_chunk() else { break };
                self.send(call)?;
            }
            self.answer_one()?;
        }
        Ok(())
    }

    /// Takes what has come; waits for something only if there is nothing else to do.
    fn gather(&mut self) {
        while self.open && self.fresh.len() < CHUNK {
            match self.from_readers.try_recv() {
                Ok(batch) => self.fresh.extend(batch),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.open = false,
            }
        }
        if self.shelved.try_recv().is_ok() {
            self.room.shelved();
        }
        let idle = self.open
            && self.fresh.is_empty()
            && self.suspects.is_empty()
            && self.under_way.is_empty()
            && !self.room.has_due();
        if !idle {
            return;
        }
        let now = Instant::now();
        let patience = self.room.next_round().map_or(IDLE, |at| IDLE.min(at - now));
        select! {
            recv(self.from_readers) -> batch => match batch {
                Ok(batch) => self.fresh.extend(batch),
                Err(_) => self.open = false,
            },
            recv(self.shelved) -> done => match done {
                Ok(()) => self.room.shelved(),
                // The shelving worker has ended: so will this one.
                Err(_) => self.shelved = crossbeam_channel::never(),
            },
            default(patience) => {}
        }
    }

    /// The next call: what is due in the waiting room, then what has come, oldest first.
    fn next_chunk(&mut self) -> Option<Call> {
        let mut tries: Vec<Try> = Vec::new();
        for Waiting { event, doubt } in self.room.take_due(CHUNK, CHUNK_BOOKS) {
            tries.push(Try { event, doubt, fetched: None });
        }
        let mut books: usize = tries.iter().map(|one| one.event.books.len()).sum();
        while tries.len() < CHUNK && (books < CHUNK_BOOKS || tries.is_empty()) {
            let Some(delivered) = self.fresh.pop_front() else { break };
            match delivered.content {
                Content::Event(event) if self.room.is_awaited(&event) => {
                    self.room.admit_behind(event);
                }
                Content::Event(event) => {
                    books += event.books.len();
                    tries.push(Try { event, doubt: String::new(), fetched: None });
                }
                Content::Suspect => self.suspects.push_back(delivered.key),
                Content::Fault(fault) => {
                    let call = Call::Reject(delivered.key, fault.cause().to_owned());
                    if tries.is_empty() {
                        return Some(call);
                    }
                    // It goes out next, behind those that came before it.
                    let content = Content::Fault(fault);
                    self.fresh.push_front(Delivered { key: delivered.key, content });
                    break;
                }
            }
        }
        if tries.is_empty() && self.room.has_due() {
            return self.next_chunk();
        }
        tries.sort_unstable_by_key(|one| one.event.key);
        (!tries.is_empty()).then(|| Call::Decide(self.session.neighbours(), tries))
    }

    fn command(&self, call: &Call, by_text: bool) -> Cmd {
        match call {
            Call::Decide(neighbours, tries) => {
                decide::command(self.session, neighbours, tries, by_text)
            }
            Call::Fetch(reserved) => fetch::command(self.session, asked(reserved), by_text),
            Call::Reject(key, cause) => reject::command(self.session, *key, cause, by_text),
        }
    }

    fn send(&mut self, call: Call) -> Result<(), Error> {
        self.send_as(call, false)
    }

    fn send_as(&mut self, call: Call, by_text: bool) -> Result<(), Error> {
        let packed = self.command(&call, by_text).get_packed_command();
        self.connection.send_packed_command(&packed).map_err(Error::redis("send to Redis"))?;
        self.under_way.push_back(call);
        Ok(())
    }

    /// Reads the next reply, if a call is under way, and does what follows from it.
    fn answer_one(&mut self) -> Result<(), Error> {
        let Some(call) = self.under_way.pop_front() else { return Ok(()) };
        let reply = self.connection.recv_response().and_then(Value::extract_error);
        let reply = match reply {
            Err(error) if error.code() == Some("NOSCRIPT") => return self.send_as(call, true),
            other => other.map_err(Error::redis("work on events"))?,
        };
        match call {
            Call::Decide(_, tries) => self.decided(reply, tries)?,
            Call::Fetch(reserved) => self.fetched(reply, reserved)?,
            Call::Reject(key, cause) => self.rejected(reply, key, &cause)?,
        }
        self.log.write();
        Ok(())
    }

    fn decided(&mut self, reply: Value, tries: Vec<Try>) -> Result<(), Error> {
        let mut reserved = Vec::new();
        let mut gone = Vec::new();
        for (verdict, one) in decide::verdicts(reply, &tries)?.into_iter().zip(tries) {
            let key = one.event.key;
            match verdict {
                Verdict::Done(fields) => {
                    self.log.add(pairs(&fields));
                    self.room.decided(&one.event);
                    gone.push(key);
                }
                Verdict::Fetch { doubt, books } => {
                    reserved.push(Reserved { event: one.event, doubt, books });
                }
                Verdict::Wait { doubt } => self.room.admit(Waiting { event: one.event, doubt }),
                Verdict::Stale => {
                    debug!("{key} was decided by another instance");
                    gone.push(key);
                }
                Verdict::Failed(cause) => {
                    error!("{key} cannot be worked on: {cause}");
                    self.send(Call::Reject(key, cause))?;
                }
            }
        }
        self.session.in_hand.drop(gone);
        if !reserved.is_empty() {
            self.send(Call::Fetch(reserved))?;
        }
        Ok(())
    }

    fn fetched(&mut self, reply: Value, reserved: Vec<Reserved>) -> Result<(), Error> {
        let mut answers = fetch::answers(reply, asked(&reserved).count())?.into_iter();
        let tries = reserved
            .into_iter()
            .map(|Reserved { event, doubt, books }| {
                let mut of_event = vec![None; event.books.len()];
                for book in books {
                    of_event[book] = answers.next();
                }
                let fetched = Some(Fetched { doubt, answers: of_event });
                Try { event, doubt: String::new(), fetched }
            })
            .collect();
        self.send(Call::Decide(self.session.neighbours(), tries))
    }

    fn rejected(&mut self, reply: Value, key: EventKey, cause: &str) -> Result<(), Error> {
        if let Some(fields) = reject::outcome(reply)? {
            warn!("{key} is in the dead letters: {cause}");
            self.log.add(pairs(&fields));
        }
        self.session.in_hand.drop([key]);
        Ok(())
    }

    /// Tries an event alone that was in hand when instances died. If it is the cause, it is
    /// counted before it is read, and given up unread when it was tried often enough (I5).
    fn try_alone(&mut self, key: EventKey) -> Result<(), Error> {
        let most = self.session.options.tries;
        let tries = takeover::count_lone_try(self.session, &mut self.connection, key, 1)?;
        self.remember_lone(Some(key));
        warn!("{key} was in hand when instances died: it is tried alone, time {tries} of {most}");
        if tries > most {
            self.send(Call::Reject(key, format!("given_up_after_{most}_tries")))?;
        } else {
            let stream = self.session.keys.stream(key.action);
            let entries = stream::contents(&mut self.connection, stream, &[key.id])?;
            for entry in &entries {
                let call = match Delivered::read(key.action, entry).content {
                    Content::Event(event) => {
                        let one = Try { event, doubt: String::new(), fetched: None };
                        Call::Decide(self.session.neighbours(), vec![one])
                    }
                    Content::Fault(fault) => Call::Reject(key, fault.cause().to_owned()),
                    Content::Suspect => continue,
                };
                self.send(call)?;
            }
        }
        while !self.under_way.is_empty() {
            self.answer_one()?;
        }
        // It was survived, whatever came of it.
        takeover::count_lone_try(self.session, &mut self.connection, key, 0)?;
        self.remember_lone(None);
        Ok(())
    }

    fn remember_lone(&self, key: Option<EventKey>) {
        *self.session.lone.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

/// The books that are to be fetched, and for which request each.
fn asked(
    reserved: &[Reserved],
) -> impl Iterator<Item = (&crate::ids::BookId, crate::ids::EventId)> {
    reserved
        .iter()
        .flat_map(|one| one.books.iter().map(|book| (&one.event.books[*book], one.event.key.id)))
}

/// Names and values from a list of both in turn; what is not text is passed over.
fn pairs(fields: &[Value]) -> impl Iterator<Item = (&str, &str)> {
    fields.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?)))
}
