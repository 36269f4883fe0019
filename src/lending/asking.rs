//! When shelving is asked for the books of a request in front of a try: a fetch in the same write costs
//! little where it hands books out, and is a call for nothing where it does not.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::decide::{Doubt, Try};
use super::waiting::Waiting;
use crate::event::{Action, Event, EventKey};

/// Shelving is asked before anything is decided if it lately handed out at least one of this number of
/// books. Where most books are lent or in automated storage, that would be a call for nothing;
/// where they are on their shelves, deciding first would be.
const WORTH_ASKING: usize = 4;

/// The most requests of the waiting room for which shelving is asked once more in front of their next try.
///
/// What waits for something older has put its books back. Tried without asking, each such request would be
/// reserved its books in one call, be given them in a second and be refused in a third. Asked ahead, a queue
/// of refusals is decided by the dozen.
///
/// Only the oldest of all are asked for: one at first, and twice as many each time the front of the queue has
/// moved on. When one of those that were asked for has to wait even so, its books went back to their shelves
/// in vain, and half as many are asked for the next time, in the end none: otherwise one that waits for what
/// other instances have in hand would fetch its books and put them back for ever (I5).
///
/// Left out is what may tie with a return that waits, and all behind it: these are tried several times in a call,
/// and until their books are back on their shelves nobody is decided who ties with them.
const MOST_AHEAD: usize = 128;

/// A request that has waited for so long since shelving was asked for it is asked for anew. It may have a book that
/// everybody believes to be put back: a hand-off can get lost, by an operator's XGROUP DELCONSUMER for example.
/// Whoever wants that book then waits for this request, which may wait for them.
const ANEW_AFTER: Duration = Duration::from_secs(10);

/// From one that is asked for anew to the next: thousands may wait, and the books of each go back to their shelves.
const ANEW_EVERY: Duration = Duration::from_millis(100);

/// Whether shelving is asked, and for whom, by what came of it so far.
pub struct AskPolicy {
    /// Whether newcomers ask before they are tried for the first time.
    first: bool,
    /// How many of the waiting room are asked for ahead, see [`MOST_AHEAD`].
    ahead: usize,
    /// When shelving was asked for all books of a request, or else when that was tried again for the first time.
    /// None if it is to be asked on the next try: it was not since the request was delivered, or what it said does
    /// not hold any more. The request may have some all the same, if its group was lost meanwhile.
    asked: HashMap<EventKey, Option<Instant>>,
    /// When one was asked for anew.
    anew: Instant,
}

impl Default for AskPolicy {
    fn default() -> Self {
        Self { first: true, ahead: 0, asked: HashMap::new(), anew: Instant::now() }
    }
}

impl AskPolicy {
    /// The first try of an event. `fresh`: nobody had it in hand before.
    pub fn first_try(&mut self, event: Event, fresh: bool) -> Try {
        // What was in hand before may have books already: only shelving can tell.
        let ask = self.first || !fresh;
        if !ask {
            self.ask_next_time(&event);
        }
        Try::first(event, ask)
    }

    /// Shelving is to be asked for all books of this request on its next try.
    pub fn ask_next_time(&mut self, event: &Event) {
        if event.key.action == Action::Request {
            self.asked.insert(event.key, None);
        }
    }

    /// The next tries of events that waited. `are_oldest`: nothing that waits is older than the first. `may_tie`:
    /// whether an event may tie with one of the other stream that waits.
    pub fn next_tries(
        &mut self,
        waited: Vec<Waiting>,
        are_oldest: bool,
        may_tie: impl Fn(EventKey) -> bool,
        now: Instant,
    ) -> Vec<Try> {
        let mut left = if are_oldest { self.ahead } else { 0 };
        let next = waited.into_iter().map(|Waiting { event, doubt, for_older }| {
            if left > 0 && (!for_older || doubt != Doubt::None || may_tie(event.key)) {
                // It may have to wait on, and then nothing behind it can be refused.
                left = 0;
            }
            let is_ahead = left > 0 && event.key.action == Action::Request;
            left -= usize::from(is_ahead);
            let ask =
                event.key.action == Action::Request && self.is_to_ask(event.key, is_ahead, now);
            Try { doubt, ..Try::first(event, ask) }
        });
        next.collect()
    }

    /// Whether shelving is asked for a request that waited; it counts as asked then.
    fn is_to_ask(&mut self, key: EventKey, is_ahead: bool, now: Instant) -> bool {
        let asked = self.asked.entry(key).or_insert(Some(now));
        let ask = match *asked {
            None => true,
            Some(_) if is_ahead => true,
            Some(at) => {
                let anew = now - at >= ANEW_AFTER && now - self.anew >= ANEW_EVERY;
                if anew {
                    self.anew = now;
                }
                anew
            }
        };
        if ask {
            *asked = Some(now);
        }
        ask
    }

    /// An event need not be asked for any more: it is out of hand.
    pub fn forget(&mut self, key: EventKey) {
        self.asked.remove(&key);
    }

    /// Of the books of first tries shelving had so many on their shelves.
    pub fn answered(&mut self, handed_out: usize, asked: usize) {
        self.first = handed_out * WORTH_ASKING >= asked;
    }

    /// Requests with so many books were tried without asking, and for so many it has to be asked after all.
    pub fn tried_unasked(&mut self, books: usize, to_be_asked: usize) {
        if books > 0 && to_be_asked * WORTH_ASKING >= books {
            self.first = true;
        }
    }

