//! I2: a user's count is the number of books lent to that user, and no more than the limit.
//!
//! Loans are kept by book, so counting them by user takes a scan, in which no user's loans are seen
//! at one instant. Therefore a first scan only tells whom to suspect: those whose loans and count
//! do not fit, and all who were busy meanwhile. A second one, if there are any, tells which books
//! may be lent to each of these. What was lent to them since it began stands in the outcomes that
//! were written since: with these, recount.lua knows every book that the user may have, looks at
//! all of them at one instant, and there the count is right or wrong. An instance of the reference
//! application writes no outcomes: beside one, nothing is mended here.
//!
//! Memory: the first scan keeps a few bytes for each user, of [`LOANS_IN_A_PASS`] loans at a time;
//! the second the books of [`SUSPECTS_IN_A_PASS`] users.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::thread;

use redis::Value;

use super::{
    CHANGED_MEANWHILE, Check, Fact, MOST_LOOKS, MOST_SUSPECTS, Mended, NOT_WITHOUT_GUESSING, PAGE,
    PAUSE, Violation, wrong_type,
};
use crate::admin::failure::Failure;
use crate::admin::instances::has_reference;
use crate::admin::show::shown;
use crate::error::Error;
use crate::ids::EventId;
use crate::lending::MOST_BOOKS_IN_HAND;
use crate::link::{AskAgain, Connection};
use crate::outcome::Verdict;
use crate::script::{Script, bytes, lua, text};
use crate::stream::{self, Entry};
use crate::text::counted;

static RECOUNT: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "recount")));

/// Loans that the first scan counts in one pass, each for a user in the worst case: 70 MB.
const LOANS_IN_A_PASS: u64 = 2_000_000;

/// Suspects whose books the second scan remembers: 40 MB of them if each has the books allowed.
const SUSPECTS_IN_A_PASS: usize = 50_000;

/// Books of one user that are remembered. Who has so many has far too many, whatever the count.
const MOST_BOOKS: usize = 1_000;

/// Users and books that one script looks at.
const USERS_IN_A_STEP: usize = 100;
const BOOKS_IN_A_STEP: usize = 500;

/// Outcomes that one script catches up with.
const OUTCOMES_IN_A_STEP: usize = 200;

/// How often suspects are scanned for: more than once if outcomes were gone before they were read.
const MOST_SCANS: usize = 6;

/// What a scan tells of a user.
#[derive(Default)]
struct Seen {
    /// Books that may be lent to the user, each once.
    books: Vec<Vec<u8>>,
    /// There are more than [`MOST_BOOKS`].
    more: bool,
}

impl Seen {
    /// False if there is no room.
    fn add(&mut self, book: Vec<u8>) -> bool {
        if self.books.contains(&book) {
            return true;
        }
        let room = self.books.len() < MOST_BOOKS;
        if room {
            self.books.push(book);
        }
        room
    }
}

/// A user's count and loans at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    lent: usize,
    of_type: String,
    count: Vec<u8>,
}

impl Counted {
    fn differs(&self) -> bool {
        match self.of_type.as_str() {
            "none" => self.lent != 0,
            _ => number(&self.count) != Some(self.lent as i64),
        }
    }

    fn is_of_right_type(&self) -> bool {
        matches!(self.of_type.as_str(), "none" | "string")
    }

    /// Whether it is wrong in the same way as before, whatever was lent and taken back meanwhile.
    fn is_wrong_like(&self, before: &Self) -> bool {
        if self.of_type != before.of_type {
            return false;
        }
        let off = |it: &Self| Some(number(&it.count)? - it.lent as i64);
        match (off(self), off(before)) {
            (Some(0), _) => before.lent > MOST_BOOKS_IN_HAND,
            (Some(now), before) => Some(now) == before,
            (None, _) => self.count == before.count,
        }
    }

