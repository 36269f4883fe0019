//! The waiting room: events that cannot be refused yet, because something older is undecided or a
//! book is reserved or on its way to its shelf (I8). They hold nothing while they wait.
//!
//! What waits is tried again oldest first, before newer events that ask for the same books
//! (contract, section 2, Order): so a newcomer that asks for an awaited book is sent through this
//! room as well. What is worth another try is found by book; and since not everything that ends a
//! wait happens in this process, from time to time everything is tried.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::event::{Action, Event, EventKey};
use crate::ids::BookId;

/// Pause after a round that brought nothing, at first and at most. Doubled each time: somebody
/// else's event is usually decided within milliseconds, or else takes a takeover.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(200);

/// Pause for each event that waits, so that trying them all again and again takes at most a small
/// part of Redis' time: a try costs it about 4 microseconds.
const PAUSE_FOR_EACH: Duration = Duration::from_micros(40);

/// How many of the oldest are tried again when something older than they was decided.
const OLDEST: usize = 128;

/// An event that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The event.
    pub event: Event,
    /// What decide.lua gave when it was in doubt, for the next try; else empty.
    pub doubt: String,
    /// The books, by their index in the event, of which shelving has said that they were handed
    /// out to it before, and of which it is not known yet whether it has them.
    pub again: Vec<usize>,
}

/// The room.
#[derive(Debug)]
pub struct WaitingRoom {
    by_age: BTreeMap<EventKey, Waiting>,
    by_book: HashMap<BookId, BTreeSet<EventKey>>,
    due: BTreeSet<EventKey>,
    pause: Duration,
    next_round: Instant,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self {
            by_age: BTreeMap::new(),
            by_book: HashMap::new(),
            due: BTreeSet::new(),
            pause: FIRST_PAUSE,
            next_round: Instant::now(),
        }
    }
}

impl WaitingRoom {
    /// How many events wait.
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    /// Whether anything is worth another try now.
    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether a request asks for a book that another request in the room asks for.
    pub fn is_awaited(&self, event: &Event) -> bool {
        !self.by_book.is_empty()
            && event.key.action == Action::Request
            && event.books.iter().any(|book| {
                let waiting = self.by_book.get(book);
                waiting.is_some_and(|keys| keys.iter().any(|key| key.action == Action::Request))
            })
    }

    /// Lets an event in after a try that ended in WAIT.
    pub fn admit(&mut self, waiting: Waiting) {
        if self.by_age.is_empty() {
            self.pause = FIRST_PAUSE;
            self.next_round = Instant::now() + self.pause;
        }
        let key = waiting.event.key;
        for book in &waiting.event.books {
            self.by_book.entry(book.clone()).or_default().insert(key);
        }
        self.by_age.insert(key, waiting);
    }

    /// Lets a newcomer in that asks for an awaited book: it is tried at once, after those that
    /// were here before and ask for the same.
    pub fn admit_behind(&mut self, event: Event) {
        self.stir_books(&event, |key| key.action == Action::Request);
        let key = event.key;
        self.admit(Waiting { event, doubt: String::new(), again: Vec::new() });
        self.due.insert(key);
    }

    fn stir_books(&mut self, event: &Event, which: impl Fn(&EventKey) -> bool) {
        for book in &event.books {
            if let Some(keys) = self.by_book.get(book) {
                self.due.extend(keys.iter().filter(|key| which(key)));
            }
        }
    }

    /// An event was decided: those that ask for its books, and the oldest if it was older than
    /// they, are worth another try.
    pub fn decided(&mut self, event: &Event) {
        let Some(oldest) = self.by_age.keys().next() else { return };
        self.pause = FIRST_PAUSE;
        // In the same millisecond it is not known which came first.
        if event.key.id.ms <= oldest.id.ms {
            self.due.extend(self.by_age.keys().take(OLDEST));
        }
        self.stir_books(event, |_| true);
    }

    /// Books have arrived on their shelves: every request is worth another try.
    pub fn shelved(&mut self) {
        let requests = self.by_age.keys().filter(|key| key.action == Action::Request);
        self.due.extend(requests);
    }

