//! Requests and returns as they stand in their streams, and what makes one well-formed.
//!
//! Nothing here talks to Redis. A malformed event is told apart here, once, by a [`Fault`] whose
//! word becomes the `cause` of the outcome `rejected`.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Index, IndexMut};
use std::time::Duration;

use crate::ids::{BookId, EventId, IdFault, UserId};

/// The field of an event that names the user.
pub const USER_ID_FIELD: &str = "user_id";
/// The field of an event that lists the books, joined by commas.
pub const BOOK_IDS_FIELD: &str = "book_ids";
/// The field of an event that asks for an answer, see [`AnswerWish`].
pub const ANSWER_FIELD: &str = "answer";

/// Up to this number, books are compared faster than hashed; and nearly every event has fewer.
pub const HANDFUL: usize = 8;

/// The most books that one event may name. More is no patron's errand, and one script must stay
/// short.
pub const MAX_BOOKS: usize = 1_000;

/// The most books that one hand-off may carry. It is put on its shelves by one command, and Redis 6.2 takes
/// a million arguments.
pub const MAX_CARRIED: usize = 500_000;

/// What an event asks for. The order is that of events with equal ids: the request comes first
/// (library-lending(7), Order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// To be lent books.
    Request,
    /// To give books back.
    Return,
}

impl Action {
    /// Both, in their order.
    pub const ALL: [Self; 2] = [Self::Request, Self::Return];

    /// The word that outcomes and the command line use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Return => "return",
        }
    }

    /// The action of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "request" => Some(Self::Request),
            "return" => Some(Self::Return),
            _ => None,
        }
    }
}

/// One value for requests and one for returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByAction<T> {
    request: T,
    r#return: T,
}

impl<T> ByAction<T> {
    /// One of each, by a function.
    pub fn of(mut each: impl FnMut(Action) -> T) -> Self {
        Self { request: each(Action::Request), r#return: each(Action::Return) }
    }

    /// Both, requests first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.request, &self.r#return].into_iter()
    }
}

impl<T> Index<Action> for ByAction<T> {
    type Output = T;

    fn index(&self, action: Action) -> &T {
        match action {
            Action::Request => &self.request,
            Action::Return => &self.r#return,
        }
    }
}

impl<T> IndexMut<Action> for ByAction<T> {
    fn index_mut(&mut self, action: Action) -> &mut T {
        match action {
            Action::Request => &mut self.request,
            Action::Return => &mut self.r#return,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an event is known by: the two streams can give the same id. Ordered as
/// library-lending(7) says: by id, and at equal ids the request first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventKey {
    /// The id in its stream.
    pub id: EventId,
    /// Which stream it is in.
    pub action: Action,
}

impl fmt::Display for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.action, self.id)
    }
}

impl EventKey {
    /// Reads what is written of a key; none if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let (action, id) = text.split_once(':')?;
        Some(Self { id: id.parse().ok()?, action: Action::from_word(action)? })
    }

    /// Whether it is not known which of two came first: they are of one millisecond and of different streams, and
    /// not both have their ids from submit.lua (library-lending(7), Order).
    pub fn ties_with(self, other: Self) -> bool {
        self.action != other.action
            && self.id.ms == other.id.ms
            && !(self.id.is_ordered() && other.id.is_ordered())
    }
}

/// Whether the sender wants the outcome kept under a key of its own, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerWish {
    /// No: the outcomes stream is enough.
    None,
    /// Somebody is waiting for it.
    Wait,
    /// The event has an id of its sender's and may be sent again within a day.
    Keep,
    /// The same within so many milliseconds, [`MAX_KEEP_MS`] at most.
    KeepFor(u64),
}

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// The longest that an answer can be asked to be kept: 30 days. Nobody else cares for them, and
/// they take room.
pub const MAX_KEEP_MS: u64 = 30 * DAY_MS;

impl AnswerWish {
    /// The wish for an answer that is kept so long: what is sent again is answered as long as it is known.
    pub fn kept(remembered: Duration) -> Self {
        match remembered.as_millis() as u64 {
            DAY_MS => Self::Keep,
            ms => Self::KeepFor(ms),
        }
    }

