//! LendingService's worker: decides events, in the order of their ids as far as it can.
//!
//! One connection, and several calls under way on it: while Redis works on one chunk, the reply to the
//! last is read and the next is packed, so that neither waits for the other. Replies come in the order
//! of the calls; what a reply asks for (books to be fetched, and with them a second try) goes out behind
//! the calls that are under way. An event alone is served at once, a backlog in large chunks.
//!
//! Where shelving is asked for books, the call that decides by its answer goes out in one write with
//! the one that asks. The script finds the answer in Redis; we read it for what comes later.
//!
//! It works in a thread of its own, [`super::worker_thread`], or in the reader's, [`super::intake`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, error, warn};
use redis::Value;

use super::asking::AskPolicy;
use super::busy::Busy;
use super::decide::{self, Change, Finality, Try, TryEnd, asked};
use super::lone_tries::{self, LoneStep};
use super::news::News;
use super::outcome_log::OutcomeLog;
use super::reject::{self, GivenUp, Rejected};
use super::suspects::{Suspect, Suspects};
use super::waiting::{Moment, Waiting, WaitingRoom};
use super::{Content, Delivered, FEW};
use crate::error::Error;
use crate::event::{Action, ByAction, Event, EventKey, Fault};
use crate::ids::EventId;
use crate::lending::LOG;
use crate::link::{self, Connection};
use crate::outcome;
use crate::script::{By, Reply, ScriptCall, unless_refused};
use crate::session::{Neighbours, Session};
use crate::shelving::fetch::{self, Answer};
use crate::stream;
use crate::text::counted;

/// How many times as many events are tried again by one script as are decided by one, at most: a try that
/// ends in waiting again is cheaper than a decision, and those of one millisecond had best be seen
/// together. The waiting room gives fewer where that leads to little.
const RETRIES_FOR_EACH: usize = 4;

/// The most books in a chunk of several events, since a script's time grows with them.
const CHUNK_BOOKS: usize = 1_000;

/// Calls under way at a time: one that Redis works on, and one behind it. Not fewer: one is for what
/// waits and one for what has come, so that neither starves. Not more: suspects are tried only when nothing
/// is under way.
const DEPTH: usize = 2;

/// Whose tries a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Events that have come.
    Newcomers,
    /// Events that waited.
    Waiting,
    /// Of those that waited, some that have reserved their books since, and asked for them.
    Reserving,
}

/// What is remembered of a call that decides.
#[derive(Clone, Copy)]
struct Sent {
    whose: Whose,
    /// What had been heard then.
    moment: Moment,
    at: Instant,
}

/// A call whose reply has not been read yet.
enum Call {
    /// Decides events, or finds what they wait for. With the number of a fetch, shelving was asked in
    /// the same write, and its reply comes in front.
    Decide { neighbours: Arc<Neighbours>, tries: Vec<Try>, fetch: Option<u64>, sent: Sent },
    /// Finds out which books a request may have fetched that is to be given up.
    Look(GivenUp),
    /// Lets shelving take them back.
    Unfetch(GivenUp, Vec<Vec<u8>>),
    /// Moves requests, or returns, to the dead letters.
    Reject(Vec<GivenUp>),
}

impl Call {
    /// What Redis is sent for it.
    fn script_call(&self, session: &Session) -> ScriptCall {
        match self {
            Self::Decide { neighbours, tries, fetch, .. } => {
                decide::call(session, neighbours, tries, *fetch)
            }
            Self::Look(event) => reject::look(session, event),
            Self::Unfetch((key, _), books) => {
                fetch::undo(session, books.iter().map(|book| (book.as_slice(), key.id)))
            }
            Self::Reject(events) => reject::call(session, events),
        }
    }

    /// Whether it is for those that waited. Of these calls one is under way at a time: what waits
    /// for each other had best be seen together.
    fn is_for_waiting(&self) -> bool {
        matches!(self, Self::Decide { sent: Sent { whose: Whose::Waiting, .. }, .. })
    }
}

