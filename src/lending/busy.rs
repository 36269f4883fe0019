//! Which books the requests under way ask for.
//!
//! A request that waits is tried again before newer ones that ask for the same books. Whether one
//! that is under way will have to wait is not known until its reply is there: till then a newcomer
//! that asks for one of its books does not overtake it. Within one call decide.lua sees to that.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::event::{Action, Event};

/// The books, by their hashes: two books of one hash are taken for the same, which costs a newcomer
/// a moment's wait and no copy of every book's name.
#[derive(Debug)]
pub struct Busy {
    /// Of the hashes; random, lest somebody choose books whose hashes are the same.
    seed: u64,
    requests: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
}

/// What a hash is hashed with, so that it is not done twice.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only hashes are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Default for Busy {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(()), requests: HashMap::default() }
    }
}

impl Busy {
    /// A request goes out. Returns take nobody's book away and do not count.
    pub fn add(&mut self, event: &Event) {
        for hash in hashes(self.seed, event) {
            *self.requests.entry(hash).or_default() += 1;
        }
    }

    /// What came of it is known.
    pub fn remove(&mut self, event: &Event) {
        for hash in hashes(self.seed, event) {
            if let Some(count) = self.requests.get_mut(&hash) {
                *count -= 1;
                if *count == 0 {
                    self.requests.remove(&hash);
                }
            }
        }
    }

    /// Whether a request asks for a book that one under way asks for.
    pub fn concerns(&self, event: &Event) -> bool {
        !self.requests.is_empty()
            && hashes(self.seed, event).any(|hash| self.requests.contains_key(&hash))
    }
}

fn hashes(seed: u64, event: &Event) -> impl Iterator<Item = u64> {
    let books = match event.key.action {
        Action::Request => event.books.as_slice(),
        Action::Return => &[],
    };
    books.iter().map(move |book| xxh3_64_with_seed(book.as_str().as_bytes(), seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{AnswerWish, EventKey};
    use crate::ids::EventId;

    fn event(action: Action, books: &[&str]) -> Event {
        Event {
            key: EventKey { id: EventId { ms: 1, seq: 0 }, action },
            user: "user1".parse().unwrap(),
            books: books.iter().map(|book| book.parse().unwrap()).collect(),
            answer: AnswerWish::None,
        }
    }

    #[test]
    fn a_request_is_concerned_as_long_as_one_for_the_same_book_is_under_way() {
        let mut busy = Busy::default();
        let (first, second) =
            (event(Action::Request, &["geb"]), event(Action::Request, &["geb", "momo"]));
        busy.add(&first);
        busy.add(&second);
        busy.add(&event(Action::Return, &["alice"]));
        assert!(!busy.concerns(&event(Action::Return, &["geb"])));
        assert!(!busy.concerns(&event(Action::Request, &["alice"])));
        busy.remove(&second);
        assert!(busy.concerns(&event(Action::Request, &["alice", "geb"])));
        assert!(!busy.concerns(&event(Action::Request, &["momo"])));
        busy.remove(&first);
        assert!(!busy.concerns(&first));
    }
}
