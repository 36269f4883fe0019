//! Typed calls of decide.lua: a chunk of tries out, how each ended back.

use std::fmt::Write as _;
use std::sync::LazyLock;

use redis::Value;

use super::{MOST_BOOKS_IN_HAND, STORAGE_CAPACITY};
use crate::error::Error;
use crate::event::{Action, ByAction, Event, EventKey};
use crate::ids::{BookId, EventId};
use crate::keys::{LENDING_GROUP, SHELVING_GROUP};
use crate::outcome::{self, BookList, Verdict};
use crate::script::{Script, ScriptCall, lua, text};
use crate::session::{Neighbours, Session};
use crate::shelving::fetch::Answer;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(lua!("order", "groups", "refusals", "returns", "alone", "decide"))
});

/// How final it is when ShelvingService says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finality {
    /// Not at all: the books were not reserved when it was asked.
    First,
    /// Not quite, for this reason.
    InDoubt(String),
    /// The books were reserved, and nothing that could bring one was on its way.
    Certain,
}

/// What ShelvingService said of the books of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// How final a "no" is.
    pub finality: Finality,
    /// For each book of the request what shelving said, or none if it was not asked.
    pub answers: Vec<Option<Answer>>,
}

impl Fetched {
    /// For the script: one word for all books where that is enough, else one with the answer for each.
    fn said(&self) -> (&'static str, &[Option<Answer>]) {
        let all = |answer: &Answer| self.answers.iter().all(|it| it.as_ref() == Some(answer));
        match self.finality {
            _ if all(&Answer::Yes) => ("yes", &[]),
            Finality::First if all(&Answer::Left) => ("fetched", &[]),
            Finality::First => ("first", &self.answers),
            Finality::InDoubt(_) => ("in_doubt", &self.answers),
            Finality::Certain => ("certain", &self.answers),
        }
    }
}

/// What earlier tries of a request have left open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Doubt {
    /// Nothing.
    #[default]
    None,
    /// A book did not come though it was reserved: what could still bring it, in the script's words.
    About(String),
    /// Nothing could bring a book any more: the request reserves nothing until it may be refused.
    ToldNo,
}

impl Doubt {
    /// As an argument of the script, if there is one.
    fn as_arg(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::About(text) => Some(text),
            Self::ToldNo => Some("no"),
        }
    }
}

/// One try of an event.
#[derive(Debug)]
pub struct Try {
    /// The event.
    pub event: Event,
    /// What earlier tries have left open.
    pub doubt: Doubt,
    /// What ShelvingService said, or will have said, if it is asked.
    pub fetched: Option<Fetched>,
}

impl Try {
    /// A try with nothing known from before. With `ask`, shelving is asked in front of it for all books of
    /// a request.
    pub fn first(event: Event, ask: bool) -> Self {
        let is_asked = ask && event.key.action == Action::Request;
        let fetched = is_asked.then(|| Fetched {
            finality: Finality::First,
            answers: vec![Some(Answer::Left); event.books.len()],
        });
        Self { event, doubt: Doubt::None, fetched }
    }

    /// The next try after one that has reserved books, by their index in the event: shelving is asked for
    /// those.
    pub fn after_reserving(self, finality: Finality, books: &[usize]) -> Self {
        let mut answers = self.fetched.map(|fetched| fetched.answers).unwrap_or_default();
        answers.resize(self.event.books.len(), None);
        for answer in &mut answers {
            // What another had then, it may not have now.
            answer.take_if(|answer| matches!(answer, Answer::TakenBy(_)));
        }
        for &book in books {
            answers[book] = Some(Answer::Left);
        }
        Self { event: self.event, doubt: Doubt::None, fetched: Some(Fetched { finality, answers }) }
    }
}

/// The books that shelving is to be asked for in front of tries, and for which request each.
pub fn asked(tries: &[Try]) -> impl Iterator<Item = (&BookId, EventId)> + Clone {
    tries.iter().flat_map(|one| {
        let answers = one.fetched.iter().flat_map(|fetched| &fetched.answers);
        let books = one.event.books.iter().zip(answers);
        let books = books.filter(|(_, answer)| **answer == Some(Answer::Left));
        books.map(|(book, _)| (book, one.event.key.id))
    })
}

/// How a try ended.
#[derive(Debug)]
pub enum TryEnd {
    /// Books, by their index in the event, are reserved: they are to be fetched, and then tried
    /// again with the answers.
    Fetch {
        /// How final a "no" will be.
        finality: Finality,
        /// Indices into the event's books.
        books: Vec<usize>,
    },
    /// To be tried again later.
    Wait {
        /// The doubt for the next try.
        doubt: Doubt,
        /// Whether it waits for what is older alone, and for no book.
        for_older: bool,
        /// Whether it may have a book still, so that all of its books are to be asked for on the next try.
        ask_again: bool,
        /// Events that are to be tried before it can be refused.
        untried: Vec<EventKey>,
    },
    /// Decided.
    Done(Told),
    /// Decided by somebody else.
    Stale,
    /// It can never be worked on: the cause.
    Failed(String),
}