/// The worker.
pub struct Worker<'a> {
    session: &'a Session,
    connection: Connection,
    fresh: VecDeque<Delivered>,
    suspects: Suspects,
    room: WaitingRoom,
    busy: Busy,
    policy: AskPolicy,
    under_way: VecDeque<Call>,
    /// When the last reply came.
    replied: Instant,
    /// The number of the last fetch.
    fetches: u64,
    log: OutcomeLog,
    /// Calls under way that are packed and not sent yet. Kept for its memory, as is the next.
    packed: Vec<u8>,
    outcome_text: String,
    has_failed: bool,
}

impl<'a> Worker<'a> {
    /// A worker about to begin.
    pub fn new(session: &'a Session, connection: Connection) -> Self {
        Self {
            session,
            connection,
            fresh: VecDeque::new(),
            suspects: Suspects::default(),
            room: WaitingRoom::default(),
            busy: Busy::default(),
            policy: AskPolicy::default(),
            under_way: VecDeque::new(),
            replied: Instant::now(),
            fetches: 0,
            log: OutcomeLog::new(session.settings.log_outcomes),
            packed: Vec::new(),
            outcome_text: String::new(),
            has_failed: false,
        }
    }

    /// Takes events that are to be decided.
    pub fn take(&mut self, batch: Vec<Delivered>) {
        self.fresh.extend(batch);
    }

    /// Whether it has enough to do for now.
    pub fn has_a_batch(&self) -> bool {
        self.fresh.len() >= self.session.settings.batch
    }

    /// Books have been put on their shelves.
    pub fn shelved(&mut self) {
        self.room.shelved();
    }

    /// Another instance has rung.
    pub fn heard(&mut self, news: News) {
        self.room.heard(news);
        self.forget_news();
    }

    /// Forgets what was heard before everything that is under way was sent.
    fn forget_news(&mut self) {
        let sent = self.under_way.iter().find_map(|call| match call {
            Call::Decide { sent, .. } => Some(sent.moment),
            _ => None,
        });
        self.room.forget_before(sent.unwrap_or(self.room.now()));
    }

    /// Whether something waits for what others decide.
    pub fn has_waiting(&self) -> bool {
        !self.room.is_empty()
    }

    /// When something that waits is tried again at the latest.
    pub fn next_round(&self) -> Option<Instant> {
        self.room.next_round()
    }

    /// Whether nothing that has come is left or under way, or nothing can be done about it any more.
    /// What waits, and suspects, do not count.
    pub fn has_finished(&self) -> bool {
        self.has_failed || (self.under_way.is_empty() && self.fresh.is_empty())
    }

    /// Sends what can be sent, and works on one reply. Tells whether there is more to do at once.
    ///
    /// # Errors
    /// What Redis or the link said; the session is then over, and no other turn does anything: a
    /// connection that has failed is not used again by the thread that has not heard of it yet.
    pub fn turn(&mut self) -> Result<bool, Error> {
        if self.has_failed {
            return Ok(false);
        }
        let result = self.do_turn();
        self.has_failed = result.is_err();
        result
    }

    /// Keeps the link, see [`link::ping`], if nothing is under way on it.
    ///
    /// # Errors
    /// What the link said; the session is then over.
    pub fn keep_alive(&mut self) -> Result<(), Error> {
        if self.has_failed || !self.under_way.is_empty() {
            return Ok(());
        }
        let result = link::ping(&mut self.connection);
        self.has_failed = result.is_err();
        result
    }

    fn do_turn(&mut self) -> Result<bool, Error> {
        self.room.tick(Instant::now());
        if self.suspects.take_turn() {
            self.answer_all()?;
            self.try_suspects()?;
            return Ok(true);
        }
        while self.under_way.len() < DEPTH {
            let Some((chunk, whose)) = self.next_chunk() else { break };
            self.decide(chunk, whose, By::Digest)?;
        }
        self.answer_one()?;
        Ok(!self.has_finished() || !self.suspects.is_empty() || self.room.has_due())
    }

