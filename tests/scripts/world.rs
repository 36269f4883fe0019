//! A library on a real Redis and its model side by side: every step is made in both, and after it
//! both must be the same and the invariants hold.

use std::collections::{BTreeMap, BTreeSet};

use library_lending::error::Error;
use library_lending::event::{Action, AnswerWish, Event, EventKey, HandOff};
use library_lending::ids::{BookId, EventId, UserId};
use library_lending::keys::{LENDING_GROUP, SHELVING_GROUP};
use library_lending::lending::decide::{self, Told, TryEnd};
pub use library_lending::lending::decide::{Doubt, Try};
use library_lending::shelving::fetch::Answer;

use crate::library::{Instance, Library};
use crate::model::{self, CAPACITY, Expect, LIMIT, Loan, Model};
use crate::redis::{Content, Dump};

/// Ends a property with a message if a condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

pub fn book(text: &str) -> BookId {
    text.parse().unwrap()
}

pub fn user(text: &str) -> UserId {
    text.parse().unwrap()
}

pub fn id(ms: u64, seq: u64) -> EventId {
    EventId { ms, seq }
}

/// An event; books are joined by commas.
pub fn event(action: Action, id: EventId, who: &str, books: &str) -> Event {
    Event {
        key: EventKey { id, action },
        user: user(who),
        books: books.split(',').map(book).collect(),
        answer: AnswerWish::None,
    }
}

/// A try of an event that was not tried before.
pub fn first_try(event: &Event) -> Try {
    Try { event: event.clone(), doubt: Doubt::None, fetched: None }
}

/// A request or return in an instance's hands.
#[derive(Clone, Debug)]
pub struct InHand {
    pub event: Event,
    /// For its next try.
    pub doubt: Doubt,
    /// Whether it was not tried before in this session: then the main storage is asked first.
    pub fresh: bool,
}

impl InHand {
    pub fn fresh(event: Event) -> Self {
        Self { event, doubt: Doubt::None, fresh: true }
    }

    /// Tried in this session.
    fn waiting(event: Event) -> Self {
        Self { fresh: false, ..Self::fresh(event) }
    }

    pub fn next_try(self) -> Try {
        Try { event: self.event, doubt: self.doubt, fetched: None }
    }

    pub fn first_asking(self) -> Try {
        Try::first(self.event, true)
    }
}

/// What a chunk of tries came to.
#[derive(Debug, Default)]
pub struct Came {
    pub decided: Vec<EventKey>,
    pub asking: Vec<Try>,
    pub waiting: Vec<InHand>,
}

pub struct World {
    pub library: Library,
    pub model: Model,
    /// Redis as it was after the last step.
    pub seen: Dump,
    /// Answers that were wished and are there.
    answers: BTreeMap<String, Vec<String>>,
    /// Whether a book came back for which there is no outcome.
    reference_at_work: bool,
    /// What was done, a line a step, for whoever has to read a failure.
    pub history: Vec<String>,
    /// How many tries of what had to wait there were.
    tries_again: usize,
    /// Whether what waits may be asked for again: without end, that goes round for ever.
    pub may_ask_again: bool,
}

/// A list of the tries of a call of decide.lua, in their order.
const TRACE: &str = "trace";

impl World {
    /// decide.lua may try events of a call several times. What happens in between, its replies do
    /// not tell: here it leaves a trace.
    pub fn new(mut library: Library) -> Self {
        const STEP: &str = "    replies[n] = act(e, sorted)\n";
        let traced = format!("{STEP}    redis.call('RPUSH', '{TRACE}', n)\n");
        library.patch("decide", &[(STEP, &traced)]);
        let mut world = Self {
            library,
            model: Model::default(),
            seen: Dump::default(),
            answers: BTreeMap::new(),
            reference_at_work: false,
            history: Vec::new(),
            tries_again: 0,
            may_ask_again: true,
        };
        world.start(Model::default());
        world
    }

