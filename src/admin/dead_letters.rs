//! `library-admin dead-letters`: what could not be worked on, and what the operator makes of it.
//!
//! A letter has the event's stream, id, cause and deliveries in front, then the original fields,
//! unchanged. An event of thousands of fields lies there as several letters, one behind the other:
//! they are shown, put back and dropped together, under the id of the first.

use std::fmt::Write as _;
use std::sync::LazyLock;

use redis::Value;

use super::failure::{DONE, Failure};
use super::options::Run;
use super::show::{print, shown, tell};
use crate::clock::rfc3339;
use crate::error::Error;
use crate::ids::EventId;
use crate::json::Object;
use crate::keys::Stream;
use crate::link::{AskAgain, Connection};
use crate::script::{Reply, Script, lua};
use crate::stream::{self, Entry};

static RETRY: LazyLock<Script> =
    LazyLock::new(|| Script::new(lua!("order", "last_given", "retry")));

/// Letters that one step reads: they can be large.
pub const PAGE: usize = 20;

/// The fields in front of the original ones.
const FRONT: [&str; 4] = ["stream", "event_id", "cause", "deliveries"];

/// Fields and values that a letter has at most, as letters.lua writes them.
pub const MOST_VALUES: usize = 6_000;

/// How much of a value is shown to people.
const LONGEST_SHOWN: usize = 200;

/// How often retrying and dropping are tried anew because the letters changed meanwhile.
const MOST_TRIES: usize = 20;

/// An event in the dead letters.
struct Letter {
    /// The ids of its parts.
    ids: Vec<EventId>,
    /// The values of [`FRONT`], if it has that form.
    front: Option<[Vec<u8>; 4]>,
    /// The original fields.
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the next letter may belong to it.
    full: bool,
}

impl Letter {
    fn new(entry: &Entry) -> Self {
        let fields: Vec<_> = entry.fields().collect();
        let has_front = fields.len() >= FRONT.len()
            && FRONT.iter().zip(&fields).all(|(name, (field, _))| name.as_bytes() == *field);
        let own = if has_front { FRONT.len() } else { 0 };
        let front = has_front.then(|| [0, 1, 2, 3].map(|n| fields[n].1.to_vec()));
        let fields: Vec<_> =
            fields[own..].iter().map(|(field, value)| (field.to_vec(), value.to_vec())).collect();
        let full = has_front && 2 * fields.len() == MOST_VALUES;
        Self { ids: vec![entry.id], front, fields, full }
    }

    /// Whether the letter right behind it is a part of the same event.
    fn goes_on_in(&self, next: &Self) -> bool {
        self.full && self.front == next.front
    }

    /// Adds the letter right behind it, or gives it back if it is not a part of the same event.
    fn join(&mut self, next: Self) -> Option<Self> {
        if !self.goes_on_in(&next) {
            return Some(next);
        }
        self.ids.extend(next.ids);
        self.fields.extend(next.fields);
        self.full = next.full;
        None
    }

    fn stream(&self, run: &Run) -> Option<Stream> {
        let [stream, ..] = self.front.as_ref()?;
        Stream::of_key(&run.keys, stream)
    }

    /// Its line, or its JSON object.
    fn shown(&self, run: &Run, whole: bool) -> String {
        let id = self.ids[0];
        if run.json {
            let mut object = Object::new().text("id", id.to_string()).text("time", rfc3339(id.ms));
            if self.ids.len() > 1 {
                object = object.texts("parts", self.ids.iter().map(EventId::to_string));
            }
            for (name, value) in FRONT.iter().zip(self.front.iter().flatten()) {
                object = match number(value) {
                    Some(number) if *name == "deliveries" => object.number(name, number),
                    _ => object.text(name, value),
                };
            }
            let pair = |(field, value): &(Vec<u8>, Vec<u8>)| {
                Object::new().text("name", field).text("value", value)
            };
            return object.objects("fields", self.fields.iter().map(pair)).line();
        }
        let mut line = format!("{id} {}", rfc3339(id.ms));
        if let Some([stream, event, cause, deliveries]) = &self.front {
            let stream = self.stream(run).map_or_else(|| shown(stream), |it| it.word().to_owned());
            let _ = write!(
                line,
                " {stream} {}: {}, deliveries: {}",
                shown(event),
                shown(cause),
                shown(deliveries)
            );
        }
        // Of an event that has vanished there is no more to tell.
        if self.front.is_some() && !self.fields.is_empty() {
            line.push(';');
        }
        if self.ids.len() > 1 {
            let _ = write!(line, " {} letters;", self.ids.len());
        }
        const MOST_FIELDS: usize = 20;
        let most = if whole { usize::MAX } else { MOST_FIELDS };
        for (field, value) in self.fields.iter().take(most) {
            let _ = write!(line, " {}={}", cut(field, whole), cut(value, whole));
        }
        if self.fields.len() > most {
            let _ = write!(line, " ... ({} fields)", self.fields.len());
        }
        line + "\n"
    }
}