    /// What is to be decided next: what is due in the waiting room, else what has come, oldest
    /// first. Malformed events that are met on the way are given up: they wait for nothing.
    fn next_chunk(&mut self) -> Option<(Vec<Try>, Whose)> {
        let batch = self.session.settings.batch;
        if !self.under_way.iter().any(Call::is_for_waiting) {
            // Nobody overtakes an older one for the same book that is under way.
            let may_go = |event: &Event| !self.busy.concerns(event);
            let mut due = self.room.take_due(RETRIES_FOR_EACH * batch, CHUNK_BOOKS, may_go);
            self.suspects.take_back(&mut due);
            if !due.is_empty() {
                return Some((self.retry(due), Whose::Waiting));
            }
        }
        let mut chunk: Vec<Try> = Vec::new();
        let mut faults = Vec::new();
        let mut books = 0;
        while chunk.len() < batch && books < CHUNK_BOOKS {
            let Some(delivered) = self.fresh.pop_front() else { break };
            match delivered.content {
                Content::Event(event) if delivered.fresh && self.room.is_awaited(&event) => {
                    self.policy.ask_next_time(&event);
                    self.room.admit_behind(event);
                }
                Content::Event(ref event) if delivered.fresh && self.busy.concerns(event) => {
                    // Here the chunk ends, until it is known what came of the other.
                    self.fresh.push_front(delivered);
                    break;
                }
                Content::Event(event) => {
                    books += event.books.len();
                    chunk.push(self.policy.first_try(event, delivered.fresh));
                }
                Content::Suspect => self.suspects.add(delivered.key),
                Content::Fault(fault) => faults.push((delivered.key, fault)),
            }
        }
        // First, so that nothing in the chunk waits for what is decided already.
        self.reject(faults);
        if chunk.is_empty() {
            return None;
        }
        // Those of one chunk are not in each other's way: the script sees to their order.
        chunk.iter().for_each(|one| self.busy.add(&one.event));
        Some((chunk, Whose::Newcomers))
    }

    /// The next tries of events that waited.
    fn retry(&mut self, due: Vec<Waiting>) -> Vec<Try> {
        due.iter().for_each(|waiting| self.busy.add(&waiting.event));
        let are_oldest = due.first().is_some_and(|first| self.room.has_no_older(first.event.key));
        let returns: Vec<EventKey> = due
            .iter()
            .map(|one| one.event.key)
            .filter(|key| key.action == Action::Return)
            .collect();
        let may_tie = |key: EventKey| {
            returns.iter().any(|other| key.ties_with(*other)) || self.room.has_tie_of(key)
        };
        self.policy.next_tries(due, are_oldest, may_tie, Instant::now())
    }

    /// Decides a chunk: asks shelving, unless there is nothing to ask for, and decides by its answer in
    /// the same breath.
    fn decide(&mut self, tries: Vec<Try>, whose: Whose, by: By) -> Result<(), Error> {
        let mut fetch = None;
        if asked(&tries).next().is_some() {
            self.fetches += 1;
            fetch = Some(self.fetches);
            fetch::call(self.session, asked(&tries), self.fetches).pack(by, &mut self.packed);
        }
        let neighbours = self.session.neighbours();
        let sent = Sent { whose, moment: self.room.now(), at: Instant::now() };
        let call = Call::Decide { neighbours, tries, fetch, sent };
        self.pack(call, by);
        self.send()
    }

    /// Packs a call. It goes out with the next one that decides, or before the next reply is read: to
    /// give up the few malformed events of a chunk then costs no write of its own.
    fn pack(&mut self, call: Call, by: By) {
        call.script_call(self.session).pack(by, &mut self.packed);
        self.under_way.push_back(call);
    }

    /// Sends what is packed, in one write.
    fn send(&mut self) -> Result<(), Error> {
        if self.packed.is_empty() {
            return Ok(());
        }
        let sent = self.connection.send_packed_command(&self.packed);
        self.packed.clear();
        sent.map_err(Error::redis("send to Redis"))
    }

    /// The next reply; none if Redis does not know the script, and has done nothing.
    fn receive(&mut self) -> Result<Option<Value>, Error> {
        match self.connection.recv_response().and_then(unless_refused) {
            Err(error) if error.code() == Some("NOSCRIPT") => Ok(None),
            other => {
                let reply = other.map_err(Error::redis("work on events"))?;
                self.session.note_reply();
                self.replied = Instant::now();
                Ok(Some(reply))
            }
        }
    }