    /// Starts again with a library in this state.
    pub fn start(&mut self, model: Model) {
        self.library.clear();
        self.answers.clear();
        self.reference_at_work = false;
        self.may_ask_again = true;
        self.history.clear();
        let keys = self.library.keys.clone();
        let redis = &mut self.library.redis;
        let mut ask = |args: &[&str]| redis.ask::<redis::Value>(args);
        for (book, loan) in &model.loans {
            ask(&["HSET", &keys.loans, book.as_str(), loan.user.as_str()]);
            let noted = model.loans.iter().filter(|(_, other)| other.user == loan.user);
            let noted: Vec<_> = noted.map(|(book, _)| book.as_str()).collect();
            ask(&["HSET", &keys.books_of_users, loan.user.as_str(), &noted.join(",")]);
            if let Some(request) = loan.request {
                ask(&["HSET", &keys.book_states, book.as_str(), &format!("={request}")]);
            }
        }
        for (user, count) in &model.counts {
            ask(&["SET", &keys.count(user), &count.to_string()]);
        }
        for book in &model.storage {
            ask(&["SADD", &keys.storage, book.as_str()]);
        }
        for (book, request) in &model.out {
            ask(&["HSET", &keys.shelves, book.as_str(), &request.to_string()]);
        }
        for handoff in &model.handoffs {
            let books: Vec<_> = handoff.books.iter().map(BookId::as_str).collect();
            ask(&["XADD", &keys.handoffs, "*", "book_ids", &books.join(",")]);
        }
        for (request, books) in &model.left_behind {
            let key = keys.reservation(*request);
            for book in books {
                ask(&["SADD", &key, book.as_str()]);
            }
        }
        self.model = model;
        self.seen = self.library.dump();
    }

    /// Whether the main storage is asked in front of a try: of what is fresh, and now and then of what has
    /// waited for older events, as the worker does where that flows.
    pub fn asks_first(&mut self, one: &InHand) -> bool {
        self.tries_again += usize::from(!one.fresh);
        one.fresh
            || self.may_ask_again && one.doubt == Doubt::None && self.tries_again.is_multiple_of(3)
    }

    /// A client adds an event.
    pub fn add(&mut self, event: Event) {
        let books: Vec<_> = event.books.iter().map(BookId::as_str).collect();
        self.history.push(format!("add {} {} {}", event.key, event.user, books.join(",")));
        self.library.add(&event);
        self.model.undecided.insert(event.key, event);
    }

    /// Tries a chunk, and holds what comes of it against the model.
    pub fn decide(&mut self, by: &Instance, tries: Vec<Try>) -> Result<Came, String> {
        let shown: Vec<_> = tries.iter().map(|one| one.event.key.to_string()).collect();
        let second = if tries.iter().any(|one| one.fetched.is_some()) { " again" } else { "" };
        self.history.push(format!("{} tries {}{second}", by.name(), shown.join(" ")));
        let verdicts =
            self.library.decide(by, &tries).map_err(|error| format!("decide: {error}"))?;
        let mut came = Came::default();
        let mut waiting: Vec<Event> = Vec::new();
        let mut left: Vec<Option<(TryEnd, Try)>> =
            verdicts.into_iter().zip(tries).map(Some).collect();
        // Those that were not even looked at wait as they did before.
        let steps: Vec<usize> = self.library.redis.ask(&["LRANGE", TRACE, "0", "-1"]);
        self.library.redis.ask::<()>(&["DEL", TRACE]);
        let steps: Vec<usize> = steps.into_iter().map(|n| n - 1).collect();
        let unlooked: Vec<usize> = (0..left.len()).filter(|n| !steps.contains(n)).collect();
        let steps = [steps, unlooked].concat();
        for (at, n) in steps.iter().enumerate() {
            if steps[at + 1..].contains(n) {
                let (_, one) = left[*n].as_ref().unwrap();
                self.history.push(format!("  {}: waits and is tried again", one.event.key));
                self.waits(one, &Doubt::None, &mut waiting)?;
                continue;
            }
            let (verdict, one) = left[*n].take().unwrap();
            let key = one.event.key;
            self.history.push(format!("  {key}: {}", told(&verdict)));
            match verdict {
                TryEnd::Done(told) => {
                    let Told::Fields(fields) = told else { panic!("it is not spelled out") };
                    let expect = self.model.expect(key);
                    ensure!(expect != Expect::Wait, "I8: {key} was refused too early");
                    self.decided(&one.event, &fields)?;
                    came.decided.push(key);
                }
                TryEnd::Wait { doubt, .. } => {
                    self.waits(&one, &doubt, &mut waiting)?;
                    came.waiting.push(InHand { doubt, ..InHand::waiting(one.event) });
                }
                TryEnd::Fetch { finality, books } => {
                    self.asks(&one, &books)?;
                    came.asking.push(one.after_reserving(finality, &books));
                }
                other => return Err(format!("{key}: {other:?}")),
            }
        }
        self.compare()?;
        Ok(came)
    }

