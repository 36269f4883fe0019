//! The waiting room: events that cannot be refused yet, because something older is undecided or a
//! book is reserved or on its way to its shelf (I8). They hold nothing while they wait.
//!
//! What waits is tried again oldest first, before newer events that ask for the same books
//! (library-lending(7), Order): so a newcomer that asks for an awaited book is sent through this
//! room as well. What is worth another try is found by book and by user, whether something was decided here or
//! another instance tells of it ([`News`]). Not everything that ends a wait is told: when another instance rings,
//! some of the oldest are tried, and from time to time everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use super::decide::{Change, Doubt};
use super::news::News;
use super::pace::{Bell, Cost, MOST_SHARE, Round, Rounds, Share};
use crate::event::{Action, Event, EventKey};
use crate::ids::{BookId, EventId, UserId};

/// How many of the oldest are tried again when events older than they were decided: at least, and
/// for each of those. A queue of refusals that wait for each other then flows in growing chunks,
/// and one that is stuck behind somebody else's event costs little.
const LEAST_OLDEST: usize = 16;
const OLDEST_FOR_EACH: usize = 2;

/// How many of a user's events are tried again when one of them was decided: what a user may have
/// in hand is a handful of books.
const OLDEST_OF_A_USER: usize = 8;

/// One in so many of those that are taken out is not among the oldest, but the one whose turn it is, and one at
/// least: where the oldest wait for what somebody else has in hand, and are due again and again, all others
/// come to a try as well.
const IN_TURN: usize = 8;

/// How many times as many as are to be taken out are looked at: some may not go just now. They are looked at
/// again soon; but not all of a crowd each time.
const LOOK_AT: usize = 2;

/// How many events, and about how many books, are taken out for the sake of one that asks for the same: requests
/// may hang together by thousands, each by a book of the one before.
const MOST_IN_COMPANY: usize = 128;
const MOST_BOOKS_IN_COMPANY: usize = 1_000;

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

/// What had been heard when a try was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// How often books had arrived on their shelves.
    arrivals: u64,
    /// How much news had come.
    news: u64,
}

/// Who of those that ask for a book is worth another try.
#[derive(Clone, Copy)]
enum Who {
    /// All of them.
    Asks,
    /// The requests.
    Requests,
    /// Those that wait for a book, and not only for what is older.
    WaitsForBooks,
    /// These, and the returns: their user may have it now.
    WaitsOrReturns,
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
#[derive(Debug, Default)]
pub struct WaitingRoom {
    by_age: BTreeMap<EventKey, Waiting>,
    by_book: HashMap<BookId, BTreeSet<EventKey>>,
    by_user: HashMap<UserId, BTreeSet<EventKey>>,
    for_books: BTreeSet<EventKey>,
    due: BTreeSet<EventKey>,
    /// What newcomers ask for: all requests for these become due in [`WaitingRoom::take_due`], once
    /// for a whole crowd of newcomers.
    asked_for: HashSet<BookId>,
    share: Share,
    /// The last that was looked at in its turn, and not because it was among the oldest.
    last_in_turn: Option<EventKey>,
    /// The last that was taken out of a company that was too large to be taken out as a whole.
    cut_off_at: Option<EventKey>,
    now: Moment,
    /// The last news, for those that are out for a try.
    recent: VecDeque<News>,
    /// Whether a ring that is not answered yet did not say whom it concerns.
    is_vague: bool,
    rounds: Rounds,
    bell: Bell,
    cost: Cost,
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

