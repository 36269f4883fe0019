//! Questions, read-only: what became of an event, who has what, where a book is, what happened.
//!
//! They read in steps of a bounded size, so that Redis is never held up by one, however large the
//! library is.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};
use std::thread;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};

use super::answer::{self, PAUSE};
use super::failure::{DONE, Failure, OUTPUT, REFUSED, UNANSWERED};
use super::options::{Filter, Run};
use super::show::{self, Form, print, print_outcome, say};
use crate::clock::{Since, rfc3339};
use crate::error::{Error, Remedy};
use crate::event::EventKey;
use crate::ids::{BookId, EventId, UserId};
use crate::json::Object;
use crate::keys::LENDING_GROUP;
use crate::lending::MOST_BOOKS_IN_HAND;
use crate::link::{AskAgain, Connection, Fields, ask};
use crate::outcome::{BOOK_LISTS, Outcome};
use crate::script;
use crate::stream::{self, number};
use crate::text::{escaped, push_escaped, push_printable};

/// How many entries one command reads: a few milliseconds of the server's time.
const STEP: usize = 1_000;
/// How long `watch` blocks at most.
const SLICE: Duration = Duration::from_secs(2);

/// Entries of a stream: ids, and names and values in turn.
type Entries = Vec<(String, Vec<Vec<u8>>)>;
/// What XINFO tells, by its names.
type Info = HashMap<String, Value>;
/// Nothing is queued by a question.
fn failed(run: &Run) -> impl Fn(Error) -> Failure + '_ {
    |error| Failure::redis(&error, &run.target, &"no answer")
}

fn connect(run: &Run) -> Result<Connection, Failure> {
    run.target.connect(SLICE).map_err(failed(run))
}

/// `outcome EVENT_ID`: from its own answer, else from the stream of outcomes.
pub fn outcome(run: &Run, events: &[EventKey], show_user: bool) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let connection = &mut connection;
    let tell = |mut outcome: Outcome| {
        if !show_user {
            show::hide_user(&mut outcome, run.form);
        }
        print_outcome(&outcome, run.form)?;
        Ok(show::status(&outcome))
    };
    if let Some(outcome) = find(run, connection, events, true).map_err(failed(run))? {
        return tell(outcome);
    }
    for event in events {
        if is_undecided(run, connection, *event).map_err(failed(run))? {
            return Err(Failure {
                message: format!("{} {} is still queued: no outcome yet", event.action, event.id),
                status: UNANSWERED,
            });
        }
    }
    // It may have been decided between the two looks.
    if let Some(outcome) = find(run, connection, events, false).map_err(failed(run))? {
        return tell(outcome);
    }
    let event = match events {
        [event] => format!("{} {}", event.action, event.id),
        _ => events.first().map(|event| format!("event {}", event.id)).unwrap_or_default(),
    };
    Err(Failure {
        message: format!(
            "nothing is known about {event}: there was none, or its outcome is not kept any more"
        ),
        status: REFUSED,
    })
}

