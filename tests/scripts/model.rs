//! The contract as a pure model: what a request, a return or a hand-off does to a library when it
//! is decided, and whether it may be decided yet. Written from the contract, not from the scripts.

use std::collections::{BTreeMap, BTreeSet};

use library_lending::event::{Action, Event, EventKey};
use library_lending::ids::{BookId, EventId, UserId};

/// How many books automated storage holds.
pub const CAPACITY: usize = 20;
/// How many books a user may have.
pub const LIMIT: usize = 5;

/// An outcome: fields and values.
pub type Fields = BTreeMap<&'static str, String>;

/// A loan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loan {
    pub user: UserId,
    /// The request that it was lent to; none if that is not known: it is old then.
    pub request: Option<EventId>,
}

/// A hand-off that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOff {
    pub books: Vec<BookId>,
    /// Whether LendingService made it; it cannot see into those of others.
    pub ours: bool,
}

/// A library.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub loans: BTreeMap<BookId, Loan>,
    pub counts: BTreeMap<UserId, usize>,
    pub storage: BTreeSet<BookId>,
    /// Books that are out of the main storage: the request that fetched each.
    pub out: BTreeMap<BookId, EventId>,
    /// In the order of their stream.
    pub handoffs: Vec<HandOff>,
    /// What the reference application has reserved for undecided requests.
    pub left_behind: BTreeMap<EventId, BTreeSet<BookId>>,
    /// What was fetched for undecided requests.
    pub fetched: BTreeMap<EventId, BTreeSet<BookId>>,
    /// What is reserved for undecided requests without being theirs: they ask the main storage for
    /// it, or were told that somebody else has it.
    pub asked: BTreeMap<EventId, BTreeSet<BookId>>,
    pub undecided: BTreeMap<EventKey, Event>,
    /// Those of them that have been tried.
    pub tried: BTreeSet<EventKey>,
    pub outcomes: Vec<Fields>,
}

/// Whether an event may be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is decided now.
    Decide,
    /// Deciding it would refuse something too early.
    Wait,
    /// It cannot be told from outside, or is not known yet, that nothing has to be waited for.
    Either,
}

/// Where a book is, as a request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Lent,
    Storage,
    /// Reserved by this request, or on its shelf.
    Ours,
    /// On its way to its shelf, or reserved by another request.
    Awaited,
    Nowhere,
}

fn joined(books: &[BookId]) -> String {
    books.iter().map(BookId::as_str).collect::<Vec<_>>().join(",")
}

impl Model {
    pub fn in_hand(&self, user: &UserId) -> usize {
        self.counts.get(user).copied().unwrap_or(0)
    }

    pub fn in_transit(&self, book: &BookId) -> bool {
        self.handoffs.iter().any(|handoff| handoff.books.contains(book))
    }

    /// Whether a book is out of the main storage for no reason.
    pub fn is_nowhere(&self, book: &BookId) -> bool {
        self.out.contains_key(book)
            && !self.loans.contains_key(book)
            && !self.storage.contains(book)
            && !self.in_transit(book)
            && !self.left_behind.values().any(|books| books.contains(book))
    }

    /// The undecided request that is about to ask the main storage for a book.
    pub fn asked_by(&self, book: &BookId) -> Option<EventId> {
        self.asked.iter().find(|(_, books)| books.contains(book)).map(|(id, _)| *id)
    }

    /// Whether a book is reserved for another request that is undecided.
    fn is_reserved_by_another(&self, request: EventId, book: &BookId) -> bool {
        let mut lists = self.fetched.iter().chain(&self.asked).chain(&self.left_behind);
        lists.any(|(other, books)| *other != request && books.contains(book))
    }

    fn place(&self, request: EventId, book: &BookId) -> Place {
        let own = |of: &BTreeMap<EventId, BTreeSet<BookId>>| {
            of.get(&request).is_some_and(|books| books.contains(book))
        };
        if self.loans.contains_key(book) {
            Place::Lent
        } else if own(&self.left_behind) || own(&self.fetched) {
            Place::Ours
        } else if self.storage.contains(book) {
            Place::Storage
        } else if self.is_reserved_by_another(request, book) || self.in_transit(book) {
            Place::Awaited
        } else if self.out.get(book).is_none_or(|fetched_by| *fetched_by == request) {
            Place::Ours
        } else {
            Place::Nowhere
        }
    }

    fn is_taken_back(&self, event: &Event, book: &BookId) -> bool {
        self.loans.get(book).is_some_and(|loan| {
            // Within one millisecond it is not known which came first.
            loan.user == event.user && loan.request.is_none_or(|by| by.ms <= event.key.id.ms)
        })
    }

