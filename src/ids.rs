//! The names that travel through the system, each a type of its own, so that a user cannot be
//! passed for a book, nor a book for an event.
//!
//! What a well-formed id is, is said in library-lending(7): 1 to 256 bytes of UTF-8 with no comma, no
//! control character and no white space at its ends. The comma separates ids in `book_ids`; a
//! control character could forge a log line.

use std::fmt;
use std::str::FromStr;

/// The longest user, book or instance id, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// Why a text is no user id and no book id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdFault {
    /// It has no bytes.
    Empty,
    /// It has more than [`MAX_ID_BYTES`] bytes.
    TooLong,
    /// It is not UTF-8.
    NotUtf8,
    /// It has a comma in it.
    Comma,
    /// It has a control character in it.
    Control,
    /// It begins or ends with white space.
    Space,
}

impl fmt::Display for IdFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty"),
            Self::TooLong => write!(f, "is longer than {MAX_ID_BYTES} bytes"),
            Self::NotUtf8 => write!(f, "is not UTF-8"),
            Self::Comma => write!(f, "has a comma in it"),
            Self::Control => write!(f, "has a control character in it"),
            Self::Space => write!(f, "begins or ends with white space"),
        }
    }
}

/// The text of an id, where the bytes are a well-formed one.
///
/// # Errors
/// The first rule that the bytes break.
pub fn id_text(bytes: &[u8]) -> Result<&str, IdFault> {
    // Length first: what is far too long is not even decoded.
    if bytes.len() > MAX_ID_BYTES {
        return Err(IdFault::TooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| IdFault::NotUtf8)?;
    check(text)?;
    Ok(text)
}

fn check(text: &str) -> Result<(), IdFault> {
    if text.is_empty() {
        return Err(IdFault::Empty);
    }
    if text.len() > MAX_ID_BYTES {
        return Err(IdFault::TooLong);
    }
    // Nearly every id is plain ASCII without blanks: one pass over its bytes settles it.
    if text.bytes().all(|b| b.is_ascii_graphic() && b != b',') {
        return Ok(());
    }
    if text.contains(',') {
        return Err(IdFault::Comma);
    }
    if text.chars().any(char::is_control) {
        return Err(IdFault::Control);
    }
    if text.trim() != text {
        return Err(IdFault::Space);
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Reads an id from the bytes of a stream's field.
            ///
            /// # Errors
            /// The first rule that the bytes break.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdFault> {
                id_text(bytes).map(|text| Self(text.into()))
            }
        }

        impl FromStr for $name {
            type Err = IdFault;

            fn from_str(text: &str) -> Result<Self, IdFault> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A user of the library.
    UserId
}
id! {
    /// A book. The library owns one copy of every conceivable one.
    BookId
}
id! {
    /// The unique name of one running daemon; also its name as a consumer in every group.
    InstanceName
}
id! {
    /// What a sender calls an event of his (`--id`), so that it can be sent again without being
    /// queued again.
    SubmissionId
}

/// The sequence numbers that submit.lua gives are multiples of this. So decide.lua can tell ids that
/// grow across both streams from those that XADD gives, which each stream counts for itself.
pub const SEQ_STEP: u64 = 1_000_000;

/// The id of a stream's entry: milliseconds since 1970 and a sequence number within them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    /// Milliseconds since 1970, by the clock of Redis.
    pub ms: u64,
    /// Counts the stream's entries within one millisecond.
    pub seq: u64,
}

impl EventId {
    /// The last of all ids: nothing comes behind it, and Redis refuses to be asked for that.
    pub const LAST: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// Reads an id from bytes that somebody has left in Redis; none if they are something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }

    /// Whether submit.lua has given it, so that the event's place among those of the other stream is known,
    /// see [`SEQ_STEP`].
    pub fn is_ordered(self) -> bool {
        self.seq > 0 && self.seq.is_multiple_of(SEQ_STEP)
    }

    /// The id right before this one; none before 0-0.
    pub fn previous(self) -> Option<Self> {
        match (self.ms, self.seq) {
            (0, 0) => None,
            (ms, 0) => Some(Self { ms: ms - 1, seq: u64::MAX }),
            (ms, seq) => Some(Self { ms, seq: seq - 1 }),
        }
    }