    /// The front of the queue has moved on.
    pub fn front_moved(&mut self) {
        self.ahead = (2 * self.ahead).clamp(1, MOST_AHEAD);
    }

    /// What was asked for ahead has to wait on.
    pub fn asked_in_vain(&mut self) {
        self.ahead /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::AnswerWish;
    use crate::ids::{EventId, SEQ_STEP};
    use crate::lending::decide::asked;

    /// Requests that wait for what is older, with ids as `library-req` gives them.
    fn queue(length: u64) -> Vec<Waiting> {
        let request = |n| Event {
            key: EventKey { id: EventId { ms: 5, seq: n * SEQ_STEP }, action: Action::Request },
            user: "user1".parse().unwrap(),
            books: vec![format!("book{n}").parse().unwrap()],
            answer: AnswerWish::None,
        };
        let waiting = |n| Waiting { event: request(n), doubt: Doubt::None, for_older: true };
        (1..=length).map(waiting).collect()
    }

    fn asked_ahead(policy: &mut AskPolicy, waited: Vec<Waiting>, are_oldest: bool) -> usize {
        // As a return would that waits and has this id.
        let may_tie = |key: EventKey| key.id.seq == 3 * SEQ_STEP + 1;
        asked(&policy.next_tries(waited, are_oldest, may_tie, Instant::now())).count()
    }

    #[test]
    fn a_queue_that_moves_at_its_front_is_asked_for_by_more_each_time_up_to_a_bound() {
        let mut policy = AskPolicy::default();
        assert_eq!(asked_ahead(&mut policy, queue(3), true), 0, "none has moved yet");
        let mut numbers = Vec::new();
        for _ in 0..9 {
            policy.front_moved();
            numbers.push(asked_ahead(&mut policy, queue(1_000), true));
        }
        assert_eq!(numbers, [1, 2, 4, 8, 16, 32, 64, 128, 128]);
        policy.asked_in_vain();
        assert_eq!(asked_ahead(&mut policy, queue(1_000), true), 64);
        (0..7).for_each(|_| policy.asked_in_vain());
        assert_eq!(asked_ahead(&mut policy, queue(1_000), true), 0, "not for ever (I5)");
    }

    #[test]
    fn nothing_is_asked_for_ahead_that_may_have_to_wait_on_or_is_behind_that() {
        let mut policy = AskPolicy::default();
        (0..4).for_each(|_| policy.front_moved());
        assert_eq!(asked_ahead(&mut policy, queue(5), false), 0, "something older is in hand");
        let spoil: [fn(&mut Waiting); 5] = [
            |waiting| waiting.for_older = false,
            |waiting| waiting.doubt = Doubt::ToldNo,
            |waiting| waiting.event.key.id.seq += 1,
            // A plain XADD gives such an id. None of them was asked for, tie or no tie: behind one return a queue of
            // them took twenty times as long.
            |waiting| waiting.event.key.id.seq += 2,
            |waiting| waiting.event.key.action = Action::Return,
        ];
        let asked = spoil.map(|spoil| {
            let mut waited = queue(5);
            spoil(&mut waited[2]);
            asked_ahead(&mut policy, waited, true)
        });
        assert_eq!(asked, [2, 2, 2, 5, 4], "a return has nothing to ask for, and holds up nothing");
    }

    /// One whose book was out for it, which nobody knew of, waited for an older one that waited for the book.
    #[test]
    fn who_waits_for_long_is_asked_for_anew_one_after_the_other() {
        let mut policy = AskPolicy::default();
        let begin = Instant::now();
        let mut asked_after = |time: Duration| {
            let waited = queue(3);
            asked(&policy.next_tries(waited, false, |_| false, begin + time)).count()
        };
        let moments = [
            Duration::ZERO,
            ANEW_AFTER - ANEW_EVERY,
            ANEW_AFTER,
            ANEW_AFTER + ANEW_EVERY / 2,
            ANEW_AFTER + ANEW_EVERY,
            ANEW_AFTER + 2 * ANEW_EVERY,
            ANEW_AFTER + 3 * ANEW_EVERY,
            2 * ANEW_AFTER,
        ];
        assert_eq!(moments.map(&mut asked_after), [0, 0, 1, 0, 1, 1, 0, 1]);
        for one in queue(3) {
            policy.forget(one.event.key);
        }
        assert!(policy.asked.is_empty());
    }

    #[test]
    fn newcomers_ask_first_where_shelving_hands_out_one_book_in_four() {
        let mut policy = AskPolicy::default();
        let newcomer = |policy: &mut AskPolicy, n: u64, fresh| {
            let event = queue(n).pop().unwrap().event;
            let one = policy.first_try(event, fresh);
            asked(&[one]).count() == 1
        };
        assert!(newcomer(&mut policy, 1, true));
        policy.answered(24, 100);
        assert!(!newcomer(&mut policy, 2, true));
        assert!(
            newcomer(&mut policy, 3, false),
            "it may have fetched books when it was in hand before"
        );
        // Whoever was never asked for is asked for before anything is refused to it.
        assert_eq!(asked_ahead(&mut policy, queue(2), false), 1);
        assert_eq!(asked_ahead(&mut policy, queue(2), false), 0);
        policy.tried_unasked(100, 24);
        assert!(!newcomer(&mut policy, 4, true));
        policy.tried_unasked(100, 25);
        assert!(newcomer(&mut policy, 5, true));
    }
}