    /// Whether deciding an event now would refuse anything.
    fn refuses(&self, event: &Event) -> bool {
        match event.key.action {
            Action::Return => !event.books.iter().all(|book| self.is_taken_back(event, book)),
            Action::Request => {
                let places: Vec<_> =
                    event.books.iter().map(|book| self.place(event.key.id, book)).collect();
                let available =
                    places.iter().filter(|at| matches!(at, Place::Storage | Place::Ours)).count();
                available < places.len() || self.in_hand(&event.user) + available > LIMIT
            }
        }
    }

    /// Undecided events of the other stream in the same millisecond.
    fn ties(&self, key: EventKey) -> impl Iterator<Item = &Event> {
        let tied =
            move |other: &&Event| other.key.action != key.action && other.key.id.ms == key.id.ms;
        self.undecided.values().filter(tied)
    }

    /// Whether an event may be decided now.
    pub fn expect(&self, key: EventKey) -> Expect {
        let event = &self.undecided[&key];
        if !self.refuses(event) {
            return Expect::Decide;
        }
        let older = self.undecided.keys().any(|other| {
            if other.action == key.action { other.id < key.id } else { other.id.ms < key.id.ms }
        });
        let place = |book| self.place(key.id, book);
        let is_request = key.action == Action::Request;
        let awaited = is_request && event.books.iter().any(|book| place(book) == Place::Awaited);
        let nowhere = is_request && event.books.iter().any(|book| place(book) == Place::Nowhere);
        if older || awaited {
            Expect::Wait
        } else if self.ties(key).next().is_some() {
            // They wait only for each other: the smaller id is decided first, at equal ids the
            // request. Whether they do is known only when they have been tried, and known from
            // that time: what newer events have done since is not looked at.
            let waits = |other: &Event| self.refuses(other) || self.tried.contains(&other.key);
            let first = self.ties(key).all(|other| key < other.key && waits(other));
            if first { Expect::Either } else { Expect::Wait }
        } else if nowhere && !self.handoffs.is_empty() {
            Expect::Either
        } else {
            Expect::Decide
        }
    }

    /// A book is reserved for a request that is about to ask the main storage for it.
    pub fn ask(&mut self, request: EventId, book: &BookId) {
        self.settle(book);
        self.asked.entry(request).or_default().insert(book.clone());
    }

    /// The main storage's answer when a request asks for a book: the request that has it out.
    pub fn fetch(&mut self, request: EventId, book: &BookId) -> EventId {
        if !self.out.contains_key(book) {
            self.out.insert(book.clone(), request);
            self.fetched.entry(request).or_default().insert(book.clone());
        }
        self.out[book]
    }

    /// Nobody is about to ask for a book any more.
    fn settle(&mut self, book: &BookId) {
        for books in self.asked.values_mut() {
            books.remove(book);
        }
    }

    /// Puts books back: into storage while it has room, in this order, the rest in one hand-off.
    fn put_back(&mut self, books: &[BookId]) {
        let room = CAPACITY.saturating_sub(self.storage.len()).min(books.len());
        let (stored, rest) = books.split_at(room);
        self.storage.extend(stored.iter().cloned());
        if !rest.is_empty() {
            self.handoffs.push(HandOff { books: rest.to_vec(), ours: true });
        }
        books.iter().for_each(|book| self.settle(book));
    }

    /// What the reference application had reserved and the request does not ask for goes back.
    fn put_extra_back(&mut self, event: &Event) {
        let left: Vec<_> = self.left_behind.remove(&event.key.id).into_iter().flatten().collect();
        let extra: Vec<_> = left
            .into_iter()
            .filter(|book| !event.books.contains(book) && !self.loans.contains_key(book))
            .collect();
        self.put_back(&extra);
    }

    /// The books that a request has reserved, in its order.
    fn reserved(&self, event: &Event) -> Vec<BookId> {
        let has = |book: &&BookId| {
            let of = |list: &BTreeMap<EventId, BTreeSet<BookId>>| {
                list.get(&event.key.id).is_some_and(|books| books.contains(*book))
            };
            !self.loans.contains_key(*book) && (of(&self.left_behind) || of(&self.fetched))
        };
        event.books.iter().filter(has).cloned().collect()
    }

