//! Who has which book, and where the others are: the state that events change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Fields, LENT_BOOKS, Redis, SHELVES, STORAGE, State};

/// The state that events change, in the reference's form. Built by hand, it is laid down in
/// Redis or compared with what is there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Book -> user.
    pub loans: BTreeMap<String, String>,
    /// Books in automated storage.
    pub storage: BTreeSet<String>,
    /// Book -> the request that fetched it.
    pub shelves: BTreeMap<String, String>,
    /// User -> count; without those that are 0, which is the same as none.
    pub counts: BTreeMap<String, String>,
}

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// Books that were fetched by request `fetched_by` and are lent to `user`.
    pub fn lent(mut self, user: &str, books: &[&str], fetched_by: &str) -> Self {
        for book in books {
            self.lend(user, book);
            self.shelves.insert(book.to_string(), fetched_by.to_owned());
        }
        self
    }

    /// Books that were fetched by request `fetched_by` and are in automated storage.
    pub fn stored(mut self, books: &[impl AsRef<str>], fetched_by: &str) -> Self {
        for book in books {
            self.storage.insert(book.as_ref().to_owned());
            self.shelves.insert(book.as_ref().to_owned(), fetched_by.to_owned());
        }
        self
    }

    /// Books that some request fetched once and that are nowhere since.
    pub fn nowhere(mut self, books: &[&str], fetched_by: &str) -> Self {
        for book in books {
            self.shelves.insert(book.to_string(), fetched_by.to_owned());
        }
        self
    }

    fn lend(&mut self, user: &str, book: &str) {
        self.loans.insert(book.to_owned(), user.to_owned());
        self.add(user, 1);
    }

    fn add(&mut self, user: &str, books: i64) {
        let count = self.counts.get(user).map_or(0, |count| count.parse().expect("a count"));
        match count + books {
            0 => drop(self.counts.remove(user)),
            count => drop(self.counts.insert(user.to_owned(), count.to_string())),
        }
    }

    /// What a state says.
    pub fn of(state: &State) -> Self {
        let counts = state.0.iter().filter_map(|(key, content)| {
            let user = key.strip_prefix("user:")?.strip_suffix(":count")?;
            match content {
                super::Content::String(count) if count == "0" => None,
                super::Content::String(count) => Some((user.to_owned(), count.clone())),
                other => Some((user.to_owned(), format!("{other:?}"))),
            }
        });
        Self {
            loans: state.hash(LENT_BOOKS),
            storage: state.set(STORAGE),
            shelves: state.hash(SHELVES),
            counts: counts.collect(),
        }
    }

    /// Lays this state down as the reference application would have left it.
    pub fn lay_down(&self, redis: &Redis) {
        let hash = |key: &str, map: &BTreeMap<String, String>| {
            for (field, value) in map {
                redis.cmd(&["HSET", &redis.key(key), field, value]);
            }
        };
        hash(LENT_BOOKS, &self.loans);
        hash(SHELVES, &self.shelves);
        for book in &self.storage {
            redis.cmd(&["SADD", &redis.key(STORAGE), book]);
        }
        for (user, count) in &self.counts {
            redis.cmd(&["SET", &redis.key(&format!("user:{user}:count")), count]);
        }
    }

    /// Goes through outcomes in the order in which they were committed: no book is lent twice,
    /// none taken back from somebody who does not have it, and each `in_hand` is true. At the
    /// end the loans and counts of this ledger are what they must be now.
    pub fn replay(&mut self, outcomes: &[Fields]) {
        for outcome in outcomes {
            let list = |name: &str| -> Vec<&str> {
                outcome.get(name).map(|books| books.split(',').collect()).unwrap_or_default()
            };
            let user = &outcome["user_id"];
            for book in list("book_ids") {
                if outcome["outcome"] == "accepted" {
                    let holder = self.loans.get(book);
                    assert!(holder.is_none(), "{outcome:?} lends {book}, which {holder:?} has");
                    self.lend(user, book);
                } else {
                    let holder = self.loans.remove(book);
                    assert_eq!(holder.as_ref(), Some(user), "{outcome:?} takes {book} from them");
                    self.add(user, -1);
                }
            }
            for (list_name, right) in [("already_yours", true), ("lent_to_another", false)] {
                for book in list(list_name) {
                    let holder = self.loans.get(book);
                    assert!(
                        holder.is_some_and(|holder| (holder == user) == right),
                        "{outcome:?}, but {book} is lent to {holder:?}"
                    );
                }
            }
            let count = self.counts.get(user).map_or("0", String::as_str);
            if let Some(in_hand) = outcome.get("in_hand") {
                assert_eq!(in_hand, count, "in_hand of {outcome:?}");
            }
            assert!(count.parse::<u32>().unwrap() <= 5, "{outcome:?} makes it {count} books");
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Ledger")?;
        writeln!(f, "  loans   {:?}", self.loans)?;
        writeln!(f, "  storage {:?}", self.storage)?;
        writeln!(f, "  shelves {:?}", self.shelves)?;
        write!(f, "  counts  {:?}", self.counts)
    }
}
