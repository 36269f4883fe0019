//! Which outcomes `history` and `watch` tell, and the line of each.

use crate::clock::rfc3339;
use crate::ids::{BookId, EventId, UserId};
use crate::json::Object;
use crate::outcome::{BookList, Outcome};
use crate::request::show::{self, Form};
use crate::text::push_escaped;

/// Which outcomes are told, and how.
#[derive(Debug)]
pub struct Filter {
    /// Only those of this user.
    pub user: Option<UserId>,
    /// Only those that name this book.
    pub book: Option<BookId>,
    /// Whether to name users.
    pub show_user: bool,
}

impl Filter {
    /// Whether an outcome is told.
    pub fn lets(&self, outcome: &Outcome) -> bool {
        self.user.as_ref().is_none_or(|user| outcome.user_id == user.as_str())
            && self.book.as_ref().is_none_or(|book| {
                let named = |list| outcome.list(list).iter().any(|id| id == book.as_str());
                BookList::ALL.into_iter().any(named)
            })
    }

    /// The line about an outcome.
    pub fn line(&self, form: Form, id: EventId, mut outcome: Outcome, colours: bool) -> String {
        let time = rfc3339(id.ms);
        if !self.show_user {
            show::hide_user(&mut outcome, form);
        }
        if form == Form::Json {
            return outcome.describe(Object::new().text("time", time)).line();
        }
        let mut line = time + " ";
        push_escaped(&mut line, &outcome.action);
        line.push(' ');
        push_escaped(&mut line, &outcome.event_id);
        line.push_str(": ");
        line.push_str(&show::words(&outcome, colours));
        line + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_is_found_whatever_has_happened_to_it() {
        let about =
            |book: &str| Filter { user: None, book: Some(book.parse().unwrap()), show_user: false };
        for list in BookList::ALL {
            let fields = [("event_id", "17-0"), ("action", "request"), ("outcome", "denied")];
            let books = [(list.as_str(), "momo,geb")];
            let outcome = Outcome::from_fields(fields.into_iter().chain(books)).unwrap();
            assert!(about("geb").lets(&outcome), "{list:?}");
            assert!(!about("emma").lets(&outcome), "{list:?}");
        }
    }
}