    /// An event is not decided yet: nothing is held while it waits.
    pub fn wait(&mut self, key: EventKey) {
        let event = self.undecided[&key].clone();
        self.tried.insert(key);
        if key.action == Action::Request {
            let reserved = self.reserved(&event);
            self.put_extra_back(&event);
            self.fetched.remove(&key.id);
            self.asked.remove(&key.id);
            self.put_back(&reserved);
        }
    }

    /// Decides an event. Returns its outcome.
    pub fn decide(&mut self, key: EventKey) -> Fields {
        let event = self.undecided.remove(&key).expect("an event is decided once");
        let mut outcome = match key.action {
            Action::Request => self.request(&event),
            Action::Return => self.give_back(&event),
        };
        outcome.insert("event_id", key.id.to_string());
        outcome.insert("action", key.action.to_string());
        outcome.insert("user_id", event.user.to_string());
        outcome.insert("in_hand", self.in_hand(&event.user).to_string());
        self.outcomes.push(outcome.clone());
        outcome
    }

    fn request(&mut self, event: &Event) -> Fields {
        let id = event.key.id;
        let (mut available, mut from_storage) = (Vec::new(), Vec::new());
        let (mut mine, mut others, mut unavailable) = (Vec::new(), Vec::new(), Vec::new());
        for book in &event.books {
            match self.place(id, book) {
                Place::Lent if self.loans[book].user == event.user => mine.push(book.clone()),
                Place::Lent => others.push(book.clone()),
                Place::Ours => available.push(book.clone()),
                Place::Storage => {
                    available.push(book.clone());
                    from_storage.push(book.clone());
                }
                Place::Awaited | Place::Nowhere => unavailable.push(book.clone()),
            }
        }
        self.put_extra_back(event);
        for book in &from_storage {
            self.storage.remove(book);
        }
        for book in &available {
            self.out.entry(book.clone()).or_insert(id);
        }
        self.fetched.remove(&id);
        self.asked.remove(&id);
        let mut outcome = Fields::new();
        let mut list = |name, books: &[BookId]| {
            if !books.is_empty() {
                outcome.insert(name, joined(books));
            }
        };
        list("already_yours", &mine);
        list("lent_to_another", &others);
        list("unavailable", &unavailable);
        let in_hand = self.in_hand(&event.user);
        if available.is_empty() {
            outcome.insert("outcome", "denied".into());
            outcome.insert("cause", "none_available".into());
        } else if in_hand + available.len() > LIMIT {
            list("put_back", &available);
            outcome.insert("outcome", "denied".into());
            outcome.insert("cause", "too_many_books".into());
            self.put_back(&available);
        } else {
            list("book_ids", &available);
            outcome.insert("outcome", "accepted".into());
            self.counts.insert(event.user.clone(), in_hand + available.len());
            for book in available {
                self.settle(&book);
                let loan = Loan { user: event.user.clone(), request: Some(id) };
                self.loans.insert(book, loan);
            }
        }
        outcome
    }

    fn give_back(&mut self, event: &Event) -> Fields {
        let (mut taken, mut others, mut not_lent) = (Vec::new(), Vec::new(), Vec::new());
        for book in &event.books {
            let list = if self.is_taken_back(event, book) {
                &mut taken
            } else if self.loans.get(book).is_some_and(|loan| loan.user != event.user) {
                &mut others
            } else {
                &mut not_lent
            };
            list.push(book.clone());
        }
        for book in &taken {
            self.loans.remove(book);
        }
        let in_hand = self.in_hand(&event.user);
        self.counts.insert(event.user.clone(), in_hand - taken.len());
        self.put_back(&taken);
        let mut outcome = Fields::new();
        let word = if taken.is_empty() { "unchanged" } else { "returned" };
        outcome.insert("outcome", word.into());
        for (name, books) in
            [("book_ids", taken), ("lent_to_another", others), ("not_lent", not_lent)]
        {
            if !books.is_empty() {
                outcome.insert(name, joined(&books));
            }
        }
        outcome
    }

    /// The hand-off at `n` of the stream is done: its books are on their shelves.
    pub fn shelve(&mut self, n: usize) {
        for book in self.handoffs.remove(n).books {
            self.out.remove(&book);
        }
    }

    /// An instance of the reference application takes a book back.
    pub fn taken_back_by_the_reference(&mut self, book: &BookId) {
        let loan = self.loans.remove(book).expect("it is lent");
        *self.counts.get_mut(&loan.user).expect("it is counted") -= 1;
        if self.storage.len() < CAPACITY {
            self.storage.insert(book.clone());
        } else {
            self.handoffs.push(HandOff { books: vec![book.clone()], ours: false });
        }
    }
}
