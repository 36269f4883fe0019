//! `library-admin regroup`: creates a consumer group that was lost while events that are decided
//! were still in its stream. The daemon does not dare to: from the beginning of the stream it
//! would lend twice, from its end it would lose events.
//!
//! The operator names the first event that is not decided, and is told it before. Every event that
//! has an outcome is decided, also behind that one, for an event waits while a later one does not.
//! One without an outcome is undecided if it came after the oldest outcome that is kept; of an older one
//! nothing is known: most likely it was decided, and its outcome dropped. A hand-off has no outcome,
//! but its books have its mark until it is done.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use super::check::{HAND_OFFS_IN_A_PAGE, books_of};
use super::failure::{DONE, Failure, USAGE};
use super::options::Run;
use super::show::{print, say, tell};
use super::status::{keeps_decided, waiting};
use crate::error::Error;
use crate::event::Action;
use crate::ids::EventId;
use crate::json::Object;
use crate::keys::Stream;
use crate::link::{AskAgain, Connection, Fields, ask};
use crate::script::{Script, lua};
use crate::stream::{self, Entry};
use crate::text::counted;

static REGROUP: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("regroup")));

/// Entries that one step reads.
const PAGE: usize = 250;

/// The consumer that undecided events are pending for until an instance takes them over. No
/// instance has this name: it has a comma in it.
const NOBODY: &str = "library-admin, regroup";

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The first event that is not decided; without it, it is only told which that is.
    pub from: Option<EventId>,
    /// Only this stream's group.
    pub stream: Option<Stream>,
    /// Whether events that are older than the outcomes reach back to are undecided as well.
    pub before_outcomes: bool,
}

/// Creates the groups that are lost, or the one that is named.
///
/// # Errors
/// None is lost, or events would be decided again, or passed over; what Redis or the link said.
pub fn run(run: &Run, connection: &mut Connection, order: Order) -> Result<u8, Failure> {
    let mut lost = Vec::new();
    for stream in Stream::ALL {
        if order.stream.is_none_or(|only| only == stream) {
            lost.extend(Lost::look(run, connection, stream)?);
        }
    }
    if lost.is_empty() {
        return Err(Failure::wrong(match order.stream {
            Some(stream) => format!("the group of {} is not lost: nothing was done", stream.word()),
            None => "no group is lost: nothing was done".to_owned(),
        }));
    }
    let Some(from) = order.from else {
        for lost in lost {
            lost.tell(run, connection)?;
        }
        return Ok(DONE);
    };
    // Where nothing is left to be decided, it is the event that comes next.
    if lost.iter().all(|it| from > it.last.following()) {
        let ends: Vec<_> =
            lost.iter().map(|it| format!("{} {}", it.stream.word(), it.last)).collect();
        let message = format!(
            "--from {from} is beyond the last event ({}): nothing was done",
            ends.join(", ")
        );
        return Err(Failure::Said { message, status: USAGE });
    }
    // All of them before the first is created.
    for lost in &lost {
        lost.check(run, connection, from, order.before_outcomes)?;
    }
    for lost in &lost {
        lost.create(run, connection, from)?;
    }
    Ok(DONE)
}

/// A stream whose group is lost.
struct Lost {
    stream: Stream,
    /// The last id that the stream has given.
    last: EventId,
    known: Known,
}

/// What is known of a stream's events.
enum Known {
    /// Those that have an outcome, and the id from which on all others are undecided.
    Decided { decided: HashSet<EventId>, reach: EventId },
    /// The hand-offs that are not done.
    Undone(BTreeSet<EventId>),
}

impl Lost {
    /// None if the group is there; or there is no stream: the daemon creates both then.
    fn look(run: &Run, connection: &mut Connection, stream: Stream) -> Result<Option<Self>, Error> {
        let key = stream.key(&run.keys);
        let Some(last) = stream::last_id(&mut AskAgain(connection), key)? else { return Ok(None) };
        if stream::group(&mut AskAgain(connection), key, stream.group())?.is_some() {
            return Ok(None);
        }
        let known = if !keeps_decided(connection, &run.keys, stream)? {
            // Decided events are deleted from this stream: whatever is still there is undecided.
            Known::Decided { decided: HashSet::new(), reach: EventId::default() }
        } else {
            match stream.action() {
                Some(action) => decided(run, connection, action)?,
                None => Known::Undone(undone(run, connection)?),
            }
        };
        Ok(Some(Self { stream, last, known }))
    }

    /// The first event that is undecided for sure.
    fn first(&self, run: &Run, connection: &mut Connection) -> Result<Option<EventId>, Error> {
        match &self.known {
            Known::Decided { reach, .. } => {
                Ok(self.without_outcome(run, connection, *reach, self.last, 1)?.first().copied())
            }
            Known::Undone(undone) => Ok(undone.first().copied()),
        }
    }