    /// A try ended in WAIT, after those of this call that are `waiting`.
    fn waits(&mut self, one: &Try, doubt: &Doubt, waiting: &mut Vec<Event>) -> Result<(), String> {
        let key = one.event.key;
        // A "no" may be outdated; another hand-off than that of its books may be what a doubt is
        // about; a book that was nowhere may have been found.
        let said_no = |answer: &Option<Answer>| matches!(answer, Some(Answer::TakenBy(_)));
        let outdated = one.fetched.as_ref().is_some_and(|f| f.answers.iter().any(said_no));
        // Nobody overtakes who waits for the same book and was tried before.
        let after = waiting
            .iter()
            .filter(|other| other.key != key)
            .any(|other| one.event.books.iter().any(|book| other.books.contains(book)));
        let doubtful = match doubt {
            Doubt::None => false,
            Doubt::About(_) => !self.model.handoffs.is_empty(),
            Doubt::ToldNo => true,
        };
        let expect = self.model.expect(key);
        ensure!(
            expect != Expect::Decide || doubtful || outdated || after,
            "{key} waits for nothing"
        );
        self.model.wait(key);
        if key.action == Action::Request {
            waiting.push(one.event.clone());
        }
        Ok(())
    }

    /// A try ended in FETCH.
    fn asks(&mut self, one: &Try, books: &[usize]) -> Result<(), String> {
        let key = one.event.key;
        for n in books {
            let book = &one.event.books[*n];
            let transit = |handoff: &model::HandOff| handoff.ours && handoff.books.contains(book);
            // Whoever seems to have it already may take it from one who asks.
            let said = one.fetched.as_ref().and_then(|f| f.answers[*n].as_ref());
            let asked_by = self.model.asked_by(book);
            ensure!(
                !self.model.loans.contains_key(book)
                    && !self.model.storage.contains(book)
                    && (matches!(said, Some(Answer::Yes | Answer::Again))
                        || asked_by.is_none_or(|other| other == key.id))
                    && !self.model.handoffs.iter().any(transit),
                "{key} fetches {book}, which is not in the main storage"
            );
            self.model.ask(key.id, book);
        }
        Ok(())
    }

    fn decided(&mut self, event: &Event, fields: &str) -> Result<(), String> {
        let id = event.key.id.to_string();
        let texts: Vec<_> = fields.split('\n').collect();
        let known =
            ["event_id", &id, "action", event.key.action.as_str(), "user_id", event.user.as_str()];
        let texts = [&known, texts.as_slice()].concat();
        let real: BTreeMap<&str, String> =
            texts.chunks_exact(2).map(|pair| (pair[0], pair[1].to_owned())).collect();
        let expected: BTreeMap<&str, String> = self.model.decide(event.key);
        ensure!(real == expected, "outcome\n  is       {real:?}\n  expected {expected:?}");
        if event.answer.ttl_ms() > 0 {
            let key = self.library.keys.answer(event.key);
            self.answers.insert(key, vec![texts.join("\n")]);
        }
        Ok(())
    }

    /// Asks the main storage. Returns the tries with its answers.
    pub fn fetch(&mut self, by: &Instance, asking: Vec<Try>) -> Result<Vec<Try>, String> {
        let asked = asked(&asking);
        let shown: Vec<_> = asked.iter().map(|(book, id)| format!("{book} for {id}")).collect();
        self.history.push(format!("{} asks for {}", by.name(), shown.join(", ")));
        let real = self.library.fetch(by, &asked).map_err(|error| format!("fetch: {error}"))?;
        let answer = |(book, request): &(BookId, EventId)| {
            let on_its_shelf = !self.model.out.contains_key(book);
            match self.model.fetch(*request, book) {
                _ if on_its_shelf => Answer::Yes,
                has if has == *request => Answer::Again,
                has => Answer::TakenBy(has.to_string()),
            }
        };
        let expected: Vec<Answer> = asked.iter().map(answer).collect();
        ensure!(real == expected, "fetched {real:?}, expected {expected:?}");
        self.compare()?;
        Ok(with_answers(asking, real))
    }

