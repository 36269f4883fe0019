//! The waiting room: events that cannot be refused yet, because something older is undecided or a
//! book is reserved or on its way to its shelf (I8). They hold nothing while they wait.
//!
//! What waits is tried again oldest first, before newer events that ask for the same books
//! (library-lending(7), Order): so a newcomer that asks for an awaited book is sent through this
//! room as well. What is worth another try is found by book and by user. Not everything that ends a
//! wait happens in this process: when another instance rings, some of the oldest are tried, and
//! from time to time everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Instant;

use super::decide::Doubt;
use super::pace::{Bell, Rounds};
use crate::event::{Action, Event, EventKey};
use crate::ids::{BookId, UserId};

/// How many of the oldest are tried again when events older than they were decided: at least, and
/// for each of those. A queue of refusals that wait for each other then flows in growing chunks,
/// and one that is stuck behind somebody else's event costs little.
const LEAST_OLDEST: usize = 16;
const OLDEST_FOR_EACH: usize = 2;

/// How many of a user's events are tried again when one of them was decided: what a user may have
/// in hand is a handful of books.
const OLDEST_OF_A_USER: usize = 8;

/// How many of those that are due are tried by one script: at least, and at most. Twice as many as by
/// the last one if of those at least one in [`SHARE_WORTH`] was decided at once, else half as many: where
/// dozens of events of a millisecond wait for each other, one after the other is decided, and all others
/// that are tried with it are only in its way.
const LEAST_SHARE: usize = 32;
const MOST_SHARE: usize = 512;
const SHARE_WORTH: usize = 4;

/// One in so many of those that are taken out is not among the oldest, but the one whose turn it is, and one at
/// least: where the oldest wait for what somebody else has in hand, and are due again and again, all others
/// come to a try as well.
const IN_TURN: usize = 8;

/// How many times as many as are to be taken out are looked at: some may not go just now. They are looked at
/// again soon; but not all of a crowd each time.
const LOOK_AT: usize = 2;

/// An event that waits.
#[derive(Debug)]
pub struct Waiting {
    /// The event.
    pub event: Event,
    /// The doubt for the next try.
    pub doubt: Doubt,
    /// Whether it waits for what is older alone, and for no book.
    pub for_older: bool,
}

/// What is taken out for another try.
#[derive(Default)]
struct Taken {
    events: BTreeMap<EventKey, Waiting>,
    books: usize,
}

impl Taken {
    fn is_enough(&self, events: usize, books: usize) -> bool {
        self.events.len() >= events || self.books >= books
    }

    fn add(&mut self, company: Vec<Waiting>) {
        self.books += company.iter().map(|waiting| waiting.event.books.len()).sum::<usize>();
        self.events.extend(company.into_iter().map(|waiting| (waiting.event.key, waiting)));
    }
}

