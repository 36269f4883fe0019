//! `library-admin check`: holds the whole state against the invariants, while the library is at
//! work.
//!
//! Nothing here blocks Redis for more than a few milliseconds: everything is scanned in pages, and
//! every page is looked at by one script, which sees its books as they all are at one instant. At
//! every such instant the invariants hold, whatever instances are doing; what looks wrong
//! nevertheless is looked at again after a moment, and reported when it is still the same. So what
//! is in motion raises no alarm.
//!
//! What is found is mended, if that is wanted, by scripts that look again before they write.
//! Memory does not grow with the library: each list has a bound here.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use redis::FromRedisValue;

use super::failure::{DONE, Failure, UNSETTLED, WRONG};
use super::options::Run;
use super::show::{print, say, shown, tell};
use crate::error::Error;
use crate::event::BOOK_IDS_FIELD;
use crate::ids::BookId;
use crate::json::Object;
use crate::keys::{Keys, Stream};
use crate::lending::STORAGE_CAPACITY;
use crate::link::{self, AskAgain, Connection};
use crate::stream::{self, Entry};
use crate::text::counted;

mod books;
mod counts;
mod events;
mod handoffs;
mod missing;
mod reservations;
mod ttls;

/// Books, users or keys that one step looks at: well under a millisecond of Redis.
const PAGE: usize = 250;

/// Hand-offs that one step reads: each may have very many books.
pub const HAND_OFFS_IN_A_PAGE: usize = 20;

/// Suspects that are kept until they are looked at again.
const MOST_SUSPECTS: usize = 5_000;

/// Books that look as if they were nowhere, likewise: for each time there is much to be gone through.
const MOST_NOWHERE: usize = 100_000;

/// How long a suspect is left alone before it is looked at again: longer than a script takes, and
/// than a slow instance needs between two of its steps.
const PAUSE: Duration = Duration::from_millis(250);

/// How often a suspect that changes all the time is looked at before it is given up.
const MOST_LOOKS: usize = 8;

/// How long instances may take to make a lost group again, once one has noticed.
const MADE_ANEW_WITHIN: Duration = Duration::from_secs(35);

/// Something that is wrong.
struct Violation {
    /// The invariant that it violates (I1 to I4, or I6), or `type` or `ttl`.
    invariant: &'static str,
    /// A word for programs.
    fault: &'static str,
    /// What it is about.
    facts: Vec<(&'static str, Fact)>,
    /// The same in words.
    words: String,
}

/// Something that a violation is about.
enum Fact {
    Text(Vec<u8>),
    Number(usize),
}

impl From<&[u8]> for Fact {
    fn from(bytes: &[u8]) -> Self {
        Self::Text(bytes.into())
    }
}

impl From<&str> for Fact {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<usize> for Fact {
    fn from(number: usize) -> Self {
        Self::Number(number)
    }
}

/// What became of the wish to mend something.
enum Mended {
    /// It is mended: the change.
    Yes(String),
    /// It is not: why.
    No(&'static str),
    /// It is right by now, though not by us: another check mends as well, or an instance did.
    Meanwhile,
    /// That was not wished.
    NotTried,
}

const NOT_WITHOUT_GUESSING: Mended = Mended::No("that cannot be done without guessing");
const CHANGED_MEANWHILE: Mended = Mended::No("it has changed meanwhile");

/// A check on its way.
struct Check<'a> {
    run: &'a Run,
    /// For questions; what changes something goes by the connection within.
    connection: AskAgain<'a>,
    repair: bool,
    /// Violations that are there now.
    wrong: u64,
    /// Violations that were mended.
    mended: u64,
    /// Suspects that changed too fast.
    unsettled: u64,
    /// Whether there is any key of a library that all share.
    is_any_there: bool,
    /// Streams whose group is lost: what was decided and is still there cannot be told from what was not.
    lost: Vec<Stream>,
}

/// Holds the state against the invariants.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn run(run: &Run, connection: &mut Connection, repair: bool) -> Result<u8, Failure> {
    let connection = AskAgain(connection);
    let mut check = Check {
        run,
        connection,
        repair,
        wrong: 0,
        mended: 0,
        unsettled: 0,
        is_any_there: false,
        lost: Vec::new(),
    };
    match check.everything() {
        // Who closes the pipe has seen what is wrong.
        Err(Failure::Closed) => Ok(WRONG),
        other => other,
    }
}

impl Check<'_> {
    fn keys(&self) -> &Keys {
        &self.run.keys
    }