    /// The hand-offs in an instance's hands are done.
    pub fn shelve(&mut self, by: &Instance, handoffs: &[HandOff]) -> Result<(), String> {
        let undone = self.undone_handoffs();
        for handoff in handoffs {
            let n = undone.iter().position(|id| *id == handoff.id);
            self.history.push(format!("{} shelves {:?}", by.name(), handoff.books));
            let n = n.ok_or_else(|| format!("hand-off {} is done already", handoff.id))?;
            let done = undone[..n].iter().filter(|id| handoffs.iter().any(|h| h.id == **id));
            self.model.shelve(n - done.count());
        }
        let words = self.library.shelve(by, handoffs);
        let done =
            words.len() == handoffs.len() + 1 && words[1..].iter().all(|word| word == "done");
        ensure!(done, "{words:?}");
        self.compare()
    }

    fn undone_handoffs(&self) -> Vec<EventId> {
        let undone = self.seen.stream(&self.library.keys.handoffs).undone(SHELVING_GROUP);
        undone.iter().map(|(id, _)| id.parse().unwrap()).collect()
    }

    /// The states of all books, as they are now.
    pub fn states(&mut self) -> Vec<(String, String)> {
        self.library.dump().hash(&self.library.keys.book_states).into_iter().collect()
    }

    /// Sweeps states of books, as they were seen at some time.
    pub fn sweep(&mut self, by: &Instance, seen: &[(String, String)]) -> Result<(), String> {
        self.history.push(format!("{} sweeps {seen:?}", by.name()));
        let words = self.library.sweep(by, "look", seen);
        ensure!(words[0] == "SWEPT" && words.len() == 2, "{words:?}");
        self.compare()
    }

    /// Clears decided events away.
    pub fn clear(&mut self, by: &Instance) -> Result<(), String> {
        self.history.push(format!("{} clears", by.name()));
        let keys = self.library.keys.clone();
        for stream in [&keys.requests, &keys.returns, &keys.handoffs] {
            let words = self.library.clear_stream(by, stream);
            ensure!(words[0] == "CLEARED", "{words:?}");
        }
        self.compare()
    }

    /// An instance of the reference application takes a book back.
    pub fn taken_back_by_the_reference(&mut self, book: &BookId) -> Result<(), String> {
        self.history.push(format!("the reference takes {book} back"));
        let keys = self.library.keys.clone();
        let loan = self.model.loans[book].clone();
        let redis = &mut self.library.redis;
        redis.ask::<()>(&["HDEL", &keys.loans, book.as_str()]);
        redis.ask::<()>(&["DECR", &keys.count(&loan.user)]);
        if self.model.storage.len() < CAPACITY {
            redis.ask::<()>(&["SADD", &keys.storage, book.as_str()]);
        } else {
            redis.ask::<()>(&["XADD", &keys.handoffs, "*", "book_ids", book.as_str()]);
        }
        self.model.taken_back_by_the_reference(book);
        self.reference_at_work = true;
        self.compare()
    }

    /// Runs something that comes too late: it must be refused, and change nothing.
    pub fn is_fenced<T>(
        &mut self,
        what: &str,
        late: impl FnOnce(&mut Library) -> Result<T, Error>,
    ) -> Result<(), String> {
        self.history.push(format!("late: {what}"));
        let before = self.library.dump();
        let reply = late(&mut self.library).map(drop);
        ensure!(matches!(reply, Err(Error::Fenced)), "I7: a late {what} came to {reply:?}");
        let after = self.library.dump();
        ensure!(before == after, "I7: a late {what} changed\n{}", before.difference(&after));
        Ok(())
    }