    /// The word in the event's field `answer`; none for [`AnswerWish::None`].
    pub fn word(self) -> Option<Cow<'static, str>> {
        match self {
            Self::None => None,
            Self::Wait => Some("wait".into()),
            Self::Keep => Some("keep".into()),
            Self::KeepFor(ms) => Some(format!("keep:{ms}").into()),
        }
    }

    /// A field that says anything else is not ours: no answer is kept.
    fn from_word(word: &[u8]) -> Self {
        match word {
            b"wait" => Self::Wait,
            b"keep" => Self::Keep,
            _ => word
                .strip_prefix(b"keep:")
                .and_then(|ms| std::str::from_utf8(ms).ok()?.parse().ok())
                .filter(|ms| (1..=MAX_KEEP_MS).contains(ms))
                .map_or(Self::None, Self::KeepFor),
        }
    }

    /// How long the answer is kept once it is there, in milliseconds; 0 for no answer.
    ///
    /// Waiting clients read it at once; an hour lets somebody who gave up waiting ask again.
    pub const fn ttl_ms(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Wait => HOUR_MS,
            Self::Keep => DAY_MS,
            Self::KeepFor(ms) => ms,
        }
    }
}

/// A well-formed request or return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is known by.
    pub key: EventKey,
    /// Who asks.
    pub user: UserId,
    /// The distinct books, in the order of the event; of duplicates the first counts.
    pub books: Vec<BookId>,
    /// Whether the sender wants an answer of its own.
    pub answer: AnswerWish,
}

/// What is wrong with an event that can never be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no fields: deleted or trimmed from its stream before it was decided.
    Vanished,
    /// It has no field `user_id`.
    NoUserId,
    /// It has no field `book_ids`, or an empty one.
    NoBookIds,
    /// Its `user_id` is no id.
    UserId(IdFault),
    /// One of its `book_ids` is no id.
    BookId(IdFault),
    /// It names more than [`MAX_BOOKS`] books.
    TooManyBookIds,
}

impl Fault {
    /// The word for outcomes and dead letters.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Vanished => "vanished",
            Self::NoUserId => "no_user_id",
            Self::NoBookIds => "no_book_ids",
            Self::UserId(IdFault::Empty) => "user_id_empty",
            Self::UserId(IdFault::TooLong) => "user_id_too_long",
            Self::UserId(IdFault::NotUtf8) => "user_id_not_utf8",
            Self::UserId(IdFault::Comma) => "user_id_with_comma",
            Self::UserId(IdFault::Control) => "user_id_with_control_character",
            Self::UserId(IdFault::Space) => "user_id_with_outer_space",
            Self::BookId(IdFault::Empty) => "book_id_empty",
            Self::BookId(IdFault::TooLong) => "book_id_too_long",
            Self::BookId(IdFault::NotUtf8) => "book_id_not_utf8",
            Self::BookId(IdFault::Comma) => "book_id_with_comma",
            Self::BookId(IdFault::Control) => "book_id_with_control_character",
            Self::BookId(IdFault::Space) => "book_id_with_outer_space",
            Self::TooManyBookIds => "too_many_book_ids",
        }
    }
}

/// Name and value of a field of a stream's entry.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// The value of the first field of that name.
pub fn field<'a>(mut fields: impl Iterator<Item = Field<'a>>, name: &str) -> Option<&'a [u8]> {
    fields.find_map(|(field, value)| (field == name.as_bytes()).then_some(value))
}

/// The distinct book ids of a field `book_ids`, `most` at most, in its order; of duplicates the first counts.
fn book_ids(list: &[u8], most: usize) -> Result<Vec<BookId>, Fault> {
    if list.is_empty() {
        return Err(Fault::NoBookIds);
    }
    // Before anything is allocated for them; a short list cannot hold so many.
    if list.len() >= most && list.split(|&b| b == b',').nth(most).is_some() {
        return Err(Fault::TooManyBookIds);
    }
    let mut books: Vec<BookId> = Vec::new();
    for id in list.split(|&b| b == b',') {
        books.push(BookId::from_bytes(id).map_err(Fault::BookId)?);
    }
    keep_first(&mut books);
    Ok(books)
}

/// Drops every book that stood in the list before. The order of the rest stays.
fn keep_first(books: &mut Vec<BookId>) {
    if books.len() <= HANDFUL {
        let mut kept = 0;
        for next in 0..books.len() {
            if !books[..kept].contains(&books[next]) {
                books.swap(kept, next);
                kept += 1;
            }
        }
        books.truncate(kept);
    } else {
        let mut seen = std::collections::HashSet::with_capacity(books.len());
        books.retain(|book| seen.insert(book.clone()));
    }
}