    fn everything(&mut self) -> Result<u8, Failure> {
        // First of all: what expires while the rest is looked at is lost.
        self.shared_ttls()?;
        if self.shared_types()? {
            self.groups()?;
            self.locks()?;
            self.capacity()?;
            self.stored()?;
            self.books()?;
            self.hand_offs()?;
            self.reservations()?;
            self.counts()?;
            self.events()?;
        } else {
            say("the rest was not checked: these keys are shared by all");
        }
        if self.unsettled > 0 {
            say(&format!(
                "{} more looked wrong and changed too fast to be sure: run it again",
                self.unsettled
            ));
        }
        if self.wrong == 0 && !self.is_any_there {
            // Whoever watches over a library by this command, and has mistyped its branch, would never know.
            return Err(Failure::wrong(self.run.target.has_no_library(&self.run.part)));
        }
        if !self.run.json {
            let mut summary = match self.wrong {
                0 => "nothing is wrong".to_owned(),
                wrong => counted(wrong, "violation"),
            };
            if self.mended > 0 {
                summary += &format!(", {} mended", self.mended);
            }
            tell(&(summary + "\n"))?;
            if self.wrong > 0 {
                say(if self.repair {
                    "each line says why it is not mended; --repair in library-admin(8) tells what a person can do"
                } else {
                    "--repair mends what needs no guessing"
                });
            }
        }
        Ok(match (self.wrong, self.unsettled) {
            (0, 0) => DONE,
            (0, _) => UNSETTLED,
            _ => WRONG,
        })
    }

    /// Prints a violation, and what became of it.
    fn report(&mut self, violation: Violation, mended: Mended) -> Result<(), Failure> {
        let mended = if self.repair { mended } else { Mended::NotTried };
        match mended {
            Mended::Meanwhile => return Ok(()),
            Mended::Yes(_) => self.mended += 1,
            Mended::No(_) | Mended::NotTried => self.wrong += 1,
        }
        if self.run.json {
            let mut object =
                Object::new().text("invariant", violation.invariant).text("fault", violation.fault);
            for (name, value) in violation.facts {
                object = match value {
                    Fact::Text(text) => object.text(name, text),
                    Fact::Number(number) => object.number(name, number as u64),
                };
            }
            object = match mended {
                Mended::Yes(change) => object.text("mended", change),
                Mended::No(why) => object.text("not_mended", why),
                Mended::Meanwhile | Mended::NotTried => object,
            };
            return print(&object.line());
        }
        let mut line = format!("{}: {}", violation.invariant, violation.words);
        match mended {
            Mended::Yes(change) => line = line + "; mended: " + &change,
            Mended::No(why) => line = line + "; not mended: " + why,
            Mended::Meanwhile | Mended::NotTried => {}
        }
        print(&(line + "\n"))
    }

    /// Whether the keys that all share have the types that they must have.
    fn shared_types(&mut self) -> Result<bool, Failure> {
        let run = self.run;
        let mut right = true;
        for (key, wanted) in run.keys.types() {
            let is = self.type_of(key.as_bytes())?;
            self.is_any_there |= is != "none";
            if is != wanted && is != "none" {
                right = false;
                self.report(wrong_type(key.as_bytes(), &is, wanted), NOT_WITHOUT_GUESSING)?;
            }
        }
        Ok(right)
    }