    /// Up to `most` events from one id to another that have no outcome, oldest first.
    fn without_outcome(
        &self,
        run: &Run,
        connection: &mut Connection,
        from: EventId,
        to: EventId,
        most: usize,
    ) -> Result<Vec<EventId>, Error> {
        let Known::Decided { decided, .. } = &self.known else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut after = from.previous();
        loop {
            let key = self.stream.key(&run.keys);
            let page = stream::page(&mut AskAgain(connection), key, after, PAGE)?;
            let Some(newest) = page.last() else { return Ok(found) };
            after = Some(newest.id);
            for entry in &page {
                if entry.id > to || found.len() == most {
                    return Ok(found);
                }
                if !decided.contains(&entry.id) {
                    found.push(entry.id);
                }
            }
        }
    }

    /// Says which event is the first that is undecided, and how to go on.
    fn tell(&self, run: &Run, connection: &mut Connection) -> Result<(), Failure> {
        let word = self.stream.word();
        let first = self.first(run, connection)?;
        let older = match &self.known {
            Known::Decided { reach, .. } if *reach > EventId::default() => {
                self.without_outcome(run, connection, EventId::default(), before(*reach), 1)?
            }
            _ => Vec::new(),
        };
        let older = older.first();
        let from = first.unwrap_or_else(|| self.last.following());
        if run.json {
            let mut object = Object::new().text("lost", word).text("from", from.to_string());
            object = object.flag("undecided", first.is_some());
            if let Some(id) = older {
                object = object.text("unknown_from", id.to_string());
            }
            return print(&object.line());
        }
        let mut line = format!("{word}: the group {} is lost; ", self.stream.group());
        line += &match (&self.known, first) {
            (_, Some(id)) => format!("the first event that is not decided is {id}"),
            (Known::Undone(_), None) => "every hand-off is done".to_owned(),
            (Known::Decided { reach, .. }, None) if *reach == EventId::LAST => {
                "no outcome is kept".to_owned()
            }
            (Known::Decided { .. }, None) => "no event is undecided".to_owned(),
        };
        if let Some(id) = older {
            line += &format!(
                "; events that are older than the outcomes, {id} the first, are most likely decided, \
                 and count as such"
            );
        }
        print(&format!(
            "{line}. Go on with:\n    library-admin regroup{} --stream {word} --from {from}\n",
            run.typed
        ))
    }

    /// Whether a group that begins there would have an event decided again. What it would pass over
    /// is told: of instances of the reference application there are no outcomes, so it may be right.
    fn check(
        &self,
        run: &Run,
        connection: &mut Connection,
        from: EventId,
        before_outcomes: bool,
    ) -> Result<(), Failure> {
        let Known::Decided { reach, .. } = &self.known else { return Ok(()) };
        let word = self.stream.word();
        if from < *reach && !before_outcomes {
            let unknown = self.without_outcome(run, connection, from, before(*reach), 1)?;
            if let Some(id) = unknown.first() {
                let first = self.first(run, connection)?.unwrap_or_else(|| self.last.following());
                return Err(Failure::wrong(format!(
                    "event {id} of {word} has no outcome and is older than the outcomes reach back \
                     to: most likely it was decided, and would be once more; --from {first} begins \
                     with the first that is not decided for sure. Nothing was done \
                     (--before-outcomes does it all the same)"
                )));
            }
        }
        if from > *reach {
            let passed_over = self.without_outcome(run, connection, *reach, before(from), 1)?;
            if let Some(id) = passed_over.first() {
                say(&format!(
                    "event {id} of {word} is before {from} and has no outcome: it counts as decided"
                ));
            }
        }
        Ok(())
    }

    fn create(&self, run: &Run, connection: &mut Connection, from: EventId) -> Result<(), Failure> {
        const DOING: &str = "create the consumer group";
        // A group must not be ahead of its stream: it would not be given what is added.
        let (begin, undecided, skipped) = match &self.known {
            Known::Decided { decided, .. } => {
                let later = decided.iter().copied().filter(|id| *id >= from);
                let begin = later.clone().max().or(from.previous()).unwrap_or_default();
                let begin = begin.min(self.last);
                let undecided = self.without_outcome(run, connection, from, begin, usize::MAX)?;
                (begin, undecided, Some(later.count() as u64))
            }
            Known::Undone(undone) => {
                // What has come meanwhile will be delivered.
                (self.last, undone.range(..=self.last).copied().collect(), None)
            }
        };
        let (word, group) = (self.stream.word(), self.stream.group());
        let mut call = REGROUP.keys(&[self.stream.key(&run.keys)]);
        call.arg(group).arg(begin).arg(NOBODY).arg(&undecided);
        let reply = call.run(connection, DOING)?;
        match reply.word.as_str() {
            "REGROUPED" => {}
            "EXISTS" => {
                return Err(Failure::wrong(format!(
                    "the group of {word} is not lost any more: nothing was done with it"
                )));
            }
            _ => return Err(reply.unexpected(DOING).into()),
        }
        let waiting = waiting(connection, &run.keys, self.stream)?;
        let to_do = waiting.backlog + waiting.pending;
        tell(&match (run.json, skipped) {
            (true, _) => {
                let object = Object::new().text("regrouped", word).text("from", from.to_string());
                let object = object.number("waiting", to_do);
                let object = match skipped {
                    Some(skipped) => object.number("decided", skipped),
                    None => object,
                };
                object.line()
            }
            (false, Some(skipped)) => format!(
                "{word}: the group {group} is back; from {from} on, {} to be worked on, {skipped} decided \
                 already (start libraryd again where it has ended)\n",
                counted(to_do, "event")
            ),
            (false, None) => format!(
                "{word}: the group {group} is back; {} to be worked on, all others are done (start libraryd \
                 again where it has ended)\n",
                counted(to_do, "hand-off")
            ),
        })
    }
}

