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
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lending::LOG;
use crossbeam_channel::{Receiver, TryRecvError, select};
use log::{debug, error, warn};
use redis::{Cmd, Connection, Value};

use super::busy::Busy;
use super::decide::{self, Fetched, Finality, Try, Verdict};
use super::reject::{self, Rejected};
use super::waiting::{Waiting, WaitingRoom};
use super::{Content, Delivered};
use crate::daemon::logging::OutcomeLog;
use crate::daemon::takeover::{self, LoneTry};
use crate::error::Error;
use crate::event::{Action, Event, EventKey, Fault};
use crate::ids::{BookId, EventId};
use crate::script::{Reply, text};
use crate::session::{Neighbours, Session};
use crate::shelving::fetch::{self, Answer};
use crate::stream;

/// The most events that one script decides: it then takes well under a millisecond, and what a
/// call costs beside its events no longer shows.
const CHUNK: usize = 128;

/// The most events that are tried again by one script: a try that ends in waiting again is cheaper
/// than a decision, and those of one millisecond had best be seen together.
const RETRY_CHUNK: usize = 512;

/// The most books in a chunk of several events, since a script's time grows with them.
const CHUNK_BOOKS: usize = 1_000;

/// Calls under way at a time: one that Redis works on, and more that wait for it.
const DEPTH: usize = 4;

/// Shelving is asked before anything is decided if it lately handed out at least one in so many
/// books. Where most books are lent or in automated storage, that would be a call for nothing;
/// where they are on their shelves, deciding first would be.
const WORTH_ASKING: usize = 4;

/// How often an idle worker looks up, to show that it is alive.
const IDLE: Duration = Duration::from_secs(1);

/// A call whose reply has not been read yet.
enum Call {
    /// Asks shelving for books.
    Fetch(Vec<Asking>),
    /// Decides events, or finds what they wait for.
    Decide(Arc<Neighbours>, Vec<Try>),
    /// Finds out which books a request may have fetched that is to be given up.
    Look(EventKey, String),
    /// Lets shelving take them back.
    Unfetch(EventKey, String, Vec<Vec<u8>>),
    /// Moves an event to the dead letters.
    Reject(EventKey, String),
}

/// An event some of whose books shelving is asked for.
struct Asking {
    event: Event,
    /// How final a "no" is.
    finality: Finality,
    /// Indices into the event's books; none of a return.
    books: Vec<usize>,
    /// What shelving said of the others before.
    before: Vec<Option<Answer>>,
}

impl Asking {
    /// The first time that this instance has an event: all books of a request. A fresh one was
    /// never tried before.
    fn first(event: Event) -> Self {
        let books = match event.key.action {
            Action::Request => (0..event.books.len()).collect(),
            Action::Return => Vec::new(),
        };
        Self { event, finality: Finality::First, books, before: Vec::new() }
    }
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
    busy: Busy,
    under_way: VecDeque<Call>,
    ask_first: bool,
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
            busy: Busy::default(),
            under_way: VecDeque::new(),
            ask_first: true,
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
                let mut faults = Vec::new();
                let call = self.next_call(&mut faults);
                // First, so that nothing in the call waits for what is decided already.
                for (key, fault) in faults {
                    self.send(Call::Reject(key, fault.cause().to_owned()))?;
                }
                let Some(call) = call else { break };
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

    /// The next call: what is due in the waiting room, else what has come, oldest first. Malformed
    /// events that are met on the way are put aside: they wait for nothing.
    fn next_call(&mut self, faults: &mut Vec<(EventKey, Fault)>) -> Option<Call> {
        // Nobody overtakes an older one for the same book that is under way.
        let due = self.room.take_due(RETRY_CHUNK, CHUNK_BOOKS, |event| !self.busy.concerns(event));
        if !due.is_empty() {
            due.iter().for_each(|waiting| self.busy.add(&waiting.event));
            let tries =
                due.into_iter().map(|Waiting { event, doubt }| Try { event, doubt, fetched: None });
            return Some(Call::Decide(self.session.neighbours(), tries.collect()));
        }
        let mut chunk: Vec<Asking> = Vec::new();
        let mut books = 0;
        while chunk.len() < CHUNK && books < CHUNK_BOOKS {
            let Some(delivered) = self.fresh.pop_front() else { break };
            match delivered.content {
                Content::Event(event) if delivered.fresh && self.room.is_awaited(&event) => {
                    self.room.admit_behind(event);
                }
                Content::Event(ref event) if delivered.fresh && self.busy.concerns(event) => {
                    // Here the chunk ends, until it is known what came of the other.
                    self.fresh.push_front(delivered);
                    break;
                }
                Content::Event(event) => {
                    books += event.books.len();
                    chunk.push(Asking::first(event));
                }
                Content::Suspect => self.suspects.push_back(delivered.key),
                Content::Fault(fault) => faults.push((delivered.key, fault)),
            }
        }
        if chunk.is_empty() {
            return None;
        }
        // Those of one chunk are not in each other's way: the script sees to their order.
        chunk.iter().for_each(|asking| self.busy.add(&asking.event));
        Some(self.fetch_or_decide(chunk))
    }