    /// Holds all state against the model, and the invariants against the state.
    pub fn compare(&mut self) -> Result<(), String> {
        self.seen = self.library.dump();
        self.compare_seen()
            .and_then(|()| self.invariants())
            .map_err(|fault| format!("{fault}\n---- Redis holds\n{}", show(&self.seen)))
    }

    fn compare_seen(&self) -> Result<(), String> {
        let (keys, seen, model) = (&self.library.keys, &self.seen, &self.model);
        let same = |what: &str, real: BTreeMap<String, String>, expected| {
            ensure!(real == expected, "{what}\n  are      {real:?}\n  expected {expected:?}");
            Ok(())
        };
        let mut real_loans = seen.hash(&keys.loans);
        let loans = model.loans.iter().map(|(b, l)| (b.to_string(), l.user.to_string()));
        same("loans", std::mem::take(&mut real_loans), loans.collect())?;
        let mut noted: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (book, loan) in &model.loans {
            noted.entry(loan.user.to_string()).or_default().insert(book.as_str());
        }
        for (user, list) in seen.hash(&keys.books_of_users) {
            let list: BTreeSet<&str> = list.split(',').collect();
            let lent = noted.remove(&user).unwrap_or_default();
            let right = list == lent || self.reference_at_work && list.is_superset(&lent);
            ensure!(right, "of {user} is noted {list:?} instead of {lent:?}");
        }
        ensure!(noted.is_empty(), "no books are noted of {noted:?}");
        let out = model.out.iter().map(|(book, request)| (book.to_string(), request.to_string()));
        same("books out of the shelves", seen.hash(&keys.shelves), out.collect())?;
        let storage: BTreeSet<String> = model.storage.iter().map(ToString::to_string).collect();
        let real_storage = seen.set(&keys.storage);
        ensure!(
            real_storage == storage,
            "storage\n  is       {real_storage:?}\n  expected {storage:?}"
        );

        // Counts and reservations have a key for each user and each request.
        let (mut counts, mut reservations) = (BTreeMap::new(), BTreeMap::new());
        let mut answers = BTreeMap::new();
        for (key, content) in &seen.0 {
            match content {
                Content::Text(count) if key.starts_with("user:") && count != "0" => {
                    counts.insert(key.clone(), count.clone());
                }
                Content::Set(books) if key.starts_with("request:") => {
                    reservations.insert(key.clone(), books.clone());
                }
                Content::List(lines) if key.starts_with("lending_answer:") => {
                    answers.insert(key.clone(), lines.clone());
                }
                _ => {
                    let known = [
                        &keys.loans,
                        &keys.shelves,
                        &keys.storage,
                        &keys.book_states,
                        &keys.ties,
                        &keys.books_of_users,
                        &keys.requests,
                        &keys.returns,
                        &keys.handoffs,
                        &keys.outcomes,
                        &keys.kept_events,
                        &keys.fetch_answers,
                    ];
                    let known = known.contains(&key)
                        || key.starts_with("instance_lock:")
                        || key.starts_with("user:");
                    ensure!(known, "there is a key {key}: {content:?}");
                }
            }
        }
        let in_hand = model.counts.iter().filter(|(_, count)| **count > 0);
        let in_hand = in_hand.map(|(user, count)| (keys.count(user), count.to_string()));
        same("counts", counts, in_hand.collect())?;
        let left: BTreeMap<String, BTreeSet<String>> = model
            .left_behind
            .iter()
            .map(|(request, books)| {
                (keys.reservation(*request), books.iter().map(ToString::to_string).collect())
            })
            .collect();
        ensure!(reservations == left, "reservations {reservations:?}, expected {left:?}");
        ensure!(answers == self.answers, "answers {answers:?}, expected {:?}", self.answers);

        let handoffs: Vec<String> = seen
            .stream(&keys.handoffs)
            .undone(SHELVING_GROUP)
            .into_iter()
            .map(|(_, fields)| fields[0].1.clone())
            .collect();
        let expected: Vec<String> = model
            .handoffs
            .iter()
            .map(|one| one.books.iter().map(BookId::as_str).collect::<Vec<_>>().join(","))
            .collect();
        ensure!(handoffs == expected, "hand-offs {handoffs:?}, expected {expected:?}");

        for (action, stream) in [(Action::Request, &keys.requests), (Action::Return, &keys.returns)]
        {
            let stream = seen.stream(stream);
            let undone: Vec<_> =
                stream.undone(LENDING_GROUP).into_iter().map(|one| one.0).collect();
            let of_action = model.undecided.keys().filter(|key| key.action == action);
            let expected: Vec<_> = of_action.map(|key| key.id.to_string()).collect();
            ensure!(undone == expected, "undecided {undone:?}, expected {expected:?}");
            ensure!(stream.entries.len() == undone.len(), "decided events stay: {stream:?}");
        }
        let outcomes: Vec<BTreeMap<String, String>> = seen
            .stream(&keys.outcomes)
            .entries
            .into_iter()
            .map(|(_, fields)| fields.into_iter().collect())
            .collect();
        let expected: Vec<BTreeMap<String, String>> = model
            .outcomes
            .iter()
            .map(|fields| fields.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect())
            .collect();
        ensure!(outcomes == expected, "outcomes {outcomes:?}, expected {expected:?}");
        self.compare_states()
    }

