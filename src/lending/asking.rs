//! Which books shelving is asked for in front of a try.

use super::decide::{Fetched, Finality, Try};
use crate::event::{Action, Event};
use crate::ids::{BookId, EventId};
use crate::shelving::fetch::Answer;

/// An event that is to be tried, and the books that shelving is asked for in front of that.
#[derive(Debug)]
pub struct Asking {
    /// The event.
    pub event: Event,
    /// The doubt that an earlier try ended in; else empty.
    pub doubt: String,
    /// How final a "no" is.
    pub finality: Finality,
    /// Indices into the event's books; none of a return.
    pub books: Vec<usize>,
    /// What shelving said of the others before.
    pub before: Vec<Option<Answer>>,
}

impl Asking {
    /// The first time that this instance has an event: all books of a request, or none.
    pub fn first(event: Event, ask: bool) -> Self {
        let books = match event.key.action {
            Action::Request if ask => (0..event.books.len()).collect(),
            _ => Vec::new(),
        };
        let doubt = String::new();
        Self { event, doubt, finality: Finality::First, books, before: Vec::new() }
    }

    /// The try that decides by what shelving answers.
    pub fn into_try(self) -> Try {
        let Self { event, doubt, finality, books, before: mut answers } = self;
        let is_asked = !(books.is_empty() && answers.is_empty());
        answers.resize(event.books.len(), None);
        for book in books {
            answers[book] = Some(Answer::Left);
        }
        let fetched = is_asked.then_some(Fetched { finality, answers });
        Try { event, doubt, fetched }
    }

    /// A try that reserved some of its books, and needs to know whether they are there.
    pub fn after(one: Try, finality: Finality, books: Vec<usize>) -> Self {
        let mut before = one.fetched.map(|fetched| fetched.answers).unwrap_or_default();
        for answer in &mut before {
            // What another had then, it may not have now.
            answer.take_if(|answer| matches!(answer, Answer::TakenBy(_)));
        }
        Self { event: one.event, doubt: String::new(), finality, books, before }
    }

    /// A try that came to nothing, once more: what shelving has said is still true.
    pub fn again(one: Try) -> Self {
        let Try { event, doubt, fetched } = one;
        let (finality, mut before) =
            fetched.map_or((Finality::First, Vec::new()), |it| (it.finality, it.answers));
        let is_left = |book: &usize| before[*book] == Some(Answer::Left);
        let books: Vec<usize> = (0..before.len()).filter(is_left).collect();
        for book in &books {
            before[*book] = None;
        }
        Self { event, doubt, finality, books, before }
    }
}

/// The books that shelving is asked for, and for which request each.
pub fn asked(chunk: &[Asking]) -> impl Iterator<Item = (&BookId, EventId)> + Clone {
    chunk
        .iter()
        .flat_map(|one| one.books.iter().map(|book| (&one.event.books[*book], one.event.key.id)))
}
