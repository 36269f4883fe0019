//! I1: a book is in one place, and out of main storage just as long. I6: no reservation without a
//! request.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::thread;

use super::{
    CHANGED_MEANWHILE, Check, HAND_OFFS_IN_A_PAGE, MOST_LOOKS, MOST_NOWHERE, MOST_SUSPECTS, Mended,
    NOT_WITHOUT_GUESSING, PAGE, PAUSE, Violation, books_of,
};
use crate::admin::failure::Failure;
use crate::admin::instances::instances;
use crate::admin::show::shown;
use crate::error::Error;
use crate::event::MAX_BOOKS;
use crate::ids::{BookId, EventId};
use crate::keys::{LENDING_GROUP, SHELVING_GROUP, Stream};
use crate::lock::Lock;
use crate::script::{Script, ScriptCall, bytes, lua, text};
use crate::stream;

static INSPECT: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "groups", "inspect")));
static MEND: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "groups", "mend")));

/// A hand-off that is mended is one event.
const _: () = assert!(PAGE <= MAX_BOOKS);

/// Where books are found, as inspect.lua calls it.
const PLACES: [&str; 4] = ["loans", "storage", "shelves", "states"];

/// What can be wrong with a book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LentAndStored,
    LentOnShelf,
    LentAndReserved,
    StoredOnShelf,
    StoredAndReserved,
    Nowhere,
    LoanMissing,
    ReservedForNone,
    StateUnknown,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::LentAndStored,
        Self::LentOnShelf,
        Self::LentAndReserved,
        Self::StoredOnShelf,
        Self::StoredAndReserved,
        Self::Nowhere,
        Self::LoanMissing,
        Self::ReservedForNone,
        Self::StateUnknown,
    ];

    /// The word for it, in the reply of inspect.lua and for programs.
    fn word(self) -> &'static str {
        match self {
            Self::LentAndStored => "lent_and_stored",
            Self::LentOnShelf => "lent_on_shelf",
            Self::LentAndReserved => "lent_and_reserved",
            Self::StoredOnShelf => "stored_on_shelf",
            Self::StoredAndReserved => "stored_and_reserved",
            Self::Nowhere => "nowhere",
            Self::LoanMissing => "loan_missing",
            Self::ReservedForNone => "reserved_for_none",
            Self::StateUnknown => "state_unknown",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.word() == word)
    }

    /// The invariant that it violates.
    fn invariant(self) -> &'static str {
        match self {
            Self::ReservedForNone | Self::StateUnknown => "I6",
            _ => "I1",
        }
    }
}

/// A book that looks wrong: everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    fault: Fault,
    user: Vec<u8>,
    out: Vec<u8>,
    state: Vec<u8>,
}

/// What became of a book that was to be handed to shelving, as mend.lua tells it.
#[derive(Clone, Copy)]
pub(super) enum Handed {
    /// It is on its way in a hand-off of this id.
    Over(EventId),
    /// Only its reservation was taken away.
    LetGo,
    /// It is left alone.
    Changed,
}

impl From<Handed> for Mended {
    fn from(handed: Handed) -> Self {
        match handed {
            Handed::Over(id) => Self::Yes(format!("handed to shelving as {id}")),
            Handed::LetGo => Self::Yes("the reservation is gone".to_owned()),
            Handed::Changed => CHANGED_MEANWHILE,
        }
    }
}

pub(super) type Suspects = BTreeMap<Vec<u8>, Suspect>;

