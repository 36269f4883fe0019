//! I6: no reservation without a request that is being worked on. Here those that the reference
//! application keeps, each under a key of its own; ours are states of books.

use std::thread;

use super::super::failure::Failure;
use super::super::options::Stream;
use super::super::show::shown;
use super::{
    Check, MOST_SUSPECTS, Mended, NOT_WITHOUT_GUESSING, PAGE, PAUSE, Violation, count_of_books,
    wrong_type,
};
use crate::error::Error;
use crate::ids::BookId;

impl Check<'_> {
    /// Looks at every key of a reservation.
    pub(super) fn reservations(&mut self) -> Result<(), Failure> {
        let mut suspects = Vec::new();
        self.scan_keys(&self.run.keys.reservations_pattern(), |check, keys| {
            for key in keys {
                if check.left_as(&key)?.is_some() {
                    suspects.push(key);
                }
            }
            if suspects.len() >= MOST_SUSPECTS {
                check.settle_reservations(std::mem::take(&mut suspects))?;
            }
            Ok(())
        })?;
        self.settle_reservations(suspects)
    }

    /// The type of a reservation that is there for no undecided request, or is none at all.
    fn left_as(&mut self, key: &[u8]) -> Result<Option<String>, Error> {
        let Some(request) = self.keys().request_of_reservation(key) else { return Ok(None) };
        let request = String::from_utf8_lossy(request).into_owned();
        let mut is = self.type_of(key)?;
        if is == "set" {
            if !self.undone(Stream::Requests, &[request])?.is_empty() {
                return Ok(None);
            }
            // The type after the request: it goes before its request is decided.
            is = self.type_of(key)?;
        }
        Ok(Some(is).filter(|is| is != "none"))
    }

    fn settle_reservations(&mut self, mut suspects: Vec<Vec<u8>>) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        suspects.sort_unstable();
        suspects.dedup();
        thread::sleep(PAUSE);
        for key in suspects {
            let Some(is) = self.left_as(&key)? else { continue };
            if is != "set" {
                self.report(wrong_type(&key, &is, "set"), NOT_WITHOUT_GUESSING)?;
                continue;
            }
            let request = self.keys().request_of_reservation(&key).unwrap_or_default();
            let request = String::from_utf8_lossy(request).into_owned();
            let books: usize = self.ask(redis::cmd("SCARD").arg(&key), "count a reservation")?;
            if books == 0 {
                continue;
            }
            let violation = Violation {
                invariant: "I6",
                fault: "reservation_left",
                facts: vec![
                    ("key", key[..].into()),
                    ("request", request[..].into()),
                    ("books", books.into()),
                ],
                words: format!(
                    "{} reserves {} for a request that is decided",
                    shown(&key),
                    count_of_books(books)
                ),
            };
            let mended =
                if self.repair { self.dissolve(&key, &request)? } else { Mended::NotTried };
            self.report(violation, mended)?;
        }
        Ok(())
    }

    /// Takes the books out of a reservation; those that have no place go back to their shelves.
    fn dissolve(&mut self, key: &[u8], request: &str) -> Result<Mended, Failure> {
        let (mut handed_over, mut let_go, mut left) = (0, 0, 0);
        let name = String::from_utf8_lossy(key).into_owned();
        if name.as_bytes() != key {
            return Ok(Mended::No("its name is not UTF-8"));
        }
        self.scan(&["SSCAN", &name], None, |check, books: Vec<Vec<u8>>| {
            for books in books.chunks(PAGE) {
                // What is no id of a book could not travel in a hand-off.
                let (good, bad): (Vec<_>, Vec<_>) =
                    books.iter().partition(|book| BookId::from_bytes(book).is_ok());
                left += bad.len();
                let seen = good.iter().map(|book| [&book[..], b"", b""]);
                for mended in check.hand_over(Some(key), request, seen)?.unwrap_or_default() {
                    match mended {
                        Mended::Yes(change) if change.starts_with("handed") => handed_over += 1,
                        Mended::Yes(_) => let_go += 1,
                        Mended::No(_) | Mended::Meanwhile | Mended::NotTried => {}
                    }
                }
            }
            Ok(())
        })?;
        if left > 0 {
            return Ok(Mended::No("some of what it holds is no book's id"));
        }
        if self.type_of(key)? != "none" {
            return Ok(Mended::No("its request is being worked on after all"));
        }
        Ok(Mended::Yes(format!(
            "{} handed to shelving, {} let go that have their place",
            count_of_books(handed_over),
            count_of_books(let_go)
        )))
    }
}
