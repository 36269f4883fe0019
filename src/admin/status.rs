//! `library-admin status`: how the library is, at a glance.

use std::fmt::Write as _;
use std::sync::LazyLock;

use super::failure::{DONE, Failure};
use super::instances::{Instance, instances};
use super::options::Run;
use super::show::{print, say, shown, span};
use crate::error::Error;
use crate::ids::EventId;
use crate::info::Memory;
use crate::json::Object;
use crate::keys::{Keys, Stream};
use crate::lending::STORAGE_CAPACITY;
use crate::link::{AskAgain, Connection, ask, now_ms};
use crate::lock::Lock;
use crate::script::{Script, lua, text};
use crate::stream;

static BACKLOG: LazyLock<Script> = LazyLock::new(|| Script::new(lua!("order", "backlog")));

/// Entries that one step counts; well under a millisecond, unless they are huge.
const PAGE: usize = 500;

/// What waits in a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which stream.
    pub stream: Stream,
    /// Whether its consumer group is there.
    pub has_group: bool,
    /// Whether that is lost, and decided events are in the stream: how many wait is not known then.
    pub is_lost: bool,
    /// Whether that is set to an id which the stream has not given yet.
    pub is_ahead: bool,
    /// Entries that no instance has in hand yet.
    pub backlog: u64,
    /// Entries that an instance has in hand.
    pub pending: u64,
    /// The oldest of both.
    pub oldest: Option<EventId>,
}

/// Counts what waits in a stream.
///
/// # Errors
/// What Redis or the link said.
pub fn waiting(connection: &mut Connection, keys: &Keys, stream: Stream) -> Result<Waiting, Error> {
    const DOING: &str = "count what waits";
    let key = stream.key(keys);
    let group = stream::group(&mut AskAgain(connection), key, stream.group())?;
    let is_ahead = match group {
        None => false,
        Some(group) => {
            stream::ahead(&mut AskAgain(connection), key, stream.group(), group)?.is_some()
        }
    };
    let mut waiting = Waiting {
        stream,
        has_group: group.is_some(),
        // libraryd makes that of an empty stream again.
        is_lost: group.is_none()
            && keeps_decided(connection, keys, stream)?
            && ask::<u64>(connection, DOING, redis::cmd("XLEN").arg(key))? > 0,
        is_ahead,
        backlog: 0,
        pending: group.map_or(0, |group| group.pending),
        oldest: None,
    };
    if waiting.is_lost {
        return Ok(waiting);
    }
    if waiting.has_group {
        waiting.oldest = stream::oldest_pending(&mut AskAgain(connection), key, stream.group())?;
    }
    let mut after = group.map_or(EventId::default(), |group| group.last_delivered);
    loop {
        let reply = BACKLOG
            .keys(&[key])
            .arg(after.to_string())
            .arg(PAGE)
            .run(&mut AskAgain(connection), DOING)?;
        let unexpected = || reply.unexpected(DOING);
        let count = reply.number(0).and_then(|count| u64::try_from(count).ok());
        let count = count.ok_or_else(unexpected)?;
        if count == 0 {
            break;
        }
        let id = |n: usize| reply.rest.get(n).and_then(text).and_then(|id| id.parse().ok());
        let (first, last) = (id(1).ok_or_else(unexpected)?, id(2).ok_or_else(unexpected)?);
        waiting.oldest = waiting.oldest.min(Some(first)).or(Some(first));
        waiting.backlog += count;
        after = last;
    }
    Ok(waiting)
}

/// Whether an instance has noted that decided events are left in a stream.
///
/// # Errors
/// What Redis or the link said.
pub fn keeps_decided(
    connection: &mut Connection,
    keys: &Keys,
    stream: Stream,
) -> Result<bool, Error> {
    let mut question = redis::cmd("HEXISTS");
    question.arg(&keys.kept_events).arg(stream.key(keys));
    ask(connection, "look for kept events", &question)
}

/// How much there is of what is kept, how much room there is, and the time by which its age is told.
struct Stock {
    dead_letters: u64,
    outcomes: u64,
    storage: u64,
    loans: u64,
    /// None where this Redis user may not ask.
    memory: Option<Memory>,
    now_ms: u64,
}

fn stock(connection: &mut Connection, keys: &Keys) -> Result<Stock, Error> {
    const DOING: &str = "count books and letters";
    // One by one: of a pipeline, redis-rs does not tell the code of an error.
    let mut count = |command, key: &str| -> Result<u64, Error> {
        ask(connection, DOING, redis::cmd(command).arg(key))
    };
    let dead_letters = count("XLEN", &keys.dead_letters)?;
    let outcomes = count("XLEN", &keys.outcomes)?;
    let storage = count("SCARD", &keys.storage)?;
    let loans = count("HLEN", &keys.loans)?;
    let memory = Memory::of(connection)?;
    let now_ms = now_ms(connection)?;
    Ok(Stock { dead_letters, outcomes, storage, loans, memory, now_ms })
}

/// Prints how the library is.
///
/// # Errors
/// What Redis or the link said, or the output.
pub fn run(run: &Run, connection: &mut Connection) -> Result<u8, Failure> {
    let mut look = || {
        let mut instances = instances(connection, &run.keys)?;
        // All that is left of others is their names, for an hour.
        instances.retain(|it| it.lock != Lock::Gone || it.in_hand > 0);
        let mut all_waiting = Vec::new();
        for stream in Stream::ALL {
            all_waiting.push(waiting(connection, &run.keys, stream)?);
        }
        Ok((instances, all_waiting, stock(connection, &run.keys)?))
    };
    let (instances, waiting, stock) = look().map_err(Failure::Redis)?;
    print(&if run.json {
        to_json(run, &instances, &waiting, &stock)
    } else {
        to_words(&instances, &waiting, &stock)
    })?;
    let is_there = waiting.iter().any(|one| one.has_group || one.is_lost || one.backlog > 0)
        || stock.outcomes + stock.loans + stock.storage + stock.dead_letters > 0;
    if !is_there {
        // A mistyped branch looks like a library in which nothing is to be done.
        say(&run.target.has_no_library(&run.part));
    }
    Ok(DONE)
}