    fn type_of(&mut self, key: &[u8]) -> Result<String, Error> {
        self.ask(redis::cmd("TYPE").arg(key), "look at the type of a key")
    }

    /// No event is passed over (I4): a group that is ahead of its stream is not given what is added. None is
    /// decided twice: a group that is lost does not know what it was given.
    fn groups(&mut self) -> Result<(), Failure> {
        let run = self.run;
        for stream in Stream::ALL {
            let key = stream.key(&run.keys);
            let Some(group) = stream::group(&mut self.connection, key, stream.group())? else {
                self.report_if_lost(stream)?;
                continue;
            };
            let Some(ahead) = stream::ahead(&mut self.connection, key, stream.group(), group)?
            else {
                continue;
            };
            let violation = Violation {
                invariant: "I4",
                fault: "group_ahead",
                facts: vec![
                    ("stream", stream.word().into()),
                    ("group_at", ahead.delivered.to_string()[..].into()),
                    ("last_id", ahead.last.to_string()[..].into()),
                ],
                words: ahead.to_string(),
            };
            self.report(violation, NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }

    /// Looks whether a stream's group is lost, as libraryd sees it when it starts, and reports that, once.
    fn report_if_lost(&mut self, stream: Stream) -> Result<bool, Failure> {
        if self.lost.contains(&stream) {
            return Ok(true);
        }
        let run = self.run;
        let (key, group) = (stream.key(&run.keys), stream.group());
        let mut is_kept = false;
        // An instance at work makes it anew within a second or so, or when all others have noticed.
        let until = Instant::now() + MADE_ANEW_WITHIN;
        for look in 0.. {
            if look > 0 {
                thread::sleep(PAUSE);
            }
            if stream::group(&mut self.connection, key, group)?.is_some() {
                return Ok(false);
            }
            let (length, outcomes, kept, noticed): (u64, u64, bool, bool) = redis::pipe()
                .cmd("XLEN")
                .arg(key)
                .cmd("XLEN")
                .arg(&run.keys.outcomes)
                .cmd("HEXISTS")
                .arg(&run.keys.kept_events)
                .arg(key)
                .cmd("EXISTS")
                .arg(&run.keys.lost_groups)
                .query(&mut self.connection)
                .map_err(Error::redis("look for lost groups"))?;
            // What waits for the first start of libraryd has no group yet. Nor needs it one where nothing
            // is left: libraryd makes both.
            if length == 0 || (outcomes == 0 && !kept) {
                return Ok(false);
            }
            is_kept = kept;
            if look + 1 >= MOST_LOOKS && !(noticed && Instant::now() < until) {
                break;
            }
        }
        self.lost.push(stream);
        let lost = format!("the consumer group {group} of {key} is lost");
        let (words, mended) = if is_kept {
            let words = format!(
                "{lost}, and events that were decided are still in that stream: libraryd does not make \
                 it anew, for they would be decided again. library-admin regroup{} tells which event is \
                 the first that is not decided, and how to go on",
                run.typed
            );
            (words, NOT_WITHOUT_GUESSING)
        } else {
            (
                format!("{lost}: libraryd makes it anew when it starts"),
                Mended::No("libraryd does that"),
            )
        };
        let facts = vec![("stream", stream.word().into()), ("group", group.into())];
        self.report(Violation { invariant: "I4", fault: "group_lost", facts, words }, mended)?;
        Ok(true)
    }

    /// Automated storage has its limit (I3).
    fn capacity(&mut self) -> Result<(), Failure> {
        let mut fewest = usize::MAX;
        for look in 0..2 {
            if look > 0 {
                thread::sleep(PAUSE);
            }
            let storage = &self.run.keys.storage;
            let books: usize = self.ask(redis::cmd("SCARD").arg(storage), "count the storage")?;
            if books <= STORAGE_CAPACITY {
                return Ok(());
            }
            fewest = fewest.min(books);
        }
        let violation = Violation {
            invariant: "I3",
            fault: "storage_over_capacity",
            facts: vec![("books", fewest.into())],
            words: format!(
                "{fewest} books in automated storage, which has room for {STORAGE_CAPACITY}"
            ),
        };
        self.report(violation, NOT_WITHOUT_GUESSING)
    }

    /// What is no book's id can be asked for by nobody: it would take a place in automated storage for ever.
    fn stored(&mut self) -> Result<(), Failure> {
        let storage = &self.run.keys.storage;
        let mut suspects = BTreeSet::new();
        self.scan(&["SSCAN", storage], None, |_, members: Vec<Vec<u8>>| {
            let bad = members.into_iter().filter(|member| BookId::from_bytes(member).is_err());
            // If there are more, these will do to begin with.
            let room = MOST_SUSPECTS.saturating_sub(suspects.len());
            suspects.extend(bad.take(room));
            Ok(())
        })?;
        if suspects.is_empty() {
            return Ok(());
        }
        thread::sleep(PAUSE);
        for member in suspects {
            let mut cmd = redis::cmd("SISMEMBER");
            cmd.arg(storage).arg(&member);
            if !self.ask::<bool>(&cmd, "look at the storage")? {
                continue;
            }
            let violation = Violation {
                invariant: "I3",
                fault: "stored_no_book",
                facts: vec![("member", member[..].into())],
                words: format!(
                    "{} is in automated storage and no book's id: nobody can ask for it",
                    shown(&member)
                ),
            };
            self.report(violation, NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }

    /// An instance whose lock is of another type cannot start.
    fn locks(&mut self) -> Result<(), Failure> {
        let mut wrong = BTreeMap::new();
        self.scan_keys(&self.run.keys.locks_pattern(), |check, keys| {
            for key in keys {
                let is = check.type_of(&key)?;
                if is != "string" && is != "none" && wrong.len() < MOST_SUSPECTS {
                    wrong.insert(key, is);
                }
            }
            Ok(())
        })?;
        for (key, is) in wrong {
            self.report(wrong_type(&key, &is, "string"), NOT_WITHOUT_GUESSING)?;
        }
        Ok(())
    }

    fn ask<T: FromRedisValue>(
        &mut self,
        command: &redis::Cmd,
        doing: &'static str,
    ) -> Result<T, Error> {
        link::ask(self.connection.0, doing, command)
    }

    /// Goes through a hash, a set or all keys, page by page: `command` as it stands in front of its cursor.
    /// What is there all the time is seen at least once.
    fn scan<T: FromRedisValue>(
        &mut self,
        command: &[&str],
        pattern: Option<&str>,
        mut page: impl FnMut(&mut Self, Vec<T>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut cursor = 0;
        loop {
            let mut cmd = redis::Cmd::new();
            cmd.arg(command).arg(cursor);
            if let Some(pattern) = pattern {
                cmd.arg("MATCH").arg(pattern);
            }
            cmd.arg("COUNT").arg(PAGE);
            let (next, found): (u64, Vec<T>) = self.ask(&cmd, "scan the library")?;
            cursor = next;
            page(self, found)?;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Goes through the keys of a pattern.
    fn scan_keys(
        &mut self,
        pattern: &str,
        page: impl FnMut(&mut Self, Vec<Vec<u8>>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.scan(&["SCAN"], Some(pattern), page)
    }
}

fn wrong_type(key: &[u8], is: &str, wanted: &str) -> Violation {
    Violation {
        invariant: "type",
        fault: "wrong_type",
        facts: vec![("key", key.into()), ("is", is.into()), ("wanted", wanted.into())],
        words: format!("the key {} is a {is} where a {wanted} is expected", shown(key)),
    }
}

/// The books of a hand-off, as they stand there.
pub fn books_of(entry: &Entry) -> impl Iterator<Item = &[u8]> {
    entry.field(BOOK_IDS_FIELD).unwrap_or_default().split(|byte| *byte == b',')
}