    /// The states of books: what they say is so, and what must be said is said.
    fn compare_states(&self) -> Result<(), String> {
        let model = &self.model;
        let states = self.seen.hash(&self.library.keys.book_states);
        for (name, state) in &states {
            let book = book(name);
            let (kind, of) = state.split_at(1);
            let of = of.split(' ').next().unwrap_or(of);
            let of: EventId = of.parse().map_err(|_| format!("state {state} of {name}"))?;
            match kind {
                "=" => {
                    let request = model.loans.get(&book).and_then(|loan| loan.request);
                    // A loan that the reference has ended leaves its mark.
                    ensure!(request.is_none_or(|by| by == of), "{name} is not lent by {of}");
                }
                "?" => {
                    let key = EventKey { id: of, action: Action::Request };
                    ensure!(model.undecided.contains_key(&key), "{name} is held by {of}");
                    ensure!(
                        !model.loans.contains_key(&book) && !model.storage.contains(&book),
                        "I1: {name} is reserved and lent or in storage"
                    );
                }
                ">" => {}
                _ => return Err(format!("{name} has the state {state}")),
            }
        }
        let state = |book: &BookId| states.get(book.as_str()).map_or("", String::as_str);
        for (book, loan) in &model.loans {
            if let Some(request) = loan.request {
                ensure!(state(book) == format!("={request}"), "{book} is lent by {request}");
            }
        }
        for (id, handoff) in self.undone_handoffs().iter().zip(&model.handoffs) {
            for book in handoff.books.iter().filter(|_| handoff.ours) {
                let mark = state(book).split(' ').next();
                ensure!(mark == Some(&format!(">{id}")), "{book} is on its way in {id}");
            }
        }
        Ok(())
    }

    /// I1, I2, I3 of the state alone.
    fn invariants(&self) -> Result<(), String> {
        let (keys, seen) = (&self.library.keys, &self.seen);
        let (loans, storage) = (seen.hash(&keys.loans), seen.set(&keys.storage));
        let out = seen.hash(&keys.shelves);
        for book in loans.keys().chain(&storage) {
            ensure!(out.contains_key(book), "I1: {book} is on its shelf and lent or stored");
        }
        let both = loans.keys().find(|book| storage.contains(*book));
        ensure!(both.is_none(), "I1: {both:?} is lent and in storage");
        let mut on_the_way = BTreeSet::new();
        for (id, fields) in seen.stream(&keys.handoffs).undone(SHELVING_GROUP) {
            for book in fields[0].1.split(',') {
                ensure!(
                    !loans.contains_key(book)
                        && !storage.contains(book)
                        && out.contains_key(book)
                        && on_the_way.insert(book.to_owned()),
                    "I1: {book} is on its way to its shelf in {id}, and somewhere else"
                );
            }
        }
        let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
        for user in loans.values() {
            *counts.entry(user).or_default() += 1;
        }
        for (user, count) in counts {
            let real = seen.0.get(&keys.count(&user.parse().unwrap()));
            ensure!(
                real == Some(&Content::Text(count.to_string())) && count <= LIMIT,
                "I2: {user} has {count} books, the count is {real:?}"
            );
        }
        ensure!(storage.len() <= CAPACITY, "I3: {} books are stored", storage.len());
        Ok(())
    }