    /// Reads the reply to the next call, if one is under way, and does what follows from it.
    fn answer_one(&mut self) -> Result<(), Error> {
        self.send()?;
        let Some(mut call) = self.under_way.pop_front() else { return Ok(()) };
        let before = self.replied;
        if let Call::Decide { tries, fetch: Some(_), .. } = &mut call
            && let Some(reply) = self.receive()?
        {
            self.fetched(reply, tries)?;
        }
        let Some(reply) = self.receive()? else { return self.call_by_text(call) };
        if matches!(&call, Call::Decide { tries, .. } if tries.len() <= FEW) {
            // Those who wait for the outcome first, if they are to run on this CPU: Redis has sent it to
            // them as well.
            std::thread::yield_now();
        }
        let followed = match call {
            Call::Decide { tries, sent, .. } => {
                // Redis works on one call after the other.
                let took = self.replied - before.max(sent.at);
                self.decided(reply, tries, sent, took)
            }
            Call::Unfetch(event, _) => {
                Reply::read(reply, "give books back")?;
                self.pack(Call::Reject(vec![event]), By::Digest);
                Ok(())
            }
            Call::Look(event) => self.rejected(reply, vec![event]),
            Call::Reject(events) => self.rejected(reply, events),
        };
        // Also where what follows could not be sent: these are decided, and never come again.
        self.log.write();
        followed
    }

    /// Reads the replies to all calls under way, and to those that they lead to.
    fn answer_all(&mut self) -> Result<(), Error> {
        while !self.under_way.is_empty() {
            self.answer_one()?;
        }
        Ok(())
    }

    /// Calls a script that Redis does not know once more, with its text: the call has done nothing.
    fn call_by_text(&mut self, call: Call) -> Result<(), Error> {
        match call {
            Call::Decide { tries, sent, .. } => self.decide(tries, sent.whose, By::Text)?,
            call => self.pack(call, By::Text),
        }
        Ok(())
    }

    /// Notes with tries what shelving said; their call finds it in Redis itself.
    fn fetched(&mut self, reply: Value, tries: &mut [Try]) -> Result<(), Error> {
        let mut left: Vec<(&mut Option<Answer>, bool)> = Vec::new();
        for fetched in tries.iter_mut().filter_map(|one| one.fetched.as_mut()) {
            let first = fetched.finality == Finality::First;
            let answers = fetched.answers.iter_mut();
            left.extend(answers.filter(|it| **it == Some(Answer::Left)).map(|it| (it, first)));
        }
        let said = fetch::answers(reply, left.len())?;
        if left.iter().any(|(_, first)| *first) {
            let handed_out = said.iter().filter(|answer| **answer == Answer::Yes).count();
            self.policy.answered(handed_out, said.len());
        }
        for ((answer, _), said) in left.into_iter().zip(said) {
            *answer = Some(said);
        }
        Ok(())
    }