/// The oldest request or return that is undecided.
fn oldest_event(waiting: &[Waiting]) -> Option<&Waiting> {
    let events = waiting.iter().filter(|one| one.stream != Stream::HandOffs);
    events.filter(|one| one.oldest.is_some()).min_by_key(|one| one.oldest)
}

fn to_json(run: &Run, instances: &[Instance], waiting: &[Waiting], stock: &Stock) -> String {
    let age = |id: EventId| stock.now_ms.saturating_sub(id.ms);
    let instances = instances.iter().map(|instance| {
        let object = Object::new().text("name", &instance.name);
        let object = match instance.lock {
            Lock::Held(ms) => object.text("lease", "held").number("lease_left_ms", ms),
            Lock::WithoutTtl => object.text("lease", "none"),
            Lock::Gone => object.text("lease", "gone"),
        };
        object.number("in_hand", instance.in_hand).number("idle_ms", instance.idle_ms)
    });
    let streams = waiting.iter().map(|one| {
        let object = Object::new().text("stream", one.stream.word());
        let object = object.text("key", one.stream.key(&run.keys));
        let object = object.flag("group", one.has_group).flag("lost", one.is_lost);
        let object = object.flag("ahead", one.is_ahead);
        let object = object.number("backlog", one.backlog).number("pending", one.pending);
        match one.oldest {
            Some(id) => object.text("oldest", id.to_string()).number("oldest_age_ms", age(id)),
            None => object,
        }
    });
    let oldest = oldest_event(waiting).and_then(|one| {
        let id = one.oldest?;
        let object = Object::new().text("stream", one.stream.word());
        Some(object.text("event_id", id.to_string()).number("age_ms", age(id)).end())
    });
    let storage = Object::new().number("books", stock.storage);
    let storage = storage.number("capacity", STORAGE_CAPACITY as u64).end();
    let memory = stock.memory.map(|memory| {
        let object = Object::new().number("used_bytes", memory.used);
        object.number("limit_bytes", memory.limit).flag("full", memory.is_full()).end()
    });
    let object = Object::new()
        .objects("instances", instances)
        .objects("streams", streams)
        .raw("oldest_waiting", oldest.as_deref().unwrap_or("null"))
        .number("dead_letters", stock.dead_letters)
        .raw("automated_storage", &storage)
        .number("loans", stock.loans)
        .number("outcomes", stock.outcomes)
        .raw("memory", memory.as_deref().unwrap_or("null"));
    object.line()
}

fn to_words(instances: &[Instance], waiting: &[Waiting], stock: &Stock) -> String {
    let age = |id: EventId| span(stock.now_ms.saturating_sub(id.ms));
    let mut lines = String::new();
    if instances.is_empty() {
        lines.push_str("instances          none\n");
    }
    for (n, instance) in instances.iter().enumerate() {
        let lease = match instance.lock {
            Lock::Held(ms) => format!("lease {} left", span(ms)),
            Lock::WithoutTtl => "no lease (reference application)".to_owned(),
            Lock::Gone => "gone".to_owned(),
        };
        let _ = writeln!(
            lines,
            "{:<18} {}: {lease}, {} in hand, idle for {}",
            if n == 0 { "instances" } else { "" },
            shown(&instance.name),
            instance.in_hand,
            span(instance.idle_ms)
        );
    }
    for one in waiting {
        if one.is_lost {
            let word = one.stream.word();
            let _ =
                writeln!(lines, "{word:<18} the consumer group is lost: see library-admin regroup");
            continue;
        }
        let _ = write!(
            lines,
            "{:<18} {} waiting, {} in hand",
            one.stream.word(),
            one.backlog,
            one.pending
        );
        if let Some(id) = one.oldest {
            let _ = write!(lines, ", the oldest {id} since {}", age(id));
        }
        if !one.has_group {
            let _ = write!(lines, " (no consumer group)");
        }
        if one.is_ahead {
            lines.push_str(" (its group is ahead of it: see library-admin check)");
        }
        lines.push('\n');
    }
    let oldest = oldest_event(waiting).and_then(|one| one.oldest);
    let oldest = oldest.map_or("none".to_owned(), |id| format!("since {}", age(id)));
    let _ = writeln!(lines, "{:<18} {oldest}", "oldest event");
    let _ = writeln!(lines, "{:<18} {}", "dead letters", stock.dead_letters);
    let _ = writeln!(lines, "{:<18} {}/{STORAGE_CAPACITY}", "automated storage", stock.storage);
    let _ = writeln!(lines, "{:<18} {}", "loans", stock.loans);
    let _ = writeln!(lines, "{:<18} {}", "outcomes kept", stock.outcomes);
    let memory = stock.memory.map_or("unknown".to_owned(), room);
    let _ = writeln!(lines, "{:<18} {memory}", "memory of Redis");
    lines
}

/// How much memory Redis has left, in words.
fn room(memory: Memory) -> String {
    let size = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
    let used = size(memory.used);
    match memory.limit {
        0 => format!("{used}, without a limit"),
        limit if memory.is_full() => {
            format!("{used} of {}: full, new requests and returns are refused", size(limit))
        }
        limit => format!("{used} of {}", size(limit)),
    }
}
