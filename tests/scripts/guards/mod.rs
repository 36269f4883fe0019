//! Each guard in a script, taken out: what it guards breaks then, and holds with it.

mod effects;
mod fences;
mod giving_up;
mod house;
mod order;

use library_lending::event::{Action, Event, HandOff};
use library_lending::ids::EventId;
use library_lending::keys::{LENDING_GROUP, SHELVING_GROUP};
use library_lending::lending::decide::{self, Fetched, Finality, Told, Try, TryEnd};
use library_lending::lending::reject::{self, Rejected};
use library_lending::outcome;
use library_lending::session::Neighbours;
use library_lending::shelving::fetch::Answer;
use redis::Value;

use crate::library::{Instance, Library};
use crate::redis::{Content, show};
use crate::world::*;

/// Runs a scenario with a script as it is, and again without a guard: parts of its text that occur
/// once, each with what is there instead.
pub fn guard(
    script: &'static str,
    parts: &[(&str, &str)],
    scenario: impl Fn(&mut Library) -> Result<(), String>,
) {
    let mut library = Library::new();
    if let Err(fault) = scenario(&mut library) {
        panic!("{script}.lua as it is: {fault}");
    }
    library.clear();
    library.patch(script, parts);
    assert!(scenario(&mut library).is_err(), "{script}.lua is as good without: {parts:?}");
}

/// Before a book is taken for lost, decide.lua looks through the hand-offs under way. That stands in
/// for other guards, which are there for what it does not see and because it takes long.
const LOOK_THROUGH: (&str, &str) = (" or e.said == 'certain' and has_moved_on(book, e)", "");

// ---- What scenarios are made of.

/// Lays down books that are in storage, each fetched by an old request.
pub fn store(library: &mut Library, books: &[&str]) {
    for book in books {
        let keys = library.keys.clone();
        library.redis.ask::<()>(&["SADD", &keys.storage, book]);
        library.redis.ask::<()>(&["HSET", &keys.shelves, book, "0-1"]);
    }
}