/// What there is to tell of an event that is decided.
#[derive(Debug)]
pub enum Told {
    /// All went as asked. The number: how many books the user has now.
    All(i64),
    /// A request whose books are all lent to others. The number: how many books the user has.
    AllLent(i64),
    /// Anything else: the outcome's fields from `outcome` on, see [`outcome::fields`].
    Fields(String),
}

/// What a decision changed for others that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing, but that it is decided.
    Nothing,
    /// Books were lent.
    Lent,
    /// Books came free, or it is not known what happened.
    Freed,
}

impl Told {
    /// What the decision changed for others that wait.
    pub fn change(&self, action: Action) -> Change {
        let has_effect = match self {
            Self::All(_) => true,
            Self::AllLent(_) => false,
            Self::Fields(fields) => {
                outcome::fields(fields).any(|(name, _)| name == BookList::Done.as_str())
            }
        };
        match action {
            _ if !has_effect => Change::Nothing,
            Action::Request => Change::Lent,
            Action::Return => Change::Freed,
        }
    }

    /// The books that are nowhere, if some of those that were asked for are: joined by commas.
    pub fn unavailable(&self) -> Option<&str> {
        let Self::Fields(fields) = self else { return None };
        let name = BookList::Unavailable.as_str();
        outcome::fields(fields).find_map(|(field, books)| (field == name).then_some(books))
    }

    /// The outcome's fields from `outcome` on, names and values. What has to be put together for them
    /// is written to `buffer`.
    pub fn fields<'a>(
        &'a self,
        event: &Event,
        buffer: &'a mut String,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        use BookList::{Done, LentToAnother};
        use Verdict::{Accepted, Denied, Returned};
        let (outcome, cause, list, in_hand) = match (self, event.key.action) {
            (Self::All(in_hand), Action::Request) => (Accepted, None, Done, *in_hand),
            (Self::All(in_hand), Action::Return) => (Returned, None, Done, *in_hand),
            (Self::AllLent(in_hand), _) => {
                (Denied, Some(("cause", "none_available")), LentToAnother, *in_hand)
            }
            (Self::Fields(fields), _) => {
                return [None; 4].into_iter().flatten().chain(outcome::fields(fields));
            }
        };
        buffer.clear();
        for (n, book) in event.books.iter().enumerate() {
            if n > 0 {
                buffer.push(',');
            }
            buffer.push_str(book.as_str());
        }
        let end = buffer.len();
        buffer.push_str(itoa::Buffer::new().format(in_hand));
        let (books, in_hand) = buffer.split_at(end);
        let outcome = Some(("outcome", outcome.as_str()));
        let known = [outcome, cause, Some((list.as_str(), books)), Some(("in_hand", in_hand))];
        // With nothing behind it, so that both ways are of one type.
        known.into_iter().flatten().chain(outcome::fields(""))
    }
}

/// The call for a chunk of tries. `fetch` is the number of the fetch that it is sent right behind: answers
/// that are [`Answer::Left`] are those to that fetch, left in Redis.
pub fn call(
    session: &Session,
    neighbours: &Neighbours,
    tries: &[Try],
    fetch: Option<u64>,
) -> ScriptCall {
    let keys = &session.keys;
    let wished = tries.iter().filter(|one| one.event.answer.ttl_ms() > 0).count();
    let number_of_keys = 11 + 2 * tries.len() + wished;
    let mut call = SCRIPT.call(number_of_keys);
    call.arg(session.lock()).arg(&keys.requests).arg(&keys.returns).arg(&keys.handoffs);
    call.arg(&keys.loans).arg(&keys.book_states).arg(&keys.storage);
    call.arg(&keys.outcomes).arg(&keys.ties).arg(&keys.books_of_users).arg(&keys.fetch_answers);
    for Try { event, .. } in tries {
        call.arg(keys.count(&event.user)).arg(keys.reservation(event.key.id));
        if event.answer.ttl_ms() > 0 {
            call.arg(keys.answer(event.key));
        }
    }
    call.arg(&session.token).arg(STORAGE_CAPACITY).arg(MOST_BOOKS_IN_HAND);
    call.arg(session.settings.outcomes_kept).arg(LENDING_GROUP).arg(SHELVING_GROUP);
    call.arg(session.decided_events()).arg(session.consumer()).arg(&keys.bell);
    call.arg(fetch.map_or(String::new(), |number| number.to_string()));
    for names in [&neighbours.silent, &neighbours.reference] {
        call.arg(names.len()).arg(names);
    }
    // Few events differ in their form from the last one of their kind.
    let mut forms = ByAction::of(|_| (None, String::new()));
    for Try { event, doubt, fetched } in tries {
        let (said, answers) = fetched.as_ref().map_or(("nothing", &[][..]), Fetched::said);
        let (action, books, ttl_ms) = (event.key.action, event.books.len(), event.answer.ttl_ms());
        let doubt = doubt.as_arg();
        let sure = if doubt.is_none() { "sure" } else { "doubt" };
        let form = Some((books, said, ttl_ms, sure));
        let (last, written) = &mut forms[action];
        if *last != form {
            *last = form;
            written.clear();
            // Writing to a string cannot fail.
            let _ = write!(written, "{action} {books} {said} {ttl_ms} {sure}");
        }
        call.arg(&*written);
        call.arg(event.key.id).arg(event.user.as_str());
        if let Some(doubt) = doubt {
            call.arg(doubt);
        }
        for book in &event.books {
            call.arg(book.as_str());
        }
        for answer in answers {
            call.arg(match answer {
                None => "",
                Some(Answer::Yes) => "yes",
                Some(Answer::Again) => "again",
                Some(Answer::Left) => "fetched",
                Some(Answer::TakenBy(request)) => request,
            });
        }
    }
    call
}