    /// Of a user of whom not all books were counted, only whether those are too many.
    fn is_wrong(&self, more: bool) -> bool {
        !self.is_of_right_type() || (self.differs() && !more) || self.lent > MOST_BOOKS_IN_HAND
    }
}

/// A count as the services read it.
pub(super) fn number(count: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(count).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if plain && text.len() < 10 { text.parse().ok() } else { None }
}

/// A user whose count looks wrong.
struct Suspect {
    user: Vec<u8>,
    seen: Seen,
    /// More books are known than one step can look at: a busy user, to be scanned for again.
    outgrown: bool,
    /// What the last look told.
    before: Option<Counted>,
    /// Found right, or reported.
    done: bool,
}

/// The suspects of a pass, and up to which outcome their books are known.
struct Watched {
    suspects: Vec<Suspect>,
    index: HashMap<Vec<u8>, usize>,
    known: EventId,
    /// Whether an instance may have been lending that writes no outcomes.
    beside_reference: bool,
}

impl Watched {
    fn new(
        suspects: impl Iterator<Item = (Vec<u8>, Seen)>,
        known: EventId,
        beside_reference: bool,
    ) -> Self {
        let suspect =
            |(user, seen)| Suspect { user, seen, outgrown: false, before: None, done: false };
        let mut suspects: Vec<_> = suspects.map(suspect).collect();
        suspects.sort_unstable_by(|a, b| a.user.cmp(&b.user));
        let index = suspects.iter().enumerate().map(|(n, it)| (it.user.clone(), n)).collect();
        Self { suspects, index, known, beside_reference }
    }

    /// How many of these suspects one step looks at.
    fn step(&self, open: &[usize]) -> usize {
        let mut books = 0;
        let fits = |n: &&usize| {
            books += self.suspects[**n].seen.books.len();
            books <= BOOKS_IN_A_STEP
        };
        open.iter().take(USERS_IN_A_STEP).take_while(fits).count().max(1)
    }

    /// Notes what was lent since, up to the newest outcome. False if outcomes are gone that would
    /// have been needed.
    fn catch_up(&mut self, connection: &mut Connection, outcomes: &str) -> Result<bool, Error> {
        loop {
            let page = stream::page(&mut AskAgain(connection), outcomes, Some(self.known), PAGE)?;
            // Looked at after the page: if nothing behind `known` is gone now, nothing was then.
            let oldest = stream::page(&mut AskAgain(connection), outcomes, None, 1)?;
            match oldest.first() {
                None if self.known != EventId::default() => return Ok(false),
                Some(oldest) if self.known < oldest.id => return Ok(false),
                _ => {}
            }
            let Some(last) = page.last() else { return Ok(true) };
            for outcome in &page {
                if outcome.field("outcome") == Some(Verdict::Accepted.as_str().as_bytes()) {
                    self.note_loans(outcome);
                }
            }
            self.known = last.id;
        }
    }

    fn note_loans(&mut self, outcome: &Entry) {
        let user = outcome.field("user_id").unwrap_or_default();
        let Some(suspect) = self.index.get(user).map(|n| &mut self.suspects[*n]) else { return };
        for book in outcome.field("book_ids").unwrap_or_default().split(|b| *b == b',') {
            suspect.outgrown |= !suspect.seen.add(book.to_vec());
        }
    }

    /// The users that are neither found right nor reported.
    fn open(self) -> HashSet<Vec<u8>> {
        self.suspects.into_iter().filter(|it| !it.done).map(|it| it.user).collect()
    }
}

