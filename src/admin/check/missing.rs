//! I1: a book that is nowhere may be at a user's home, its loan lost. Where `lent_books` was deleted, all are.
//! Put back on its shelf such a book would be lent to another. It is told by what else knows of loans: the
//! books that are noted of each user, and the count. The notes alone prove nothing, for a book can stand there
//! that was given back through the reference application; nor does the count, which may be wrong. Together
//! they are reason enough not to guess.

use std::collections::{HashMap, HashSet};

use super::counts::number;
use super::{Check, PAGE};
use crate::admin::failure::Failure;
use crate::error::Error;
use crate::link::ask_at_once;

/// A user, and the books that are noted of the user, joined by commas.
type Noted = (Vec<u8>, Vec<u8>);

/// The books of such a list.
fn listed(noted: &[u8]) -> impl Iterator<Item = &[u8]> {
    noted.split(|byte| *byte == b',').filter(|book| !book.is_empty())
}

impl Check<'_> {
    /// Who may have these books, which are nowhere. What is noted is gone through once, however many they are.
    pub(super) fn holders<'b>(
        &mut self,
        nowhere: impl Iterator<Item = &'b [u8]>,
    ) -> Result<HashMap<Vec<u8>, Vec<u8>>, Failure> {
        let run = self.run;
        let nowhere: HashSet<&[u8]> = nowhere.collect();
        let mut holders = HashMap::new();
        if nowhere.is_empty() {
            return Ok(holders);
        }
        self.scan(&["HSCAN", &run.keys.books_of_users], None, |check, mut users: Vec<Noted>| {
            users.retain(|noted| listed(&noted.1).any(|book| nowhere.contains(book)));
            for users in users.chunks(PAGE) {
                for noted in check.with_missing_loans(users)? {
                    for book in listed(&noted.1).filter(|book| nowhere.contains(book)) {
                        holders.entry(book.to_vec()).or_insert_with(|| noted.0.clone());
                    }
                }
            }
            Ok(())
        })?;
        Ok(holders)
    }

    /// Those of these users whose count is more than the loans there are of the books noted.
    fn with_missing_loans<'u>(&mut self, users: &'u [Noted]) -> Result<Vec<&'u Noted>, Error> {
        let keys = self.keys();
        // At one instant: a busy user's count and loans change together.
        let mut counts = redis::cmd("MGET");
        for (user, _) in users {
            counts.arg(keys.count_of(user));
        }
        let mut questions = vec![counts];
        for (_, books) in users {
            let mut holders = redis::cmd("HMGET");
            holders.arg(&keys.loans);
            for book in listed(books) {
                holders.arg(book);
            }
            questions.push(holders);
        }
        let mut replies: Vec<Vec<Option<Vec<u8>>>> =
            ask_at_once(self.connection.0, "look for missing loans", &questions)?;
        let holders = replies.split_off(1);
        let counts = replies.into_iter().flatten();
        let is_missing = |count: Option<Vec<u8>>, user: &[u8], holders: Vec<Option<Vec<u8>>>| {
            let lent = holders.iter().filter(|holder| holder.as_deref() == Some(user)).count();
            count.as_deref().and_then(number).is_some_and(|count| count > lent as i64)
        };
        let all = users.iter().zip(counts.zip(holders));
        let missing = all.filter_map(|(noted, (count, holders))| {
            is_missing(count, &noted.0, holders).then_some(noted)
        });
        Ok(missing.collect())
    }

    /// Whether a book is nowhere that is noted of this user.
    pub(super) fn may_have_more(&mut self, user: &[u8]) -> Result<bool, Error> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(&self.run.keys.books_of_users).arg(user);
        let noted: Option<Vec<u8>> = self.ask(&cmd, "look for missing loans")?;
        let noted = noted.unwrap_or_default();
        let books: Vec<&[u8]> = listed(&noted).collect();
        for books in books.chunks(PAGE) {
            if !self.inspect("shelves", books.iter().copied())?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