const DOING: &str = "decide events";

/// How tries ended, from the script's reply; none if it did not find the answers that were left for it,
/// and did nothing.
///
/// # Errors
/// [`Error::Fenced`], or the reply is none of this script.
pub fn ends(reply: Value, tries: &[Try]) -> Result<Option<Vec<TryEnd>>, Error> {
    let Value::Array(list) = reply else { return Err(unexpected(&reply)) };
    match list.first().and_then(text) {
        Some("FENCED") => return Err(Error::Fenced),
        Some("UNASKED") => return Ok(None),
        _ => {}
    }
    if list.len() != tries.len() {
        return Err(unexpected(&list));
    }
    list.into_iter()
        .zip(tries)
        .map(|(value, one)| end(value, one))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn end(value: Value, one: &Try) -> Result<TryEnd, Error> {
    let parts = match value {
        Value::Int(in_hand) => return Ok(TryEnd::Done(Told::All(in_hand))),
        Value::BulkString(fields) => {
            let fields = String::from_utf8(fields).map_err(|error| unexpected(&error))?;
            return Ok(TryEnd::Done(Told::Fields(fields)));
        }
        Value::Array(parts) => parts,
        other => return Err(unexpected(&other)),
    };
    if let [Value::Int(in_hand)] = parts[..] {
        return Ok(TryEnd::Done(Told::AllLent(in_hand)));
    }
    let end = match parts.first().and_then(text) {
        Some("FETCH") => fetch(&parts, one),
        Some("WAIT") => Some(wait(&parts, one)),
        Some("STALE") => Some(TryEnd::Stale),
        Some("FAILED") => {
            let cause = parts.get(1).and_then(text).unwrap_or("failed");
            Some(TryEnd::Failed(cause.to_owned()))
        }
        _ => None,
    };
    end.ok_or_else(|| unexpected(&parts))
}

fn fetch(parts: &[Value], one: &Try) -> Option<TryEnd> {
    let finality = match parts.get(1).and_then(text)? {
        "" => Finality::Certain,
        doubt => Finality::InDoubt(doubt.to_owned()),
    };
    let index = |book: &Value| {
        let book = text(book)?;
        one.event.books.iter().position(|asked| asked.as_str() == book)
    };
    let books = parts.iter().skip(2).map(index).collect::<Option<_>>()?;
    Some(TryEnd::Fetch { finality, books })
}

fn wait(parts: &[Value], one: &Try) -> TryEnd {
    let finality = one.fetched.as_ref().map(|fetched| &fetched.finality);
    let reason = parts.get(1).and_then(text);
    let doubt = match (reason, finality) {
        // The doubt of the answers that it had, or still the one that it came with.
        (Some("doubt"), Some(Finality::InDoubt(doubt))) => Doubt::About(doubt.clone()),
        (Some("no"), _) => Doubt::ToldNo,
        // It begins anew.
        (Some("again"), _) => Doubt::None,
        // It may wait for a book that it put back itself because of the doubt.
        _ => one.doubt.clone(),
    };
    let untried = parts.iter().skip(2).filter_map(text).filter_map(EventKey::parse).collect();
    let (for_older, ask_again) = (reason == Some("older"), reason == Some("again"));
    TryEnd::Wait { doubt, for_older, ask_again, untried }
}

fn unexpected(got: &dyn std::fmt::Debug) -> Error {
    Error::Reply { doing: DOING, got: format!("{got:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_changes_nothing_for_others() {
        let told = |fields: &str| Told::Fields(fields.replace(' ', "\n"));
        for (told, on_request, on_return) in [
            (Told::All(1), Change::Lent, Change::Freed),
            (Told::AllLent(0), Change::Nothing, Change::Nothing),
            (
                told("outcome x book_ids geb unavailable momo in_hand 1"),
                Change::Lent,
                Change::Freed,
            ),
            (
                told("outcome x cause y put_back book_ids in_hand 1"),
                Change::Nothing,
                Change::Nothing,
            ),
        ] {
            assert_eq!(told.change(Action::Request), on_request, "{told:?}");
            assert_eq!(told.change(Action::Return), on_return, "{told:?}");
        }
    }
}