impl Check<'_> {
    /// Looks at the counts of all users.
    pub(super) fn counts(&mut self) -> Result<(), Failure> {
        let loans = redis::cmd("HLEN").arg(&self.run.keys.loans).to_owned();
        let loans: u64 = self.ask(&loans, "count the loans")?;
        let passes = loans / LOANS_IN_A_PASS + 1;
        // Users go by their hash, the same in all passes: two of one hash would at worst be suspected for
        // nothing.
        let hasher = RandomState::new();
        let hash = |user: &[u8]| hasher.hash_one(user);
        for pass in 0..passes {
            let suspects =
                self.suspects(&|user| Some(hash(user)).filter(|it| it % passes == pass))?;
            for suspects in suspects.chunks(SUSPECTS_IN_A_PASS) {
                let mut left: HashSet<u64> = suspects.iter().copied().collect();
                for _ in 0..MOST_SCANS {
                    if left.is_empty() {
                        break;
                    }
                    let again = self.count_suspects(&|user| left.contains(&hash(user)))?;
                    left = again.iter().map(|user| hash(user)).collect();
                }
                self.unsettled += left.len() as u64;
            }
        }
        Ok(())
    }

    fn newest_outcome(&mut self) -> Result<EventId, Error> {
        let newest = stream::page_back(&mut self.connection, &self.run.keys.outcomes, None, 1)?;
        Ok(newest.first().map_or(EventId::default(), |outcome| outcome.id))
    }

    /// The first scan: the users, by their hash, of whom loans and count do not fit, or who were
    /// lent books or gave some back meanwhile: theirs would fit only by chance.
    fn suspects(&mut self, hash: &dyn Fn(&[u8]) -> Option<u64>) -> Result<Vec<u64>, Failure> {
        let run = self.run;
        let begin = self.newest_outcome()?;
        // Loans of each user; none, once the count was found to fit.
        let mut users: HashMap<u64, Option<u32>> = HashMap::new();
        self.scan(&["HSCAN", &run.keys.loans], None, |_, loans: Vec<(Vec<u8>, Vec<u8>)>| {
            for user in loans.iter().filter_map(|(_, user)| hash(user)) {
                *users.entry(user).or_default().get_or_insert(0) += 1;
            }
            Ok(())
        })?;
        // A key can come twice: each is told once.
        let mut expiring = BTreeSet::new();
        self.scan_keys(&run.keys.counts_pattern(), |check, mut keys| {
            let hash_of = |key: &Vec<u8>| run.keys.user_of_count(key).and_then(hash);
            keys.retain(|key| hash_of(key).is_some());
            for keys in keys.chunks(PAGE) {
                let counts: Vec<Option<Vec<u8>>> =
                    check.ask(redis::cmd("MGET").arg(keys), "read counts")?;
                expiring.extend(check.with_ttl(keys)?.into_iter().map(|(key, _)| key.clone()));
                if expiring.len() >= MOST_SUSPECTS {
                    check.report_ttls(std::mem::take(&mut expiring))?;
                }
                for (key, count) in keys.iter().zip(counts) {
                    let Some(user) = hash_of(key) else { continue };
                    // No count: it went away, or is of another type.
                    let count = count.as_deref().and_then(number);
                    let lent = users.get(&user).copied();
                    let fits = match lent {
                        // A key can come twice.
                        Some(None) => true,
                        Some(Some(lent)) => count == Some(i64::from(lent)),
                        None => count == Some(0),
                    };
                    let allowed = count.is_some_and(|it| it <= MOST_BOOKS_IN_HAND as i64);
                    if fits && allowed {
                        users.entry(user).and_modify(|lent| *lent = None);
                    } else if lent.is_none() {
                        users.insert(user, Some(0));
                    }
                }
            }
            Ok(())
        })?;
        self.report_ttls(expiring)?;
        let end = self.newest_outcome()?;
        let mut after = begin;
        while after < end {
            let page = stream::page(&mut self.connection, &run.keys.outcomes, Some(after), PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            let busy = page.iter().filter(|outcome| outcome.field("book_ids").is_some());
            for user in busy.filter_map(|outcome| hash(outcome.field("user_id")?)) {
                users.insert(user, Some(0));
            }
        }
        Ok(users.into_iter().filter_map(|(user, open)| open.map(|_| user)).collect())
    }

    /// The second scan: looks at all users that are in it. Returns those that have to be scanned
    /// for again.
    fn count_suspects(
        &mut self,
        is_suspect: &dyn Fn(&[u8]) -> bool,
    ) -> Result<HashSet<Vec<u8>>, Failure> {
        let run = self.run;
        let beside_reference = has_reference(self.connection.0, &run.keys)?;
        let known = self.newest_outcome()?;
        let mut users: HashMap<Vec<u8>, Seen> = HashMap::new();
        self.scan(&["HSCAN", &run.keys.loans], None, |_, loans: Vec<(Vec<u8>, Vec<u8>)>| {
            for (book, user) in loans {
                if is_suspect(&user) {
                    let seen = users.entry(user).or_default();
                    seen.more |= !seen.add(book);
                }
            }
            Ok(())
        })?;
        // Those without loans are found by their count.
        self.scan_keys(&run.keys.counts_pattern(), |_, keys| {
            for user in keys.iter().filter_map(|key| run.keys.user_of_count(key)) {
                if is_suspect(user) && !users.contains_key(user) {
                    users.insert(user.to_vec(), Seen::default());
                }
            }
            Ok(())
        })?;
        self.settle_counts(Watched::new(users.into_iter(), known, beside_reference))
    }

    /// Looks at suspects until the count of each is right, or wrong in the same way twice: that is
    /// reported. Returns those that have to be scanned for again.
    fn settle_counts(&mut self, mut watched: Watched) -> Result<HashSet<Vec<u8>>, Failure> {
        let mut open: Vec<usize> = (0..watched.suspects.len()).collect();
        let mut again = HashSet::new();
        for look in 0..MOST_LOOKS {
            if look > 0 && !open.is_empty() {
                thread::sleep(PAUSE);
            }
            let mut rest = &open[..];
            while !rest.is_empty() {
                let (step, next) = rest.split_at(watched.step(rest));
                rest = next;
                let Some(counted) = self.recount(&mut watched, step, "look")? else {
                    again.extend(watched.open());
                    return Ok(again);
                };
                for (n, counted) in step.iter().zip(counted) {
                    let suspect = &mut watched.suspects[*n];
                    if suspect.outgrown {
                        again.insert(suspect.user.clone());
                        suspect.done = true;
                    } else if !counted.is_wrong(suspect.seen.more) {
                        suspect.done = true;
                    } else if suspect.before.as_ref().is_some_and(|it| counted.is_wrong_like(it)) {
                        suspect.done = true;
                        self.report_count(&mut watched, *n, &counted)?;
                    } else {
                        suspect.before = Some(counted);
                    }
                }
            }
            open.retain(|n| !watched.suspects[*n].done);
        }
        self.unsettled += open.len() as u64;
        Ok(again)
    }

    /// Counts these suspects at one instant, and sets counts right if `what` is "mend". None if
    /// outcomes are gone that would have been needed.
    fn recount(
        &mut self,
        watched: &mut Watched,
        step: &[usize],
        what: &str,
    ) -> Result<Option<Vec<Counted>>, Error> {
        const DOING: &str = "count loans";
        /// Behind a stream that is written faster than it is read there is nothing to be had.
        const MOST_TRIES: usize = 100;
        let keys = &self.run.keys;
        for _ in 0..MOST_TRIES {
            if !watched.catch_up(self.connection.0, &keys.outcomes)? {
                return Ok(None);
            }
            let suspects = step.iter().map(|n| &watched.suspects[*n]);
            if what == "mend" && suspects.clone().any(|suspect| suspect.outgrown) {
                return Ok(None);
            }
            let mut all = vec![keys.loans.clone().into_bytes(), keys.outcomes.clone().into_bytes()];
            all.extend(suspects.clone().map(|suspect| keys.count_of(&suspect.user)));
            let mut call = RECOUNT.keys(&all);
            call.arg(watched.known).arg(OUTCOMES_IN_A_STEP).arg(what);
            for Suspect { user, seen, .. } in suspects {
                call.arg(&user[..]).arg(seen.books.len());
                for book in &seen.books {
                    call.arg(&book[..]);
                }
            }
            let reply = call.run(self.connection.0, DOING)?;
            let counted = |parts: &[Value]| {
                let Value::Int(lent) = parts[0] else { return None };
                let of_type = text(&parts[1])?.to_owned();
                let count = bytes(&parts[2]).to_vec();
                Some(Counted { lent: usize::try_from(lent).ok()?, of_type, count })
            };
            match reply.word.as_str() {
                "BEHIND" => {}
                "MISSED" => return Ok(None),
                "COUNTED" if reply.rest.len() == 3 * step.len() => {
                    let all: Option<_> = reply.rest.chunks_exact(3).map(counted).collect();
                    return all.map(Some).ok_or_else(|| reply.unexpected(DOING));
                }
                _ => return Err(reply.unexpected(DOING)),
            }
        }
        Ok(None)
    }

    /// Reports what is wrong with a user, and sets the count right.
    fn report_count(
        &mut self,
        watched: &mut Watched,
        n: usize,
        found: &Counted,
    ) -> Result<(), Failure> {
        let Suspect { user, seen, .. } = &watched.suspects[n];
        let (user, more) = (user.clone(), seen.more);
        if !found.is_of_right_type() {
            let key = self.run.keys.count_of(&user);
            let violation = wrong_type(&key, &found.of_type, "string");
            return self.report(violation, NOT_WITHOUT_GUESSING);
        }
        let name = shown(&user);
        let facts = |fact, value: Fact| {
            vec![("user", user[..].into()), ("lent", found.lent.into()), (fact, value)]
        };
        if found.differs() && !more {
            let count = match found.of_type.as_str() {
                "none" => "missing".to_owned(),
                _ => shown(&found.count),
            };
            let violation = Violation {
                invariant: "I2",
                fault: "count_differs",
                facts: facts("count", found.count[..].into()),
                words: format!(
                    "the count of {name} is {count}, with {} lent",
                    counted(found.lent, "book")
                ),
            };
            let mended =
                if self.repair { self.set_right(watched, n, found)? } else { Mended::NotTried };
            self.report(violation, mended)?;
        }
        if found.lent > MOST_BOOKS_IN_HAND {
            let violation = Violation {
                invariant: "I2",
                fault: "over_the_limit",
                facts: facts("limit", MOST_BOOKS_IN_HAND.into()),
                words: format!(
                    "{name} has {}{}, and {MOST_BOOKS_IN_HAND} are the most allowed",
                    if more { "at least " } else { "" },
                    counted(found.lent, "book")
                ),
            };
            self.report(violation, NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }

    fn set_right(
        &mut self,
        watched: &mut Watched,
        n: usize,
        found: &Counted,
    ) -> Result<Mended, Error> {
        let is_more = number(&found.count).is_some_and(|count| count > found.lent as i64);
        if is_more && self.may_have_more(&watched.suspects[n].user)? {
            return Ok(Mended::No("a book that is nowhere is noted as lent to that user"));
        }
        if watched.beside_reference || has_reference(self.connection.0, &self.run.keys)? {
            return Ok(Mended::No(
                "an instance of the reference application may be lending: stop it, or remove its \
                 lock, and run this again",
            ));
        }
        // What is told is how it was right before it was set.
        Ok(match self.recount(watched, &[n], "mend")? {
            Some(before) if before[0].differs() => {
                Mended::Yes(format!("the count is {} now", before[0].lent))
            }
            Some(_) => Mended::Meanwhile,
            None => CHANGED_MEANWHILE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_as_the_services_read_it() {
        for (count, is) in [
            (&b"3"[..], Some(3)),
            (b"03", Some(3)),
            (b"-1", Some(-1)),
            (b"", None),
            (b"+3", None),
            (b" 3", None),
            (b"3.0", None),
            (b"1234567890", None),
            (b"\xff", None),
        ] {
            assert_eq!(number(count), is, "{count:?}");
        }
    }
}