    /// All is decided and done: nothing is reserved, every event has one outcome, and the loans are
    /// what the outcomes say, in their order.
    pub fn at_rest(&self, at_first: &Model, sent: &BTreeSet<EventKey>) -> Result<(), String> {
        let (keys, seen) = (&self.library.keys, &self.seen);
        ensure!(self.model.undecided.is_empty(), "undecided: {:?}", self.model.undecided.keys());
        ensure!(self.model.handoffs.is_empty(), "hand-offs: {:?}", self.model.handoffs);
        let at_home = |book: &BookId| {
            self.model.loans.contains_key(book)
                || self.model.storage.contains(book)
                || at_first.is_nowhere(book)
        };
        let lost = self.model.out.keys().find(|book| !at_home(book));
        ensure!(lost.is_none(), "I1: {lost:?} is nowhere");
        let held = seen.hash(&keys.book_states).into_iter().find(|(_, is)| is.starts_with('?'));
        ensure!(held.is_none(), "I6: {held:?} is reserved");
        let mut loans: BTreeMap<BookId, UserId> =
            at_first.loans.iter().map(|(book, loan)| (book.clone(), loan.user.clone())).collect();
        let mut decided = BTreeSet::new();
        for (_, fields) in seen.stream(&keys.outcomes).entries {
            let fields: BTreeMap<String, String> = fields.into_iter().collect();
            let action = Action::from_word(&fields["action"]).unwrap();
            let key = EventKey { id: fields["event_id"].parse().unwrap(), action };
            ensure!(decided.insert(key), "I4: {key} has two outcomes");
            let of_outcome = fields.get("book_ids").filter(|_| !self.reference_at_work);
            for name in of_outcome.into_iter().flat_map(|list| list.split(',')) {
                let who = user(&fields["user_id"]);
                if action == Action::Request {
                    let before = loans.insert(book(name), who);
                    ensure!(before.is_none(), "{name} was lent twice, {before:?} had it");
                } else {
                    let before = loans.remove(&book(name));
                    ensure!(before.as_ref() == Some(&who), "{name} was {before:?}'s, not {who}'s");
                }
            }
        }
        ensure!(decided == *sent, "I4: decided {decided:?}, sent {sent:?}");
        let loans: BTreeMap<String, String> =
            loans.into_iter().map(|(book, user)| (book.to_string(), user.to_string())).collect();
        let real = seen.hash(&keys.loans);
        ensure!(
            self.reference_at_work || real == loans,
            "the loans {real:?} are not what the outcomes say: {loans:?}"
        );
        Ok(())
    }
}

/// The books that are asked for, and for which request each.
pub fn asked(asking: &[Try]) -> Vec<(BookId, EventId)> {
    decide::asked(asking).map(|(book, request)| (book.clone(), request)).collect()
}

/// The tries that decide by these answers.
pub fn with_answers(mut tries: Vec<Try>, answers: Vec<Answer>) -> Vec<Try> {
    let mut answers = answers.into_iter();
    for answer in tries.iter_mut().flat_map(|one| &mut one.fetched).flat_map(|it| &mut it.answers) {
        if *answer == Some(Answer::Left) {
            *answer = answers.next();
        }
    }
    tries
}

pub fn told(verdict: &TryEnd) -> String {
    match verdict {
        TryEnd::Done(Told::Fields(fields)) => fields.replace('\n', " "),
        other => format!("{other:?}"),
    }
}

/// What Redis holds, a line a key.
pub fn show(dump: &Dump) -> String {
    dump.0.iter().map(|(key, content)| format!("{key}: {content:?}\n")).collect()
}

/// A model with these books lent, each to a user, from before.
pub fn lent_before(model: &mut Model, who: &str, books: &[&str], request: Option<EventId>) {
    for name in books {
        model.loans.insert(book(name), Loan { user: user(who), request });
        model.out.insert(book(name), id(0, 1));
    }
    *model.counts.entry(user(who)).or_default() += books.len();
}