    /// Whether somebody waits of whom it is not known who came first.
    pub fn has_tie_of(&self, key: EventKey) -> bool {
        let at = |seq, action| EventKey { id: EventId { seq, ..key.id }, action };
        let of_its_ms = at(0, Action::Request)..=at(u64::MAX, Action::Return);
        self.by_age.range(of_its_ms).any(|(other, _)| key.ties_with(*other))
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

    /// Lets an event in after its first try, which ended in WAIT and was sent at a `moment`.
    pub fn admit(&mut self, waiting: Waiting, moment: Moment) {
        if self.by_age.is_empty() {
            self.rounds.reset();
            self.bell.front_moved(Instant::now());
        }
        self.admit_again(waiting, moment);
    }

    /// Lets an event in again that was taken out for another try: in vain, so that nothing is to be
    /// tried any sooner for it. But what was heard since it was sent may have come too late for it.
    pub fn admit_again(&mut self, waiting: Waiting, moment: Moment) {
        let has_arrived = self.now.arrivals != moment.arrivals && !waiting.for_older;
        let mut news = self.recent.iter().rev().take(self.news_since(moment));
        if has_arrived || news.any(|news| news.concerns(&waiting.event)) {
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

    /// What has been heard: to be remembered when a try is sent.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Nothing that was sent before this moment is out any more.
    pub fn forget_before(&mut self, moment: Moment) {
        let number = self.recent.len().saturating_sub(self.news_since(moment));
        self.recent.drain(..number);
    }

    fn news_since(&self, moment: Moment) -> usize {
        usize::try_from(self.now.news - moment.news).unwrap_or(usize::MAX)
    }

    /// Lets a newcomer in that asks for an awaited book: it is tried at once, after those that
    /// were here before and ask for the same.
    pub fn admit_behind(&mut self, event: Event) {
        self.asked_for.extend(event.books.iter().cloned());
        let key = event.key;
        self.admit(Waiting { event, doubt: Doubt::None, for_older: true }, self.now);
        self.due.insert(key);
    }

    /// Somebody waits for these to be tried: they are worth it, as far as they are here and wait for what
    /// is older. Those that wait for a book, or out of doubt, are tried when one arrives or in a round: two
    /// of them, each tried without the other, would be named in turn for ever.
    pub fn stir(&mut self, events: Vec<EventKey>) {
        let for_older = |key: &EventKey| self.by_age.get(key).is_some_and(|one| one.for_older);
        self.due.extend(events.into_iter().filter(for_older));
    }

    fn stir_books(&mut self, books: &mut dyn Iterator<Item = &BookId>, who: Who) {
        for key in books.filter_map(|book| self.by_book.get(book)).flatten() {
            let is_meant = match who {
                Who::Asks => true,
                Who::Requests => key.action == Action::Request,
                Who::WaitsForBooks => self.for_books.contains(key),
                Who::WaitsOrReturns => key.action == Action::Return || self.for_books.contains(key),
            };
            if is_meant {
                self.due.insert(*key);
            }
        }
    }

    fn stir_users<'a>(&mut self, users: impl IntoIterator<Item = &'a UserId>) {
        for user in users {
            let same_user = self.by_user.get(user).into_iter().flatten();
            self.due.extend(same_user.take(OLDEST_OF_A_USER));
        }
    }

    /// Events were decided: those for whom that may make a difference, and the oldest if they were older than
    /// they, are worth another try. Of books that are lent it makes one to returns, and of those that were reserved
    /// for who was refused to those only who wait for a book: all others could be refused before and can be now.
    pub fn decided(&mut self, events: &[(Change, Event)]) {
        if events.is_empty() {
            return;
        }
        let Some(oldest) = self.by_age.keys().next() else { return };
        self.rounds.hasten();
        // In the same millisecond it is not known which came first.
        let older = || events.iter().filter(|(_, event)| event.key.id.ms <= oldest.id.ms);
        if let Some(newest) = older().map(|(_, event)| event.key.id.ms).max() {
            let mut count = LEAST_OLDEST.max(OLDEST_FOR_EACH * older().count());
            if newest < oldest.id.ms {
                count = count.max(of_oldest_ms(&self.by_age));
            }
            self.due.extend(self.by_age.keys().take(count));
        }
        // Once each: thousands may wait for a book that all of these asked for.
        for (change, who) in [
            (Change::Nothing, Who::WaitsForBooks),
            (Change::Lent, Who::WaitsOrReturns),
            (Change::Freed, Who::Asks),
        ] {
            let of_change = events.iter().filter(|(its, _)| *its == change);
            let books: HashSet<_> = of_change.flat_map(|(_, event)| &event.books).collect();
            self.stir_books(&mut books.into_iter(), who);
        }
        let changed = events.iter().filter(|(change, _)| *change != Change::Nothing);
        self.stir_users(changed.map(|(_, event)| &event.user));
    }

    /// Books have arrived on their shelves: every request that waits for one is worth another try.
    pub fn shelved(&mut self) {
        self.now.arrivals += 1;
        self.due.extend(&self.for_books);
    }

    /// Another instance has decided something, or put books on their shelves. Whom that concerns is worth
    /// another try now; the oldest are at the next tick, or when the pause after the last answered ring is
    /// over. Who is out for a try, for which the news may have come too late, is due again when it is back.
    pub fn heard(&mut self, news: News) {
        self.bell.ring();
        self.is_vague |= news.is_vague;
        self.stir_books(&mut news.books.iter(), Who::Asks);
        self.stir_users(&news.users);
        self.rounds.hasten();
        self.now.news += 1;
        self.recent.push_back(news);
    }

    /// How many that waited were tried, how many of those were decided, and how long it took.
    pub fn tried(&mut self, number: usize, decided: usize, took: Duration) {
        self.share.note(number, decided);
        if decided == 0 {
            self.cost.note(number, took);
        }
    }

    /// The oldest of those that waited was decided.
    pub fn front_moved(&mut self, now: Instant) {
        self.bell.front_moved(now);
    }

    /// When the next round is due or the next ring is answered, if anybody waits.
    pub fn next_round(&self) -> Option<Instant> {
        let round = self.rounds.next(self.len(), &self.cost);
        let next = self.bell.next().map_or(round, |ring| ring.min(round));
        (!self.is_empty()).then_some(next)
    }

    /// Answers a ring, and begins a round if it is time: those are worth another try.
    pub fn tick(&mut self, now: Instant) {
        if self.is_empty() {
            return;
        }
        match self.rounds.take_due(now, self.len(), &self.cost, self.has_due()) {
            Some(Round::All) => self.due.extend(self.by_age.keys()),
            // They were just tried for a ring, or are now; and the next ring does not have to wait for it.
            Some(Round::Oldest) if !self.bell.is_deaf(now) => {
                let number = LEAST_OLDEST.max(of_oldest_ms(&self.by_age));
                self.due.extend(self.by_age.keys().take(number));
            }
            Some(Round::Oldest) | None => {}
        }
        if let Some(number) = self.bell.answer(now, || of_oldest_ms(&self.by_age)) {
            self.due.extend(self.by_age.keys().take(number));
            if std::mem::take(&mut self.is_vague) {
                self.due.extend(self.for_books.iter().take(number));
            }
        }
    }

    /// Takes out the oldest that are worth another try and that `may_go`, and with each the oldest
    /// who waits for one of its books, so that it does not overtake that one: about `count` at
    /// most, and none more once they have as many as `books` books. In the order of their ids. A long chain of
    /// requests, each for a book of the one before, comes part by part, the oldest first: its oldest alone may
    /// wait on for long, and those behind it would come to no try meanwhile; and as a whole it would have Redis
    /// at work for seconds, for each of them that is decided.
    ///
    /// If something of the millisecond of the oldest of all is due, the oldest comes along: it may only need
    /// to see that the others wait for it.
    pub fn take_due(
        &mut self,
        count: usize,
        books: usize,
        may_go: impl Fn(&Event) -> bool,
    ) -> Vec<Waiting> {
        let asked_for = std::mem::take(&mut self.asked_for);
        self.stir_books(&mut asked_for.iter(), Who::Requests);
        let is_of_oldest_ms =
            |oldest: &EventKey| self.due.first().is_some_and(|first| first.id.ms == oldest.id.ms);
        let oldest = self.by_age.keys().next().copied().filter(is_of_oldest_ms);
        // Who only comes along takes nobody's place: with as many books as there is room for, it would go
        // again and again, and never those for whom it does.
        let least = 2 * usize::from(oldest.is_some_and(|oldest| self.due.insert(oldest)));
        let count = count.min(self.share.at_once());
        let mut taken = Taken::default();
        let mut stuck = HashSet::new();
        for key in self.due_behind(None, LOOK_AT * count) {
            let is_enough = taken.is_enough(count - count.div_ceil(IN_TURN), books);
            if is_enough && taken.events.len() >= least {
                break;
            }
            taken.add(self.take_with_those_before(key, &mut stuck, &may_go));
        }
        let mut is_one_owed = true;
        for key in self.due_behind(self.last_in_turn, LOOK_AT * count) {
            if !is_one_owed && taken.is_enough(count, books) {
                break;
            }
            self.last_in_turn = Some(key);
            let company = self.take_with_those_before(key, &mut stuck, &may_go);
            is_one_owed &= company.is_empty();
            taken.add(company);
        }
        taken.events.into_values().collect()
    }

    /// Takes out one that is due, with those that go before it, or a part of those if they are too many; nobody
    /// unless all of them may go. Who is `stuck` is known not to go, nor anybody behind it.
    fn take_with_those_before(
        &mut self,
        key: EventKey,
        stuck: &mut HashSet<EventKey>,
        may_go: impl Fn(&Event) -> bool,
    ) -> Vec<Waiting> {
        let goes = |key: &EventKey, event: &Event| !stuck.contains(key) && may_go(event);
        let Some(company) = self.with_those_before(key, goes) else {
            stuck.insert(key);
            return Vec::new();
        };
        let mut taken = Vec::new();
        for key in self.part_of(&company) {
            self.due.remove(&key);
            if let Some(waiting) = self.by_age.remove(&key) {
                self.forget(&waiting.event);
                taken.push(waiting);
            }
        }
        taken
    }

    /// Those of a company that are taken out together: all of them, or where they are too many as many as may be,
    /// behind those that were taken out the last time.
    fn part_of(&mut self, company: &BTreeSet<EventKey>) -> Vec<EventKey> {
        let part_behind = |at: Option<EventKey>| {
            let mut books = 0;
            let keys = company.range((at.map_or(Unbounded, Excluded), Unbounded)).copied();
            let fits = keys.take(MOST_IN_COMPANY).take_while(|key| {
                let fits = books < MOST_BOOKS_IN_COMPANY;
                books += self.by_age[key].event.books.len();
                fits
            });
            fits.collect::<Vec<_>>()
        };
        let mut part = part_behind(None);
        if part.len() < company.len() {
            let behind = self.cut_off_at.map_or_else(Vec::new, |at| part_behind(Some(at)));
            if !behind.is_empty() {
                part = behind;
            }
            self.cut_off_at = part.last().copied();
        }
        part
    }

    /// Up to `count` that are worth another try: those that come behind `one`, and then the oldest.
    fn due_behind(&self, one: Option<EventKey>, count: usize) -> Vec<EventKey> {
        let behind = self.due.range((one.map_or(Unbounded, Excluded), Unbounded));
        let oldest = one.map(|one| self.due.range(..=one));
        behind.chain(oldest.into_iter().flatten()).copied().take(count).collect()
    }

    /// An event, and those who are the oldest in the room to ask for a book of it or of one of
    /// them. Empty if it is not in the room; none if not all of them go.
    fn with_those_before(
        &self,
        key: EventKey,
        goes: impl Fn(&EventKey, &Event) -> bool,
    ) -> Option<BTreeSet<EventKey>> {
        let mut company = BTreeSet::new();
        let mut next = vec![key];
        while let Some(key) = next.pop() {
            let Some(waiting) = self.by_age.get(&key) else { continue };
            if !company.insert(key) {
                continue;
            }
            if !goes(&key, &waiting.event) {
                return None;
            }
            if key.action == Action::Return {
                continue;
            }
            for book in &waiting.event.books {
                let keys = self.by_book.get(book).into_iter().flatten();
                let oldest = keys.copied().find(|key| key.action == Action::Request);
                next.extend(oldest.filter(|oldest| *oldest < key));
            }
        }
        Some(company)
    }

    fn forget(&mut self, event: &Event) {
        for book in &event.books {
            remove(&mut self.by_book, book, event.key);
        }
        remove(&mut self.by_user, &event.user, event.key);
        self.for_books.remove(&event.key);
    }
}

/// How many of the oldest are of one millisecond, as far as one script may try them. For one of them to be decided,
/// all have to be tried, each in whatever hands it is.
fn of_oldest_ms(by_age: &BTreeMap<EventKey, Waiting>) -> usize {
    let mut oldest = by_age.keys().map(|key| key.id.ms).take(MOST_SHARE);
    let first = oldest.next();
    1 + oldest.take_while(|ms| Some(*ms) == first).count()
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
    use crate::ids::SEQ_STEP;
    use crate::lending::pace::{
        FEWEST_RUNG, LEAST_SHARE, LONGEST_DEAF, LONGEST_PAUSE, LONGEST_TO_A_ROUND, ROUND_IN,
        SHORTEST_DEAF, SHORTEST_PAUSE,
    };

    fn event(ms: u64, action: Action, books: &[&str]) -> Event {
        Event {
            key: EventKey { id: EventId { ms, seq: 0 }, action },
            user: format!("user{ms}").parse().unwrap(),
            books: books.iter().map(|book| book.parse().unwrap()).collect(),
            answer: AnswerWish::None,
        }
    }

    /// A return of a millisecond that has more.
    fn of_one_ms(seq: u64) -> Event {
        let mut event = event(5, Action::Return, &["geb"]);
        event.key.id.seq = seq;
        event
    }

    fn waiting_for_book(event: Event) -> Waiting {
        Waiting { event, doubt: Doubt::None, for_older: false }
    }

    /// Nothing was heard.
    const NONE: Moment = Moment { arrivals: 0, news: 0 };

    fn next_of_all(room: &WaitingRoom) -> Instant {
        room.rounds.next_of_all(room.len(), &room.cost)
    }

    fn due(room: &mut WaitingRoom) -> Vec<u64> {
        room.take_due(100, 100, |_| true).iter().map(|waiting| waiting.event.key.id.ms).collect()
    }

    fn freed(events: impl IntoIterator<Item = Event>) -> Vec<(Change, Event)> {
        events.into_iter().map(|event| (Change::Freed, event)).collect()
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

    /// Behind thousands that asked for the same books, each refusal had hundreds of them tried in vain.
    #[test]
    fn a_decision_stirs_those_for_whom_it_changes_something() {
        let of_user = |ms, book: &str| Event {
            user: "user".parse().unwrap(),
            ..event(ms, Action::Request, &[book])
        };
        for (change, stirred) in [
            (Change::Nothing, vec![12]),
            (Change::Lent, vec![11, 12, 13]),
            (Change::Freed, vec![10, 11, 12, 13]),
        ] {
            // The return may be of what is lent now; behind eight others of its user it came to no try for seconds.
            let mut room = room(&[
                event(10, Action::Request, &["geb"]),
                of_user(11, "momo"),
                event(13, Action::Return, &["geb"]),
            ]);
            room.admit(waiting_for_book(event(12, Action::Request, &["geb"])), NONE);
            room.decided(&[(change, of_user(99, "geb"))]);
            assert_eq!(
                room.due.iter().map(|key| key.id.ms).collect::<Vec<_>>(),
                stirred,
                "{change:?}"
            );
        }
    }

    /// For one of a millisecond to be decided all others have to be tried, and nothing had those tried that another
    /// instance's event waited for.
    #[test]
    fn when_the_front_comes_to_a_millisecond_all_of_it_is_tried() {
        for (ms, expected) in [(4, 100), (5, LEAST_OLDEST), (6, 0)] {
            let mut room = room(&(0..100).map(of_one_ms).collect::<Vec<_>>());
            room.decided(&[(Change::Nothing, event(ms, Action::Return, &["momo"]))]);
            assert_eq!(room.due.len(), expected, "{ms}");
        }
    }

    #[test]
    fn the_room_knows_ties() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let mut ordered = event(6, Action::Return, &["momo"]);
        ordered.key.id.seq = SEQ_STEP;
        room.admit(Waiting { event: ordered, doubt: Doubt::None, for_older: true }, NONE);
        let has_tie =
            |ms, seq, action| room.has_tie_of(EventKey { id: EventId { ms, seq }, action });
        assert!(has_tie(5, 7, Action::Return) && has_tie(5, SEQ_STEP, Action::Return));
        assert!(!has_tie(5, 7, Action::Request) && !has_tie(4, 0, Action::Return));
        assert!(has_tie(6, 2, Action::Request), "its own id does not tell");
        assert!(!has_tie(6, 2 * SEQ_STEP, Action::Request), "both are submit.lua's");
    }

    /// With two instances each waited for the other's oldest until its own heap of vain tries was done.
    #[test]
    fn the_oldest_are_tried_soon_though_others_are_always_due() {
        let mut room =
            room(&(1..2_000).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        let mut now = next_of_all(&room);
        room.tick(now);
        room.take_due(20, 1_000, |_| true).into_iter().for_each(|one| room.admit_again(one, NONE));
        assert!(room.has_due());
        let oldest = event(1, Action::Return, &[]).key;
        assert!(!room.due.contains(&oldest));
        let end = now + LONGEST_PAUSE + LONGEST_DEAF;
        while now < end && !room.due.contains(&oldest) {
            now += SHORTEST_DEAF;
            room.tick(now);
        }
        assert!(room.due.contains(&oldest));
    }

    /// Behind an event of a dead instance, each of the others' decisions had the oldest looked at five milliseconds
    /// later, and the ring that told of it had them tried as well: three instances kept Redis busy with that.
    #[test]
    fn the_oldest_are_not_looked_at_where_a_ring_has_just_had_them_tried() {
        let mut room =
            room(&(1..2_000).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        let rung = Instant::now() + LONGEST_TO_A_ROUND;
        room.tick(rung - LONGEST_PAUSE);
        room.heard(news("other\n"));
        room.tick(rung);
        room.due.clear();
        // As after a decision.
        room.rounds.hasten();
        room.tick(rung + SHORTEST_PAUSE);
        assert!(!room.has_due());
        room.tick(rung + LONGEST_DEAF + SHORTEST_PAUSE * 2);
        assert_eq!(room.due.len(), LEAST_OLDEST);
    }

    #[test]
    fn nothing_of_who_was_taken_out_is_left_in_the_room() {
        let mut room = room(&[event(1, Action::Return, &["geb"])]);
        room.admit(waiting_for_book(event(2, Action::Request, &["momo"])), NONE);
        room.tick(next_of_all(&room));
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
            room.decided(&freed(decided.map(back)));
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
        room.decided(&freed([of_user(200)]));
        assert_eq!(room.due.len(), OLDEST_OF_A_USER);
    }

    /// Each asks for a book of the one before.
    fn chain(length: u64) -> Vec<Event> {
        let link =
            |ms| event(ms, Action::Request, &[&format!("book{ms}"), &format!("book{}", ms + 1)]);
        (1..=length).map(link).collect()
    }

    /// It came as a whole with each call: thousands were tried for each that was decided, in scripts of seconds.
    #[test]
    fn a_long_chain_comes_part_by_part_up_to_the_last() {
        const LENGTH: u64 = 8_192;
        let chain = chain(LENGTH);
        let mut room = room(&chain);
        room.stir(vec![chain[LENGTH as usize - 1].key]);
        let looks = std::cell::Cell::new(0);
        let may_go = |_: &Event| {
            looks.set(looks.get() + 1);
            true
        };
        let mut seen = Vec::new();
        while room.has_due() {
            let taken = room.take_due(100, 100, may_go);
            assert!(!taken.is_empty() && taken.len() <= 2 * MOST_IN_COMPANY, "{}", taken.len());
            seen.extend(taken.iter().map(|waiting| waiting.event.key.id.ms));
            taken.into_iter().for_each(|waiting| room.admit_again(waiting, NONE));
        }
        assert!(seen.iter().copied().eq(1..=LENGTH), "{} were tried", seen.len());
        // Where each link goes through all of them it takes seconds, and hundreds of looks for each.
        assert!(looks.get() < 64 * LENGTH, "{}", looks.get());
    }

    /// For each of the links that were looked at, all those before it were.
    #[test]
    fn of_a_chain_that_may_not_go_each_link_is_looked_at_once() {
        let mut room = room(&chain(2_000));
        room.tick(next_of_all(&room));
        let looks = std::cell::Cell::new(0);
        let may_go = |event: &Event| {
            looks.set(looks.get() + 1);
            event.key.id.ms != 1
        };
        for _ in 0..50 {
            assert!(room.take_due(100, 100, may_go).is_empty());
        }
        assert!(looks.get() < 50 * 1_000, "{}", looks.get());
    }

    /// Of a crowd for a book that is under way all were looked at each time.
    #[test]
    fn a_crowd_that_may_not_go_is_not_looked_at_as_a_whole() {
        let mut room =
            room(&(1..2_000).map(|ms| event(ms, Action::Request, &["geb"])).collect::<Vec<_>>());
        room.tick(next_of_all(&room));
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
        first.decided(&freed([event(4, Action::Return, &["alice"])]));
        assert_eq!(due(&mut first), [5, 6]);
        let mut second = room(&waiting);
        second.decided(&freed([event(9, Action::Return, &["momo"])]));
        assert_eq!(due(&mut second), [6]);
        // A return waits for the request that it belongs to.
        let mut third = room(&[event(5, Action::Return, &["geb"])]);
        third.decided(&[(Change::Lent, event(9, Action::Request, &["geb"]))]);
        assert_eq!(due(&mut third), [5]);
        // A user at the limit may have another book, whichever came back.
        let mut fourth = room(&waiting);
        let user = waiting[1].user.clone();
        fourth.decided(&freed([Event { user, ..event(9, Action::Return, &["alice"]) }]));
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
        room.decided(&freed(crowd[..2_048].iter().cloned()));
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
        room.decided(&freed([event(9, Action::Return, &["nothing"])]));
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

    /// As it had as many books as there is room for, it went alone, time and again.
    #[test]
    fn the_oldest_comes_along_with_others_however_many_books_it_asks_for() {
        let mut events = [5, 5].map(|ms| event(ms, Action::Request, &["geb", "momo", "emma"]));
        events[1].key.id.seq = 1;
        events[1].books.iter_mut().for_each(|book| *book = format!("{book}-too").parse().unwrap());
        let mut room = room(&events);
        room.due.insert(events[1].key);
        let taken: Vec<_> =
            room.take_due(100, 3, |_| true).iter().map(|waiting| waiting.event.key).collect();
        assert_eq!(taken, [events[0].key, events[1].key]);
    }

    fn news(message: &str) -> News {
        News::read(message.as_bytes(), "worker1").unwrap()
    }

    #[test]
    fn a_ring_stirs_the_oldest_and_the_longer_they_stand_still_the_fewer_rings_do() {
        let waiting: Vec<_> = (1..1_000).map(|ms| event(ms, Action::Return, &["geb"])).collect();
        let mut room = room(&waiting);
        let start = Instant::now();
        let due_at = |room: &mut WaitingRoom, now: Instant| {
            room.heard(news("other"));
            room.tick(now);
            std::mem::take(&mut room.due).len()
        };
        let (mut now, mut rings, mut answered) = (start, 0, Vec::new());
        while now < start + LONGEST_TO_A_ROUND / 20 {
            now += SHORTEST_DEAF;
            rings += 1;
            answered.extend(Some(due_at(&mut room, now)).filter(|number| *number > 0));
        }
        assert_eq!(answered[..4], [16, 32, 64, 64]);
        assert!(answered.len() < rings / 5, "{} of {rings}", answered.len());
        // A while later still, and then it goes on.
        let now = start + LONGEST_TO_A_ROUND;
        due_at(&mut room, now);
        room.heard(news("other"));
        assert_eq!(room.bell.next(), Some(now + LONGEST_DEAF));
        room.front_moved(now);
        assert_eq!(room.bell.next(), Some(now + SHORTEST_DEAF));
        room.tick(now + SHORTEST_DEAF);
        assert_eq!(room.due.len(), FEWEST_RUNG);
    }

    /// Each of a millisecond waits until all others have been tried, in whatever hands they are.
    #[test]
    fn a_ring_stirs_all_of_the_oldest_ones_millisecond() {
        let waiting =
            (0..100).map(of_one_ms).chain((6..99).map(|ms| event(ms, Action::Return, &[])));
        let mut room = room(&waiting.collect::<Vec<_>>());
        room.heard(news("other"));
        room.tick(Instant::now() + SHORTEST_DEAF);
        assert_eq!(room.due.len(), 100);
    }

    #[test]
    fn a_ring_that_does_not_say_whom_it_concerns_stirs_those_who_wait_for_a_book() {
        let mut room =
            room(&(1..100).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        room.admit(waiting_for_book(event(200, Action::Request, &["momo"])), NONE);
        for (message, stirred) in [("other\nx,y", 0), ("other", 1)] {
            room.heard(news(message));
            room.tick(room.bell.next().unwrap());
            let newest = event(200, Action::Request, &[]).key;
            assert_eq!(usize::from(room.due.contains(&newest)), stirred, "{message}");
            room.due.clear();
        }
    }

    /// What another instance had decided was found in a round, or by those that were among the oldest: behind
    /// thousands that waited for an instance that had died, a return waited a second for its request.
    #[test]
    fn news_stir_those_whom_they_concern_however_many_wait() {
        let mut room =
            room(&(1..1_000).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        room.admit(waiting_for_book(event(2_000, Action::Request, &["momo"])), NONE);
        let of_user = |ms, user: &str| Event {
            user: user.parse().unwrap(),
            ..event(ms, Action::Request, &["kim"])
        };
        for ms in 3_000..3_020 {
            room.admit(waiting_for_book(of_user(ms, "user")), NONE);
        }
        room.heard(news("other\nsomebody,momo"));
        assert_eq!(due(&mut room), [2_000]);
        room.heard(news("other\nuser,x"));
        assert_eq!(due(&mut room).len(), OLDEST_OF_A_USER);
        room.heard(news("other\n,kim"));
        assert_eq!(due(&mut room).len(), 20 - OLDEST_OF_A_USER);
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
        let hears: [(fn(&mut WaitingRoom), _, _); 5] = [
            (|_| {}, false, false),
            (WaitingRoom::shelved, false, true),
            (|room| room.heard(news("other\nuser1,x")), true, true),
            (|room| room.heard(news("other\n,x\nuser9,geb")), true, true),
            (|room| room.heard(news("other\nuser9,x")), false, false),
        ];
        for for_older in [true, false] {
            let mut room = room(&[event(1, Action::Request, &["geb"])]);
            for (n, (hear, if_for_older, if_for_book)) in hears.into_iter().enumerate() {
                room.due.insert(event(1, Action::Request, &[]).key);
                let waiting = room.take_due(1, 1, |_| true).remove(0);
                let moment = room.now();
                hear(&mut room);
                // Others that are taken out meanwhile do not make it forgotten.
                assert!(room.take_due(1, 1, |_| true).is_empty());
                room.forget_before(moment);
                room.admit_again(Waiting { for_older, ..waiting }, moment);
                let expected = if for_older { if_for_older } else { if_for_book };
                assert_eq!(room.has_due(), expected, "{n}, for older: {for_older}");
                room.due.clear();
                room.forget_before(room.now());
                assert!(room.recent.is_empty());
            }
        }
    }

    /// Where one after the other was decided, some 400 others were tried for each.
    #[test]
    fn fewer_are_tried_at_once_where_most_wait_on() {
        let waiting: Vec<_> = (1..2_000).map(|ms| event(ms, Action::Return, &["geb"])).collect();
        let mut room = room(&waiting);
        let mut share = |tried, decided| {
            room.tried(tried, decided, SHORTEST_DEAF);
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

    /// So many wait behind somebody else's event: trying them all took three quarters of Redis' time where a
    /// try costs three times what was assumed, and all of it with three instances.
    #[test]
    fn rounds_of_very_many_leave_redis_time_for_others_however_slow_it_is() {
        let mut room =
            room(&(0..10_000).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        for (a_try, rest) in [(10, 2_000), (15, 3_000), (40, 5_000)] {
            (0..200).for_each(|_| room.tried(32, 0, 32 * Duration::from_micros(a_try)));
            let first = next_of_all(&room);
            room.tick(first);
            assert_eq!(room.due.len(), 10_000);
            room.due.clear();
            let next = next_of_all(&room) - first;
            assert_eq!((next.as_secs_f64() * 1e3).round() as u64, rest, "{ROUND_IN} times");
            // What is in front is looked at all the same.
            let look = room.next_round().unwrap();
            assert!(look <= first + LONGEST_PAUSE);
            room.tick(look);
            room.tick(look + LONGEST_DEAF);
            assert!((1..100).contains(&std::mem::take(&mut room.due).len()));
        }
    }

    /// Over a link of 30 ms, rounds of 200 came seconds apart.
    #[test]
    fn rounds_of_a_few_hundred_do_not_wait_for_a_slow_link() {
        let mut room =
            room(&(0..200).map(|ms| event(ms, Action::Return, &["geb"])).collect::<Vec<_>>());
        (0..200).for_each(|_| room.tried(16, 0, Duration::from_millis(30)));
        let first = next_of_all(&room);
        room.tick(first);
        assert!(next_of_all(&room) - first <= Duration::from_millis(250));
    }

    #[test]
    fn who_comes_into_an_empty_room_is_tried_soon_however_long_others_waited_before() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        for _ in 0..8 {
            room.tick(next_of_all(&room));
        }
        assert_eq!(due(&mut room), [5]);
        room.admit_behind(event(6, Action::Request, &["geb"]));
        assert!(next_of_all(&room) <= Instant::now() + SHORTEST_PAUSE);
        room.tick(next_of_all(&room));
        assert!(room.rounds.pause < LONGEST_PAUSE);
    }

    /// One that waited alone was tried every 5 ms for ever: taking it out left an empty room, to which
    /// it came back as the first.
    #[test]
    fn rounds_get_rarer_also_for_one_that_waits_alone() {
        let mut room = room(&[event(5, Action::Request, &["geb"])]);
        let (mut pauses, mut now) = (Vec::new(), Instant::now());
        for _ in 0..8 {
            now = room.next_round().unwrap();
            room.tick(now);
            let [waiting] = <[Waiting; 1]>::try_from(room.take_due(1, 1, |_| true)).unwrap();
            room.decided(&[]);
            room.admit_again(waiting, NONE);
            pauses.push(room.next_round().unwrap() - now);
        }
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        room.decided(&freed([event(9, Action::Return, &["momo"])]));
        assert_eq!(room.next_round().unwrap() - now, SHORTEST_PAUSE);
    }
}
