//! I1: what is on its way to its shelf is neither lent nor stored. Once the hand-off is done, the
//! book would be on its shelf as well.

use std::collections::BTreeSet;
use std::thread;

use super::{
    Check, HAND_OFFS_IN_A_PAGE, MOST_SUSPECTS, NOT_WITHOUT_GUESSING, PAGE, PAUSE, Violation,
    books_of,
};
use crate::admin::failure::Failure;
use crate::admin::show::shown;
use crate::error::Error;
use crate::ids::EventId;
use crate::keys::{SHELVING_GROUP, Stream};
use crate::stream;

/// A hand-off, and a book of it.
type Carried = (EventId, Vec<u8>);

/// Where a book is besides.
enum Place {
    LentTo(Vec<u8>),
    Stored,
}

impl Check<'_> {
    /// Looks at every book of a hand-off that is not done.
    pub(super) fn hand_offs(&mut self) -> Result<(), Failure> {
        // With no group, those that are done count as undone where they are kept.
        if self.lost.contains(&Stream::HandOffs) {
            return Ok(());
        }
        let run = self.run;
        let mut suspects = BTreeSet::new();
        let mut after = self.before_undone_hand_offs()?;
        loop {
            let key = run.keys.handoffs.as_str();
            let page = stream::page(&mut self.connection, key, after, HAND_OFFS_IN_A_PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            let carried: Vec<Carried> = page
                .iter()
                .flat_map(|entry| books_of(entry).map(|book| (entry.id, book.to_vec())))
                .collect();
            suspects.extend(self.elsewhere(&carried)?.into_iter().map(|(carried, _)| carried));
            if suspects.len() >= MOST_SUSPECTS {
                self.settle_hand_offs(std::mem::take(&mut suspects))?;
            }
        }
        self.settle_hand_offs(suspects)
    }

    /// An id that comes before every hand-off that is not done.
    pub(super) fn before_undone_hand_offs(&mut self) -> Result<Option<EventId>, Error> {
        let key = self.run.keys.handoffs.as_str();
        let Some(group) = stream::group(&mut self.connection, key, SHELVING_GROUP)? else {
            return Ok(None);
        };
        let oldest = stream::oldest_pending(&mut self.connection, key, SHELVING_GROUP)?;
        Ok(oldest.map_or(Some(group.last_delivered), EventId::previous))
    }

    /// Those of these books that are lent or stored while their hand-off is not done.
    fn elsewhere(&mut self, carried: &[Carried]) -> Result<Vec<(Carried, Place)>, Error> {
        let run = self.run;
        let mut found = Vec::new();
        for carried in carried.chunks(PAGE) {
            let books: Vec<&[u8]> = carried.iter().map(|(_, book)| &book[..]).collect();
            let (loans, stored): (Vec<Option<Vec<u8>>>, Vec<bool>) = redis::pipe()
                .cmd("HMGET")
                .arg(&run.keys.loans)
                .arg(&books)
                .cmd("SMISMEMBER")
                .arg(&run.keys.storage)
                .arg(&books)
                .query(&mut self.connection)
                .map_err(Error::redis("look at the books of hand-offs"))?;
            let places = loans.into_iter().zip(stored).map(|(user, stored)| match user {
                Some(user) => Some(Place::LentTo(user)),
                None => stored.then_some(Place::Stored),
            });
            let elsewhere: Vec<(Carried, Place)> = carried
                .iter()
                .zip(places)
                .filter_map(|(carried, place)| Some((carried.clone(), place?)))
                .collect();
            // After the books: what is not done now was not done then.
            let ids: BTreeSet<EventId> = elsewhere.iter().map(|((id, _), _)| *id).collect();
            let ids: Vec<String> = ids.iter().map(EventId::to_string).collect();
            let undone = self.undone(Stream::HandOffs, &ids)?;
            found.extend(
                elsewhere.into_iter().filter(|((id, _), _)| undone.contains(&id.to_string())),
            );
        }
        Ok(found)
    }

    fn settle_hand_offs(&mut self, suspects: BTreeSet<Carried>) -> Result<(), Failure> {
        if suspects.is_empty() {
            return Ok(());
        }
        // An instance of the reference application puts a book on its shelf first, and is done with the
        // hand-off in another step.
        thread::sleep(PAUSE);
        if self.report_if_lost(Stream::HandOffs)? {
            return Ok(());
        }
        let suspects: Vec<Carried> = suspects.into_iter().collect();
        for ((id, book), place) in self.elsewhere(&suspects)? {
            let name = shown(&book);
            let mut facts =
                vec![("book", book[..].into()), ("hand_off", id.to_string()[..].into())];
            let (fault, is) = match place {
                Place::LentTo(user) => {
                    let is = format!("lent to {}", shown(&user));
                    facts.push(("user", user[..].into()));
                    ("lent_in_hand_off", is)
                }
                Place::Stored => ("stored_in_hand_off", "in automated storage".to_owned()),
            };
            let words = format!("{name} is {is} and on its way to its shelf in hand-off {id}");
            let violation = Violation { invariant: "I1", fault, facts, words };
            self.report(violation, NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }
}
