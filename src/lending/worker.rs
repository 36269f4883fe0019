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

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, select};
use log::{debug, error, warn};
use redis::{Cmd, Connection, Value};

use super::decide::{self, Fetched, Finality, Try, Verdict};
use super::reject::{self, Rejected};
use super::waiting::{Waiting, WaitingRoom};
use super::{Content, Delivered};
use crate::daemon::logging::OutcomeLog;
use crate::daemon::takeover::{self, LoneTry};
use crate::error::Error;
use crate::event::{Action, Event, EventKey};
use crate::ids::{BookId, EventId};
use crate::script::{Reply, text};
use crate::session::{Neighbours, Session};
use crate::shelving::fetch::{self, Answer};
use crate::stream;

/// The most events that one script decides: it then takes well under a millisecond, and what a
/// call costs beside its events no longer shows.
const CHUNK: usize = 128;

/// The most books in a chunk of several events, since a script's time grows with them.
const CHUNK_BOOKS: usize = 1_000;

/// Calls under way at a time: one that Redis works on, and more that wait for it.
const DEPTH: usize = 4;

/// How many suspects are tried at a time: a chunk, and where processes died even so, fewer, until
/// the one that is the cause is alone. All others are soon through.
const SUSPECTS: [usize; 3] = [CHUNK, 16, 1];

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
    /// The doubt that an earlier try ended in; else empty.
    doubt: String,
    /// How final a "no" is.
    finality: Finality,
    /// Indices into the event's books; none of a return.
    books: Vec<usize>,
    /// The books of which it is known already: a "yes" stays true until the event gives the book
    /// back, an "again" is kept until it is asked for under a reservation.
    known: Vec<(usize, Answer)>,
}

impl Asking {
    /// The first time that this instance has an event: all books of a request.
    fn first(event: Event) -> Self {
        let books = match event.key.action {
            Action::Request => (0..event.books.len()).collect(),
            Action::Return => Vec::new(),
        };
        Self { event, doubt: String::new(), finality: Finality::First, books, known: Vec::new() }
    }

    /// An event that has waited: only the books that it may have without knowing.
    fn again(Waiting { event, doubt, again }: Waiting) -> Self {
        Self { event, doubt, finality: Finality::First, books: again, known: Vec::new() }
    }
}

/// An event that was in hand when instances died, perhaps because of it.
#[derive(Debug)]
struct Suspect {
    key: EventKey,
    /// The event, if it was tried before and waited.
    waited: Option<Waiting>,
}