    /// The id right behind this one; the last of all is followed by itself.
    pub fn following(self) -> Self {
        match (self.ms.checked_add(1), self.seq.checked_add(1)) {
            (_, Some(seq)) => Self { ms: self.ms, seq },
            (Some(ms), None) => Self { ms, seq: 0 },
            (None, None) => self,
        }
    }

    /// Appends it as text. By way of [`fmt::Display`] that takes twice as long, and the id of each event is
    /// written four times.
    pub fn push_to(self, text: &mut String) {
        let mut number = itoa::Buffer::new();
        text.push_str(number.format(self.ms));
        text.push('-');
        text.push_str(number.format(self.seq));
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// A text is not of the form `17-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEventId;

impl fmt::Display for NotAnEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an event id of the form 1700000000000-0")
    }
}

impl FromStr for EventId {
    type Err = NotAnEventId;

    fn from_str(text: &str) -> Result<Self, NotAnEventId> {
        let (ms, seq) = text.split_once('-').ok_or(NotAnEventId)?;
        // `parse` would take "+5" too, which is no id.
        let number = |digits: &str| match digits.parse() {
            Ok(number) if !digits.starts_with('+') => Ok(number),
            _ => Err(NotAnEventId),
        };
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_1_to_256_bytes_without_comma_control_character_or_outer_space() {
        let user = |text: &str| {
            let read = text.parse::<UserId>();
            assert_eq!(UserId::from_bytes(text.as_bytes()), read, "{text:?}");
            read.map(|id| id.as_str().to_owned())
        };
        assert_eq!(user("user1"), Ok("user1".into()));
        assert_eq!(user("Борхес, нет".trim_end_matches(", нет")), Ok("Борхес".into()));
        assert_eq!(user("two words"), Ok("two words".into()));
        assert_eq!(user(&"x".repeat(256)), Ok("x".repeat(256)));
        assert_eq!(user(""), Err(IdFault::Empty));
        assert_eq!(user(&"x".repeat(257)), Err(IdFault::TooLong));
        assert_eq!(user("a,b"), Err(IdFault::Comma));
        assert_eq!(user("a\nb"), Err(IdFault::Control));
        assert_eq!(user("a\u{9b}31m"), Err(IdFault::Control));
        assert_eq!(user(" a"), Err(IdFault::Space));
        assert_eq!(user("a\u{3000}"), Err(IdFault::Space));
        assert_eq!(UserId::from_bytes(b"\xff"), Err(IdFault::NotUtf8));
    }

    #[test]
    fn event_ids_are_ordered_as_numbers_not_as_text() {
        let id = |text: &str| text.parse::<EventId>();
        assert!(id("9-1").unwrap() < id("10-0").unwrap());
        assert!(id("10-9").unwrap() < id("10-10").unwrap());
        assert_eq!(id("10-9").unwrap().to_string(), "10-9");
        assert_eq!(id("10-9").unwrap().previous(), Some(id("10-8").unwrap()));
        assert_eq!(id("10-0").unwrap().previous(), id("9-18446744073709551615").ok());
        assert_eq!(id("0-0").unwrap().previous(), None);
        assert_eq!(id("10-9").unwrap().following(), id("10-10").unwrap());
        assert_eq!(id("9-18446744073709551615").unwrap().following(), id("10-0").unwrap());
        assert_eq!(EventId::LAST.following(), EventId::LAST);
        for bad in ["", "5", "5-", "-5", "+5-0", "5-0-0", "99999999999999999999-0"] {
            assert_eq!(id(bad), Err(NotAnEventId), "{bad}");
        }
    }

    #[test]
    fn no_id_that_xadd_gives_is_taken_for_one_of_ours() {
        for (seq, is_ordered) in
            [(0, false), (1, false), (SEQ_STEP, true), (SEQ_STEP + 1, false), (7 * SEQ_STEP, true)]
        {
            assert_eq!(EventId { ms: 17, seq }.is_ordered(), is_ordered, "{seq}");
        }
    }
}