/// The outcome of one of these events. `recent`: only where it nearly always is.
fn find(
    run: &Run,
    connection: &mut Connection,
    events: &[EventKey],
    recent: bool,
) -> Result<Option<Outcome>, Error> {
    for &event in events {
        let mut command = redis::cmd("LINDEX");
        command.arg(run.keys.answer(event)).arg(0);
        let answer: Option<Vec<u8>> = ask(connection, "look for the outcome", &command)?;
        let found = match answer {
            Some(text) => Some(answer::parse(&text)?),
            None => recorded(run, connection, event, recent)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether an event is in its stream and will be decided. Decided ones may be there as well: where they
/// are kept, and for a while those that the reference application has decided.
fn is_undecided(run: &Run, connection: &mut Connection, event: EventKey) -> Result<bool, Error> {
    const DOING: &str = "look for the event";
    let (stream, id) = (run.keys.stream(event.action), event.id.to_string());
    let mut command = redis::cmd("XRANGE");
    command.arg(stream).arg(&id).arg(&id);
    let entries: Entries = ask(connection, DOING, &command)?;
    let group = stream::group(&mut AskAgain(connection), stream, LENDING_GROUP)?;
    if group.is_none_or(|group| group.last_delivered < event.id) {
        return Ok(!entries.is_empty());
    }
    // Also if somebody has deleted it: it ends in the dead letters then.
    let mut command = redis::cmd("XPENDING");
    command.arg(stream).arg(LENDING_GROUP).arg(&id).arg(&id).arg(1);
    let pending: Vec<Value> = ask(connection, DOING, &command)?;
    Ok(!pending.is_empty())
}

/// An outcome in the stream of outcomes. Nearly always it comes behind its event: its id is the clock's,
/// `*`. But those of events can be ahead of the clock, within their millisecond (submit.lua gives them
/// high sequence numbers), and by any time after it was put back.
fn recorded(
    run: &Run,
    connection: &mut Connection,
    event: EventKey,
    recent: bool,
) -> Result<Option<Outcome>, Error> {
    let mut found = None;
    let id = event.id.to_string();
    let ms = if recent { event.id.ms } else { 0 };
    forward(run, connection, EventId { ms, seq: 0 }, &mut |_, outcome| {
        if outcome.event_id == id && outcome.action == event.action.as_str() {
            found = Some(outcome);
            return false;
        }
        true
    })?;
    Ok(found)
}

/// Calls `each` for the outcomes from `from` on, until it has enough.
fn forward(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    each: &mut dyn FnMut(EventId, Outcome) -> bool,
) -> Result<(), Error> {
    let mut start = from.to_string();
    loop {
        let mut command = redis::cmd("XRANGE");
        command.arg(&run.keys.outcomes).arg(&start).arg("+").arg("COUNT").arg(STEP);
        let entries: Entries = ask(connection, "read the outcomes", &command)?;
        let full = entries.len() == STEP;
        for (id, fields) in entries {
            let (id, outcome) = read(&id, &fields)?;
            if let Some(outcome) = outcome
                && !each(id, outcome)
            {
                return Ok(());
            }
            start = format!("({id}");
        }
        if !full {
            return Ok(());
        }
    }
}

/// An entry of the stream of outcomes; no outcome if a later version wrote what we do not know.
fn read(id: &str, fields: &[Vec<u8>]) -> Result<(EventId, Option<Outcome>), Error> {
    let id = id.parse().map_err(|_| Error::Reply {
        doing: "read the outcomes",
        got: format!("{id:?} for an id"),
    })?;
    let texts: Vec<_> = fields.iter().map(|text| String::from_utf8_lossy(text)).collect();
    let pairs = texts.chunks_exact(2).map(|pair| (&*pair[0], &*pair[1]));
    Ok((id, Outcome::from_fields(pairs).ok()))
}

impl Filter {
    fn lets(&self, outcome: &Outcome) -> bool {
        self.user.as_ref().is_none_or(|user| outcome.user_id == user.as_str())
            && self.book.as_ref().is_none_or(|book| {
                let named = |list| outcome.list(list).iter().any(|id| id == book.as_str());
                BOOK_LISTS.into_iter().any(named)
            })
    }

    /// The line about an outcome.
    fn line(&self, form: Form, id: EventId, mut outcome: Outcome, colours: bool) -> String {
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

/// The milliseconds of the server's clock, by which ids are given.
fn now_ms(connection: &mut Connection) -> Result<u64, Error> {
    let (seconds, micros): (u64, u64) = ask(connection, "ask for the time", &redis::cmd("TIME"))?;
    Ok(seconds * 1_000 + micros / 1_000)
}

/// `history`.
pub fn history(
    run: &Run,
    filter: &Filter,
    since: Option<Since>,
    last: Option<usize>,
) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let now = now_ms(&mut connection).map_err(failed(run))?;
    let from = EventId { ms: since.map_or(0, |since| since.ms(now)), seq: 0 };
    let oldest = oldest(run, &mut connection).map_err(failed(run))?;
    let colours = show::colours();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    // Whether all that was asked for was found, however far back outcomes reach.
    let mut enough = since.is_none();
    let mut write = |id, outcome| {
        let line = filter.line(run.form, id, outcome, colours);
        written = out.write_all(line.as_bytes());
        written.is_ok()
    };
    match last {
        None => forward(run, &mut connection, from, &mut |id, outcome| {
            !filter.lets(&outcome) || write(id, outcome)
        })
        .map_err(failed(run))?,
        Some(last) => {
            let mut found =
                backward(run, &mut connection, from, last, filter).map_err(failed(run))?;
            enough &= found.len() == last;
            while let Some((id, outcome)) = found.pop() {
                if !write(id, outcome) {
                    break;
                }
            }
        }
    }
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(DONE),
        Err(error) => {
            let message = format!("could not write the answer: {error}");
            return Err(Failure { message, status: OUTPUT });
        }
        Ok(()) => {}
    }
    match oldest {
        Some(oldest) => {
            if oldest > from && !enough {
                say(&format!("outcomes are kept from {} on", rfc3339(oldest.ms)));
            }
        }
        None => say("there are no outcomes yet"),
    }
    Ok(DONE)
}

fn oldest(run: &Run, connection: &mut Connection) -> Result<Option<EventId>, Error> {
    let mut command = redis::cmd("XRANGE");
    command.arg(&run.keys.outcomes).arg("-").arg("+").arg("COUNT").arg(1);
    let entries: Entries = ask(connection, "read the outcomes", &command)?;
    entries.first().map(|(id, fields)| Ok(read(id, fields)?.0)).transpose()
}

/// The last outcomes that the filter lets through, the youngest first.
fn backward(
    run: &Run,
    connection: &mut Connection,
    from: EventId,
    last: usize,
    filter: &Filter,
) -> Result<Vec<(EventId, Outcome)>, Error> {
    let mut found = Vec::new();
    let mut end = String::from("+");
    loop {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(&run.keys.outcomes).arg(&end).arg(from.to_string()).arg("COUNT").arg(STEP);
        let entries: Entries = ask(connection, "read the outcomes", &command)?;
        let full = entries.len() == STEP;
        for (id, fields) in entries {
            let (id, outcome) = read(&id, &fields)?;
            if let Some(outcome) = outcome.filter(|outcome| filter.lets(outcome)) {
                found.push((id, outcome));
                if found.len() == last {
                    return Ok(found);
                }
            }
            end = format!("({id}");
        }
        if !full {
            return Ok(found);
        }
    }
}

/// `watch`: until Ctrl-C, or until whoever reads it goes away.
pub fn watch(run: &Run, filter: &Filter) -> Result<u8, Failure> {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut first = connect(run)?;
    let mut mark = newest(run, &mut first).map_err(failed(run))?;
    let mut connection = Some(first);
    let colours = show::colours();
    // Of an outage, which is told once: how long the next pause is.
    let mut outage: Option<Duration> = None;
    loop {
        let step = match &mut connection {
            Some(connection) => watch_step(run, connection, &mut mark),
            None => run.target.connect(SLICE).and_then(|new| {
                let connection = connection.insert(new);
                watch_step(run, connection, &mut mark)
            }),
        };
        match step {
            Ok((entries, trimmed)) => {
                if outage.take().is_some() {
                    say(&format!("Redis at {} is back", run.target));
                }
                if let Some(oldest) = trimmed {
                    say(&format!(
                        "outcomes before {} were dropped before they could be read",
                        rfc3339(oldest.ms)
                    ));
                }
                let mut text = String::new();
                for (id, outcome) in entries {
                    if let Some(outcome) = outcome.filter(|outcome| filter.lets(outcome)) {
                        text.push_str(&filter.line(run.form, id, outcome, colours));
                    }
                }
                if !print(&text)? {
                    return Ok(DONE);
                }
            }
            Err(error) if error.remedy() == Remedy::Retry => {
                if outage.is_none() {
                    say(&format!("lost Redis at {}, trying again: {error}", run.target));
                }
                connection = None;
                // Nothing tells when a server is back: asking again is all there is.
                let pause = outage.unwrap_or(PAUSE);
                thread::sleep(pause);
                outage = Some((pause * 2).min(LONGEST_PAUSE));
            }
            Err(error) => return Err(failed(run)(error)),
        }
    }
}

/// How far the outcomes were read.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Up to this one.
    seen: EventId,
    /// So many there have been up to there. Redis tells that since version 7.
    count: Option<u64>,
}

/// Behind the newest outcome there has been.
fn newest(run: &Run, connection: &mut Connection) -> Result<Mark, Error> {
    let info: Info = match ask(connection, "look at the outcomes", &outcomes_info(run)) {
        // There is no stream before the first.
        Err(error) if error.code() == Some("ERR") => Info::new(),
        info => info?,
    };
    let last = info.get("last-generated-id").and_then(script::text).and_then(|id| id.parse().ok());
    let count = if info.is_empty() { Some(0) } else { number(&info, "entries-added") };
    Ok(Mark { seen: last.unwrap_or_default(), count })
}

fn outcomes_info(run: &Run) -> Cmd {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(&run.keys.outcomes);
    command
}

/// What was read, and where the kept outcomes begin if some were dropped before they could be read.
type Watched = (Vec<(EventId, Option<Outcome>)>, Option<EventId>);

/// The outcomes behind a mark, which is moved. Some may have been dropped: the link was lost, or whoever
/// reads us was slow.
fn watch_step(run: &Run, connection: &mut Connection, mark: &mut Mark) -> Result<Watched, Error> {
    const DOING: &str = "read the outcomes";
    let mut read_on = redis::cmd("XREAD");
    read_on.arg("COUNT").arg(STEP);
    let mut wait = read_on.clone();
    wait.arg("BLOCK").arg(SLICE.as_millis() as u64);
    for command in [&mut read_on, &mut wait] {
        command.arg("STREAMS").arg(&run.keys.outcomes).arg(mark.seen.to_string());
    }
    // At one instant: nothing is dropped in between.
    let mut both = redis::pipe();
    both.atomic().add_command(outcomes_info(run)).add_command(read_on);
    let both = both.query(&mut AskAgain(connection)).map_err(Error::redis(DOING));
    let (info, mut streams): (Info, Option<Vec<(Value, Entries)>>) = match both {
        Err(error) if error.code() == Some("ERR") => (Info::new(), None),
        both => both?,
    };
    if streams.is_none() {
        streams = ask(connection, DOING, &wait)?;
    }
    let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
    let entries: Vec<_> =
        entries.map(|(id, fields)| read(&id, &fields)).collect::<Result<_, Error>>()?;
    let oldest: Option<(String, Vec<Vec<u8>>)> =
        info.get("first-entry").and_then(|entry| FromRedisValue::from_redis_value_ref(entry).ok());
    let oldest: Option<EventId> = oldest.and_then(|(id, _)| id.parse().ok());
    let (added, kept) = (number(&info, "entries-added"), number(&info, "length"));
    let has_missed = match (added.zip(kept), &mut mark.count) {
        (Some((added, kept)), Some(count)) => {
            // The oldest are dropped first: these are the newest of them.
            let missed = added.saturating_sub(kept).saturating_sub(*count);
            *count += missed + entries.len() as u64;
            missed > 0
        }
        // Before version 7 none but the id tells.
        _ => oldest > Some(mark.seen) && mark.seen != EventId::default(),
    };
    if let Some((last, _)) = entries.last() {
        mark.seen = *last;
    }
    let oldest = oldest.filter(|_| has_missed);
    Ok((entries, oldest))
}

/// `loans USER`. What is noted of the user's books is held against the loans; if that does not
/// make as many as the user's count says, an instance of the reference application has lent some,
/// and the loans are gone through in steps until all are found.
pub fn loans(run: &Run, user: &UserId) -> Result<u8, Failure> {
    const DOING: &str = "read the loans";
    let mut connection = connect(run)?;
    let mut command = redis::cmd("GET");
    command.arg(run.keys.count(user));
    let count: Option<Vec<u8>> = ask(&mut connection, DOING, &command).map_err(failed(run))?;
    let count = count.map_or("0".to_owned(), |count| String::from_utf8_lossy(&count).into_owned());
    // Where the count is no number, all loans are gone through.
    let counted: Option<u64> = count.parse().ok();
    let mut books = noted_loans(run, &mut connection, user)?;
    let mut cursor = String::from("0");
    while counted.is_none_or(|counted| (books.len() as u64) < counted) {
        let mut command = redis::cmd("HSCAN");
        command.arg(&run.keys.loans).arg(&cursor).arg("COUNT").arg(STEP);
        let (next, page): (String, Fields) =
            ask(&mut connection, DOING, &command).map_err(failed(run))?;
        for (book, holder) in page {
            let book = String::from_utf8_lossy(&book).into_owned();
            // A scan can tell an entry twice.
            if holder == user.as_str().as_bytes() && !books.contains(&book) {
                books.push(book);
            }
        }
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    books.sort_unstable();
    let found = books.len() as u64;
    let mut line = String::new();
    if run.form == Form::Json {
        let object = Object::new().text("user_id", user.as_str());
        let object = object.number("in_hand", counted.unwrap_or(found));
        let object = object.number("limit", MOST_BOOKS_IN_HAND as u64);
        line = object.texts("book_ids", &books).line();
    } else {
        push_escaped(&mut line, user.as_str());
        let _ = match found {
            0 => write!(line, " has no books"),
            _ => write!(line, " has {found} of {MOST_BOOKS_IN_HAND} books"),
        };
        for (n, book) in books.iter().enumerate() {
            line.push_str(if n > 0 { ", " } else { ": " });
            push_escaped(&mut line, book);
        }
        line.push('\n');
    }
    if counted != Some(found) {
        // An event may have been decided between our reading of one and the other.
        let perhaps = if counted.is_some() { "it changes right now, or " } else { "" };
        say(&format!(
            "the count of {} is {}: {perhaps}{} tells why",
            escaped(user.as_str()),
            escaped(&count),
            run.command("library-admin check", &[])
        ));
    }
    print(&line)?;
    Ok(DONE)
}

/// Those of the books noted of a user that are lent to the user.
fn noted_loans(
    run: &Run,
    connection: &mut Connection,
    user: &UserId,
) -> Result<Vec<String>, Failure> {
    const DOING: &str = "read a user's loans";
    let mut command = redis::cmd("HGET");
    command.arg(&run.keys.books_of_users).arg(user.as_str());
    let noted: Option<Vec<u8>> = ask(connection, DOING, &command).map_err(failed(run))?;
    let noted = String::from_utf8_lossy(&noted.unwrap_or_default()).into_owned();
    let books: Vec<&str> = noted.split(',').filter(|book| !book.is_empty()).collect();
    if books.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = redis::cmd("HMGET");
    command.arg(&run.keys.loans).arg(&books);
    let holders: Vec<Option<Vec<u8>>> = ask(connection, DOING, &command).map_err(failed(run))?;
    let holds = |holder: Option<Vec<u8>>| holder.as_deref() == Some(user.as_str().as_bytes());
    let lent = books.into_iter().zip(holders).filter(|(_, holder)| holds(holder.clone()));
    Ok(lent.map(|(book, _)| book.to_owned()).collect())
}

/// Where a book can be.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Lent(String),
    Storage,
    Reserved,
    OnItsWay,
    Unknown,
    Shelf,
}

impl Place {
    /// The word for programs, and the words for people.
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Lent(_) => ("lent", "lent"),
            Self::Storage => ("automated_storage", "in automated storage"),
            Self::Reserved => ("reserved", "reserved by a request that is being worked on"),
            Self::OnItsWay => ("on_its_way", "on its way to its shelf"),
            Self::Unknown => ("unknown", "out of main storage, on its way or missing"),
            Self::Shelf => ("shelf", "on its shelf"),
        }
    }
}

