//! The one outcome that every request or return ends in (library-lending(7), Outcomes): its fields in the
//! outcomes stream and in answers, and the JSON object.

use crate::json::Object;

/// What happened to books: a field of an outcome that lists some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BookList {
    /// Lent, or taken back.
    Done,
    /// Refused: the user has them already.
    AlreadyYours,
    /// Refused: others have them.
    LentToAnother,
    /// Refused: they are nowhere.
    Unavailable,
    /// Not taken back: nobody has them.
    NotLent,
    /// Available, and put back, since they would have been too many.
    PutBack,
}

impl BookList {
    /// All of them, in the order in which they are written.
    pub const ALL: [Self; 6] = [
        Self::Done,
        Self::AlreadyYours,
        Self::LentToAnother,
        Self::Unavailable,
        Self::NotLent,
        Self::PutBack,
    ];

    /// The name of the field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "book_ids",
            Self::AlreadyYours => "already_yours",
            Self::LentToAnother => "lent_to_another",
            Self::Unavailable => "unavailable",
            Self::NotLent => "not_lent",
            Self::PutBack => "put_back",
        }
    }

    /// The list in the field of that name, if it is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|list| list.as_str() == name)
    }

    /// Whether its books were refused one by one.
    pub fn is_refusal(self) -> bool {
        !matches!(self, Self::Done | Self::PutBack)
    }
}

/// How an event ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A request: every available book was lent.
    Accepted,
    /// A request: nothing was lent.
    Denied,
    /// A return: at least one book was taken back.
    Returned,
    /// A return: no book was taken back.
    Unchanged,
    /// Not a well-formed event, or given up: it is in the dead letters.
    Rejected,
}

impl Verdict {
    /// The word in the field `outcome`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Denied => "denied",
            Self::Returned => "returned",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Accepted, Self::Denied, Self::Returned, Self::Unchanged, Self::Rejected]
            .into_iter()
            .find(|verdict| verdict.as_str() == word)
    }
}

/// An outcome as Redis keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The id of the request or return, as text.
    pub event_id: String,
    /// `request` or `return`.
    pub action: String,
    /// Who sent it; of a malformed event whatever it said, undecodable bytes replaced.
    pub user_id: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it was denied or rejected.
    pub cause: Option<String>,
    /// The books by what happened to them, for each list that is not empty.
    pub books: Vec<(BookList, Vec<String>)>,
    /// How many books the user has after the event. Absent where that is not known.
    pub in_hand: Option<u64>,
}

impl Outcome {
    /// Reads an outcome from names and values in turn, as scripts and streams give them. A name
    /// that is not known is passed over: a later version may add some.
    ///
    /// # Errors
    /// What is missing or not understood.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        let (mut event_id, mut action, mut user_id, mut verdict) = (None, None, None, None);
        let (mut cause, mut books, mut in_hand) = (None, Vec::new(), None);
        for (name, value) in fields {
            match name {
                "event_id" => event_id = Some(value.to_owned()),
                "action" => action = Some(value.to_owned()),
                "user_id" => user_id = Some(value.to_owned()),
                "outcome" => {
                    let known = Verdict::from_word(value);
                    verdict = Some(known.ok_or_else(|| format!("unknown outcome {value:?}"))?);
                }
                "cause" => cause = Some(value.to_owned()),
                "in_hand" => in_hand = value.parse().ok(),
                _ => {
                    if let Some(list) = BookList::from_name(name) {
                        books.push((list, value.split(',').map(str::to_owned).collect()));
                    }
                }
            }
        }
        Ok(Self {
            event_id: event_id.ok_or("an outcome without event_id")?,
            action: action.ok_or("an outcome without action")?,
            user_id: user_id.unwrap_or_default(),
            verdict: verdict.ok_or("an outcome without outcome")?,
            cause,
            books,
            in_hand,
        })
    }

    /// Reads an answer: its [`fields`].
    ///
    /// # Errors
    /// What is missing or not understood.
    pub fn from_answer(answer: &str) -> Result<Self, String> {
        Self::from_fields(fields(answer))
    }

    /// The books of one of the lists.
    pub fn list(&self, wanted: BookList) -> &[String] {
        self.books.iter().find(|(list, _)| *list == wanted).map_or(&[], |(_, books)| books)
    }

    /// Adds the outcome's fields to an object, the lists as arrays.
    pub fn describe(&self, mut object: Object) -> Object {
        for (name, value) in [
            ("event_id", Some(self.event_id.as_str())),
            ("action", Some(&self.action)),
            // Empty where it is withheld.
            ("user_id", Some(self.user_id.as_str()).filter(|user| !user.is_empty())),
            ("outcome", Some(self.verdict.as_str())),
            ("cause", self.cause.as_deref()),
        ] {
            if let Some(value) = value {
                object = object.text(name, value);
            }
        }
        for (list, books) in &self.books {
            object = object.texts(list.as_str(), books);
        }
        match self.in_hand {
            Some(in_hand) => object.number("in_hand", in_hand),
            None => object,
        }
    }
}

/// Names and values of fields that stand a line each (no id has a line break in it).
pub fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut lines = text.split('\n');
    std::iter::from_fn(move || Some((lines.next()?, lines.next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [(&str, &str); 7] = [
        ("event_id", "17-0"),
        ("action", "request"),
        ("user_id", "us\"er"),
        ("outcome", "accepted"),
        ("book_ids", "geb,momo"),
        ("lent_to_another", "alice"),
        ("in_hand", "2"),
    ];

    #[test]
    fn an_outcome_reads_the_same_from_stream_and_answer() {
        let from_stream = Outcome::from_fields(FIELDS).unwrap();
        let answer = FIELDS.map(|(name, value)| format!("{name}\n{value}")).join("\n");
        assert_eq!(Outcome::from_answer(&answer), Ok(from_stream.clone()));
        assert_eq!(from_stream.list(BookList::Done), ["geb", "momo"]);
        assert!(from_stream.list(BookList::NotLent).is_empty());
        assert!(Outcome::from_answer("event_id\n17-0").is_err());
    }

    #[test]
    fn json_has_lists_as_arrays() {
        assert_eq!(
            Outcome::from_fields(FIELDS).unwrap().describe(Object::new()).end(),
            r#"{"event_id":"17-0","action":"request","user_id":"us\"er","outcome":"accepted","book_ids":["geb","momo"],"lent_to_another":["alice"],"in_hand":2}"#
        );
    }
}