/// The room.
#[derive(Debug)]
pub struct WaitingRoom {
    by_age: BTreeMap<EventKey, Waiting>,
    by_book: HashMap<BookId, BTreeSet<EventKey>>,
    by_user: HashMap<UserId, BTreeSet<EventKey>>,
    for_books: BTreeSet<EventKey>,
    due: BTreeSet<EventKey>,
    /// What newcomers ask for: all requests for these become due in [`WaitingRoom::take_due`], once
    /// for a whole crowd of newcomers.
    asked_for: HashSet<BookId>,
    share: usize,
    /// The last that was looked at in its turn, and not because it was among the oldest.
    last_in_turn: Option<EventKey>,
    /// How often books have arrived on their shelves.
    arrivals: u64,
    rounds: Rounds,
    bell: Bell,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self {
            by_age: BTreeMap::new(),
            by_book: HashMap::new(),
            by_user: HashMap::new(),
            for_books: BTreeSet::new(),
            due: BTreeSet::new(),
            asked_for: HashSet::new(),
            share: LEAST_SHARE,
            last_in_turn: None,
            arrivals: 0,
            rounds: Rounds::default(),
            bell: Bell::default(),
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

    /// Whether nobody waits who is older.
    pub fn has_no_older(&self, key: EventKey) -> bool {
        self.by_age.keys().next().is_none_or(|oldest| *oldest > key)
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

    /// Lets an event in after its first try, which ended in WAIT and was sent after so many `arrivals`.
    pub fn admit(&mut self, waiting: Waiting, arrivals: u64) {
        if self.by_age.is_empty() {
            self.rounds.begin();
        }
        self.admit_again(waiting, arrivals);
    }

    /// Lets an event in again that was taken out for another try: in vain, so that nothing is to be
    /// tried any sooner for it. But books that have arrived since it was sent may have come too late for it.
    pub fn admit_again(&mut self, waiting: Waiting, arrivals: u64) {
        if self.arrivals != arrivals && !waiting.for_older {
            self.due.insert(waiting.event.key);
        }
        let key = waiting.event.key;
        for book in &waiting.event.books {
            self.by_book.entry(book.clone()).or_default().insert(key);
        }
        self.by_user.entry(waiting.event.user.clone()).or_default().insert(key);
        if !waiting.for_older {
            self.for_books.insert(key);
        }
        self.by_age.insert(key, waiting);
    }

    /// How often books have arrived on their shelves: to be remembered when a try is sent.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Lets a newcomer in that asks for an awaited book: it is tried at once, after those that
    /// were here before and ask for the same.
    pub fn admit_behind(&mut self, event: Event) {
        self.asked_for.extend(event.books.iter().cloned());
        let key = event.key;
        self.admit(Waiting { event, doubt: Doubt::None, for_older: true }, self.arrivals);
        self.due.insert(key);
    }

    /// Somebody waits for these to be tried: they are worth it, as far as they are here and wait for what
    /// is older. Those that wait for a book, or out of doubt, are tried when one arrives or in a round: two
    /// of them, each tried without the other, would be named in turn for ever.
    pub fn stir(&mut self, events: Vec<EventKey>) {
        let for_older = |key: &EventKey| self.by_age.get(key).is_some_and(|one| one.for_older);
        self.due.extend(events.into_iter().filter(for_older));
    }

    fn stir_books<'a>(
        &mut self,
        books: impl IntoIterator<Item = &'a BookId>,
        which: impl Fn(&EventKey) -> bool,
    ) {
        for book in books {
            if let Some(keys) = self.by_book.get(book) {
                self.due.extend(keys.iter().filter(|key| which(key)));
            }
        }
    }

    /// Events were decided: those that ask for their books, and the oldest if they were older than
    /// they, are worth another try.
    pub fn decided(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let Some(oldest) = self.by_age.keys().next() else { return };
        self.rounds.hasten(self.by_age.len());
        // In the same millisecond it is not known which came first.
        let older = events.iter().filter(|event| event.key.id.ms <= oldest.id.ms).count();
        if older > 0 {
            let count = LEAST_OLDEST.max(OLDEST_FOR_EACH * older);
            self.due.extend(self.by_age.keys().take(count));
        }
        // Once each: thousands may wait for a book that all of these asked for.
        let books: HashSet<_> = events.iter().flat_map(|event| &event.books).collect();
        self.stir_books(books, |_| true);
        for event in events {
            let same_user = self.by_user.get(&event.user).into_iter().flatten();
            self.due.extend(same_user.take(OLDEST_OF_A_USER));
        }
    }

    /// Books have arrived on their shelves: every request that waits for one is worth another try.
    pub fn shelved(&mut self) {
        self.arrivals += 1;
        self.due.extend(&self.for_books);
    }

    /// Another instance has decided something, or put books on their shelves: the oldest are worth
    /// another try, at the next tick or, after a ring in vain, when the pause is over. If all are out
    /// for a try just now, which it may have come too late for, when they are back.
    pub fn rung(&mut self) {
        self.bell.ring();
    }

    /// How many that waited were tried, and how many of those were decided.
    pub fn tried(&mut self, number: usize, decided: usize) {
        let share = if decided * SHARE_WORTH >= number { 2 * self.share } else { self.share / 2 };
        self.share = share.clamp(LEAST_SHARE, MOST_SHARE);
        if decided > 0 {
            self.bell.listen_again();
        }
    }

    /// When the next round is due or the next ring is answered, if anybody waits.
    pub fn next_round(&self) -> Option<Instant> {
        let round = self.rounds.next();
        let next = self.bell.next().map_or(round, |ring| ring.min(round));
        (!self.is_empty()).then_some(next)
    }

    /// Answers a ring, and begins a round if it is time: everybody is worth another try.
    pub fn tick(&mut self, now: Instant) {
        if self.is_empty() {
            return;
        }
        if let Some(number) = self.bell.answer(now) {
            self.due.extend(self.by_age.keys().take(number));
        }
        if self.rounds.begins(now, self.len(), self.has_due()) {
            self.due.extend(self.by_age.keys());
        }
    }

    /// Takes out the oldest that are worth another try and that `may_go`, and with each the oldest
    /// who waits for one of its books, so that it does not overtake that one: about `count` at
    /// most, and none more once they have as many as `books` books. In the order of their ids.
    ///
    /// With others of its millisecond the oldest of all comes along: it may wait for nothing any more
    /// but to see that they wait for it.
    pub fn take_due(
        &mut self,
        count: usize,
        books: usize,
        may_go: impl Fn(&Event) -> bool,
    ) -> Vec<Waiting> {
        let asked_for = std::mem::take(&mut self.asked_for);
        self.stir_books(&asked_for, |key| key.action == Action::Request);
        let oldest = self.by_age.keys().next();
        self.due
            .extend(oldest.filter(|oldest| {
                self.due.first().is_some_and(|first| first.id.ms == oldest.id.ms)
            }));
        let count = count.min(self.share);
        let mut taken = Taken::default();
        for key in self.due_behind(None, LOOK_AT * count) {
            if taken.is_enough(count - count.div_ceil(IN_TURN), books) {
                break;
            }
            taken.add(self.take_with_those_before(key, &may_go));
        }
        let mut is_one_owed = true;
        for key in self.due_behind(self.last_in_turn, LOOK_AT * count) {
            if !is_one_owed && taken.is_enough(count, books) {
                break;
            }
            self.last_in_turn = Some(key);
            let company = self.take_with_those_before(key, &may_go);
            is_one_owed &= company.is_empty();
            taken.add(company);
        }
        taken.events.into_values().collect()
    }

    /// Takes out one that is due, with those that go before it; nobody unless all of them may go.
    fn take_with_those_before(
        &mut self,
        key: EventKey,
        may_go: impl Fn(&Event) -> bool,
    ) -> Vec<Waiting> {
        let company = self.with_those_before(key);
        if !company.iter().all(|key| may_go(&self.by_age[key].event)) {
            return Vec::new();
        }
        let mut taken = Vec::with_capacity(company.len());
        for key in company {
            self.due.remove(&key);
            if let Some(waiting) = self.by_age.remove(&key) {
                self.forget(&waiting.event);
                taken.push(waiting);
            }
        }
        taken
    }

    /// Up to `count` that are worth another try: those that come behind `one`, and then the oldest.
    fn due_behind(&self, one: Option<EventKey>, count: usize) -> Vec<EventKey> {
        let behind = self.due.range((one.map_or(Unbounded, Excluded), Unbounded));
        let oldest = one.map(|one| self.due.range(..=one));
        behind.chain(oldest.into_iter().flatten()).copied().take(count).collect()
    }

    /// An event, and those who are the oldest in the room to ask for a book of it or of one of
    /// them. Empty if it is not in the room.
    fn with_those_before(&self, key: EventKey) -> Vec<EventKey> {
        let mut company = Vec::new();
        let mut next = vec![key];
        while let Some(key) = next.pop() {
            let Some(waiting) = self.by_age.get(&key) else { continue };
            company.push(key);
            if key.action == Action::Return {
                continue;
            }
            for book in &waiting.event.books {
                let keys = self.by_book.get(book).into_iter().flatten();
                let oldest = keys.copied().find(|key| key.action == Action::Request);
                if let Some(oldest) = oldest
                    && oldest < key
                    && !company.contains(&oldest)
                    && !next.contains(&oldest)
                {
                    next.push(oldest);
                }
            }
        }
        company
    }

    fn forget(&mut self, event: &Event) {
        for book in &event.books {
            remove(&mut self.by_book, book, event.key);
        }
        remove(&mut self.by_user, &event.user, event.key);
        self.for_books.remove(&event.key);
    }
}

fn remove<K: Eq + Hash>(map: &mut HashMap<K, BTreeSet<EventKey>>, name: &K, key: EventKey) {
    if let Some(keys) = map.get_mut(name) {
        keys.remove(&key);
        if keys.is_empty() {
            map.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::AnswerWish;
    use crate::ids::EventId;
    use crate::lending::pace::{
        FEWEST_RUNG, LONGEST_DEAF, LONGEST_PAUSE, PAUSE_FOR_EACH, SHORTEST_DEAF, SHORTEST_PAUSE,
    };

    fn event(ms: u64, action: Action, books: &[&str]) -> Event {
        Event {
            key: EventKey { id: EventId { ms, seq: 0 }, action },
            user: format!("user{ms}").parse().unwrap(),
            books: books.iter().map(|book| book.parse().unwrap()).collect(),
            answer: AnswerWish::None,
        }
    }

    fn waiting_for_book(event: Event) -> Waiting {
        Waiting { event, doubt: Doubt::None, for_older: false }
    }

    /// No books have arrived.
    const NONE: u64 = 0;

    fn due(room: &mut WaitingRoom) -> Vec<u64> {
        room.take_due(100, 100, |_| true).iter().map(|waiting| waiting.event.key.id.ms).collect()
    }

    fn room(events: &[Event]) -> WaitingRoom {
        let mut room = WaitingRoom::default();
        for event in events {
            room.admit(Waiting { event: event.clone(), doubt: Doubt::None, for_older: true }, NONE);
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
        assert!(room.has_due(), "it is tried at once");
        assert_eq!(due(&mut room), [2, 3]);
        assert!(!room.is_awaited(&event(4, Action::Request, &["geb"])));
        assert_eq!(room.len(), 1);
    }

    #[test]
    fn nothing_of_who_was_taken_out_is_left_in_the_room() {
        let mut room = room(&[event(1, Action::Return, &["geb"])]);
        room.admit(waiting_for_book(event(2, Action::Request, &["momo"])), NONE);
        room.tick(room.rounds.next);
        assert_eq!(due(&mut room), [1, 2]);
        assert!(room.by_book.is_empty() && room.by_user.is_empty() && room.for_books.is_empty());
    }

    #[test]
    fn a_return_lets_nobody_go_first_who_asks_for_its_book() {
        let mut room =
            room(&[event(1, Action::Request, &["geb"]), event(2, Action::Return, &["geb"])]);
        room.stir(vec![event(2, Action::Return, &[]).key]);
        assert_eq!(due(&mut room), [2]);
    }

    /// A queue of refusals was tried by the sixteen, however many were decided.
    #[test]
    fn the_more_older_ones_are_decided_the_more_are_tried() {
        let mut room =
            room(&(100..300).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        let mut due_after = |decided: std::ops::Range<u64>| {
            let back =
                |ms| Event { user: "other".parse().unwrap(), ..event(ms, Action::Return, &[]) };
            room.decided(&decided.map(back).collect::<Vec<_>>());
            std::mem::take(&mut room.due).len()
        };
        assert_eq!(due_after(1..2), LEAST_OLDEST);
        assert_eq!(due_after(1..41), 40 * OLDEST_FOR_EACH);
        // Of one millisecond it is not known which came first.
        assert_eq!(due_after(100..101), LEAST_OLDEST);
        assert_eq!(due_after(101..102), 0);
    }

    #[test]
    fn of_a_users_many_only_the_oldest_are_tried_for_each_that_is_decided() {
        let of_user =
            |ms| Event { user: "user".parse().unwrap(), ..event(ms, Action::Return, &[]) };
        let mut room = room(&(1..100).map(of_user).collect::<Vec<_>>());
        room.decided(&[of_user(200)]);
        assert_eq!(room.due.len(), OLDEST_OF_A_USER);
    }

    /// Of a crowd for a book that is under way all were looked at each time.
    #[test]
    fn a_crowd_that_may_not_go_is_not_looked_at_as_a_whole() {
        let mut room =
            room(&(1..2_000).map(|ms| event(ms, Action::Request, &["geb"])).collect::<Vec<_>>());
        room.tick(room.rounds.next);
        let looks = std::cell::Cell::new(0);
        let may_go = |_: &Event| {
            looks.set(looks.get() + 1);
            false
        };
        assert!(room.take_due(4, 100, may_go).is_empty());
        assert!(looks.get() < 100, "{}", looks.get());
    }

    #[test]
    fn a_decision_stirs_those_behind_it_and_those_who_want_its_books_or_are_its_users() {
        let waiting = [event(5, Action::Request, &["geb"]), event(6, Action::Request, &["momo"])];
        let mut first = room(&waiting);
        first.decided(&[event(4, Action::Return, &["alice"])]);
        assert_eq!(due(&mut first), [5, 6]);
        let mut second = room(&waiting);
        second.decided(&[event(9, Action::Return, &["momo"])]);
        assert_eq!(due(&mut second), [6]);
        // A return waits for the request that it belongs to.
        let mut third = room(&[event(5, Action::Return, &["geb"])]);
        third.decided(&[event(9, Action::Request, &["geb"])]);
        assert_eq!(due(&mut third), [5]);
        // A user at the limit may have another book, whichever came back.
        let mut fourth = room(&waiting);
        let user = waiting[1].user.clone();
        fourth.decided(&[Event { user, ..event(9, Action::Return, &["alice"]) }]);
        assert_eq!(due(&mut fourth), [6]);
    }

    /// Each of those that were decided, and each newcomer, stirred all that wait for its book: where thousands
    /// wait for one, that took many times as long as to decide them.
    #[test]
    fn a_crowd_that_waits_for_one_book_is_stirred_once() {
        const SOON: Duration = Duration::from_secs(2);
        let mut crowd: Vec<_> =
            (1..=8_192).map(|ms| event(ms, Action::Request, &["geb"])).collect();
        let newcomers = crowd.split_off(6_144);
        let mut room = room(&crowd[2_048..]);
        let start = Instant::now();
        room.decided(&crowd[..2_048]);
        assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
        assert_eq!(room.due.len(), 4_096);
        room.due.clear();
        let start = Instant::now();
        newcomers.into_iter().for_each(|newcomer| room.admit_behind(newcomer));
        room.take_due(1, 1, |_| true);
        assert!(start.elapsed() < SOON, "it took {:?}", start.elapsed());
        assert_eq!(room.due.len() + 1, 6_144);
    }

    #[test]
    fn who_is_due_takes_along_the_oldest_who_waits_for_the_same_book() {
        let mut room = room(&[
            event(1, Action::Request, &["alice"]),
            event(2, Action::Request, &["geb", "alice"]),
            event(3, Action::Request, &["geb"]),
            event(4, Action::Request, &["momo"]),
        ]);
        room.decided(&[event(9, Action::Return, &["nothing"])]);
        assert_eq!(due(&mut room), []);
        let key = |ms| event(ms, Action::Request, &[]).key;
        room.due.insert(key(3));
        let all_but_the_first = |event: &Event| event.key != key(1);
        assert!(room.take_due(100, 100, all_but_the_first).is_empty());
        assert_eq!(due(&mut room), [1, 2, 3]);
        assert_eq!(room.len(), 1);
    }

    #[test]
    fn the_oldest_comes_along_with_others_of_its_millisecond() {
        let mut events = [5, 5, 5, 6].map(|ms| event(ms, Action::Request, &[]));
        for (n, event) in events.iter_mut().enumerate() {
            event.key.id.seq = n as u64;
            event.books = vec![format!("book{n}").parse().unwrap()];
        }
        let mut room = room(&events);
        let mut taken_with = |n: usize| -> Vec<u64> {
            room.due.insert(events[n].key);
            let taken = room.take_due(100, 100, |_| true);
            let seqs = taken.iter().map(|waiting| waiting.event.key.id.seq).collect();
            taken.into_iter().for_each(|waiting| room.admit_again(waiting, NONE));
            seqs
        };
        assert_eq!(taken_with(2), [0, 2]);
        assert_eq!(taken_with(0), [0]);
        assert_eq!(taken_with(3), [3]);
    }

    #[test]
    fn a_ring_stirs_the_oldest_and_one_soon_after_a_vain_one_waits_its_turn() {
        let waiting: Vec<_> = (1..100).map(|ms| event(ms, Action::Return, &["geb"])).collect();
        let mut room = room(&waiting);
        let now = Instant::now();
        room.rounds.next = now + LONGEST_PAUSE;
        room.rung();
        room.tick(now);
        assert_eq!(room.due.len(), FEWEST_RUNG);
        room.due.clear();
        room.rung();
        room.tick(now);
        assert!(!room.has_due());
        assert_eq!(room.next_round(), Some(now + SHORTEST_DEAF));
        room.tick(now + SHORTEST_DEAF);
        assert_eq!(room.due.len(), 2 * FEWEST_RUNG);
        room.due.clear();
        room.tried(1, 1);
        room.rung();
        room.tick(Instant::now());
        assert_eq!(room.due.len(), FEWEST_RUNG);
    }

    #[test]
    fn books_that_arrive_stir_those_who_wait_for_one() {
        let mut room = room(&[event(1, Action::Request, &["geb"])]);
        room.admit(waiting_for_book(event(2, Action::Request, &["momo"])), NONE);
        room.shelved();
        assert_eq!(due(&mut room), [2]);
        room.shelved();
        assert_eq!(due(&mut room), []);
    }

    #[test]
    fn what_is_heard_while_one_is_out_for_a_try_is_worth_another() {
        let now = Instant::now();
        for for_older in [true, false] {
            let mut room = room(&[event(1, Action::Request, &["geb"])]);
            let mut out_and_back = |news: fn(&mut WaitingRoom)| {
                room.due.insert(event(1, Action::Request, &[]).key);
                let waiting = room.take_due(1, 1, |_| true).remove(0);
                let arrivals = room.arrivals();
                news(&mut room);
                // Others that are taken out meanwhile do not make it forgotten.
                assert!(room.take_due(1, 1, |_| true).is_empty());
                room.admit_again(Waiting { for_older, ..waiting }, arrivals);
                room.rounds.next = now + LONGEST_PAUSE;
                room.tick(now + LONGEST_DEAF);
                std::mem::take(&mut room.due).len()
            };
            assert_eq!(out_and_back(|_| {}), 0);
            assert_eq!(out_and_back(WaitingRoom::shelved), usize::from(!for_older));
            assert_eq!(out_and_back(WaitingRoom::rung), 1);
            assert_eq!(out_and_back(|_| {}), 0);
        }
    }

    /// Where one after the other was decided, some 400 others were tried for each.
    #[test]
    fn fewer_are_tried_at_once_where_most_wait_on() {
        let waiting: Vec<_> = (1..2_000).map(|ms| event(ms, Action::Return, &["geb"])).collect();
        let mut room = room(&waiting);
        let mut share = |tried, decided| {
            room.tried(tried, decided);
            room.stir(waiting.iter().map(|event| event.key).collect());
            let taken = room.take_due(1_000, 1_000, |_| true);
            let number = taken.len();
            taken.into_iter().for_each(|waiting| room.admit_again(waiting, NONE));
            number
        };
        assert_eq!([share(40, 10), share(40, 10), share(40, 40)], [64, 128, 256]);
        assert_eq!([share(256, 256), share(512, 200)], [512, 512]);
        assert_eq!([share(512, 127), share(256, 0), share(128, 1)], [256, 128, 64]);
        assert_eq!([share(64, 15), share(32, 0)], [32, 32]);
    }

    /// The oldest waited for what another instance had in hand, and were due after each decision.
    #[test]
    fn all_come_to_a_try_though_the_oldest_are_due_again_and_again() {
        let waiting: Vec<_> = (1..500).map(|ms| event(ms, Action::Return, &["geb"])).collect();
        let keys = |events: &[Event]| events.iter().map(|event| event.key).collect::<Vec<_>>();
        for (count, books, calls) in
            [(1_000, 1_000, 8 * 500 / LEAST_SHARE), (4, 9, 500), (9, 4, 500)]
        {
            let mut room = room(&waiting);
            room.stir(keys(&waiting));
            let mut never_tried: BTreeSet<_> = keys(&waiting).into_iter().collect();
            for _ in 0..calls {
                for waiting in room.take_due(count, books, |_| true) {
                    never_tried.remove(&waiting.event.key);
                    room.admit_again(waiting, NONE);
                }
                room.stir(keys(&waiting[..100]));
            }
            assert!(never_tried.is_empty(), "{never_tried:?}");
        }
    }

    /// Requests for one book, which were due after each decision about it, left no time for a round, and
    /// it is in a round that one is tried of whose book nothing is heard here.
    #[test]
    fn a_round_comes_also_where_some_are_always_due() {
        let waiting = [event(1, Action::Request, &["geb"]), event(2, Action::Request, &["momo"])];
        let mut room = room(&waiting);
        let key = waiting[0].key;
        let mut now = room.next_round().unwrap();
        let mut was_due = false;
        for _ in 0..1_000 {
            room.stir(vec![key]);
            room.tick(now);
            was_due |= room.due.contains(&waiting[1].key);
            room.due.clear();
            now += Duration::from_millis(1);
        }
        assert!(was_due);
    }

    #[test]
    fn who_waits_for_a_book_is_not_tried_because_others_wait_for_that() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let key = |ms, action| event(ms, action, &[]).key;
        let event = event(6, Action::Request, &["momo"]);
        room.admit(waiting_for_book(event), NONE);
        room.stir(vec![key(5, Action::Return), key(6, Action::Request), key(7, Action::Request)]);
        assert!(!room.has_due());
        room.stir(vec![key(5, Action::Request)]);
        assert_eq!(due(&mut room), [5]);
    }

    #[test]
    fn a_round_tries_everybody_and_rounds_get_rarer() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let first = room.next_round().unwrap();
        room.tick(first - Duration::from_millis(1));
        assert!(!room.has_due());
        room.tick(first);
        assert!(room.has_due());
        assert_eq!(room.next_round().unwrap() - first, SHORTEST_PAUSE * 2);
    }

    #[test]
    fn rounds_of_very_many_leave_redis_time_for_others() {
        let mut room =
            room(&(1..10_000).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        let first = room.rounds.next;
        room.tick(first);
        assert_eq!(room.rounds.next - first, 9_999 * PAUSE_FOR_EACH);
    }

    #[test]
    fn who_comes_into_an_empty_room_is_tried_soon_however_long_others_waited_before() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        for _ in 0..8 {
            room.tick(room.rounds.next);
        }
        assert_eq!(due(&mut room), [5]);
        room.admit_behind(event(6, Action::Request, &["geb"]));
        assert!(room.rounds.next <= Instant::now() + SHORTEST_PAUSE);
        room.tick(room.rounds.next);
        assert!(room.rounds.pause < LONGEST_PAUSE);
    }

    /// One that waited alone was tried every 5 ms for ever: taking it out left an empty room, to which
    /// it came back as the first.
    #[test]
    fn rounds_get_rarer_also_for_one_that_waits_alone() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let now = room.next_round().unwrap();
            room.tick(now);
            let [waiting] = <[Waiting; 1]>::try_from(room.take_due(1, 1, |_| true)).unwrap();
            room.decided(&[]);
            room.admit_again(waiting, NONE);
            pauses.push(room.next_round().unwrap() - now);
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        room.decided(&[event(9, Action::Return, &["momo"])]);
        assert!(room.next_round().unwrap() <= Instant::now() + SHORTEST_PAUSE);
    }
}
