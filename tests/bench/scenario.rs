//! The events that are measured, the state before and after them, and the floor: the plain
//! commands that leave the same state and the same outcome, without any decision.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::common::{
    DEAD_LETTERS, LENT_BOOKS, OUTCOMES, REQUESTS, RETURNS, SHELVES, SHELVING, STORAGE,
};
use crate::wire::Wire;

/// LendingService's hash of book states.
pub const BOOK_STATES: &str = "lending_book_states";
/// How many books automated storage holds.
pub const CAPACITY: usize = 20;

/// How many books are lent before the scenarios that ask for lent ones; five to a user.
const LENT_BEFORE: usize = 1_000;
/// How many users take turns in requesting and returning.
const IN_TURN: usize = 1_000;
/// Trios of books in automated storage, before the scenario that lends these.
const TRIOS: usize = CAPACITY / 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// One new book for a new user each.
    NewBook,
    /// Three books that others have.
    AllLent,
    /// Three books from automated storage, then returned to it: the storage has room for six
    /// such trios.
    FromStorage,
    /// Three new books requested, then returned, users in turn.
    ThreeAndBack,
    /// All of it, and one event in ten malformed.
    Mix,
    /// One new book requested, then returned, users in turn.
    OneAndBack,
    /// The same by one single user.
    HotUser,
}

/// An event to be sent.
pub struct Sent {
    is_return: bool,
    /// Its first letter tells the floor what is to come of it.
    user: String,
    books: String,
}

/// An event as the floor reads it.
pub struct Read {
    pub is_return: bool,
    pub id: String,
    pub user: String,
    pub books: String,
}

/// What must be there after `n` events.
pub struct Expected {
    pub loans: usize,
    pub dead_letters: usize,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::NewBook => "1 new book, new user",
            Self::AllLent => "3 books, all lent",
            Self::FromStorage => "3 from storage, and back",
            Self::ThreeAndBack => "3 new ones, and back",
            Self::Mix => "mix, 10 % malformed",
            Self::OneAndBack => "1 new one, and back",
            Self::HotUser => "1 and back, hot user",
        }
    }

    /// The n-th event.
    fn event(self, n: usize) -> Sent {
        let sent = |is_return, user, books| Sent { is_return, user, books };
        let three = |n: usize| format!("b{n}x,b{n}y,b{n}z");
        match self {
            Self::NewBook => sent(false, format!("n{n}"), format!("book{n}")),
            Self::AllLent => {
                let [a, b, c] = [0, 1, 2].map(|k| (n + k) % LENT_BEFORE);
                sent(false, format!("l{n}"), format!("lent{a},lent{b},lent{c}"))
            }
            Self::FromStorage => {
                let pair = n / 2;
                let books: Vec<_> =
                    (0..3).map(|k| format!("stored{}", pair % TRIOS * 3 + k)).collect();
                sent(n % 2 == 1, format!("s{}", pair % IN_TURN), books.join(","))
            }
            Self::ThreeAndBack => {
                let pair = n / 2;
                sent(n % 2 == 1, format!("p{}", pair % IN_TURN), three(pair))
            }
            Self::OneAndBack => {
                let pair = n / 2;
                sent(n % 2 == 1, format!("p{}", pair % IN_TURN), format!("b{pair}"))
            }
            Self::HotUser => sent(n % 2 == 1, "p".to_owned(), format!("b{}", n / 2)),
            Self::Mix => match n % 10 {
                0..=2 => Self::NewBook.event(n),
                3 | 4 => Self::AllLent.event(n),
                at @ 5..=8 => Self::ThreeAndBack.event(n / 10 * 4 + at - 5),
                _ => sent(false, format!("x{n}"), String::new()),
            },
        }
    }

    /// Lays down what is there before the first event.
    pub fn prepare(self, wire: &mut Wire) {
        for (stream, group) in [
            (REQUESTS, "lending_service"),
            (RETURNS, "lending_service"),
            (SHELVING, "shelving_service"),
        ] {
            wire.push(&["XGROUP", "CREATE", stream, group, "0", "MKSTREAM"]);
        }
        match self {
            Self::AllLent | Self::Mix => lend(wire, LENT_BEFORE),
            Self::FromStorage => {
                for n in 0..TRIOS * 3 {
                    let book = format!("stored{n}");
                    wire.push(&["SADD", STORAGE, &book]);
                    wire.push(&["HSET", SHELVES, &book, "1-0"]);
                }
            }
            _ => {}
        }
        wire.exchange();
    }

    /// Adds events `from..to` to their streams.
    pub fn fill(self, wire: &mut Wire, from: usize, to: usize) {
        const PIPELINE: usize = 1_000;
        for first in (from..to).step_by(PIPELINE) {
            self.pack(wire, first, to.min(first + PIPELINE));
            wire.exchange();
        }
    }

    /// The commands that add them, under ids that grow across both streams as those of
    /// `library-req` do.
    pub fn pack(self, wire: &mut Wire, from: usize, to: usize) {
        const IN_A_MILLISECOND: usize = 50;
        for n in from..to {
            let ms = 1_700_000_000_000 + n / IN_A_MILLISECOND;
            self.push(wire, n, &format!("{ms}-{}000000", n % IN_A_MILLISECOND + 1));
        }
    }

    /// Adds events under the ids that Redis gives: only where all are requests.
    pub fn fill_now(self, wire: &mut Wire, from: usize, to: usize) {
        for n in from..to {
            self.push(wire, n, "*");
        }
        wire.exchange();
    }

    fn push(self, wire: &mut Wire, n: usize, id: &str) {
        let event = self.event(n);
        let stream = if event.is_return { RETURNS } else { REQUESTS };
        wire.push(&["XADD", stream, id, "user_id", &event.user, "book_ids", &event.books]);
    }

    pub fn expected(self, n: usize) -> Expected {
        match self {
            Self::NewBook => Expected { loans: n, dead_letters: 0 },
            Self::AllLent => Expected { loans: LENT_BEFORE, dead_letters: 0 },
            Self::Mix => Expected { loans: LENT_BEFORE + n / 10 * 3, dead_letters: n / 10 },
            _ => Expected { loans: 0, dead_letters: 0 },
        }
    }
}