    /// Does what follows from how tries ended.
    fn decided(
        &mut self,
        reply: Value,
        tries: Vec<Try>,
        sent: Sent,
        took: Duration,
    ) -> Result<(), Error> {
        let Sent { whose, moment, .. } = sent;
        let Some(ends) = decide::ends(reply, &tries)? else {
            // It has found no answer of shelving's, and done nothing.
            return self.decide(tries, whose, By::Text);
        };
        self.session.note_work();
        let are_waiting = whose == Whose::Waiting;
        let number = tries.len();
        let unasked = tries
            .iter()
            .filter(|one| one.fetched.is_none() && one.event.key.action == Action::Request);
        let unasked_books: usize = unasked.map(|one| one.event.books.len()).sum();
        let mut reserved = Vec::new();
        let mut gone = Vec::new();
        let (mut had_waited, mut asked_in_vain) = (are_waiting, false);
        for (end, one) in ends.into_iter().zip(tries) {
            let key = one.event.key;
            if !matches!(end, TryEnd::Fetch { .. }) {
                self.busy.remove(&one.event);
            }
            if !matches!(end, TryEnd::Fetch { .. } | TryEnd::Wait { .. }) {
                self.policy.forget(key);
            }
            match end {
                TryEnd::Done(told) => {
                    had_waited |=
                        one.fetched.as_ref().is_some_and(|it| it.finality != Finality::First);
                    if let Some(books) = told.unavailable() {
                        self.log.warn(&format!(
                            "{key} asks for books that are nowhere (library-admin check tells more): {books}"
                        ));
                    }
                    let fields = told.fields(&one.event, &mut self.outcome_text);
                    self.log.add(key, Some(one.event.user.as_str()), fields);
                    gone.push((told.change(key.action), one.event));
                }
                TryEnd::Fetch { finality, books } => {
                    reserved.push(one.after_reserving(finality, &books));
                }
                TryEnd::Wait { doubt, for_older, ask_again, untried } => {
                    if ask_again {
                        self.policy.ask_next_time(&one.event);
                    }
                    asked_in_vain |= are_waiting && one.fetched.is_some();
                    self.room.stir(untried);
                    let waiting = Waiting { event: one.event, doubt, for_older };
                    match whose {
                        Whose::Newcomers => self.room.admit(waiting, moment),
                        Whose::Waiting | Whose::Reserving => {
                            self.room.admit_again(waiting, moment);
                        }
                    }
                }
                TryEnd::Stale => {
                    debug!(target: LOG, "{key} is decided by another instance");
                    gone.push((Change::Freed, one.event));
                }
                TryEnd::Failed(cause) => {
                    error!(target: LOG, "{key} cannot be worked on: {cause} (library-admin check tells more)");
                    self.pack(give_up((key, cause)), By::Digest);
                }
            }
        }
        self.session.workload.release(gone.iter().map(|(_, event)| event.key));
        self.room.decided(&gone);
        self.forget_news();
        if are_waiting {
            self.room.tried(number, gone.len(), took);
        }
        // The front has moved only if the oldest was decided; younger ones do not count.
        let has_front_moved =
            had_waited && gone.iter().any(|(_, event)| self.room.has_no_older(event.key));
        if has_front_moved {
            self.room.front_moved(self.replied);
        }
        if asked_in_vain {
            self.policy.asked_in_vain();
        } else if has_front_moved {
            self.policy.front_moved();
        }
        if reserved.is_empty() {
            return Ok(());
        }
        self.policy.tried_unasked(unasked_books, asked(&reserved).count());
        let whose = if whose == Whose::Newcomers { whose } else { Whose::Reserving };
        self.decide(reserved, whose, By::Digest)
    }

    /// Gives malformed events up.
    fn reject(&mut self, faults: Vec<(EventKey, Fault)>) {
        for action in Action::ALL {
            let of_action = faults.iter().filter(|(key, _)| key.action == action);
            let events: Vec<GivenUp> =
                of_action.map(|(key, fault)| (*key, fault.cause().to_owned())).collect();
            for events in events.chunks(reject::MOST_AT_ONCE) {
                self.pack(Call::Reject(events.to_vec()), By::Digest);
            }
        }
    }

    fn rejected(&mut self, reply: Value, mut events: Vec<GivenUp>) -> Result<(), Error> {
        let letters = match reject::read(reply)? {
            Rejected::MayHave(books) => {
                let call = match events.pop() {
                    Some(event) if !books.is_empty() => Call::Unfetch(event, books),
                    event => Call::Reject(event.into_iter().collect()),
                };
                self.pack(call, By::Digest);
                return Ok(());
            }
            Rejected::Done(letters) => letters,
        };
        self.session.note_work();
        // The script stops where its work gets long: the others go into a call of their own.
        let left = events.split_off(letters.len().min(events.len()));
        if !left.is_empty() {
            self.pack(Call::Reject(left), By::Digest);
        }
        for ((key, cause), letter) in events.iter().zip(letters) {
            self.policy.forget(*key);
            let Some(letter) = letter else { continue };
            self.log.warn(&format!("{key} is in the dead letters: {cause}"));
            let rejected = outcome::Verdict::Rejected.as_str();
            let fields = [("outcome", rejected), ("cause", cause.as_str())];
            self.log.add(*key, letter.user.as_deref(), fields);
        }
        self.session.workload.release(events.iter().map(|(key, _)| *key));
        Ok(())
    }