/// The worker.
pub struct Worker<'a> {
    session: &'a Session,
    connection: Connection,
    from_readers: Receiver<Vec<Delivered>>,
    shelved: Receiver<()>,
    open: bool,
    fresh: VecDeque<Delivered>,
    /// By how many processes have died although they were tried apart from others, see
    /// [`SUSPECTS`]. It is looked up before the first try: until then they are with the first.
    suspects: [VecDeque<Suspect>; SUSPECTS.len()],
    /// The suspects that have been looked up and are not decided yet: their index there.
    suspected: HashMap<EventKey, usize>,
    /// Which suspects had their turn last.
    last_level: usize,
    /// Whether it is the others' turn, after suspects had theirs.
    others_turn: bool,
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
            suspects: Default::default(),
            suspected: HashMap::new(),
            last_level: 0,
            others_turn: false,
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
            let suspects = self.has_suspects();
            if self.under_way.is_empty() {
                if !self.open && self.fresh.is_empty() {
                    // What waits stays pending; whoever serves it next finds it.
                    break;
                }
                if suspects && !self.others_turn {
                    self.try_suspects()?;
                    self.others_turn = true;
                    continue;
                }
                self.others_turn = false;
            } else if suspects {
                // They are tried when nothing else is under way.
                self.answer_one()?;
                continue;
            }
            let depth = if suspects { 1 } else { DEPTH };
            while self.under_way.len() < depth {
                let Some(call) = self.next_call() else { break };
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
            && !self.has_suspects()
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

    /// The next call: what is due in the waiting room, else what has come, oldest first.
    fn next_call(&mut self) -> Option<Call> {
        if self.room.has_due() {
            let due = self.room.take_due(CHUNK, CHUNK_BOOKS).into_iter();
            let (suspects, others): (Vec<_>, Vec<_>) =
                due.partition(|waiting| self.suspected.contains_key(&waiting.event.key));
            for one in suspects {
                let key = one.event.key;
                self.suspects[self.suspected[&key]].push_back(Suspect { key, waited: Some(one) });
            }
            return (!others.is_empty()).then(|| self.try_again(others));
        }
        let mut chunk: Vec<Asking> = Vec::new();
        let mut books = 0;
        while chunk.len() < CHUNK && books < CHUNK_BOOKS {
            let Some(delivered) = self.fresh.pop_front() else { break };
            match delivered.content {
                Content::Event(event) if delivered.fresh && self.room.is_awaited(&event) => {
                    self.room.admit_behind(event);
                }
                Content::Event(event) => {
                    books += event.books.len();
                    chunk.push(Asking::first(event));
                }
                Content::Suspect => {
                    self.suspects[0].push_back(Suspect { key: delivered.key, waited: None });
                }
                Content::Fault(fault) if chunk.is_empty() => {
                    return Some(Call::Reject(delivered.key, fault.cause().to_owned()));
                }
                Content::Fault(_) => {
                    // It goes out next, behind those that came before it.
                    self.fresh.push_front(delivered);
                    break;
                }
            }
        }
        if chunk.is_empty() {
            // Perhaps all that has come went into the room.
            return if self.room.has_due() { self.next_call() } else { None };
        }
        Some(self.fetch_or_decide(chunk))
    }

    /// What waited has nothing: it is decided without asking shelving, unless shelving has said
    /// that a book was handed out to one of them before.
    fn try_again(&mut self, waiting: Vec<Waiting>) -> Call {
        if waiting.iter().all(|one| one.again.is_empty()) {
            let tries = waiting.into_iter().map(|Waiting { event, doubt, .. }| Try {
                event,
                doubt,
                fetched: None,
            });
            return Call::Decide(self.session.neighbours(), tries.collect());
        }
        Call::Fetch(waiting.into_iter().map(Asking::again).collect())
    }

    /// Asks shelving, unless there is nothing to ask for.
    fn fetch_or_decide(&self, chunk: Vec<Asking>) -> Call {
        if chunk.iter().any(|asking| !asking.books.is_empty()) {
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
        let mut answers = fetch::answers(reply, asked(&chunk).count())?.into_iter();
        let tries = chunk
            .into_iter()
            .map(|Asking { event, doubt, finality, books, known }| {
                let fetched = (!books.is_empty()).then(|| {
                    let mut of_event = vec![None; event.books.len()];
                    for (book, answer) in known {
                        of_event[book] = Some(answer);
                    }
                    for book in books {
                        of_event[book] = match answers.next() {
                            // Once it is reserved for this request, it is nowhere else.
                            Some(Answer::Again) if finality != Finality::First => Some(Answer::Yes),
                            answer => answer,
                        };
                    }
                    Fetched { finality, answers: of_event }
                });
                Try { event, doubt, fetched }
            })
            .collect();
        self.send(Call::Decide(self.session.neighbours(), tries))
    }

    fn decided(&mut self, reply: Value, tries: Vec<Try>) -> Result<(), Error> {
        let mut asking = Vec::new();
        let mut gone = Vec::new();
        for (verdict, one) in decide::verdicts(reply, &tries)?.into_iter().zip(tries) {
            let key = one.event.key;
            match verdict {
                Verdict::Done(fields) => {
                    self.log.add(key, Some(one.event.user.as_str()), pairs(&fields));
                    self.room.decided(&one.event);
                    gone.push(key);
                }
                Verdict::Fetch { finality, books } => {
                    let answers = one.fetched.map(|fetched| fetched.answers).unwrap_or_default();
                    let known = answers
                        .into_iter()
                        .enumerate()
                        .filter_map(|(book, answer)| Some((book, answer?)))
                        .filter(|(_, answer)| matches!(answer, Answer::Yes | Answer::Again))
                        .filter(|(book, _)| !books.contains(book))
                        .collect();
                    let (event, doubt) = (one.event, String::new());
                    asking.push(Asking { event, doubt, finality, books, known });
                }
                Verdict::Wait { in_doubt } => {
                    let answers = one.fetched.iter().flat_map(|fetched| &fetched.answers);
                    let again = answers
                        .enumerate()
                        .filter(|(_, answer)| **answer == Some(Answer::Again))
                        .map(|(book, _)| book)
                        .collect();
                    // The doubt of the answers that it had, or still the one that it came with.
                    let doubt = match one.fetched.map(|fetched| fetched.finality) {
                        _ if !in_doubt => String::new(),
                        Some(Finality::InDoubt(doubt)) => doubt,
                        _ => one.doubt,
                    };
                    self.room.admit(Waiting { event: one.event, doubt, again });
                }
                Verdict::Stale => {
                    debug!("{key} is decided by another instance");
                    gone.push(key);
                }
                Verdict::Failed(cause) => {
                    error!("{key} cannot be worked on: {cause}");
                    self.send(give_up(key, cause))?;
                }
            }
        }
        self.session.in_hand.drop(gone);
        if asking.is_empty() {
            return Ok(());
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
                warn!("{key} is in the dead letters: {cause}");
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

    fn has_suspects(&self) -> bool {
        self.suspects.iter().any(|list| !list.is_empty())
    }

    /// Tries events that were in hand when instances died: apart from all others, since hundreds
    /// are in hand and few of them, if any, are the cause. Each list has its turn: what waits comes
    /// back to its list again and again.
    fn try_suspects(&mut self) -> Result<(), Error> {
        let mut levels = (1..=SUSPECTS.len()).map(|n| (self.last_level + n) % SUSPECTS.len());
        let Some(level) = levels.find(|level| !self.suspects[*level].is_empty()) else {
            return Ok(());
        };
        self.last_level = level;
        let count = self.suspects[level].len().min(SUSPECTS[level]);
        let mut group: Vec<Suspect> = self.suspects[level].drain(..count).collect();
        let new: Vec<EventKey> = group
            .iter()
            .map(|one| one.key)
            .filter(|key| !self.suspected.contains_key(key))
            .collect();
        if !new.is_empty() {
            let died_with = takeover::died_with(self.session, &mut self.connection, &new)?;
            for (key, (in_groups, alone)) in new.into_iter().zip(died_with) {
                let alone = if alone > 0 { SUSPECTS.len() } else { in_groups };
                self.suspected.insert(key, alone.min(SUSPECTS.len() - 1));
            }
            let (stay, go): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|one| self.suspected[&one.key] == level);
            group = stay;
            for one in go {
                self.suspects[self.suspected[&one.key]].push_back(one);
            }
        }
        if group.is_empty() { Ok(()) } else { self.try_noted(group, SUSPECTS[level] == 1) }
    }

    /// Tries suspects under a note that is there before they are read: if one of them is the
    /// cause, it is found out, and given up unread when it was tried alone often enough (I5).
    fn try_noted(&mut self, group: Vec<Suspect>, alone: bool) -> Result<(), Error> {
        let most = self.session.options.tries;
        let keys: Vec<EventKey> = group.iter().map(|one| one.key).collect();
        // Before it is noted: the reply can get lost.
        self.session.remember_tried(keys.clone());
        let step = if alone { LoneTry::Alone } else { LoneTry::Group };
        let tries = takeover::note_try(self.session, &mut self.connection, &keys, step)?;
        let unread = group.iter().filter(|one| one.waited.is_none()).count();
        if alone && unread > 0 {
            let key = keys[0];
            warn!(
                "{key} was in hand when instances died: it is tried alone, time {tries} of {most}"
            );
        } else if unread > 0 {
            warn!("{unread} events were in hand when instances died: they are tried apart");
        }
        if alone && tries > most {
            self.send(give_up(keys[0], format!("given_up_after_{most}_tries")))?;
        } else {
            self.send_suspects(group)?;
        }
        while !self.under_way.is_empty() {
            self.answer_one()?;
        }
        let (waiting, decided): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| self.session.in_hand.contains(*key));
        for (keys, step) in [(&waiting, LoneTry::Survived), (&decided, LoneTry::Ended)] {
            if !keys.is_empty() {
                takeover::note_try(self.session, &mut self.connection, keys, step)?;
            }
        }
        for key in decided {
            self.suspected.remove(&key);
        }
        self.session.remember_tried(Vec::new());
        Ok(())
    }

    /// Sends what is to be done with suspects: those that waited are decided, the others read.
    fn send_suspects(&mut self, group: Vec<Suspect>) -> Result<(), Error> {
        let mut unread: [Vec<EventId>; 2] = Default::default();
        let mut waiting = Vec::new();
        for one in group {
            match one.waited {
                Some(waited) => waiting.push(waited),
                None => unread[one.key.action as usize].push(one.key.id),
            }
        }
        let mut chunk = Vec::new();
        let mut faults = Vec::new();
        for action in [Action::Request, Action::Return] {
            let stream = self.session.keys.stream(action);
            let ids = &unread[action as usize];
            for entry in stream::contents(&mut self.connection, stream, ids)? {
                let delivered = Delivered::read(action, &entry, false);
                match delivered.content {
                    Content::Event(event) => chunk.push(Asking::first(event)),
                    Content::Fault(fault) => faults.push((delivered.key, fault)),
                    Content::Suspect => {}
                }
            }
        }
        if !waiting.is_empty() {
            let call = self.try_again(waiting);
            self.send(call)?;
        }
        if !chunk.is_empty() {
            chunk.sort_unstable_by_key(|asking: &Asking| asking.event.key);
            let call = self.fetch_or_decide(chunk);
            self.send(call)?;
        }
        for (key, fault) in faults {
            self.send(Call::Reject(key, fault.cause().to_owned()))?;
        }
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
