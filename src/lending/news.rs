//! What instances tell each other by the bell: who decided, or put books on their shelves, and which users
//! and books it concerned. For whoever waits for one of those it is as if it had been done here.
//!
//! The message is the instance's name, and a line for each event that changed something: its user, then the books,
//! with commas between them; either may be missing. Much comes in several messages. A name without a line break
//! is all that is told of an event that is too long for one.

use std::collections::HashSet;

use crate::event::Event;
use crate::ids::{BookId, UserId};

/// The longest message that is read. Ours have little more than 16 KiB, see decide.lua.
const MAX_BYTES: usize = 32 * 1024;

/// What was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Who has other books now.
    pub users: HashSet<UserId>,
    /// What was lent, given back or let go, and what has come to its shelf.
    pub books: HashSet<BookId>,
    /// Whether it may concern others as well.
    pub is_vague: bool,
}

impl News {
    /// Reads a message; none if it is `own`, from the instance of this name.
    pub fn read(message: &[u8], own: &str) -> Option<Self> {
        let mut lines = message.split(|byte| *byte == b'\n');
        if lines.next() == Some(own.as_bytes()) {
            return None;
        }
        let mut news = Self::default();
        if message.len() > MAX_BYTES || !message.contains(&b'\n') {
            return Some(Self { is_vague: true, ..news });
        }
        for line in lines {
            // Anybody may ring. What is no name is nobody's here.
            let mut names = line.split(|byte| *byte == b',');
            news.users.extend(names.next().and_then(|user| UserId::from_bytes(user).ok()));
            news.books.extend(names.filter_map(|book| BookId::from_bytes(book).ok()));
        }
        Some(news)
    }

    /// Whether it names an event's user, or a book of it.
    pub fn concerns(&self, event: &Event) -> bool {
        self.users.contains(&event.user) || event.books.iter().any(|book| self.books.contains(book))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Action, AnswerWish, EventKey};
    use crate::ids::EventId;

    fn read(message: &str) -> News {
        News::read(message.as_bytes(), "worker1").unwrap()
    }

    #[test]
    fn news_name_users_and_books_and_a_bare_ring_nobody() {
        assert_eq!(News::read(b"worker1\nuser1,geb", "worker1"), None);
        assert!(read("worker11").is_vague && read("").is_vague);
        assert_eq!(read("other\n\n"), News::default(), "it concerns nobody");
        assert!(read(&format!("other\nuser1,geb{}", ",x".repeat(MAX_BYTES))).is_vague);
        let news = read("other\nuser1,geb,momo\nuser2\n,kim\nuser\u{7},a\u{7}b, c");
        assert!(!news.is_vague);
        let concerns = |user: &str, book: &str| {
            let key = EventKey { id: EventId::default(), action: Action::Request };
            let (user, books) = (user.parse().unwrap(), vec![book.parse().unwrap()]);
            news.concerns(&Event { key, user, books, answer: AnswerWish::None })
        };
        for (user, book, expected) in [
            ("user1", "x", true),
            ("user2", "x", true),
            ("x", "geb", true),
            ("x", "momo", true),
            ("x", "kim", true),
            ("geb", "user1", false),
            ("other", "other", false),
        ] {
            assert_eq!(concerns(user, book), expected, "{user} {book}");
        }
    }
}
