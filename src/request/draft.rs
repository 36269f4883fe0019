//! What is typed, on the command line or in a line of a batch: a user and books, checked.

use std::collections::HashSet;

use crate::event::{Action, HANDFUL, MAX_BOOKS};
use crate::ids::{IdFault, id_text};
use crate::text::quoted;

/// A request or a return that has no id yet. Reading the next one into it costs no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// What it asks for.
    pub action: Action,
    /// Who asks.
    pub user: String,
    /// Distinct books, joined as the field `book_ids` wants them.
    pub books: String,
}

impl Draft {
    /// To be filled.
    pub fn new() -> Self {
        Self { action: Action::Request, user: String::new(), books: String::new() }
    }

    /// Reads an event from the words that follow `request` or `return`: the user, then the books, of
    /// duplicates the first.
    ///
    /// # Errors
    /// What is wrong with them, in one line.
    pub fn read<'a>(
        &mut self,
        mut words: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<(), String> {
        let user = words.next().ok_or("the user and the books are missing")?;
        self.user.clear();
        self.user.push_str(id_text(user).map_err(|fault| id_fault("user id", user, fault))?);
        self.books.clear();
        let many = words.clone().nth(HANDFUL).is_some();
        let mut seen = HashSet::new();
        for (n, word) in words.enumerate() {
            if n == MAX_BOOKS {
                return Err(format!("more than {MAX_BOOKS} books"));
            }
            let book = id_text(word).map_err(|fault| id_fault("book id", word, fault))?;
            let duplicate = if many {
                !seen.insert(book)
            } else {
                n > 0 && self.books.split(',').any(|earlier| earlier == book)
            };
            if !duplicate {
                if n > 0 {
                    self.books.push(',');
                }
                self.books.push_str(book);
            }
        }
        if self.books.is_empty() {
            return Err("the books are missing".into());
        }
        Ok(())
    }
}

/// What is wrong with an id that somebody typed.
pub fn id_fault(what: &str, raw: &[u8], fault: IdFault) -> String {
    format!("{what} {} {fault}", quoted(&String::from_utf8_lossy(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_that_are_named_twice_count_once_be_they_few_or_many() {
        for books in ["b a", "9 8 7 6 5 4 3 2 1 0"] {
            let words = format!("u {books} {books}");
            let mut draft = Draft::new();
            draft.read(words.split(' ').map(str::as_bytes)).unwrap();
            assert_eq!((&*draft.user, draft.books), ("u", books.replace(' ', ",")));
        }
    }
}