    /// Asks shelving, unless there is nothing to ask for, or probably nothing to get.
    fn fetch_or_decide(&self, chunk: Vec<Asking>) -> Call {
        if self.ask_first && chunk.iter().any(|asking| !asking.books.is_empty()) {
            return Call::Fetch(chunk);
        }
        let tries = chunk
            .into_iter()
            .map(|asking| Try { event: asking.event, doubt: String::new(), fetched: None })
            .collect();
        Call::Decide(self.session.neighbours(), tries)
    }

    fn command(&self, call: &Call, by_text: bool) -> Cmd {
        let session = self.session;
        match call {
            Call::Fetch(chunk) => fetch::command(session, asked(chunk), by_text),
            Call::Decide(neighbours, tries) => decide::command(session, neighbours, tries, by_text),
            Call::Look(key, cause) => reject::command(session, *key, cause, true, by_text),
            Call::Unfetch(key, _, books) => {
                let fetched = books.iter().map(|book| (book.as_slice(), key.id));
                fetch::undo_command(session, fetched, by_text)
            }
            Call::Reject(key, cause) => reject::command(session, *key, cause, false, by_text),
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
            Call::Fetch(chunk) => self.fetched(reply, chunk)?,
            Call::Decide(_, tries) => self.decided(reply, tries)?,
            Call::Unfetch(key, cause, _) => {
                Reply::read(reply, "give books back")?;
                self.send(Call::Reject(key, cause))?;
            }
            Call::Look(key, cause) | Call::Reject(key, cause) => {
                self.rejected(reply, key, cause)?;
            }
        }
        self.log.write();
        Ok(())
    }

    fn fetched(&mut self, reply: Value, chunk: Vec<Asking>) -> Result<(), Error> {
        let answers = fetch::answers(reply, asked(&chunk).count())?;
        if chunk.iter().any(|asking| asking.finality == Finality::First) {
            let handed_out = answers.iter().filter(|answer| **answer == Answer::Yes).count();
            self.ask_first = handed_out * WORTH_ASKING >= answers.len();
        }
        let mut answers = answers.into_iter();
        let tries = chunk
            .into_iter()
            .map(|Asking { event, finality, books, mut before }| {
                let fetched = (!books.is_empty()).then(|| {
                    before.resize(event.books.len(), None);
                    for book in books {
                        before[book] = answers.next();
                    }
                    Fetched { finality, answers: before }
                });
                Try { event, doubt: String::new(), fetched }
            })
            .collect();
        self.send(Call::Decide(self.session.neighbours(), tries))
    }

