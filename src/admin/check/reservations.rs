//! I6: no reservation without a request that is being worked on. I1: what is reserved is not lent, not stored
//! and not reserved by another request. Here the reservations that the reference application keeps, each
//! under a key of its own; ours are states of books.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;
use std::thread;

use super::books::Handed;
use super::{
    Check, Fact, MOST_LOOKS, MOST_SUSPECTS, Mended, NOT_WITHOUT_GUESSING, PAGE, PAUSE, Violation,
    wrong_type,
};
use crate::admin::failure::Failure;
use crate::admin::show::shown;
use crate::error::Error;
use crate::ids::BookId;
use crate::keys::{LENDING_GROUP, Stream};
use crate::script::{Script, bytes, lua};
use crate::text::counted;

static RESERVED: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "reserved")));

/// Reserved books that are remembered, to find those that are reserved twice: far more than requests that are
/// worked on reserve.
const MOST_RESERVED: usize = 100_000;

/// A reserved book that looks wrong.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    book: Vec<u8>,
    /// The reservation.
    key: Vec<u8>,
    /// Another one that it is in; none if it is wrong by what else is known of it.
    other: Option<Vec<u8>>,
}

/// A reserved book, and what else is known of it: see reserved.lua.
struct Found {
    book: Vec<u8>,
    user: Vec<u8>,
    is_stored: bool,
    state: Vec<u8>,
}

/// Books that are reserved for requests which are not decided.
#[derive(Default)]
struct Reserved {
    /// Each with the reservation that it was first seen in.
    seen: HashMap<Vec<u8>, Vec<u8>>,
    suspects: BTreeSet<Claim>,
}

impl Reserved {
    fn note(&mut self, key: &[u8], found: Found) {
        let Found { book, user, is_stored, state } = found;
        if !user.is_empty() || is_stored || !state.is_empty() {
            self.suspects.insert(Claim { book: book.clone(), key: key.into(), other: None });
        }
        match self.seen.get(&book) {
            Some(first) if first != key => {
                self.suspects.insert(Claim { book, key: key.into(), other: Some(first.clone()) });
            }
            None if self.seen.len() < MOST_RESERVED => drop(self.seen.insert(book, key.into())),
            _ => {}
        }
    }
}

impl Check<'_> {
    /// Looks at every key of a reservation.
    pub(super) fn reservations(&mut self) -> Result<(), Failure> {
        let mut suspects = Vec::new();
        let mut reserved = Reserved::default();
        self.scan_keys(&self.run.keys.reservations_pattern(), |check, keys| {
            for key in keys {
                if check.left_as(&key)?.is_some() {
                    suspects.push(key);
                } else {
                    check.look_into(&key, &mut reserved)?;
                }
            }
            if suspects.len() >= MOST_SUSPECTS {
                check.settle_reservations(std::mem::take(&mut suspects))?;
            }
            Ok(())
        })?;
        self.settle_reservations(suspects)?;
        self.settle_claims(reserved.suspects)
    }

    /// Suspects the books of a reservation that are lent, stored or reserved by another request.
    fn look_into(&mut self, key: &[u8], reserved: &mut Reserved) -> Result<(), Failure> {
        // What is not UTF-8 is no request's.
        let Ok(name) = std::str::from_utf8(key) else { return Ok(()) };
        self.scan(&["SSCAN", name], None, |check, books: Vec<Vec<u8>>| {
            for books in books.chunks(PAGE) {
                for found in check.reserved(key, books)? {
                    reserved.note(key, found);
                }
            }
            if reserved.suspects.len() >= MOST_SUSPECTS {
                check.settle_claims(std::mem::take(&mut reserved.suspects))?;
            }
            Ok(())
        })
    }

    /// Those of these books that are in a reservation whose request is not decided.
    fn reserved(&mut self, key: &[u8], books: &[Vec<u8>]) -> Result<Vec<Found>, Error> {
        const DOING: &str = "look at reserved books";
        let keys = self.keys();
        let Some(request) = keys.request_of_reservation(key) else { return Ok(Vec::new()) };
        let shared = [&keys.loans, &keys.storage, &keys.book_states, &keys.requests];
        let all: Vec<&[u8]> = shared.map(|key| key.as_bytes()).into_iter().chain([key]).collect();
        let mut call = RESERVED.keys(&all);
        call.arg(LENDING_GROUP).arg(request).arg(books);
        let reply = call.run(&mut self.connection, DOING)?;
        match reply.word.as_str() {
            "DECIDED" => Ok(Vec::new()),
            "RESERVED" if reply.rest.len() % 4 == 0 => {
                let found = |parts: &[redis::Value]| {
                    let [book, user, stored, state] =
                        [0, 1, 2, 3].map(|n| bytes(&parts[n]).to_vec());
                    Found { book, user, is_stored: !stored.is_empty(), state }
                };
                Ok(reply.rest.chunks_exact(4).map(found).collect())
            }
            _ => Err(reply.unexpected(DOING)),
        }
    }

    /// Reports what is wrong at every look: beside the reference application a request of ours reserves for
    /// moments, again and again, what it finds nowhere else.
    fn settle_claims(&mut self, suspects: BTreeSet<Claim>) -> Result<(), Failure> {
        let mut claims: Vec<Claim> = suspects.into_iter().collect();
        let mut violations = Vec::new();
        for _ in 0..MOST_LOOKS {
            if claims.is_empty() {
                return Ok(());
            }
            thread::sleep(PAUSE);
            let mut wrong = Vec::new();
            violations.clear();
            for claim in claims {
                if let Some(violation) = self.wrong_with(&claim)? {
                    violations.push(violation);
                    wrong.push(claim);
                }
            }
            claims = wrong;
        }
        for violation in violations {
            self.report(violation, NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }

    fn wrong_with(&mut self, claim: &Claim) -> Result<Option<Violation>, Failure> {
        let book = std::slice::from_ref(&claim.book);
        let Some(found) = self.reserved(&claim.key, book)?.pop() else { return Ok(None) };
        let name = shown(&claim.key);
        let (fault, is, fact) = match &claim.other {
            Some(other) if self.reserved(other, book)?.is_empty() => return Ok(None),
            Some(other) => {
                let is = format!("reserved in {}", shown(other));
                ("reserved_twice", is, Some(("other", other.clone())))
            }
            None if !found.user.is_empty() => {
                let is = format!("lent to {}", shown(&found.user));
                ("lent_and_reserved", is, Some(("user", found.user)))
            }
            None if found.is_stored => {
                ("stored_and_reserved", "in automated storage".to_owned(), None)
            }
            None if !found.state.is_empty() => {
                let is = format!("reserved by a request of ours: {}", shown(&found.state));
                ("reserved_twice", is, Some(("state", found.state)))
            }
            None => return Ok(None),
        };
        let mut facts = vec![("book", claim.book[..].into()), ("key", claim.key[..].into())];
        facts.extend(fact.map(|(name, value)| (name, Fact::from(&value[..]))));
        let words = format!("{} is {is} and reserved in {name}", shown(&claim.book));
        Ok(Some(Violation { invariant: "I1", fault, facts, words }))
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
                    counted(books, "book")
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
                for handed in check.hand_over(Some(key), request, seen)? {
                    match handed {
                        Handed::Over(_) => handed_over += 1,
                        Handed::LetGo => let_go += 1,
                        Handed::Changed => {}
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
            counted(handed_over, "book"),
            counted(let_go, "book")
        )))
    }
}