/// A number, if it is written as this program would write it.
fn number(text: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

/// The name or the value of a field as a word of the line: in quotes where else it could not be told where it begins
/// and ends.
fn cut(bytes: &[u8], whole: bool) -> String {
    let is_whole = whole || bytes.len() <= LONGEST_SHOWN;
    let mut text = shown(if is_whole { bytes } else { &bytes[..LONGEST_SHOWN] });
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || "=\"".contains(c)) {
        text = format!("\"{}\"", text.replace('"', "\\\""));
    }
    if is_whole { text } else { format!("{text}... ({} bytes)", bytes.len()) }
}

/// Prints the letters, oldest first; the newest `last` of them if that is given.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn list(run: &Run, connection: &mut Connection, last: Option<usize>) -> Result<u8, Failure> {
    let mut after = match last {
        Some(last) => start_of_last(run, connection, last)?,
        None => None,
    };
    let mut open: Option<Letter> = None;
    loop {
        let page = stream::page(&mut AskAgain(connection), &run.keys.dead_letters, after, PAGE)?;
        let Some(newest) = page.last() else { break };
        after = Some(newest.id);
        for entry in &page {
            let next = Letter::new(entry);
            let Some(mut letter) = open.take() else {
                open = Some(next);
                continue;
            };
            if let Some(next) = letter.join(next) {
                print(&letter.shown(run, false))?;
                letter = next;
            }
            open = Some(letter);
        }
    }
    if let Some(letter) = open {
        print(&letter.shown(run, false))?;
    }
    Ok(DONE)
}

/// The id after which the newest `last` events begin.
fn start_of_last(
    run: &Run,
    connection: &mut Connection,
    last: usize,
) -> Result<Option<EventId>, Error> {
    let (mut events, mut before) = (0, None);
    let mut later: Option<Letter> = None;
    loop {
        let page =
            stream::page_back(&mut AskAgain(connection), &run.keys.dead_letters, before, PAGE)?;
        let Some(oldest) = page.last() else { return Ok(None) };
        before = Some(oldest.id);
        for entry in &page {
            let letter = Letter::new(entry);
            let one_event = later.as_ref().is_some_and(|later| letter.goes_on_in(later));
            if !one_event {
                if events == last {
                    return Ok(Some(entry.id));
                }
                events += 1;
            }
            later = Some(letter);
        }
    }
}

/// The event that the letter `id` is of, with all its parts.
fn find(run: &Run, connection: &mut Connection, id: EventId) -> Result<Letter, Failure> {
    let key = &run.keys.dead_letters;
    let entries = stream::contents(&mut AskAgain(connection), key, &[id])?;
    let Some(entry) = entries.first().filter(|entry| !entry.is_gone()) else {
        return Err(Failure::wrong(format!(
            "no dead letter has the id {id}: `dead-letters list` shows those that are there"
        )));
    };
    let mut first = Letter::new(entry);
    'parts: loop {
        let page = stream::page_back(&mut AskAgain(connection), key, Some(first.ids[0]), PAGE)?;
        if page.is_empty() {
            break;
        }
        for entry in &page {
            let before = Letter::new(entry);
            if !before.goes_on_in(&first) {
                break 'parts;
            }
            first = before;
        }
    }
    let mut letter = first;
    'parts: loop {
        let page = stream::page(&mut AskAgain(connection), key, letter.ids.last().copied(), PAGE)?;
        if page.is_empty() {
            break;
        }
        for entry in &page {
            if letter.join(Letter::new(entry)).is_some() {
                break 'parts;
            }
        }
    }
    Ok(letter)
}