/// Lends books as if by an old request, five to a user.
pub fn lend(wire: &mut Wire, books: usize) {
    for n in 0..books {
        let (book, user) = (format!("lent{n}"), format!("owner{}", n / 5));
        wire.push(&["HSET", LENT_BOOKS, &book, &user]);
        wire.push(&["HSET", SHELVES, &book, "1-0"]);
        wire.push(&["HSET", BOOK_STATES, &book, "=1-0"]);
        wire.push(&["INCRBY", &format!("user:{user}:count"), "1"]);
        if wire.len() >= 4_000 {
            wire.exchange();
        }
    }
    wire.exchange();
}

/// The floor's commands for one event. `room` is what is left of automated storage.
pub fn plain(wire: &mut Wire, event: &Read, room: &AtomicI64) {
    let Read { is_return, id, user, books } = event;
    let stream = if *is_return { RETURNS } else { REQUESTS };
    wire.push(&["XACK", stream, "lending_service", id]);
    wire.push(&["XDEL", stream, id]);
    let list: Vec<&str> = books.split(',').collect();
    let number = list.len().to_string();
    let count = format!("user:{user}:count");
    let action = if *is_return { "return" } else { "request" };
    let mut outcome = vec!["XADD", OUTCOMES, "MAXLEN", "~", "100000", "*"];
    outcome.extend(["event_id", id, "action", action, "user_id", user, "outcome"]);
    let lent = list.iter().flat_map(|book| [*book, user.as_str()]);
    match (user.as_bytes()[0], is_return) {
        (b'x', _) => {
            wire.push(&[
                "XADD",
                DEAD_LETTERS,
                "*",
                "stream",
                stream,
                "event_id",
                id,
                "cause",
                "no_book_ids",
                "deliveries",
                "1",
                "user_id",
                user,
                "book_ids",
                "",
            ]);
            outcome.extend(["rejected", "cause", "no_book_ids"]);
        }
        (b'l', _) => {
            outcome.extend(["denied", "cause", "none_available", "lent_to_another", books]);
            outcome.extend(["in_hand", "0"]);
        }
        (from, false) => {
            if from == b's' {
                wire.push(&[&["SREM", STORAGE], &list[..]].concat());
            } else {
                for book in &list {
                    wire.push(&["HSETNX", SHELVES, book, id]);
                }
            }
            wire.push(&["INCRBY", &count, &number]);
            wire.push(&["HSET", LENT_BOOKS].into_iter().chain(lent).collect::<Vec<_>>());
            outcome.extend(["accepted", "book_ids", books, "in_hand", &number]);
        }
        (from, true) => {
            wire.push(&[&["HDEL", LENT_BOOKS], &list[..]].concat());
            wire.push(&["DECRBY", &count, &number]);
            if from == b's' || room.fetch_sub(list.len() as i64, Ordering::Relaxed) > 2 {
                wire.push(&[&["SADD", STORAGE], &list[..]].concat());
            } else {
                wire.push(&["XADD", SHELVING, "*", "book_ids", books]);
            }
            outcome.extend(["returned", "book_ids", books, "in_hand", "0"]);
        }
    }
    wire.push(&outcome);
}