impl Event {
    /// Reads an event from the fields of its stream's entry.
    ///
    /// # Errors
    /// The first rule that it breaks; it can then never be worked on.
    pub fn parse<'a>(
        key: EventKey,
        fields: impl Iterator<Item = Field<'a>> + Clone,
    ) -> Result<Self, Fault> {
        if fields.clone().next().is_none() {
            return Err(Fault::Vanished);
        }
        let user = field(fields.clone(), USER_ID_FIELD).ok_or(Fault::NoUserId)?;
        let user = UserId::from_bytes(user).map_err(Fault::UserId)?;
        let books = field(fields.clone(), BOOK_IDS_FIELD).ok_or(Fault::NoBookIds)?;
        let books = book_ids(books, MAX_BOOKS)?;
        let answer = field(fields, ANSWER_FIELD).map_or(AnswerWish::None, AnswerWish::from_word);
        Ok(Self { key, user, books, answer })
    }
}

/// A hand-off to ShelvingService: books that are to be put on their shelves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// Its id in the stream of books for shelving.
    pub id: EventId,
    /// The books.
    pub books: Vec<BookId>,
}

impl HandOff {
    /// Reads a hand-off from the fields of its stream's entry. It may have as many books as fit into one
    /// command: nobody would put those of one that is given up on their shelves.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse<'a>(
        id: EventId,
        fields: impl Iterator<Item = Field<'a>> + Clone,
    ) -> Result<Self, Fault> {
        if fields.clone().next().is_none() {
            return Err(Fault::Vanished);
        }
        let list = field(fields, BOOK_IDS_FIELD).ok_or(Fault::NoBookIds)?;
        let books = book_ids(list, MAX_CARRIED)?;
        Ok(Self { id, books })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &[(&str, &[u8])]) -> Result<Event, Fault> {
        let fields = fields.iter().map(|(f, v)| (f.as_bytes(), *v));
        let key = EventKey { id: EventId { ms: 17, seq: 0 }, action: Action::Request };
        Event::parse(key, fields)
    }

    #[test]
    fn of_duplicate_books_the_first_counts() {
        for times in [1, 5] {
            // Few and many are told apart by different code.
            let list = ["geb,alice,geb,", &"alice,geb,".repeat(times), "momo"].concat();
            let event = parse(&[("user_id", b"u"), ("book_ids", list.as_bytes())]).unwrap();
            let books: Vec<_> = event.books.iter().map(BookId::as_str).collect();
            assert_eq!(books, ["geb", "alice", "momo"]);
        }
    }

    #[test]
    fn a_malformed_event_says_what_is_wrong_with_it() {
        let thousand = vec!["b"; MAX_BOOKS].join(",");
        let more = format!("{thousand},b");
        assert!(parse(&[("user_id", b"u"), ("book_ids", thousand.as_bytes())]).is_ok());
        for (fields, fault) in [
            (&[][..], Fault::Vanished),
            (&[("book_ids", &b"geb"[..])], Fault::NoUserId),
            (&[("user_id", b"u")], Fault::NoBookIds),
            (&[("user_id", b"u"), ("book_ids", b"")], Fault::NoBookIds),
            (&[("user_id", b""), ("book_ids", b"geb")], Fault::UserId(IdFault::Empty)),
            (&[("user_id", b"u"), ("book_ids", b"a,,b")], Fault::BookId(IdFault::Empty)),
            (&[("user_id", b"u"), ("book_ids", b"\xff")], Fault::BookId(IdFault::NotUtf8)),
            (&[("user_id", b"u"), ("book_ids", more.as_bytes())], Fault::TooManyBookIds),
        ] {
            assert_eq!(parse(fields), Err(fault));
        }
    }

    #[test]
    fn only_known_wishes_for_an_answer_are_heard() {
        let wish = |word: &[u8]| {
            parse(&[("user_id", b"u"), ("book_ids", b"geb"), ("answer", word)]).unwrap().answer
        };
        assert_eq!(wish(b"wait"), AnswerWish::Wait);
        assert_eq!(wish(b"keep"), AnswerWish::Keep);
        assert_eq!(wish(b"keep:60000"), AnswerWish::KeepFor(60_000));
        for bad in [&b"keep:"[..], b"keep:0", b"keep:-1", b"keep:9999999999999", b"keep:\xff"] {
            assert_eq!(wish(bad), AnswerWish::None);
        }
        assert_eq!(wish(b"user:user1:count"), AnswerWish::None);
    }
}