/// Puts an event back: its fields, unchanged, as a new event of the stream it came from, and the
/// letter goes, in one step.
///
/// # Errors
/// There is no such letter, or nothing that could be put back; what Redis or the link said. Then the
/// letter is still there.
pub fn retry(run: &Run, connection: &mut Connection, id: EventId) -> Result<(), Failure> {
    const DOING: &str = "put the event back";
    let key = &run.keys.dead_letters;
    for _ in 0..MOST_TRIES {
        // A transaction, not a script alone: an event may have more fields than a script can pass on.
        watch(connection, key)?;
        let letter = find(run, connection, id)?;
        let Some(stream) = letter.stream(run) else {
            return Err(Failure::wrong(format!(
                "{id} does not name a stream of this library: it can only be dropped"
            )));
        };
        if letter.fields.is_empty() {
            return Err(Failure::wrong(format!(
                "nothing is left of the event of {id}: it can only be dropped"
            )));
        }
        // What may not be asked, or removed, is told before anything is done: the XDEL, which removes
        // nothing, is refused when it is queued, and the transaction with it.
        stream::last_id(connection, stream.key(&run.keys))?;
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("XDEL").arg(key).arg("0-0").ignore();
        pipe.add_command(take(stream.key(&run.keys), key, &letter));
        let add = pipe.cmd("XADD").arg(stream.key(&run.keys)).arg("*");
        for (field, value) in &letter.fields {
            add.arg(field).arg(value);
        }
        let done: Option<(Value, String)> = pipe.query(connection).map_err(Error::redis(DOING))?;
        if let Some((taken, event)) = done {
            let taken = Reply::read(taken, DOING)?;
            if taken.word != "TAKEN" {
                return Err(taken.unexpected(DOING).into());
            }
            tell(&if run.json {
                let object = Object::new().text("retried", letter.ids[0].to_string());
                object.text("stream", stream.word()).text("event_id", event).line()
            } else {
                format!("{} is back: event {event} of {}\n", letter.ids[0], stream.word())
            })?;
            return Ok(());
        }
    }
    Err(busy(id))
}

/// Prints a letter, then removes it.
///
/// # Errors
/// There is no such letter; what Redis or the link said, or the output: then it is still there.
pub fn drop(run: &Run, connection: &mut Connection, id: EventId) -> Result<(), Failure> {
    let letter = find(run, connection, id)?;
    // Printed first: what was dropped is nowhere else.
    print(&letter.shown(run, true)).map_err(|failure| match failure {
        Failure::Closed => Failure::wrong(format!("the output is closed: {id} is not dropped")),
        other => other,
    })?;
    let removed: usize = redis::cmd("XDEL")
        .arg(&run.keys.dead_letters)
        .arg(&letter.ids)
        .query(connection)
        .map_err(Error::redis("drop the dead letter"))?;
    if removed != letter.ids.len() {
        return Err(Failure::wrong(format!("somebody else has put {id} back or dropped it")));
    }
    if !run.json {
        tell(&format!("{} is dropped\n", letter.ids[0]))?;
    }
    Ok(())
}

fn watch(connection: &mut Connection, key: &str) -> Result<(), Error> {
    redis::cmd("WATCH").arg(key).query(connection).map_err(Error::redis("watch the dead letters"))
}

/// Takes the parts of a letter away, if its event can be put back. The whole text: in a transaction nothing
/// can be sent once more.
fn take(stream: &str, letters: &str, letter: &Letter) -> redis::Cmd {
    RETRY.keys(&[stream, letters]).arg(&letter.ids).by_text()
}

fn busy(id: EventId) -> Failure {
    Failure::wrong(format!(
        "{id} is not put back: the dead letters change all the time, try it again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blank that was the fault of a book's id was not seen, and `user_id=a b=c` could be one field or two.
    #[test]
    fn where_a_value_begins_and_ends_is_told() {
        let long = [b' '; LONGEST_SHOWN + 1];
        for (value, words) in [
            (&b"geb,momo"[..], "geb,momo"),
            (b" geb", "\" geb\""),
            (b"a b=c", "\"a b=c\""),
            (b"", "\"\""),
            (br#"a"b"#, r#""a\"b""#),
            (br"a\b", r"a\\b"),
            (b"a\nb", r"a\u{a}b"),
            (&long, &format!("\"{}\"... (201 bytes)", &" ".repeat(LONGEST_SHOWN))),
        ] {
            assert_eq!(cut(value, false), words);
        }
        assert_eq!(cut(&long, true), format!("\"{}\"", " ".repeat(LONGEST_SHOWN + 1)));
    }
}