pub fn fill_storage(library: &mut Library) {
    let fillers: Vec<String> = (0..20).map(|n| format!("filler{n}")).collect();
    store(library, &fillers.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Lays down loans from before.
pub fn lend(library: &mut Library, who: &str, books: &[&str]) {
    let keys = library.keys.clone();
    for book in books {
        library.redis.ask::<()>(&["HSET", &keys.loans, book, who]);
        library.redis.ask::<()>(&["HSET", &keys.shelves, book, "0-1"]);
        library.redis.ask::<()>(&["INCR", &keys.count(&user(who))]);
    }
}

/// Adds an event and delivers it to an instance.
pub fn give(library: &mut Library, to: &Instance, event: &Event) {
    library.add(event);
    let taken = library.take(to.name(), event.key.action, 1);
    assert_eq!(taken, std::slice::from_ref(event));
}

pub fn request(ms: u64, who: &str, books: &str) -> Event {
    event(Action::Request, id(ms, 0), who, books)
}

pub fn give_back(ms: u64, who: &str, books: &str) -> Event {
    event(Action::Return, id(ms, 0), who, books)
}

/// Tries an event until it is decided or waits, asking the main storage as an instance does.
pub fn serve(library: &mut Library, by: &Instance, one: InHand) -> TryEnd {
    let mut tries = if one.fresh && one.event.key.action == Action::Request {
        let asking = vec![one.first_asking()];
        let answers = library.fetch(by, &asked(&asking)).unwrap();
        with_answers(asking, answers)
    } else {
        vec![one.next_try()]
    };
    for _ in 0..5 {
        let mut verdicts = library.decide(by, &tries).unwrap();
        match verdicts.remove(0) {
            TryEnd::Fetch { finality, books } => {
                let one = tries.remove(0);
                let asking = vec![one.after_reserving(finality, &books)];
                let answers = library.fetch(by, &asked(&asking)).unwrap();
                tries = with_answers(asking, answers);
            }
            verdict => return verdict,
        }
    }
    TryEnd::Failed("asks again and again".into())
}

pub fn serve_fresh(library: &mut Library, by: &Instance, event: &Event) -> TryEnd {
    serve(library, by, InHand::fresh(event.clone()))
}

/// Adds an event, delivers and serves it.
pub fn give_and_serve(library: &mut Library, by: &Instance, event: &Event) -> TryEnd {
    give(library, by, event);
    serve_fresh(library, by, event)
}

pub fn waits(verdict: &TryEnd) -> Result<Doubt, String> {
    match verdict {
        TryEnd::Wait { doubt, .. } => Ok(doubt.clone()),
        other => Err(format!("it does not wait: {}", told(other))),
    }
}

/// Whether the outcome has this field.
pub fn is_done(verdict: &TryEnd, name: &str, value: &str) -> Result<(), String> {
    let TryEnd::Done(Told::Fields(fields)) = verdict else {
        return Err(format!("it is not decided: {}", told(verdict)));
    };
    let has = outcome::fields(fields).any(|field| field == (name, value));
    ensure!(has, "no {name} {value}: {}", told(verdict));
    Ok(())
}

/// What must not be at any time: I1, I2, I3, and two outcomes for an event.
pub fn is_sound(library: &mut Library) -> Result<(), String> {
    let (dump, keys) = (library.dump(), library.keys.clone());
    let mut undone = Vec::new();
    for (_, fields) in dump.stream(&keys.handoffs).undone(SHELVING_GROUP) {
        undone.extend(fields[0].1.split(',').map(str::to_owned));
    }
    let (loans, storage) = (dump.hash(&keys.loans), dump.set(&keys.storage));
    let out = dump.hash(&keys.shelves);
    for book in loans.keys().chain(&storage).chain(&undone) {
        let places = usize::from(loans.contains_key(book))
            + usize::from(storage.contains(book))
            + undone.iter().filter(|other| *other == book).count();
        ensure!(places == 1, "I1: {book} is in {places} places");
        ensure!(out.contains_key(book), "I1: {book} is on its shelf and elsewhere");
    }
    for who in loans.values() {
        let books = loans.values().filter(|other| *other == who).count();
        let count = dump.0.get(&keys.count(&user(who)));
        let right = count == Some(&Content::Text(books.to_string())) && books <= 5;
        ensure!(right, "I2: {who} has {books} books, the count is {count:?}");
    }
    ensure!(storage.len() <= 20, "I3: {} books in storage", storage.len());
    let mut outcomes: Vec<_> = dump
        .stream(&keys.outcomes)
        .entries
        .into_iter()
        .map(|(_, fields)| (fields[0].1.clone(), fields[1].1.clone()))
        .collect();
    let all = outcomes.len();
    outcomes.sort();
    outcomes.dedup();
    ensure!(outcomes.len() == all, "I4: two outcomes for one event");
    Ok(())
}

pub fn shelve_all(library: &mut Library, by: &Instance) {
    let handoffs = library.take_handoffs(by.name(), 100);
    library.shelve(by, &handoffs);
}

fn late(
    library: &mut Library,
    by: &Instance,
    script: &str,
    keys: &[&str],
    args: &[&str],
) -> String {
    let lock = by.session.lock();
    let keys = [&[lock], keys].concat();
    let args = [&[by.session.token.as_str()], args].concat();
    library.words(script, &keys, &args).remove(0)
}

fn word(value: &Value) -> String {
    match value {
        Value::Array(list) => show(&list[0]),
        other => panic!("{other:?}"),
    }
}

fn handoff(id: EventId, books: &str) -> HandOff {
    HandOff { id, books: books.split(',').map(book).collect() }
}

/// A hand-off by somebody else, of books that are out.
pub fn add_handoff(library: &mut Library, id: &str, books: &str) {
    let keys = library.keys.clone();
    for book in books.split(',') {
        library.redis.ask::<()>(&["HSET", &keys.shelves, book, "0-1"]);
    }
    library.redis.ask::<()>(&["XADD", &keys.handoffs, id, "book_ids", books]);
}

/// A request that the reference application has decided and left in its stream.
fn acknowledged(library: &mut Library, ms: u64) {
    let stream = library.keys.requests.clone();
    library.add(&request(ms, "user1", "geb"));
    library.take("reference", Action::Request, 1);
    library.redis.ask::<()>(&["XACK", &stream, LENDING_GROUP, &id(ms, 0).to_string()]);
}

fn forget(library: &mut Library, by: &Instance, whom: &str) -> String {
    let (stream, lock) = (library.keys.requests.clone(), library.keys.lock(&whom.parse().unwrap()));
    let answers = library.keys.fetch_answers.clone();
    late(library, by, "forget", &[&stream, &lock, &answers], &[LENDING_GROUP, whom])
}

fn old_tries(library: &mut Library, by: &Instance) -> Option<String> {
    let keys = library.keys.clone();
    let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
    let args = [LENDING_GROUP, "request:5-0", "request", "5-0"];
    late(library, by, "old_tries", &touched, &args);
    library.dump().hash(&keys.lone_tries).remove("request:5-0")
}

/// A sweep of states as they were seen before.
fn sweep(library: &mut Library, by: &Instance, step: &str, seen: (&str, &str)) {
    library.sweep(by, step, &[(seen.0.to_owned(), seen.1.to_owned())]);
}