    fn decided(&mut self, reply: Value, tries: Vec<Try>) -> Result<(), Error> {
        let mut asking = Vec::new();
        let mut gone = Vec::new();
        let unasked = tries
            .iter()
            .filter(|one| one.fetched.is_none() && one.event.key.action == Action::Request);
        let unasked_books: usize = unasked.map(|one| one.event.books.len()).sum();
        for (verdict, one) in decide::verdicts(reply, &tries)?.into_iter().zip(tries) {
            let key = one.event.key;
            if !matches!(verdict, Verdict::Fetch { .. }) {
                self.busy.remove(&one.event);
            }
            match verdict {
                Verdict::Done(fields) => {
                    self.log.add(key, Some(one.event.user.as_str()), pairs(&fields));
                    gone.push(one.event);
                }
                Verdict::Fetch { finality, books } => {
                    let mut before = one.fetched.map(|fetched| fetched.answers).unwrap_or_default();
                    for answer in &mut before {
                        // What another had then, it may not have now.
                        answer.take_if(|answer| matches!(answer, Answer::TakenBy(_)));
                    }
                    asking.push(Asking { event: one.event, finality, books, before });
                }
                Verdict::Wait { doubt } => self.room.admit(Waiting { event: one.event, doubt }),
                Verdict::Stale => {
                    debug!(target: LOG, "{key} is decided by another instance");
                    gone.push(one.event);
                }
                Verdict::Failed(cause) => {
                    error!(target: LOG, "{key} cannot be worked on: {cause}");
                    self.send(give_up(key, cause))?;
                }
            }
        }
        self.session.in_hand.drop(gone.iter().map(|event| event.key));
        self.room.decided(&gone);
        if asking.is_empty() {
            return Ok(());
        }
        if unasked_books > 0 && asked(&asking).count() * WORTH_ASKING >= unasked_books {
            self.ask_first = true;
        }
        self.send(Call::Fetch(asking))
    }

    fn rejected(&mut self, reply: Value, key: EventKey, cause: String) -> Result<(), Error> {
        match reject::read(reply)? {
            Rejected::MayHave(books) if books.is_empty() => {
                return self.send(Call::Reject(key, cause));
            }
            Rejected::MayHave(books) => return self.send(Call::Unfetch(key, cause, books)),
            Rejected::Done(fields) => {
                warn!(target: LOG, "{key} is in the dead letters: {cause}");
                let fields: Vec<_> = pairs(&fields).collect();
                let user = fields.iter().find(|(name, _)| *name == "user_id");
                let rest = fields.iter().skip_while(|(name, _)| *name != "outcome");
                self.log.add(key, user.map(|(_, user)| *user), rest.copied());
            }
            Rejected::Stale => {}
        }
        self.session.in_hand.drop([key]);
        Ok(())
    }

    /// Tries an event alone that was in hand when instances died. If it is the cause, it is
    /// counted before it is read, and given up unread when it was tried often enough (I5).
    fn try_alone(&mut self, key: EventKey) -> Result<(), Error> {
        let most = self.session.options.tries;
        // Before it is counted: the reply can get lost.
        self.session.remember_lone(Some(key));
        let tries =
            takeover::count_lone_try(self.session, &mut self.connection, key, LoneTry::Begin)?;
        warn!(target: LOG, "{key} was in hand when instances died: it is tried alone, time {tries} of {most}");
        if tries > most {
            self.send(give_up(key, format!("given_up_after_{most}_tries")))?;
        } else {
            let stream = self.session.keys.stream(key.action);
            let entries = stream::contents(&mut self.connection, stream, &[key.id])?;
            for entry in &entries {
                match Delivered::read(key.action, entry, false).content {
                    Content::Event(event) => {
                        self.busy.add(&event);
                        let call = self.fetch_or_decide(vec![Asking::first(event)]);
                        self.send(call)?;
                    }
                    Content::Fault(fault) => {
                        self.send(Call::Reject(key, fault.cause().to_owned()))?;
                    }
                    Content::Suspect => {}
                }
            }
        }
        while !self.under_way.is_empty() {
            self.answer_one()?;
        }
        // It was survived, whatever came of it.
        takeover::count_lone_try(self.session, &mut self.connection, key, LoneTry::Ended)?;
        self.session.remember_lone(None);
        Ok(())
    }
}

/// How a well-formed event is given up: what it may have fetched goes back first.
fn give_up(key: EventKey, cause: String) -> Call {
    match key.action {
        Action::Request => Call::Look(key, cause),
        Action::Return => Call::Reject(key, cause),
    }
}

/// The books that shelving is asked for, and for which request each.
fn asked(chunk: &[Asking]) -> impl Iterator<Item = (&BookId, EventId)> {
    chunk
        .iter()
        .flat_map(|one| one.books.iter().map(|book| (&one.event.books[*book], one.event.key.id)))
}

/// Names and values from a list of both in turn; what is not text is passed over.
fn pairs(fields: &[Value]) -> impl Iterator<Item = (&str, &str)> {
    fields.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?)))
}