    /// Tries the next suspects, if they still are.
    fn try_suspects(&mut self) -> Result<(), Error> {
        let look_up =
            |new: &[EventKey]| lone_tries::died_with(self.session, &mut self.connection, new);
        let group = self.suspects.next_group(look_up)?;
        if group.is_empty() {
            return Ok(());
        }
        let keys: Vec<EventKey> = group.iter().map(|one| one.key).collect();
        let alone = self.suspects.is_alone(keys[0]);
        // Before it is noted: the reply can get lost.
        self.session.remember_tried(keys.clone());
        let step = if alone { LoneStep::Alone } else { LoneStep::InGroup };
        let tries = lone_tries::note(self.session, &mut self.connection, &keys, step)?;
        let most = self.session.settings.tries;
        if group.iter().any(|one| one.waited.is_none()) {
            warn_of(&keys, alone.then_some((tries, most)));
        }
        if alone && tries > most {
            self.pack(give_up((keys[0], format!("given_up_after_{most}_tries"))), By::Digest);
        } else {
            self.send_suspects(group)?;
        }
        self.answer_all()?;
        let (waiting, decided): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|key| self.session.workload.contains(*key));
        for (keys, step) in [(&waiting, LoneStep::Survived), (&decided, LoneStep::Ended)] {
            if !keys.is_empty() {
                lone_tries::note(self.session, &mut self.connection, keys, step)?;
            }
        }
        self.suspects.clear(&decided);
        self.session.remember_tried(Vec::new());
        Ok(())
    }

    /// Sends what is to be done with suspects: those that waited are tried again, the others read.
    fn send_suspects(&mut self, group: Vec<Suspect>) -> Result<(), Error> {
        let mut unread: ByAction<Vec<EventId>> = ByAction::default();
        let mut waited = Vec::new();
        for one in group {
            match one.waited {
                Some(waiting) => waited.push(waiting),
                None => unread[one.key.action].push(one.key.id),
            }
        }
        let mut chunk = Vec::new();
        let mut faults = Vec::new();
        for action in Action::ALL {
            let stream = self.session.keys.stream(action);
            for entry in stream::contents(&mut self.connection, stream, &unread[action])? {
                let delivered = Delivered::read(action, &entry, false);
                match delivered.content {
                    Content::Event(event) => chunk.push(Try::first(event, true)),
                    Content::Fault(fault) => faults.push((delivered.key, fault)),
                    Content::Suspect => {}
                }
            }
        }
        if !waited.is_empty() {
            let waited = self.retry(waited);
            self.decide(waited, Whose::Waiting, By::Digest)?;
        }
        if !chunk.is_empty() {
            chunk.sort_unstable_by_key(|one: &Try| one.event.key);
            chunk.iter().for_each(|one| self.busy.add(&one.event));
            self.decide(chunk, Whose::Newcomers, By::Digest)?;
        }
        self.reject(faults);
        Ok(())
    }
}

/// Says that suspects are tried, the one that is tried alone with how often and how often at most.
fn warn_of(keys: &[EventKey], alone: Option<(u64, u64)>) {
    match alone {
        Some((tries, most)) => warn!(
            target: LOG,
            "{} was in hand when instances died, or lost their lease: it is tried alone, time {tries} of \
             {most}",
            keys[0]
        ),
        None => warn!(
            target: LOG,
            "instances died, or lost their lease, with {} in hand: tried apart from others",
            counted(keys.len(), "event")
        ),
    }
}

/// How a well-formed event is given up: what it may have fetched goes back first.
fn give_up(event: GivenUp) -> Call {
    match event.0.action {
        Action::Request => Call::Look(event),
        Action::Return => Call::Reject(vec![event]),
    }
}