/// The id before one that is not the first of all.
fn before(id: EventId) -> EventId {
    id.previous().unwrap_or_default()
}

/// The events that have an outcome, and from where on one without is undecided.
fn decided(run: &Run, connection: &mut Connection, action: Action) -> Result<Known, Error> {
    let mut decided = HashSet::new();
    let (mut oldest, mut is_ahead, mut after) = (None, false, None);
    loop {
        let page = stream::page(&mut AskAgain(connection), &run.keys.outcomes, after, PAGE)?;
        let Some(last) = page.last() else { break };
        oldest = oldest.or(page.first().map(|first| first.id.ms));
        after = Some(last.id);
        for outcome in
            page.iter().filter(|it| it.field("action") == Some(action.as_str().as_bytes()))
        {
            let Some(id) = outcome.field("event_id").and_then(EventId::from_bytes) else {
                continue;
            };
            is_ahead |= id.ms > outcome.id.ms;
            decided.insert(id);
        }
    }
    // Nothing is known without outcomes. Both ids are of one clock: what was added later than the
    // oldest outcome was decided later.
    let mut reach =
        oldest.map_or(EventId::LAST, |ms: u64| EventId { ms: ms.saturating_add(1), seq: 0 });
    // Where the clock was put back, that does not hold: new events get ids behind the highest one, ahead of
    // the clock. But events are decided about in order: none from before the first that is known to be
    // decided is undecided.
    if is_ahead && let Some(first) = decided.iter().min() {
        reach = reach.max(*first);
    }
    Ok(Known::Decided { decided, reach })
}

/// The hand-offs that are not done. Those of the reference application leave no marks and count as done: a
/// book that stays nowhere for that, the check finds; one that is put on its shelf and lent,
/// nobody can mend.
fn undone(run: &Run, connection: &mut Connection) -> Result<BTreeSet<EventId>, Error> {
    let mut marked = BTreeSet::new();
    let mut cursor = 0;
    loop {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(&run.keys.book_states).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, states): (u64, Fields) = ask(connection, "look at the states of books", &scan)?;
        let hand_off = |state: &[u8]| EventId::from_bytes(state.strip_prefix(b">")?);
        marked.extend(states.iter().filter_map(|(_, state)| hand_off(state)));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    let marked: Vec<EventId> = marked.into_iter().collect();
    let mut undone = BTreeSet::new();
    for ids in marked.chunks(HAND_OFFS_IN_A_PAGE) {
        let entries = stream::contents(&mut AskAgain(connection), &run.keys.handoffs, ids)?;
        for entry in entries.iter().filter(|entry| !entry.is_gone()) {
            if is_undone(run, connection, entry)? {
                undone.insert(entry.id);
            }
        }
    }
    Ok(undone)
}

/// Whether all books of a hand-off are on their way in it. The marks of one that is done stay until they
/// are swept; its books may be on their shelves, and more, by then.
fn is_undone(run: &Run, connection: &mut Connection, entry: &Entry) -> Result<bool, Error> {
    let keys = &run.keys;
    let books: Vec<&[u8]> = books_of(entry).collect();
    type Values = Vec<Option<Vec<u8>>>;
    let (states, loans, out, stored): (Values, Values, Values, Vec<bool>) = redis::pipe()
        .atomic()
        .cmd("HMGET")
        .arg(&keys.book_states)
        .arg(&books)
        .cmd("HMGET")
        .arg(&keys.loans)
        .arg(&books)
        .cmd("HMGET")
        .arg(&keys.shelves)
        .arg(&books)
        .cmd("SMISMEMBER")
        .arg(&keys.storage)
        .arg(&books)
        .query(&mut AskAgain(connection))
        .map_err(Error::redis("look at the books of a hand-off"))?;
    let mark = format!(">{}", entry.id).into_bytes();
    Ok(states.iter().all(|state| state.as_ref() == Some(&mark))
        && loans.iter().all(Option::is_none)
        && out.iter().all(Option::is_some)
        && !stored.contains(&true))
}