/// `where BOOK`.
pub fn whereabouts(run: &Run, book: &BookId, show_user: bool) -> Result<u8, Failure> {
    let mut connection = connect(run)?;
    let place = place(run, &mut connection, book).map_err(failed(run))?;
    let (word, words) = place.words();
    let mut line = String::new();
    let holder = match &place {
        Place::Lent(user) if show_user => Some(user),
        _ => None,
    };
    if run.form == Form::Json {
        let object = Object::new().text("book_id", book.as_str()).text("where", word);
        line = match holder {
            Some(user) => object.text("user_id", user),
            None => object,
        }
        .line();
    } else {
        push_escaped(&mut line, book.as_str());
        let _ = write!(line, ": {words}");
        if place == Place::Unknown {
            push_printable(&mut line, &format!(" ({})", run.command("library-admin check", &[])));
        }
        if let Some(user) = holder {
            line.push_str(" to ");
            push_escaped(&mut line, user);
        }
        line.push('\n');
    }
    print(&line)?;
    Ok(DONE)
}

/// Reads all that is known about the book at one instant.
fn place(run: &Run, connection: &mut Connection, book: &BookId) -> Result<Place, Error> {
    const DOING: &str = "look for the book";
    let keys = &run.keys;
    let book = book.as_str();
    type Text = Option<Vec<u8>>;
    let (lent, stored, out, state): (Text, bool, Text, Text) = redis::pipe()
        .atomic()
        .cmd("HGET")
        .arg(&keys.loans)
        .arg(book)
        .cmd("SISMEMBER")
        .arg(&keys.storage)
        .arg(book)
        .cmd("HGET")
        .arg(&keys.shelves)
        .arg(book)
        .cmd("HGET")
        .arg(&keys.book_states)
        .arg(book)
        .query(&mut AskAgain(connection))
        .map_err(Error::redis(DOING))?;
    if let Some(user) = lent {
        return Ok(Place::Lent(String::from_utf8_lossy(&user).into_owned()));
    }
    if stored {
        return Ok(Place::Storage);
    }
    match state.as_deref().and_then(|state| state.first()) {
        Some(b'?') => return Ok(Place::Reserved),
        Some(b'>') if out.is_some() => return Ok(Place::OnItsWay),
        _ => {}
    }
    let Some(fetched_by) = out else {
        return Ok(Place::Shelf);
    };
    // An instance of the reference application keeps what it reserves in a set of the request's.
    let id = String::from_utf8_lossy(&fetched_by).parse();
    let Ok(id) = id else {
        return Ok(Place::Unknown);
    };
    let mut command = redis::cmd("SISMEMBER");
    command.arg(keys.reservation(id)).arg(book);
    let reserved: bool = ask(connection, DOING, &command)?;
    Ok(if reserved { Place::Reserved } else { Place::Unknown })
}