    /// When the next round is due, if anybody waits.
    pub fn next_round(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.next_round)
    }

    /// Begins a round if it is time: everybody is worth another try.
    pub fn tick(&mut self, now: Instant) {
        if !self.is_empty() && self.due.is_empty() && now >= self.next_round {
            self.due.extend(self.by_age.keys());
            self.pause = (self.pause * 2).min(LAST_PAUSE);
            let crowd = PAUSE_FOR_EACH * u32::try_from(self.len()).unwrap_or(u32::MAX);
            self.next_round = now + self.pause.max(crowd);
        }
    }

    /// Takes out the oldest that are worth another try: `count` at most, and none more once they
    /// have as many as `books` books.
    pub fn take_due(&mut self, count: usize, books: usize) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let mut taken_books = 0;
        while taken.len() < count && taken_books < books {
            let Some(key) = self.due.pop_first() else { break };
            if let Some(waiting) = self.by_age.remove(&key) {
                self.forget_books(&waiting.event);
                taken_books += waiting.event.books.len();
                taken.push(waiting);
            }
        }
        taken
    }

    fn forget_books(&mut self, event: &Event) {
        for book in &event.books {
            if let Some(keys) = self.by_book.get_mut(book) {
                keys.remove(&event.key);
                if keys.is_empty() {
                    self.by_book.remove(book);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::AnswerWish;
    use crate::ids::EventId;

    fn event(ms: u64, action: Action, books: &[&str]) -> Event {
        Event {
            key: EventKey { id: EventId { ms, seq: 0 }, action },
            user: "user1".parse().unwrap(),
            books: books.iter().map(|book| book.parse().unwrap()).collect(),
            answer: AnswerWish::None,
        }
    }

    fn due(room: &mut WaitingRoom) -> Vec<u64> {
        room.take_due(100, 100).iter().map(|waiting| waiting.event.key.id.ms).collect()
    }

    fn room(events: &[Event]) -> WaitingRoom {
        let mut room = WaitingRoom::default();
        for event in events {
            let (event, doubt) = (event.clone(), String::new());
            room.admit(Waiting { event, doubt, again: Vec::new() });
        }
        room
    }

    #[test]
    fn a_newcomer_comes_after_those_who_wait_for_the_same_book() {
        let mut room =
            room(&[event(2, Action::Request, &["geb"]), event(1, Action::Return, &["geb"])]);
        let newcomer = event(3, Action::Request, &["momo", "geb"]);
        assert!(room.is_awaited(&newcomer));
        assert!(!room.is_awaited(&event(3, Action::Return, &["geb"])));
        assert!(!room.is_awaited(&event(3, Action::Request, &["momo"])));
        room.admit_behind(newcomer);
        assert_eq!(due(&mut room), [2, 3]);
        assert!(!room.is_awaited(&event(4, Action::Request, &["geb"])));
        assert_eq!(room.len(), 1);
    }

    #[test]
    fn a_decision_stirs_those_behind_it_and_those_who_want_its_books() {
        let waiting = [event(5, Action::Request, &["geb"]), event(6, Action::Request, &["momo"])];
        let mut first = room(&waiting);
        first.decided(&event(4, Action::Return, &["alice"]));
        assert_eq!(due(&mut first), [5, 6]);
        let mut second = room(&waiting);
        second.decided(&event(9, Action::Return, &["momo"]));
        assert_eq!(due(&mut second), [6]);
        // A return waits for the request that it belongs to.
        let mut third = room(&[event(5, Action::Return, &["geb"])]);
        third.decided(&event(9, Action::Request, &["geb"]));
        assert_eq!(due(&mut third), [5]);
    }

    #[test]
    fn a_round_tries_everybody_and_rounds_get_rarer() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let first = room.next_round().unwrap();
        room.tick(first - Duration::from_millis(1));
        assert!(!room.has_due());
        room.tick(first);
        assert!(room.has_due());
        assert_eq!(room.next_round().unwrap() - first, FIRST_PAUSE * 2);
    }
}