impl Check<'_> {
    /// Looks at every book that is in any of the four places.
    pub(super) fn books(&mut self) -> Result<(), Failure> {
        let run = self.run;
        for place in PLACES {
            let most = if place == "shelves" { MOST_NOWHERE } else { MOST_SUSPECTS };
            let mut suspects = Suspects::new();
            let mut page = |check: &mut Self, books: Vec<Vec<u8>>| {
                // A small hash comes whole, however large the page.
                for books in books.chunks(PAGE) {
                    suspects.extend(check.inspect(place, books.iter().map(Vec::as_slice))?);
                }
                if suspects.len() >= most {
                    check.settle_books(place, std::mem::take(&mut suspects))?;
                }
                Ok(())
            };
            let hash = match place {
                "loans" => Some(&run.keys.loans),
                "shelves" => Some(&run.keys.shelves),
                "states" => Some(&run.keys.book_states),
                _ => None,
            };
            match hash {
                Some(hash) => {
                    self.scan(&["HSCAN", hash], None, |check, pairs: Vec<(Vec<u8>, Vec<u8>)>| {
                        page(check, pairs.into_iter().map(|(book, _)| book).collect())
                    })?;
                }
                None => self.scan(&["SSCAN", &run.keys.storage], None, page)?,
            }
            self.settle_books(place, suspects)?;
        }
        Ok(())
    }

    fn script_on_books(&self, script: &Script, reservation: Option<&[u8]>) -> ScriptCall {
        let keys = self.keys();
        let mut all: Vec<&[u8]> = [
            &keys.loans,
            &keys.storage,
            &keys.shelves,
            &keys.book_states,
            &keys.requests,
            &keys.handoffs,
        ]
        .map(|key| key.as_bytes())
        .into();
        all.extend(reservation);
        let mut call = script.keys(&all);
        call.arg(LENDING_GROUP).arg(SHELVING_GROUP);
        call
    }

    /// Those of a page of books that look wrong.
    pub(super) fn inspect<'b>(
        &mut self,
        place: &str,
        books: impl Iterator<Item = &'b [u8]>,
    ) -> Result<Suspects, Error> {
        const DOING: &str = "look at books";
        let mut call = self.script_on_books(&INSPECT, None);
        call.arg(place);
        for book in books {
            call.arg(book);
        }
        let reply = call.run(&mut self.connection, DOING)?;
        if reply.word != "INSPECTED" || reply.rest.len() % 5 != 0 {
            return Err(reply.unexpected(DOING));
        }
        let suspect = |parts: &[redis::Value]| {
            let fault = text(&parts[1]).and_then(Fault::from_word)?;
            let [user, out, state] = [2, 3, 4].map(|n| bytes(&parts[n]).to_vec());
            Some((bytes(&parts[0]).to_vec(), Suspect { fault, user, out, state }))
        };
        let suspects: Option<Suspects> = reply.rest.chunks_exact(5).map(suspect).collect();
        suspects.ok_or_else(|| reply.unexpected(DOING))
    }

    /// Looks at suspects again, until each is gone or is as it was before: that one is reported.
    fn settle_books(&mut self, place: &str, mut suspects: Suspects) -> Result<(), Failure> {
        for _ in 0..MOST_LOOKS {
            if suspects.is_empty() {
                return Ok(());
            }
            thread::sleep(PAUSE);
            if place == "shelves" {
                // Between two looks: a book that is in a hand-off stays in it until its entry in
                // main storage goes, so if its entry is the same at both, the hand-off was there
                // all the time, to be seen here.
                self.explain(&mut suspects)?;
            }
            let mut confirmed = Vec::new();
            let mut changed = Suspects::new();
            let books: Vec<Vec<u8>> = suspects.keys().cloned().collect();
            for books in books.chunks(PAGE) {
                for (book, now) in self.inspect(place, books.iter().map(Vec::as_slice))? {
                    if suspects.get(&book) == Some(&now) {
                        confirmed.push((book, now));
                    } else {
                        changed.insert(book, now);
                    }
                }
            }
            if place == "shelves" {
                let books = confirmed.iter().map(|(book, _)| book.as_slice());
                let mut holders = self.holders(books)?;
                for (book, suspect) in &mut confirmed {
                    if let Some(user) = holders.remove(book) {
                        suspect.fault = Fault::LoanMissing;
                        suspect.user = user;
                    }
                }
            }
            for books in confirmed.chunks(PAGE) {
                self.report_books(place, books)?;
            }
            suspects = changed;
        }
        self.unsettled += suspects.len() as u64;
        Ok(())
    }

    /// Drops the books that are in a hand-off which is not done, or in a reservation of the
    /// reference application whose request is not decided.
    fn explain(&mut self, suspects: &mut Suspects) -> Result<(), Failure> {
        let run = self.run;
        let key = run.keys.handoffs.as_str();
        let mut after = self.before_undone_hand_offs()?;
        while !suspects.is_empty() {
            let page = stream::page(&mut self.connection, key, after, HAND_OFFS_IN_A_PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let with_suspects: Vec<_> = page
                .iter()
                .map(|entry| (entry.id, books_of(entry).collect::<Vec<_>>()))
                .filter(|(_, books)| books.iter().any(|book| suspects.contains_key(*book)))
                .collect();
            let ids: Vec<String> = with_suspects.iter().map(|(id, _)| id.to_string()).collect();
            let undone = self.undone(Stream::HandOffs, &ids)?;
            for (id, books) in with_suspects {
                if undone.contains(&id.to_string()) {
                    books.iter().for_each(|book| drop(suspects.remove(*book)));
                }
            }
        }
        if !suspects.is_empty() {
            self.scan_keys(&run.keys.reservations_pattern(), |check, keys| {
                for key in keys {
                    check.explain_by_reservation(&key, suspects)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn explain_by_reservation(
        &mut self,
        key: &[u8],
        suspects: &mut Suspects,
    ) -> Result<(), Failure> {
        let Some(request) = self.keys().request_of_reservation(key) else { return Ok(()) };
        let request = String::from_utf8_lossy(request).into_owned();
        if self.type_of(key)? != "set" || self.undone(Stream::Requests, &[request])?.is_empty() {
            return Ok(());
        }
        let books: Vec<Vec<u8>> = suspects.keys().cloned().collect();
        for books in books.chunks(PAGE) {
            let mut cmd = redis::cmd("SMISMEMBER");
            cmd.arg(key).arg(books);
            let reserved: Vec<bool> = self.ask(&cmd, "look at a reservation")?;
            for (book, _) in books.iter().zip(reserved).filter(|(_, reserved)| *reserved) {
                suspects.remove(book);
            }
        }
        Ok(())
    }

    /// Reports a page of books, and mends those that can be mended.
    fn report_books(&mut self, place: &str, books: &[(Vec<u8>, Suspect)]) -> Result<(), Failure> {
        if !self.repair {
            for (book, suspect) in books {
                self.report(violation(book, suspect), Mended::NotTried)?;
            }
            return Ok(());
        }
        let instances = instances(self.connection.0, &self.run.keys)?;
        let at_work = instances.iter().any(|it| matches!(it.lock, Lock::Held(_)));
        let refused = |book: &[u8], suspect: &Suspect| match suspect.fault {
            // What is no id of a book could not travel in a hand-off.
            Fault::Nowhere | Fault::ReservedForNone if BookId::from_bytes(book).is_err() => {
                Some(NOT_WITHOUT_GUESSING)
            }
            Fault::Nowhere => None,
            // Two that take the same book back would do harm.
            Fault::ReservedForNone if at_work => {
                Some(Mended::No("the instances at work do that within seconds"))
            }
            Fault::ReservedForNone => None,
            _ => Some(NOT_WITHOUT_GUESSING),
        };
        let mut to_mend = Vec::new();
        for (book, suspect) in books {
            match refused(book, suspect) {
                Some(mended) => self.report(violation(book, suspect), mended)?,
                None => to_mend.push((book, suspect)),
            }
        }
        if to_mend.is_empty() {
            return Ok(());
        }
        let seen =
            to_mend.iter().map(|(book, suspect)| [book.as_slice(), &suspect.out, &suspect.state]);
        let handed = self.hand_over(None, "", seen)?;
        let all: Vec<_> = to_mend.into_iter().zip(handed.into_iter().map(Mended::from)).collect();
        let is_changed = |mended: &Mended| matches!(mended, Mended::No(_));
        let changed = all.iter().filter(|(_, mended)| is_changed(mended));
        let still_wrong = self.inspect(place, changed.map(|((book, _), _)| book.as_slice()))?;
        for ((book, suspect), mended) in all {
            let is_right = is_changed(&mended) && !still_wrong.contains_key(book);
            let mended = if is_right { Mended::Meanwhile } else { mended };
            self.report(violation(book, suspect), mended)?;
        }
        Ok(())
    }

    /// Hands books to shelving that are still as they were seen: the book, its entry in main
    /// storage, its state. Those of a reservation that is to be dissolved are taken out of it;
    /// nothing is done if its request is undecided.
    pub(super) fn hand_over<'b>(
        &mut self,
        reservation: Option<&[u8]>,
        request: &str,
        seen: impl Iterator<Item = [&'b [u8]; 3]>,
    ) -> Result<Vec<Handed>, Error> {
        const DOING: &str = "hand books to shelving";
        let mut call = self.script_on_books(&MEND, reservation);
        call.arg(request);
        let mut count = 0;
        for parts in seen {
            count += 1;
            for part in parts {
                call.arg(part);
            }
        }
        let reply = call.run(self.connection.0, DOING)?;
        if reply.word == "CHANGED" {
            return Ok(vec![Handed::Changed; count]);
        }
        let Some((hand_off, words)) =
            reply.rest.split_first().filter(|(_, words)| words.len() == count)
        else {
            return Err(reply.unexpected(DOING));
        };
        let id = EventId::from_bytes(bytes(hand_off));
        let handed = |word| match (text(word), id) {
            (Some("handed_over"), Some(id)) => Some(Handed::Over(id)),
            (Some("let_go"), _) => Some(Handed::LetGo),
            (Some("changed"), _) => Some(Handed::Changed),
            _ => None,
        };
        words.iter().map(handed).collect::<Option<_>>().ok_or_else(|| reply.unexpected(DOING))
    }
}

fn violation(book: &[u8], suspect: &Suspect) -> Violation {
    let (user, state) = (shown(&suspect.user), shown(&suspect.state));
    let fetched_by = format!("out of main storage since request {}", shown(&suspect.out));
    let what = match suspect.fault {
        Fault::LentAndStored => format!("lent to {user} and in automated storage"),
        Fault::LentOnShelf => format!("lent to {user} and on its shelf"),
        Fault::LentAndReserved => format!("lent to {user} and reserved: {state}"),
        Fault::StoredOnShelf => "in automated storage and on its shelf".to_owned(),
        Fault::StoredAndReserved => format!("in automated storage and reserved: {state}"),
        Fault::Nowhere => format!("nowhere: {fetched_by}"),
        Fault::LoanMissing => format!(
            "nowhere, and its loan is missing: it is noted as lent to {user}, whose count is more than what \
             is lent; {fetched_by}"
        ),
        Fault::ReservedForNone => format!("reserved by a request that is decided: {state}"),
        Fault::StateUnknown => format!("in a state that means nothing: {state}"),
    };
    let mut facts = vec![("book", book.into())];
    for (name, value) in
        [("user", &suspect.user), ("fetched_by", &suspect.out), ("state", &suspect.state)]
    {
        if !value.is_empty() {
            facts.push((name, value[..].into()));
        }
    }
    let fault = suspect.fault;
    let words = format!("{} is {what}", shown(book));
    Violation { invariant: fault.invariant(), fault: fault.word(), facts, words }
}
