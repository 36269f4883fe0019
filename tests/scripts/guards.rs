//! Each guard in a script, taken out: what it guards breaks then, and holds with it.

use library_lending::event::{Action, Event, HandOff};
use library_lending::ids::EventId;
use library_lending::keys::{LENDING_GROUP, SHELVING_GROUP};
use library_lending::lending::decide::{self, Fetched, Finality, TOLD_NO, Told, Try, TryEnd};
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
                let asking = vec![Asking::after(one, finality, books)];
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

pub fn waits(verdict: &TryEnd) -> Result<String, String> {
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

// ---- The fence of every script that writes (I7).

/// A session is over; what it had sent arrives after the next has begun.
fn fence(
    script: &'static str,
    prepare: impl Fn(&mut Library, &Instance),
    late: impl Fn(&mut Library, &Instance) -> String,
) {
    let check = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then";
    guard(script, &[(check, "if false then")], |library| {
        let old = library.instance("worker1");
        prepare(library, &old);
        library.next_session(&old);
        let before = library.dump();
        let word = late(library, &old);
        ensure!(word == "FENCED", "it came to {word}");
        let after = library.dump();
        ensure!(before == after, "it changed {}", before.difference(&after));
        Ok(())
    });
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

#[test]
fn a_late_decide_changes_nothing() {
    let geb = request(5, "user1", "geb");
    fence(
        "decide",
        |library, by| {
            store(library, &["geb"]);
            give(library, by, &request(5, "user1", "geb"));
        },
        |library, by| {
            let tries = [first_try(&geb)];
            word(&library.decide_raw(by, &Default::default(), &tries, None).unwrap())
        },
    );
}

/// Commands are tried in forms that do nothing to a string. A lock that had run out meanwhile became a
/// stream, and the name was of no use to anybody.
#[test]
fn permissions_are_tried_on_no_lock_but_ones_own() {
    guard("permits", &[("if held ~= ARGV[1] then", "if false then")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["DEL", by.session.lock()]);
        let before = library.dump();
        let word = late(library, &by, "permits", &["absent"], &[]);
        ensure!(word == "FENCED", "it came to {word}");
        let after = library.dump();
        ensure!(before == after, "it changed {}", before.difference(&after));
        Ok(())
    });
}

#[test]
fn a_late_fetch_changes_nothing() {
    let keys = Library::new().keys;
    fence(
        "fetch",
        |_, _| {},
        |library, by| {
            let touched = [keys.shelves.as_str(), &keys.fetch_answers];
            late(library, by, "fetch", &touched, &["1", "worker1", "geb", "5-0"])
        },
    );
}

#[test]
fn a_late_unfetch_changes_nothing() {
    fence(
        "unfetch",
        |library, _| {
            let shelves = library.keys.shelves.clone();
            library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0"]);
        },
        |library, by| word(&library.unfetch(by, &[("geb", id(5, 0))])),
    );
}

#[test]
fn a_late_shelve_changes_nothing() {
    fence(
        "shelve",
        |library, by| {
            add_handoff(library, "5-0", "geb");
            library.take_handoffs(by.name(), 1);
        },
        |library, by| library.shelve(by, &[handoff(id(5, 0), "geb")]).remove(0),
    );
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

#[test]
fn a_late_reject_changes_nothing() {
    let geb = request(5, "user1", "geb");
    fence(
        "reject",
        |library, by| give(library, by, &request(5, "user1", "geb")),
        |library, by| word(&library.reject(by, geb.key, "late", false).unwrap()),
    );
}

#[test]
fn a_late_discard_changes_nothing() {
    fence(
        "discard",
        |library, by| {
            add_handoff(library, "5-0", "a,,b");
            let handoffs = library.keys.handoffs.clone();
            library.read(by.name(), &handoffs, 1);
        },
        |library, by| word(&library.discard(by, id(5, 0), "late").unwrap()),
    );
}

#[test]
fn a_handoff_that_is_done_is_not_discarded_and_one_that_is_kept_stays() {
    let parts = [("if not fields then", "if false then"), ("~= 'keep' then", "~= '' then")];
    for (part, is_kept) in parts.into_iter().zip([false, true]) {
        guard("discard", &[part], |library| {
            library.keep_events(is_kept);
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            add_handoff(library, "5-0", "a,,b");
            library.read(by.name(), &keys.handoffs, 1);
            for (said, is_pending) in [("DISCARDED", true), ("STALE", false)] {
                let came = library.discard(&by, id(5, 0), "book_id_empty");
                let came = came.map(|reply| word(&reply)).map_err(|error| error.to_string())?;
                ensure!(came == said, "pending: {is_pending}, and {came}");
            }
            let left = library.redis.ask::<usize>(&["XLEN", &keys.handoffs]);
            ensure!(left == usize::from(is_kept), "there are {left}");
            let letters = library.redis.ask::<usize>(&["XLEN", &keys.dead_letters]);
            ensure!(letters == 1, "there are {letters} letters");
            Ok(())
        });
    }
}

#[test]
fn a_late_renewal_prolongs_nothing() {
    fence("renew", |_, _| {}, |library, by| late(library, by, "renew", &[], &["6000"]));
}

#[test]
fn a_late_resignation_gives_up_no_newer_lease() {
    fence(
        "resign",
        |_, _| {},
        |library, by| {
            let (answers, stream) =
                (library.keys.fetch_answers.clone(), library.keys.requests.clone());
            late(library, by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP])
        },
    );
}

#[test]
fn a_late_claim_changes_nothing() {
    fence(
        "claim",
        |library, _| {
            library.add(&request(5, "user1", "geb"));
            library.take("dead", Action::Request, 1);
        },
        |library, by| {
            let stream = library.keys.requests.clone();
            library.claim(by, &stream, "dead").remove(0)
        },
    );
}

#[test]
fn a_late_sweep_changes_nothing() {
    fence(
        "sweep",
        |library, _| {
            let states = library.keys.book_states.clone();
            library.redis.ask::<()>(&["HSET", &states, "geb", "=5-0"]);
        },
        |library, by| library.sweep(by, "look", &[("geb".into(), "=5-0".into())]).remove(0),
    );
}

#[test]
fn a_late_clear_changes_nothing() {
    fence(
        "clear",
        |library, _| acknowledged(library, 5),
        |library, by| {
            let stream = library.keys.requests.clone();
            library.clear_stream(by, &stream).remove(0)
        },
    );
}

/// A request that the reference application has decided and left in its stream.
fn acknowledged(library: &mut Library, ms: u64) {
    let stream = library.keys.requests.clone();
    library.add(&request(ms, "user1", "geb"));
    library.take("reference", Action::Request, 1);
    library.redis.ask::<()>(&["XACK", &stream, LENDING_GROUP, &id(ms, 0).to_string()]);
}

#[test]
fn a_late_forget_changes_nothing() {
    fence(
        "forget",
        |library, _| acknowledged(library, 5),
        |library, by| forget(library, by, "reference"),
    );
}

fn forget(library: &mut Library, by: &Instance, whom: &str) -> String {
    let (stream, lock) = (library.keys.requests.clone(), library.keys.lock(&whom.parse().unwrap()));
    let answers = library.keys.fetch_answers.clone();
    late(library, by, "forget", &[&stream, &lock, &answers], &[LENDING_GROUP, whom])
}

#[test]
fn a_late_count_of_tries_changes_nothing() {
    let tries = Library::new().keys.lone_tries;
    fence(
        "lone_try",
        |_, _| {},
        |library, by| late(library, by, "lone_try", &[&tries], &["alone", "request:5-0"]),
    );
}

/// One was cut off in its try, and another took the event over. Back again, the first wiped out whose try
/// was under way, and that one counted though its process survived it.
#[test]
fn who_survived_a_try_leaves_the_note_of_who_tries_the_event_now() {
    guard(
        "lone_try",
        &[("if by == process then\n      note", "if true then\n      note")],
        |library| {
            let (first, second) = (library.instance("worker1"), library.instance("worker2"));
            let tries = library.keys.lone_tries.clone();
            for (by, step) in
                [(&first, "alone"), (&second, "alone"), (&first, "survived"), (&second, "survived")]
            {
                late(library, by, "lone_try", &[&tries], &[step, "request:5-0"]);
            }
            let note = library.dump().hash(&tries).remove("request:5-0");
            ensure!(note.as_deref() == Some("0 1"), "it is {note:?}");
            Ok(())
        },
    );
}

fn old_tries(library: &mut Library, by: &Instance) -> Option<String> {
    let keys = library.keys.clone();
    let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
    let args = [LENDING_GROUP, "request:5-0", "request", "5-0"];
    late(library, by, "old_tries", &touched, &args);
    library.dump().hash(&keys.lone_tries).remove("request:5-0")
}

fn note_a_try(library: &mut Library) {
    let tries = library.keys.lone_tries.clone();
    library.redis.ask::<()>(&["HSET", &tries, "request:5-0", "1 1"]);
}

#[test]
fn the_note_of_a_try_stays_while_its_event_is_in_hand() {
    let check = "and #redis.call('XPENDING', stream, ARGV[2], id, id, 1) == 0";
    guard("old_tries", &[(check, "")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        give(library, &other, &request(5, "user1", "geb"));
        note_a_try(library);
        ensure!(old_tries(library, &by).is_some(), "it is gone");
        serve_fresh(library, &other, &request(5, "user1", "geb"));
        ensure!(old_tries(library, &by).is_none(), "it stays");
        Ok(())
    });
}

/// The group was destroyed and made again.
#[test]
fn the_note_of_a_try_stays_while_its_event_is_to_be_delivered_again() {
    let check = "not before(group['last-delivered-id'], id)";
    guard("old_tries", &[(check, "true")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        note_a_try(library);
        ensure!(old_tries(library, &by).is_some(), "it is gone");
        Ok(())
    });
}

#[test]
fn a_late_removal_of_notes_changes_nothing() {
    fence(
        "old_tries",
        |library, _| note_a_try(library),
        |library, by| {
            let keys = library.keys.clone();
            let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
            let args = [LENDING_GROUP, "request:5-0", "request", "5-0"];
            late(library, by, "old_tries", &touched, &args)
        },
    );
}

// ---- acquire.lua.

fn acquire(library: &mut Library, process: &str, number: &str, force: &str) -> String {
    library
        .words("acquire", &["instance_lock:worker1"], &[process, number, "6000", force])
        .remove(0)
}

#[test]
fn a_late_acquire_takes_no_lease_from_a_later_session() {
    let check = "free = number and number < tonumber(ARGV[2])";
    guard("acquire", &[(check, "free = number")], |library| {
        for number in ["1", "3"] {
            let word = acquire(library, "me", number, "");
            ensure!(word == "ACQUIRED", "{word}");
        }
        let word = acquire(library, "me", "2", "");
        ensure!(word == "HELD", "session 2 comes after 3: {word}");
        Ok(())
    });
}

#[test]
fn a_name_that_is_held_is_taken_by_force_alone() {
    let check = "if not free and ARGV[4] ~= 'force' then";
    guard("acquire", &[(check, "if false then")], |library| {
        acquire(library, "other", "1", "");
        let word = acquire(library, "me", "1", "");
        ensure!(word == "HELD", "{word}");
        ensure!(acquire(library, "me", "2", "force") == "ACQUIRED", "not even by force");
        Ok(())
    });
}

/// Tokens of two processes can be as long, and one has begun more sessions than the other.
#[test]
fn a_token_of_another_process_is_no_earlier_one_of_this() {
    let own = "string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':'";
    guard("acquire", &[(own, "true")], |library| {
        acquire(library, "one", "1", "");
        let word = acquire(library, "two", "2", "");
        ensure!(word == "HELD", "{word}");
        Ok(())
    });
}

/// A process may die before it renews it for the first time.
#[test]
fn a_lease_runs_out_from_the_beginning() {
    let set = "local set = redis.pcall('SET', KEYS[1], token, 'PX', ARGV[3])";
    let without = "local set = redis.pcall('SET', KEYS[1], token)";
    guard("acquire", &[(set, without)], |library| {
        acquire(library, "me", "1", "");
        let left: i64 = library.redis.ask(&["PTTL", "instance_lock:worker1"]);
        ensure!((1..=6_000).contains(&left), "{left} ms are left");
        Ok(())
    });
}

// ---- Once, and only once (I4).

#[test]
fn an_event_that_is_decided_is_not_decided_again() {
    let xack = "if redis.call('XACK', e.stream, call.group, e.id) == 0 then";
    let without = "redis.call('XACK', e.stream, call.group, e.id)\n  if false then";
    guard("decide", &[(xack, without)], |library| {
        let by = library.instance("worker1");
        store(library, &["geb"]);
        let geb = request(5, "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let again = serve(library, &by, InHand::fresh(geb));
        ensure!(matches!(again, TryEnd::Stale), "{}", told(&again));
        is_sound(library)
    });
}

#[test]
fn a_handoff_that_is_done_is_not_done_again() {
    let xack = "if redis.call('XACK', KEYS[2], ARGV[2], id) == 1 then";
    let without = "if redis.call('XACK', KEYS[2], ARGV[2], id) >= 0 then";
    guard("shelve", &[(xack, without)], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "5-0", "geb");
        let handoffs = library.take_handoffs("worker1", 1);
        library.shelve(&by, &handoffs);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "geb")), "book_ids", "geb")?;
        library.shelve(&by, &handoffs);
        is_sound(library)
    });
}

#[test]
fn an_event_that_is_decided_is_not_rejected() {
    let pending = ("if #pending == 0 then", "if false then");
    let deliveries = ("pending[1][4]", "1");
    guard("reject", &[pending, deliveries], |library| {
        let by = library.instance("worker1");
        store(library, &["geb"]);
        let geb = request(5, "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let kim = request(6, "user1", "kim");
        give(library, &by, &kim);
        let both = [geb.key, kim.key].map(|key| (key, "late".to_owned()));
        let reply = library.reject_all(&by, &both).unwrap();
        let Rejected::Done(letters) = reject::read(reply).unwrap() else {
            return Err("nothing is done".into());
        };
        let rejected: Vec<bool> = letters.iter().map(Option::is_some).collect();
        ensure!(rejected == [false, true], "{letters:?}");
        is_sound(library)
    });
}

#[test]
fn rejecting_a_return_leaves_the_reservation_of_a_request_with_its_id() {
    guard(
        "reject",
        &[("if action == 'request' then\n    give_back", "if true then\n    give_back")],
        |library| {
            let by = library.instance("worker1");
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
            let back = give_back(5, "user1", "kim");
            give(library, &by, &back);
            library.reject(&by, back.key, "it cannot be worked on", false).unwrap();
            let left = library.redis.ask::<bool>(&["EXISTS", "request:5-0:temp"]);
            ensure!(left, "the reservation is gone");
            Ok(())
        },
    );
}

/// A request fetched a book, waited and put it into automated storage; the reference application lent
/// it from there, took it back and, storage being full, handed it to shelving, without a mark. When
/// the request was given up, shelving still had it on record as who fetched the book, and took it
/// back: it was on its shelf, free to be lent, when the hand-off put it there once more.
#[test]
fn a_book_in_a_handoff_without_a_mark_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "and not is_in_handoff(KEYS[5], ARGV[9], book) then";
    guard("reject", &[(check, "then")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        add_handoff(library, "6-0", "geb");
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        let given_up = request(5, "user1", "geb,kim");
        give(library, &by, &given_up);
        for delivered in [false, true] {
            let Ok(Value::Array(reply)) = library.reject(&by, given_up.key, "given up", true)
            else {
                return Err("it cannot be looked at".into());
            };
            let words: Vec<String> = reply.iter().map(show).collect();
            ensure!(words == ["MAY_HAVE", "kim"], "{words:?}, delivered: {delivered}");
            library.take_handoffs("worker1", 1);
        }
        Ok(())
    });
}

/// What an instance of the reference application had reserved went onto its shelf with a request that had
/// fetched it before: it was lent to two.
#[test]
fn a_book_that_the_reference_has_reserved_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "if reserved and not reserved[book] and";
    guard("reject", &[(check, "if")], |library| {
        let by = library.instance("worker1");
        let (shelves, theirs) = (library.keys.shelves.clone(), request(6, "user2", "geb"));
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        let given_up = request(5, "user1", "geb,kim");
        give(library, &by, &given_up);
        library.add(&theirs);
        library.take("reference1", Action::Request, 1);
        library.redis.ask::<()>(&["SADD", &library.keys.reservation(theirs.key.id), "geb"]);
        let without_ttl = vec![b"reference1".to_vec()];
        by.session.note_neighbours(Neighbours { without_ttl, ..Neighbours::default() });
        let Ok(Value::Array(reply)) = library.reject(&by, given_up.key, "given up", true) else {
            return Err("it cannot be looked at".into());
        };
        let words: Vec<String> = reply.iter().map(show).collect();
        ensure!(words == ["MAY_HAVE", "kim"], "{words:?}");
        Ok(())
    });
}

// ---- A book is in one place (I1).

/// Sent once more behind a later fetch, a call must not take that one's answer for its own.
#[test]
fn the_answer_to_another_fetch_is_not_decided_by() {
    let check = "if not answer or string.sub(answer, 1, #head) ~= head then";
    guard("decide", &[(check, "if not answer then")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "kim", "0-1"]);
        let kim = request(5, "user1", "kim");
        give(library, &by, &kim);
        library.fetch(&by, &[(book("kim"), kim.key.id)]).unwrap();
        let first = library.fetches();
        library.fetch(&by, &[(book("geb"), id(6, 0))]).unwrap();
        let answers = vec![Some(Answer::Left)];
        let fetched = Some(Fetched { finality: Finality::First, answers });
        let tries = [Try { fetched, ..first_try(&kim) }];
        let before = library.dump();
        let reply = library.decide_raw(&by, &Default::default(), &tries, Some(first)).unwrap();
        ensure!(before == library.dump(), "it changed something: {reply:?}");
        ensure!(decide::ends(reply, &tries).unwrap().is_none(), "it found an answer");
        Ok(())
    });
}

#[test]
fn the_main_storage_hands_a_book_out_once() {
    let has = "out[book] or requests[k - first + 1]";
    for without in ["out[book]", "requests[k - first + 1]"] {
        guard("fetch", &[(has, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            let mut ask = |args: &[&str]| {
                let args = [&[by.session.token.as_str(), "1", "worker1"], args].concat();
                let touched = [by.session.lock(), &keys.shelves, &keys.fetch_answers];
                library.words("fetch", &touched, &args)
            };
            // In one call, and in two.
            let words = ask(&["geb", "geb", "5-0", "6-0"]);
            ensure!(words[1..] == ["yes", "5-0"], "{words:?}");
            let words = ask(&["geb", "7-0"]);
            ensure!(words[1..] == ["5-0"], "{words:?}");
            Ok(())
        });
    }
}

#[test]
fn only_what_this_request_has_fetched_goes_back() {
    let check = "if redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[at + 1] then";
    guard("unfetch", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.unfetch(&by, &[("geb", id(5, 0))]);
        is_sound(library)
    });
}

/// Without the reservation there is no telling whether shelving's "no" is still true: the request
/// would have to ask for ever (I5).
#[test]
fn a_book_is_reserved_before_a_no_of_shelving_counts() {
    let hold = "state[book], call.changed[book] = '?' .. e.id, true";
    guard("decide", &[(hold, "")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        let lost = request(5, "user1", "lost");
        is_done(&give_and_serve(library, &by, &lost), "unavailable", "lost")
    });
}

/// A request puts off what it had; that goes through storage to a reader and is now on its way to
/// its shelf, while shelving goes on noting it for the request. A new session tries that again.
fn a_yes_that_is_old(library: &mut Library) -> Result<(), String> {
    let by = library.instance("worker1");
    fill_storage(library);
    library.redis.ask::<()>(&["SREM", "automated_book_storage", "filler0"]);
    lend(library, "user9", &["kim", "filler0"]);
    let other = library.instance("worker2");
    give(library, &other, &give_back(1, "user8", "kim"));
    let mine = request(2, "user1", "geb,kim");
    waits(&give_and_serve(library, &by, &mine))?;
    is_done(&give_and_serve(library, &by, &request(3, "user2", "geb")), "book_ids", "geb")?;
    let filled = give_and_serve(library, &by, &give_back(4, "user9", "filler0"));
    is_done(&filled, "book_ids", "filler0")?;
    is_done(&give_and_serve(library, &by, &give_back(5, "user2", "geb")), "book_ids", "geb")?;
    let by = library.next_session(&by);
    let verdict = serve(library, &by, InHand::fresh(mine.clone()));
    is_sound(library)?;
    waits(&verdict)?;
    Ok(())
}

#[test]
fn an_old_yes_of_shelving_is_asked_for_again() {
    let check =
        "elseif answer == 'yes' or (own and answer == 'again' and not has_moved_on(book, e)) then";
    let all = "elseif answer == 'yes' or answer == 'again' then";
    guard("decide", &[(check, all)], a_yes_that_is_old);
}

#[test]
fn a_book_on_its_way_to_its_shelf_is_nobodys_whatever_shelving_says() {
    let check = "and not own and not (kind == '>' and in_transit(is))) then";
    let again = ("and not has_moved_on(book, e)) then", ") then");
    guard("decide", &[(check, "and not own) then"), again], a_yes_that_is_old);
}

#[test]
fn what_a_waiting_request_had_is_there_for_others() {
    guard("decide", &[("  call.taking_back().put_back(sorted.have)\n", "\n")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user9", &["kim"]);
        // The older one is in the hands of another instance.
        let older = request(1, "user2", "geb");
        give(library, &other, &older);
        waits(&give_and_serve(library, &by, &request(2, "user1", "geb,kim")))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")
    });
}

// ---- The limits (I2, I3).

#[test]
fn nobody_has_more_than_five_books() {
    let all = (
        "if e.reserved or call.in_hand[e.count] + #e.books > call.limit then",
        "if e.reserved then",
    );
    let some = ("too_many = in_hand[e.count] + #available > call.limit,", "too_many = false,");
    for (part, books) in [(all, "geb"), (some, "geb,kim")] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            lend(library, "user1", &["a", "b", "c", "d", "e"]);
            lend(library, "user2", &["kim"]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", books));
            is_sound(library)?;
            is_done(&verdict, "put_back", "geb")
        });
    }
}

#[test]
fn storage_is_not_filled_beyond_its_capacity() {
    let room = "elseif number_stored + call.stored_more < capacity then";
    guard("decide", &[(room, "elseif true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        is_sound(library)
    });
    guard("reject", &[("if room > 0 then", "if true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        library.redis.ask::<()>(&["HSET", &library.keys.shelves.clone(), "geb", "5-0"]);
        library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        library.reject(&by, geb.key, "given_up", false).unwrap();
        is_sound(library)
    });
}

// ---- Order (I8).

#[test]
fn a_request_is_not_refused_before_an_older_return() {
    let check = "(blocked or in_doubt or not nothing_older(e))";
    guard("decide", &[(check, "(blocked or in_doubt)")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user1", &["geb"]);
        let older = give_back(1, "user1", "geb");
        give(library, &other, &older);
        let geb = request(2, "user2", "geb");
        waits(&give_and_serve(library, &by, &geb))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(geb)), "book_ids", "geb")
    });
}

#[test]
fn a_return_is_not_refused_before_an_older_request() {
    let check = "if not nothing_older(e) then";
    guard("decide", &[(check, "if false then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = request(1, "user1", "geb");
        give(library, &other, &older);
        let back = give_back(2, "user1", "geb");
        waits(&give_and_serve(library, &by, &back))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")
    });
}

/// What was sent but not read by anybody is older, too.
#[test]
fn what_is_not_delivered_yet_counts_as_undecided() {
    let check = "list[#list + 1] = entries[1] and entries[1][1]";
    guard("decide", &[(check, "")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.add(&give_back(1, "user1", "geb"));
        waits(&give_and_serve(library, &by, &request(2, "user2", "geb")))?;
        Ok(())
    });
}

#[test]
fn events_of_one_millisecond_wait_until_they_wait_only_for_each_other() {
    guard("decide", &[("return all_wait_for(e, ms)\n", "return true\n")], |library| {
        let by = library.instance("worker1");
        // The return has the smaller id, and came second.
        let back = event(Action::Return, id(5, 0), "user1", "geb");
        let geb = event(Action::Request, id(5, 7), "user1", "geb");
        give(library, &by, &geb);
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        is_done(&serve_fresh(library, &by, &geb), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")
    });
}

#[test]
fn a_tie_is_broken_by_the_first_when_the_others_wait_for_it() {
    let check = "if own_first and precedes(e.id, e.action, other, action) then";
    guard("decide", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        let wanted = event(Action::Request, id(5, 0), "user2", "geb");
        let not_lent = event(Action::Return, id(5, 7), "user1", "kim");
        give(library, &by, &wanted);
        give(library, &by, &not_lent);
        waits(&serve_fresh(library, &by, &not_lent))?;
        is_done(&serve_fresh(library, &by, &wanted), "cause", "none_available")?;
        is_done(&serve(library, &by, InHand::fresh(not_lent)), "not_lent", "kim")
    });
}

#[test]
fn a_return_takes_back_only_loans_of_older_requests() {
    let check = "if is_old then";
    guard("decide", &[(check, "if true then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = give_back(5, "user1", "geb");
        give(library, &other, &older);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "geb")), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &other, &older), "outcome", "unchanged")
    });
}

/// A book on its way to its shelf, as LendingService has noted it, after a doubt about an earlier
/// hand-off is settled.
#[test]
fn a_book_on_its_way_to_its_shelf_is_waited_for() {
    let check = "elseif kind == '?' or (kind == '>' and in_transit(is))";
    guard("decide", &[(check, "elseif kind == '?'"), LOOK_THROUGH], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        add_handoff(library, "1-0", "geb");
        let geb = request(5, "user1", "geb");
        let doubt = waits(&give_and_serve(library, &by, &geb))?;
        shelve_all(library, &by);
        is_done(&give_and_serve(library, &by, &request(6, "user2", "geb")), "book_ids", "geb")?;
        is_done(&give_and_serve(library, &by, &give_back(7, "user2", "geb")), "book_ids", "geb")?;
        let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
        one.doubt = waits(&serve(library, &by, one.clone()))?;
        shelve_all(library, &by);
        is_done(&serve(library, &by, one), "book_ids", "geb")
    });
}

/// The reference application hands books off without a note.
fn a_handoff_that_lending_has_not_noted(library: &mut Library) -> Result<(), String> {
    let by = library.instance("worker1");
    add_handoff(library, "1-0", "geb");
    let geb = request(5, "user1", "geb");
    let doubt = waits(&give_and_serve(library, &by, &geb))?;
    let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
    one.doubt = waits(&serve(library, &by, one.clone()))?;
    shelve_all(library, &by);
    is_done(&serve(library, &by, one), "book_ids", "geb")
}

#[test]
fn a_no_is_in_doubt_while_handoffs_are_not_done() {
    let doubt =
        "call.doubt = handoff == '-' and request == '-' and '' or handoff .. ' ' .. request";
    let parts = [(doubt, "call.doubt = ''"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
    let sure = "elseif e.said == 'certain' then";
    let parts = [(sure, "elseif true then"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
    let settled = "sorted.certain = settled(e.doubt)";
    let parts = [(settled, "sorted.certain = true"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
}

#[test]
fn a_book_that_another_request_has_is_waited_for() {
    // Either of the two is enough.
    let first = ("and answer ~= 'again' and is_undecided(answer)) then", "and false) then");
    let second = ("if answer == 'again' or is_undecided(answer) or", "if answer == 'again' or");
    guard("decide", &[first, second], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let (older, newer) = (request(1, "user1", "geb"), request(2, "user2", "geb"));
        give(library, &by, &older);
        give(library, &other, &newer);
        // The newer one has got it from shelving, and is not decided yet.
        library.fetch(&other, &[(book("geb"), newer.key.id)]).unwrap();
        waits(&serve_fresh(library, &by, &older))?;
        Ok(())
    });
}

#[test]
fn a_book_that_another_request_is_asking_for_is_waited_for() {
    let check = "elseif kind == '?' or (kind == '>' and in_transit(is))";
    guard("decide", &[(check, "elseif (kind == '>' and in_transit(is))")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let (older, newer) = (request(1, "user1", "lost"), request(2, "user2", "lost"));
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        give(library, &by, &older);
        give(library, &other, &newer);
        let reserved = library.decide(&other, &[first_try(&newer)]).unwrap().remove(0);
        ensure!(matches!(reserved, TryEnd::Fetch { .. }), "{}", told(&reserved));
        waits(&serve_fresh(library, &by, &older))?;
        Ok(())
    });
}

/// See the stories: it reserves and releases its books in every round else.
#[test]
fn after_a_final_no_nothing_is_reserved_while_something_older_is_undecided() {
    guard("decide", &[("\n    or sorted.told_no and #free > 0", "")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        give(library, &other, &give_back(1, "user1", "kim"));
        let lost = request(2, "user2", "lost");
        let doubt = waits(&give_and_serve(library, &by, &lost))?;
        let again = InHand { doubt, ..InHand::fresh(lost) }.next_try();
        waits(&library.decide(&by, &[again]).unwrap()[0])?;
        Ok(())
    });
}

// ---- Taking over and keeping house.

#[test]
fn nothing_is_claimed_from_an_instance_that_lives() {
    guard("claim", &[("if left >= 0 then", "if false then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        give(library, &other, &request(5, "user1", "geb"));
        let stream = library.keys.requests.clone();
        let word = library.claim(&by, &stream, "worker2").remove(0);
        ensure!(word == "ALIVE", "{word}");
        ensure!(library.pending("worker2", &stream).len() == 1, "it has lost its event");
        library.lose_lease(&other);
        library.claim(&by, &stream, "worker2");
        ensure!(library.pending("worker1", &stream).len() == 1, "it is not taken over");
        Ok(())
    });
}

#[test]
fn a_lock_without_a_ttl_counts_as_alive_for_long() {
    guard("claim", &[("min_idle = ARGV[8]", "min_idle = '0'")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["SET", "instance_lock:reference", "locked"]);
        library.add(&request(5, "user1", "geb"));
        library.take("reference", Action::Request, 1);
        let stream = library.keys.requests.clone();
        library.claim(&by, &stream, "reference");
        ensure!(library.pending("worker1", &stream).is_empty(), "it is taken over at once");
        Ok(())
    });
}

/// Both would work on it.
#[test]
fn what_is_not_taken_over_is_not_told_as_such() {
    guard("claim", &[("'JUSTID') > 0", "'JUSTID') >= 0")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["SET", "instance_lock:reference", "locked"]);
        library.add(&request(5, "user1", "geb"));
        library.take("reference", Action::Request, 1);
        let stream = library.keys.requests.clone();
        let words = library.claim(&by, &stream, "reference");
        ensure!(words == ["CLAIMED", ""], "{words:?}");
        Ok(())
    });
}

/// XCLAIM of Redis 7 drops it, and it would end without an outcome.
#[test]
fn an_event_that_was_deleted_is_told_and_not_dropped() {
    guard("claim", &[("  if found then\n", "  if true then\n")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        library.take("dead", Action::Request, 1);
        let stream = library.keys.requests.clone();
        library.redis.ask::<()>(&["XDEL", &stream, "5-0"]);
        let words = library.claim(&by, &stream, "dead");
        ensure!(words.get(2).map(String::as_str) == Some("5-0"), "{words:?}");
        let dump = library.dump();
        let pending = &dump.stream(&stream).groups[LENDING_GROUP].pending;
        ensure!(pending.contains_key("5-0"), "nobody can reject it: {pending:?}");
        Ok(())
    });
}

fn consumers(library: &mut Library, stream: &str) -> Vec<String> {
    let list: Vec<std::collections::HashMap<String, Value>> =
        library.redis.ask(&["XINFO", "CONSUMERS", stream, LENDING_GROUP]);
    list.iter().map(|info| show(&info["name"])).collect()
}

#[test]
fn a_consumer_with_something_in_hand_is_not_forgotten() {
    let check = "or #redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then";
    guard("forget", &[(check, "then")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        library.take("dead", Action::Request, 1);
        let word = forget(library, &by, "dead");
        ensure!(word == "KEPT", "{word}");
        Ok(())
    });
}

#[test]
fn an_instance_with_a_lock_is_not_forgotten() {
    guard("forget", &[("if redis.call('EXISTS', KEYS[3]) == 1", "if false")], |library| {
        let (by, _other) = (library.instance("worker1"), library.instance("reference"));
        acknowledged(library, 5);
        let word = forget(library, &by, "reference");
        ensure!(word == "KEPT", "{word}");
        let stream = library.keys.requests.clone();
        ensure!(consumers(library, &stream) == ["reference"], "it is gone");
        Ok(())
    });
}

#[test]
fn who_resigns_leaves_what_is_in_hand_to_others() {
    guard("resign", &[("if #pending == 0 then", "if true then")], |library| {
        let by = library.instance("worker1");
        give(library, &by, &request(5, "user1", "geb"));
        let stream = library.keys.requests.clone();
        let answers = library.keys.fetch_answers.clone();
        late(library, &by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP]);
        ensure!(library.pending("worker1", &stream).len() == 1, "it is lost");
        Ok(())
    });
}

/// A sweep of states as they were seen before.
fn sweep(library: &mut Library, by: &Instance, step: &str, seen: (&str, &str)) {
    library.sweep(by, step, &[(seen.0.to_owned(), seen.1.to_owned())]);
}

#[test]
fn a_state_that_has_changed_since_it_was_seen_is_not_swept() {
    let check = "if redis.call('HGET', KEYS[2], book) == state then";
    guard("sweep", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        let states = library.keys.book_states.clone();
        // It was seen before the book was handed off again.
        let seen = "=1-0";
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        sweep(library, &by, "look", ("geb", seen));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "the note of a book on its way is gone");
        Ok(())
    });
}

#[test]
fn the_note_of_a_book_on_its_way_is_not_swept() {
    let check = "over = lent or not is_undone(KEYS[4], ARGV[3], id)";
    guard("sweep", &[(check, "over = true")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        for delivered in [false, true] {
            let seen: String = library.redis.ask(&["HGET", &states, "geb"]);
            sweep(library, &by, "look", ("geb", &seen));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(kept, "it is gone, delivered: {delivered}");
            library.take_handoffs("worker1", 1);
        }
        Ok(())
    });
}

fn reserved_for_5(library: &mut Library) -> String {
    let keys = library.keys.clone();
    library.redis.ask::<()>(&["HSET", &keys.book_states, "geb", "?5-0"]);
    library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0"]);
    keys.book_states
}

#[test]
fn a_reservation_for_an_undecided_request_is_not_swept() {
    let check = "elseif kind == '?' and not is_undone(KEYS[5], ARGV[2], id) then";
    guard("sweep", &[(check, "elseif kind == '?' then")], |library| {
        let by = library.instance("worker1");
        let states = reserved_for_5(library);
        give(library, &by, &request(5, "user1", "geb"));
        sweep(library, &by, "unfetched", ("geb", "?5-0"));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "the reservation is gone");
        Ok(())
    });
}

#[test]
fn a_reservation_is_swept_only_after_shelving_has_taken_the_book_back() {
    guard(
        "sweep",
        &[("over = lent or stored or ARGV[4] == 'unfetched'", "over = true")],
        |library| {
            let by = library.instance("worker1");
            let states = reserved_for_5(library);
            sweep(library, &by, "look", ("geb", "?5-0"));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(kept, "nobody knows any more that the book is out");
            sweep(library, &by, "unfetched", ("geb", "?5-0"));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(!kept, "it is not swept");
            Ok(())
        },
    );
}

/// Sweeps a book as the keeper does: what is told is taken back by shelving in between.
fn tidy(library: &mut Library, by: &Instance, book: &str) {
    let states = library.keys.book_states.clone();
    let seen: Option<String> = library.redis.ask(&["HGET", &states, book]);
    let Some(seen) = seen else { return };
    let told = library.sweep(by, "look", &[(book.to_owned(), seen.clone())]);
    if let [_, _, told, state] = &told[..] {
        library.unfetch(by, &[(told, state[1..].parse().unwrap())]);
        sweep(library, by, "unfetched", (book, &seen));
    }
}

/// A request had reserved a book when the group was lost, the reference application decided it, lent
/// the book and took it back into automated storage. The mark of the reservation, which it knows
/// nothing of, was left, and for its sake shelving took the book back: it was on its shelf and in
/// automated storage (I1), and could be lent to two.
#[test]
fn a_stored_book_is_not_taken_back_by_shelving_for_an_old_reservation() {
    guard("sweep", &[("over = lent or stored or", "over = lent or")], |library| {
        let by = library.instance("worker1");
        let states = reserved_for_5(library);
        let keys = library.keys.clone();
        library.redis.ask::<()>(&["SADD", &keys.storage, "geb"]);
        tidy(library, &by, "geb");
        let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
        ensure!(is_out, "it is on its shelf and in storage");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept");
        Ok(())
    });
}

/// The same where storage was full, so that the reference application handed the book over, without
/// a mark: it was put on its shelf twice, and the second time, when the hand-off was done, it had
/// been lent in between.
#[test]
fn a_book_in_a_handoff_without_a_mark_is_not_taken_back_for_an_old_reservation() {
    let check = "if not over and is_in_handoff(KEYS[4], ARGV[3], book) == false then";
    guard("sweep", &[(check, "if not over then")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "6-0", "x,geb");
        let states = reserved_for_5(library);
        for delivered in [false, true] {
            tidy(library, &by, "geb");
            let is_out =
                library.redis.ask::<bool>(&["HEXISTS", &library.keys.shelves.clone(), "geb"]);
            ensure!(
                is_out,
                "it is on its shelf before the hand-off is done, delivered: {delivered}"
            );
            if !delivered {
                let taken = library.take_handoffs("worker1", 1);
                assert_eq!(taken.len(), 1);
            }
        }
        let shelving = library.pending("worker1", &library.keys.handoffs.clone());
        let handoffs: Vec<HandOff> = shelving
            .iter()
            .map(|entry| library_lending::shelving::reader::delivered(entry).unwrap())
            .collect();
        library.shelve(&by, &handoffs);
        tidy(library, &by, "geb");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept when the hand-off is done");
        Ok(())
    });
}

#[test]
fn nothing_is_cleared_that_is_not_decided() {
    let check = "if oldest and not before(entry[1], oldest[1]) then";
    guard("clear", &[(check, "if false then")], |library| {
        let by = library.instance("worker1");
        acknowledged(library, 5);
        give(library, &by, &request(6, "user1", "geb"));
        library.add(&request(7, "user1", "geb"));
        let stream = library.keys.requests.clone();
        library.clear_stream(&by, &stream);
        let left: Vec<_> =
            library.dump().stream(&stream).entries.into_iter().map(|(id, _)| id).collect();
        ensure!(left == ["6-0", "7-0"], "{left:?}");
        Ok(())
    });
}

/// An instance that deletes takes the note away of one that keeps: the group was made anew at 0 over all
/// that was kept after that.
#[test]
fn a_note_stays_while_an_instance_keeps_events() {
    guard("clear", &[("or ARGV[4] == 'keep' then\n    note", "then\n    note")], |library| {
        library.keep_events(true);
        let by = library.instance("worker1");
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.clear_stream(&by, &stream);
        ensure!(library.redis.ask::<bool>(&["HEXISTS", &notes, &stream]), "there is no note");
        Ok(())
    });
}

/// What was never delivered was deleted as decided.
#[test]
fn nothing_is_cleared_while_a_group_is_ahead_of_its_stream() {
    let check = "before(last_given(redis.call('XINFO', 'STREAM', stream)), delivered)";
    guard("clear", &[(check, "false")], |library| {
        let by = library.instance("worker1");
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.redis.ask::<()>(&["XGROUP", "SETID", &stream, LENDING_GROUP, "99-0"]);
        library.add(&request(5, "user1", "geb"));
        let args = [&by.session.token, LENDING_GROUP, "3", "delete"];
        let reply = library.eval("clear", &[by.session.lock(), &stream, &notes], &args);
        let left = library.redis.ask::<usize>(&["XLEN", &stream]);
        ensure!(left == 1, "it is gone");
        let error = reply.expect_err("the session has to end");
        ensure!(error.code() == Some("AHEAD"), "{error}");
        Ok(())
    });
}

#[test]
fn a_stream_that_others_read_is_not_cleared() {
    let check = "if ARGV[4] == 'keep' or number_of_groups > 1 then";
    guard("clear", &[(check, "if ARGV[4] == 'keep' then")], |library| {
        let by = library.instance("worker1");
        let stream = library.keys.requests.clone();
        library.redis.ask::<()>(&["XGROUP", "CREATE", &stream, "auditors", "0"]);
        acknowledged(library, 5);
        library.clear_stream(&by, &stream);
        ensure!(library.dump().stream(&stream).entries.len() == 1, "it is gone");
        Ok(())
    });
}

#[test]
fn a_stream_whose_events_are_kept_is_not_cleared() {
    let check = "if ARGV[4] == 'keep' or number_of_groups > 1 then";
    guard("clear", &[(check, "if number_of_groups > 1 then")], |library| {
        library.keep_events(true);
        let by = library.instance("worker1");
        acknowledged(library, 5);
        let stream = library.keys.requests.clone();
        library.clear_stream(&by, &stream);
        ensure!(library.dump().stream(&stream).entries.len() == 1, "it is gone");
        Ok(())
    });
}

/// Should its consumer group be lost, what is decided must not be decided again; and it must be created
/// anew where nothing decided is left.
#[test]
fn a_note_tells_of_decided_events_as_long_as_there_are_any() {
    let clears = |library: &mut Library, by: &Instance, left: usize| {
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.clear_stream(by, &stream);
        let length = library.redis.ask::<usize>(&["XLEN", &stream]);
        ensure!(length == left, "there are {length}, not {left}");
        let noted = library.redis.ask::<bool>(&["HEXISTS", &notes, &stream]);
        ensure!(noted == (left > 0), "there are {left}, and a note: {noted}");
        Ok(())
    };
    for (note, without) in [
        ("note('decided events are being cleared')", ""),
        ("  redis.call('HDEL', KEYS[3], stream)\nend\nreturn", "end\nreturn"),
        ("note('decided events are kept')", ""),
    ] {
        guard("clear", &[(note, without)], |library| {
            let by = library.instance("worker1");
            (5..9).for_each(|ms| acknowledged(library, ms));
            clears(library, &by, 1)?;
            clears(library, &by, 0)?;
            let stream = library.keys.requests.clone();
            library.redis.ask::<()>(&["XGROUP", "CREATE", &stream, "auditors", "0"]);
            acknowledged(library, 9);
            clears(library, &by, 1)
        });
    }
}

/// A client can put a hundred thousand books into each of a page of malformed requests. What one
/// call looks at is bounded: 64 such requests once took Redis twelve seconds.
#[test]
fn one_call_of_reject_does_not_take_long_however_large_the_events_are() {
    let shortest = "a,".repeat(128_499) + "a";
    let few = (0..1_000).map(|n| format!("book{n}")).collect::<Vec<_>>().join(",");
    let many_fields = vec!["a"; 40_000];
    let large: [Vec<&str>; 3] = [
        vec!["user_id", "u", "book_ids", &shortest],
        vec!["no_user", "u", "book_ids", &few],
        [&["book_ids", "a"][..], &many_fields].concat(),
    ];
    for fields in large {
        let mut library = Library::new();
        let by = library.instance("worker1");
        let (stream, outcomes) = (library.keys.requests.clone(), library.keys.outcomes.clone());
        let mut events = Vec::new();
        for ms in 1..=64 {
            let id = id(ms, 0).to_string();
            let add = [&["XADD", &stream, &id][..], &fields].concat();
            library.redis.ask::<()>(&add);
            events.push((request(ms, "u", "a").key, "too large".to_owned()));
        }
        library.redis.ask::<redis::Value>(&[
            "XREADGROUP",
            "GROUP",
            LENDING_GROUP,
            by.name(),
            "COUNT",
            "64",
            "STREAMS",
            &stream,
            ">",
        ]);
        let mut longest = std::time::Duration::ZERO;
        let mut calls = 0;
        while !events.is_empty() {
            let begin = std::time::Instant::now();
            let reply = library.reject_all(&by, &events).unwrap();
            longest = longest.max(begin.elapsed());
            let Rejected::Done(done) = reject::read(reply).unwrap() else { panic!("not done") };
            assert!(!done.is_empty() && done.iter().all(Option::is_some));
            events.drain(..done.len());
            calls += 1;
        }
        println!("{} fields: {calls} calls, the longest {longest:?}", fields.len());
        assert!(longest.as_millis() < 1_000, "{longest:?}");
        assert_eq!(library.redis.ask::<usize>(&["XLEN", &outcomes]), 64);
        assert_eq!(library.redis.ask::<usize>(&["XLEN", &stream]), 0);
    }
}

/// A book that is lent and in automated storage as well was handed to shelving when it was returned
/// and storage full: it was in storage and on its way to its shelf.
#[test]
fn a_book_that_is_lent_and_in_storage_too_is_not_handed_over_when_it_comes_back() {
    let here = ("    if stored[book] then\n      -- Lent", "    if false then\n      -- Lent");
    guard("decide", &[here], |library| {
        let by = library.instance("worker1");
        let fillers: Vec<String> = (0..19).map(|n| format!("filler{n}")).collect();
        store(library, &fillers.iter().map(String::as_str).collect::<Vec<_>>());
        store(library, &["geb"]);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        is_sound(library)
    });
}

/// Two requests that are given up in one call, with one book in the reservations of both: it was
/// handed to shelving twice.
#[test]
fn a_book_that_two_requests_have_reserved_goes_back_once() {
    let once = "redis.call('SISMEMBER', KEYS[7], book) == 1\n      or in_transit(redis.call('HGET', KEYS[6], book) or '')";
    guard("reject", &[(once, "false")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        library.redis.ask::<()>(&["HSET", &library.keys.shelves.clone(), "geb", "5-0"]);
        let both = [request(5, "user1", "geb"), request(6, "user2", "geb")];
        for one in &both {
            give(library, &by, one);
            library.redis.ask::<()>(&["SADD", &library.keys.reservation(one.key.id), "geb"]);
        }
        let both = both.map(|one| (one.key, "given_up".to_owned()));
        library.reject_all(&by, &both).unwrap();
        is_sound(library)
    });
}

/// Somebody has left a book in automated storage that is lent. It was lent a second time.
#[test]
fn a_book_that_is_lent_and_in_storage_too_is_not_lent_again() {
    guard(
        "decide",
        &[("if call.loan[book] or (not call.stored", "if (not call.stored")],
        |library| {
            let by = library.instance("worker1");
            store(library, &["geb"]);
            lend(library, "user1", &["geb"]);
            let verdict = give_and_serve(library, &by, &request(5, "user2", "geb"));
            is_done(&verdict, "lent_to_another", "geb")?;
            let loans = library.dump().hash(&library.keys.loans.clone());
            ensure!(loans["geb"] == "user1", "{loans:?}");
            Ok(())
        },
    );
}

/// What the reference application had reserved for a request, and the request does not ask for, goes
/// back with its outcome; but not what somebody has lent from there since. The one was nowhere then, the
/// other lent and in storage.
#[test]
fn what_was_reserved_and_not_asked_for_goes_back_unless_it_is_lent() {
    let is_free = "elseif not redis.call('HGET', call.loans, book) then";
    let keep = "e.extra[#e.extra + 1] = book";
    let at_once = "if e.reserved or call.in_hand[e.count]";
    for (part, without) in [(is_free, "else"), (keep, ""), (at_once, "if call.in_hand[e.count]")] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, event) = (library.keys.clone(), request(5, "user1", "geb"));
            // The third guard is for a request whose books are all there without any question.
            store(library, &["geb"]);
            lend(library, "user2", &["kim"]);
            library.redis.ask::<()>(&["HSET", &keys.shelves, "momo", "5-0"]);
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "momo", "kim"]);
            is_done(&give_and_serve(library, &by, &event), "book_ids", "geb")?;
            let dump = library.dump();
            let stored = dump.set(&keys.storage);
            ensure!(stored == ["momo".to_owned()].into(), "in storage: {stored:?}");
            ensure!(dump.set("request:5-0:temp").is_empty(), "it is reserved still");
            is_sound(library)
        });
    }
}

/// The same of a request that is given up. Besides, what fills the storage is counted.
#[test]
fn what_was_reserved_for_a_request_that_is_given_up_goes_back_unless_it_is_lent() {
    let is_free = "if redis.call('HEXISTS', KEYS[8], book) == 0 then";
    let counted = ("      room = room - 1\n", "");
    let mark = "      redis.call('SADD', KEYS[7], book)\n      redis.call('HDEL', KEYS[6], book)\n";
    let mark = (mark, "      redis.call('SADD', KEYS[7], book)\n");
    for part in [(is_free, "if true then"), counted, mark] {
        guard("reject", &[part], |library| {
            let by = library.instance("worker1");
            let (keys, event) = (library.keys.clone(), request(5, "user1", "geb,kim,momo"));
            fill_storage(library);
            library.redis.ask::<()>(&["SREM", &keys.storage, "filler0"]);
            lend(library, "user2", &["kim", "filler0"]);
            for book in ["geb", "momo"] {
                library.redis.ask::<()>(&["HSET", &keys.shelves, book, "5-0"]);
                library.redis.ask::<()>(&["HSET", &keys.book_states, book, "?5-0"]);
            }
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb", "kim", "momo"]);
            give(library, &by, &event);
            library.reject(&by, event.key, "given_up", false).unwrap();
            let dump = library.dump();
            let reserved = dump.hash(&keys.book_states).into_values().filter(|is| is == "?5-0");
            ensure!(reserved.count() == 0, "{:?}", dump.hash(&keys.book_states));
            let undone = dump.stream(&keys.handoffs).undone(SHELVING_GROUP).len();
            ensure!(dump.set(&keys.storage).len() == 20 && undone == 1, "one each: {undone}");
            is_sound(library)
        });
    }
}

/// What goes from the reservation into storage would have been put on its shelf as well.
#[test]
fn what_was_reserved_for_a_request_that_is_given_up_is_not_taken_back_by_shelving() {
    let check = "local elsewhere = is_reserved[book] or";
    guard("reject", &[(check, "local elsewhere =")], |library| {
        let by = library.instance("worker1");
        let (keys, event) = (library.keys.clone(), request(5, "user1", "geb,kim"));
        library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0", "kim", "5-0"]);
        library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
        give(library, &by, &event);
        let Ok(Value::Array(reply)) = library.reject(&by, event.key, "given up", true) else {
            return Err("it cannot be looked at".into());
        };
        let words: Vec<String> = reply.iter().map(show).collect();
        ensure!(words == ["MAY_HAVE", "kim"], "{words:?}");
        Ok(())
    });
}

/// A request had asked for a book under a reservation, and somebody who takes no notice of those has lent
/// it. Its mark would have outlived the request (I6).
#[test]
fn a_reservation_of_a_book_that_is_lent_meanwhile_ends_with_the_request() {
    for (part, without) in [
        ("if own and (loan[book] or stored[book]) then", "if own and stored[book] then"),
        (
            "local needs_state = not is_request or e.said ~= ''",
            "local needs_state = not is_request",
        ),
        (
            "if not loan[book] or (is and string.sub(is, 1, 1) == '?') then",
            "if not loan[book] then",
        ),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, lost) = (library.keys.clone(), request(5, "user1", "lost"));
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            give(library, &by, &lost);
            let verdict = library.decide(&by, &[first_try(&lost)]).unwrap().remove(0);
            let TryEnd::Fetch { finality, books } = verdict else { return Err(told(&verdict)) };
            library.redis.ask::<()>(&["HSET", &keys.loans, "lost", "user2"]);
            let asking = vec![Asking::after(first_try(&lost), finality, books)];
            let answers = library.fetch(&by, &asked(&asking)).unwrap();
            let tries = with_answers(asking, answers);
            is_done(&library.decide(&by, &tries).unwrap()[0], "lent_to_another", "lost")?;
            let states = library.dump().hash(&keys.book_states);
            ensure!(states.is_empty(), "it is reserved still: {states:?}");
            Ok(())
        });
    }
}

// ---- What is noted of users.

/// The reference application takes books back and leaves them in the note: it grew without end. What is
/// lent to the user has to stay there all the same.
#[test]
fn where_more_is_noted_of_a_user_than_may_be_what_is_not_true_any_more_goes() {
    for (part, without) in [
        ("local outdated = #list + #available > call.limit", "local outdated = false"),
        ("if not is_new[book] and (not", "if (not"),
        ("return redis.call('HGET', call.loans, book) == user", "return true"),
        ("return redis.call('HGET', call.loans, book) == user", "return false"),
        ("  return call.loan[book] == user\n", "  return true\n"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let notes = library.keys.books_of_users.clone();
            store(library, &["geb", "momo"]);
            lend(library, "user1", &["kim"]);
            lend(library, "user2", &["emma"]);
            library.redis.ask::<()>(&["HSET", &notes, "user1", "faust,momo,emma,kim,ulysses"]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", "geb,momo,emma"));
            is_done(&verdict, "book_ids", "geb,momo")?;
            let note = library.dump().hash(&notes).remove("user1").unwrap_or_default();
            ensure!(note == "geb,momo,kim", "it is {note:?}");
            Ok(())
        });
    }
}

/// Somebody has set it to less than the user has.
#[test]
fn a_return_makes_no_count_less_than_nothing() {
    let least = ("math.max(0, call.in_hand[e.count] - #mine)", "call.in_hand[e.count] - #mine");
    guard("decide", &[least], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["SET", &library.keys.count(&user("user1")), "0"]);
        let verdict = give_and_serve(library, &by, &give_back(5, "user1", "geb"));
        is_done(&verdict, "in_hand", "0")
    });
}

// ---- Which loans a return is about.

/// submit.lua gives ids that can be compared across both streams, also within a millisecond.
#[test]
fn a_return_takes_back_no_loan_of_a_request_behind_it_in_its_millisecond() {
    let check = "return not is_tie(request, e.id) and before(e.id, request)";
    guard("decide", &[(check, "return false")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = event(Action::Return, id(5, 1_000_000), "user1", "geb");
        let younger = event(Action::Request, id(5, 2_000_000), "user1", "geb");
        give(library, &other, &older);
        is_done(&give_and_serve(library, &by, &younger), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &other, &older), "outcome", "unchanged")
    });
}

/// Whether a loan is old is not found out for each book anew where one follows another of the same request.
#[test]
fn a_return_of_old_and_new_loans_tells_each_from_the_other() {
    guard("decide", &[("known_state = is\n", "known_state = known_state or is\n")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        is_done(&give_and_serve(library, &by, &request(1, "user1", "geb,momo")), "in_hand", "2")?;
        let back = give_back(5, "user1", "geb,kim,momo");
        give(library, &other, &back);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "kim")), "book_ids", "kim")?;
        let verdict = serve_fresh(library, &other, &back);
        is_done(&verdict, "book_ids", "geb,momo")?;
        is_done(&verdict, "not_lent", "kim")
    });
}

/// Somebody has put something else there. The return was given up: the book stayed lent for ever.
#[test]
fn a_loan_whose_state_names_no_request_can_be_returned() {
    let check = "not request or not split(request) or";
    guard("decide", &[(check, "not request or")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["HSET", &library.keys.book_states.clone(), "geb", "=nothing"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")
    });
}

// ---- What is older than a refusal, and what ties with it.

/// The verdicts on a chunk of tries beside an instance that is silent.
fn beside_silent(library: &mut Library, by: &Instance, tries: &[Try]) -> Vec<TryEnd> {
    let neighbours = Neighbours { silent: vec![b"silent".to_vec()], ..Neighbours::default() };
    let reply = library.decide_raw(by, &neighbours, tries, None).unwrap();
    decide::ends(reply, tries).unwrap().unwrap()
}

/// The oldest event is decided in the call that looked it up: behind it there are others.
#[test]
fn what_is_behind_an_event_that_is_decided_in_the_same_call_is_older_too() {
    let next_page = "list.from = last and last ~= LAST_OF_ALL and '(' .. last";
    guard("decide", &[(next_page, "list.from = false")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user9", &["geb"]);
        let (first, last) = (request(1, "user1", "geb"), request(3, "user3", "geb"));
        give(library, &by, &first);
        give(library, &other, &request(2, "user2", "kim"));
        give(library, &by, &last);
        let verdicts = library.decide(&by, &[first_try(&first), first_try(&last)]).unwrap();
        is_done(&verdicts[0], "lent_to_another", "geb")?;
        waits(&verdicts[1])?;
        Ok(())
    });
}

/// Of the other stream's events in one millisecond, nobody has read that one yet.
#[test]
fn an_event_of_its_millisecond_that_is_not_delivered_keeps_one_from_being_refused() {
    for (seq, part) in [
        // Both are older clients', or only the one that is not delivered.
        (0, ("if not others or others.undelivered then", "if not others then")),
        (1_000_000, ("or not (only_plain and is_ordered(entry[1]))\n", "or not only_plain\n")),
    ] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            lend(library, "user1", &["geb"]);
            let geb = event(Action::Request, id(5, seq), "user2", "geb");
            give(library, &by, &geb);
            library.add(&event(Action::Return, id(5, seq + 7), "user1", "geb"));
            waits(&serve_fresh(library, &by, &geb))?;
            Ok(())
        });
    }
}

/// submit.lua's ids tell which is older. The other would never have noted that it waits.
#[test]
fn a_younger_event_of_its_millisecond_is_not_waited_for_where_ids_tell_the_order() {
    for part in [
        ("tying(stream, ms, is_ordered(e.id))", "tying(stream, ms, false)"),
        (
            "if not silent[entry[2]] and not (only_plain and is_ordered(entry[1])) then",
            "if not silent[entry[2]] then",
        ),
    ] {
        guard("decide", &[part], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            lend(library, "user1", &["geb"]);
            let geb = event(Action::Request, id(5, 1_000_000), "user2", "geb");
            give(library, &by, &geb);
            give(library, &other, &event(Action::Return, id(5, 2_000_000), "user1", "geb"));
            is_done(&serve_fresh(library, &by, &geb), "lent_to_another", "geb")
        });
    }
}

#[test]
fn what_a_silent_instance_has_in_hand_in_the_same_millisecond_holds_up_no_refusal() {
    let check = "if not silent[entry[2]] and not (only_plain";
    guard("decide", &[(check, "if not (only_plain")], |library| {
        let (by, silent) = (library.instance("worker1"), library.instance("silent"));
        lend(library, "user9", &["geb"]);
        let geb = event(Action::Request, id(5, 0), "user1", "geb");
        let back = |seq| event(Action::Return, id(5, seq), "user2", "momo");
        give(library, &by, &geb);
        give(library, &silent, &back(7));
        give(library, &by, &back(9));
        let tries = [&geb, &back(9)].map(first_try);
        waits(&library.decide(&by, &tries).unwrap()[0])?;
        let verdict = beside_silent(library, &by, &tries).remove(0);
        ensure!(matches!(verdict, TryEnd::Done(_)), "{}", told(&verdict));
        Ok(())
    });
}

/// A return of what its user has not got yet waits, and the user is lent just that. It is tried again before
/// the one in front is refused: it may bring what that one asks for.
#[test]
fn who_waited_is_tried_again_after_a_loan_before_the_one_in_front_is_refused() {
    for (part, without) in [
        (
            "  if call.are_ties then\n    call.refusals().is_told",
            "  if false then\n    call.refusals().is_told",
        ),
        ("tied_by_name[accepted and 'return' or 'request']", "tied_by_name.request"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            store(library, &["geb"]);
            lend(library, "user9", &["kim"]);
            let front = event(Action::Request, id(5, 0), "user1", "geb,kim");
            let loan = event(Action::Request, id(5, 3), "user2", "geb");
            let back = event(Action::Return, id(5, 7), "user2", "geb");
            give(library, &by, &front);
            give(library, &other, &loan);
            give(library, &by, &back);
            waits(&serve_fresh(library, &by, &back))?;
            is_done(&serve_fresh(library, &other, &loan), "book_ids", "geb")?;
            waits(&library.decide(&by, &[first_try(&front)]).unwrap()[0])?;
            is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")?;
            is_done(&serve_fresh(library, &by, &front), "book_ids", "geb")
        });
    }
}

/// The same of a request, whose book comes back: it may be lent to the user who wants to return it.
#[test]
fn who_waited_is_tried_again_after_a_return_before_the_one_in_front_is_refused() {
    for (part, without) in [
        ("ipairs({e.user, unpack(accepted and {} or e.books)})", "ipairs({e.user})"),
        ("tied[event] = e.user .. '\\n' .. table.concat(e.books, '\\n')", "tied[event] = e.user"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            lend(library, "user9", &["geb"]);
            let front = event(Action::Return, id(5, 0), "user1", "geb");
            let brings = event(Action::Return, id(5, 3), "user9", "geb");
            let wanted = event(Action::Request, id(5, 7), "user1", "geb");
            give(library, &by, &front);
            give(library, &other, &brings);
            give(library, &by, &wanted);
            waits(&serve_fresh(library, &by, &wanted))?;
            is_done(&serve_fresh(library, &other, &brings), "book_ids", "geb")?;
            waits(&serve_fresh(library, &by, &front))?;
            is_done(&serve_fresh(library, &by, &wanted), "book_ids", "geb")?;
            is_done(&serve_fresh(library, &by, &front), "book_ids", "geb")
        });
    }
}

/// The one in front was decided by the reference application, which takes no notice of who waits for it.
#[test]
fn who_waited_for_another_is_not_known_to_wait_for_the_next_in_front() {
    let check = "if front_noted ~= name_of(e) or not tied[event] then";
    guard("decide", &[(check, "if not tied[event] then")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        let first = event(Action::Request, id(5, 0), "user2", "geb");
        let next = event(Action::Request, id(5, 3), "user1", "geb");
        let back = event(Action::Return, id(5, 7), "user2", "geb");
        library.add(&first);
        library.take("reference", Action::Request, 1);
        give(library, &by, &next);
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        lend(library, "user2", &["geb"]);
        library.redis.ask::<()>(&["XACK", &keys.requests, LENDING_GROUP, "5-0"]);
        waits(&serve_fresh(library, &by, &next))?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &by, &next), "book_ids", "geb")
    });
}

/// Nobody else takes them away, should all instances end.
#[test]
fn notes_of_who_waits_for_whom_do_not_stay_for_ever() {
    guard("decide", &[("    redis.call('EXPIRE', ties, TIES_TTL_S)\n", "\n")], |library| {
        let by = library.instance("worker1");
        give(library, &by, &event(Action::Request, id(5, 0), "user1", "geb"));
        let back = event(Action::Return, id(5, 7), "user2", "geb");
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        let left: i64 = library.redis.ask(&["TTL", &library.keys.ties.clone()]);
        ensure!((1..=60).contains(&left), "{left} s are left");
        Ok(())
    });
}

// ---- Hand-offs that are in somebody's hands, or not there any more.

#[test]
fn a_handoff_in_the_hands_of_a_silent_instance_holds_up_no_refusal() {
    let check = "      if not silent[entry[2]] then\n        return entry[1]";
    guard("decide", &[(check, "      if true then\n        return entry[1]")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "1-0", "geb");
        library.take_handoffs("silent", 1);
        let states = library.keys.book_states.clone();
        library.redis.ask::<()>(&["HSET", &states, "geb", ">1-0"]);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        let tries = [first_try(&geb)];
        waits(&library.decide(&by, &tries).unwrap()[0])?;
        let verdict = beside_silent(library, &by, &tries).remove(0);
        ensure!(matches!(verdict, TryEnd::Fetch { .. }), "{}", told(&verdict));
        Ok(())
    });
}

/// Pending entries are looked through by the hundred.
#[test]
fn a_handoff_behind_a_hundred_of_a_silent_instance_is_waited_for() {
    let on = "until #page < count or page[#page][1] == LAST_OF_ALL";
    guard("decide", &[(on, "until true"), LOOK_THROUGH], |library| {
        let by = library.instance("worker1");
        for n in 1..=100 {
            add_handoff(library, &format!("{n}-0"), &format!("book{n}"));
        }
        library.take_handoffs("silent", 100);
        add_handoff(library, "101-0", "geb");
        library.take_handoffs("worker2", 1);
        let geb = request(500, "user1", "geb");
        give(library, &by, &geb);
        let one = Try { doubt: "101-0 -".into(), ..first_try(&geb) };
        waits(&beside_silent(library, &by, &[one])[0])?;
        Ok(())
    });
}

/// As long as it is in somebody's hands, a hand-off without a note is as good a reason for doubt as before
/// anybody had it.
#[test]
fn a_no_is_in_doubt_while_handoffs_are_in_somebodys_hands() {
    for (part, without, begun) in [
        ("elseif shelving().pending > 0 then", "elseif false then", true),
        (
            "if first_pending(handoffs, shelving_group, '-', handoff) ~= '' then",
            "if false then",
            true,
        ),
        ("    if before(shelving().delivered, handoff) then", "    if false then", false),
    ] {
        guard("decide", &[(part, without), LOOK_THROUGH], |library| {
            let by = library.instance("worker1");
            add_handoff(library, "1-0", "geb");
            let begin = |library: &mut Library| library.take_handoffs("worker1", 1);
            let mut handoffs = if begun { begin(library) } else { Vec::new() };
            let geb = request(5, "user1", "geb");
            let doubt = waits(&give_and_serve(library, &by, &geb))?;
            let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
            one.doubt = waits(&serve(library, &by, one.clone()))?;
            if !begun {
                handoffs = begin(library);
            }
            library.shelve(&by, &handoffs);
            is_done(&serve(library, &by, one), "book_ids", "geb")
        });
    }
}

/// While what it was about is under way, nothing is reserved; and a "no" that is only told is no settled
/// doubt.
#[test]
fn a_request_in_doubt_asks_again_when_that_is_settled_and_is_in_doubt_about_what_came_since() {
    let waits_on = ("      sorted.in_doubt = not sorted.certain\n", "\n");
    for part in [waits_on, ("if e.doubt and e.doubt ~= 'no' then", "if e.doubt then")] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            add_handoff(library, "1-0", "geb");
            let geb = request(5, "user1", "geb");
            give(library, &by, &geb);
            let one = Try { doubt: "1-0 -".into(), ..first_try(&geb) };
            waits(&library.decide(&by, &[one]).unwrap()[0])?;
            let one = Try { doubt: TOLD_NO.into(), ..first_try(&geb) };
            let verdict = library.decide(&by, &[one]).unwrap().remove(0);
            let TryEnd::Fetch { finality, .. } = verdict else { return Err(told(&verdict)) };
            ensure!(finality == Finality::InDoubt("1-0 -".into()), "it is {finality:?}");
            Ok(())
        });
    }
}

/// In the stream they lie between others, which may have been handed out since.
#[test]
fn a_book_in_a_handoff_that_was_begun_before_others_is_not_taken_for_lost() {
    let from =
        "local from = first and first ~= '' and before(first, delivered) and first or delivered";
    guard("decide", &[(from, "local from = delivered")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "1-0", "geb");
        add_handoff(library, "2-0", "momo");
        library.take_handoffs("worker2", 2);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        // A doubt that was about something else, and is settled.
        let one = InHand { doubt: "0-1 -".into(), fresh: false, event: geb };
        waits(&serve(library, &by, one))?;
        Ok(())
    });
}

/// Where decided events are kept, the last hand-off lies there for ever.
#[test]
fn a_book_in_a_handoff_that_is_done_and_kept_is_not_waited_for() {
    let check = "    if in_transit('>' .. id) then\n      return true\n    end\n";
    guard("decide", &[(check, "    return true\n")], |library| {
        let by = library.instance("worker1");
        let handoffs = library.keys.handoffs.clone();
        add_handoff(library, "1-0", "lost");
        library.take_handoffs("worker1", 1);
        library.redis.ask::<()>(&["XACK", &handoffs, SHELVING_GROUP, "1-0"]);
        is_done(&give_and_serve(library, &by, &request(5, "user1", "lost")), "unavailable", "lost")
    });
}

/// Somebody has deleted it, or put something else there.
#[test]
fn a_book_whose_state_names_no_handoff_that_there_is_is_not_waited_for() {
    for (part, without, state) in [
        ("return entry.err ~= nil or #entry > 0", "return true", ">9-0"),
        ("call.undone[id] = is_id(id) and", "call.undone[id] =", ">nothing"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            library.redis.ask::<()>(&["HSET", &keys.book_states, "lost", state]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", "lost"));
            is_done(&verdict, "unavailable", "lost")
        });
    }
}

// ---- A group that was lost and made anew (I4).

/// It was delivered to another instance then, and what it has is that one's.
#[test]
fn what_an_event_has_is_left_alone_where_another_instance_got_it() {
    for (part, without) in [
        ("    if not is_mine(e) then\n      return {'STALE'}\n    end\n    let_go", "    let_go"),
        (
            "local function fetch(e, sorted)\n  if not is_mine(e) then",
            "local function fetch(e, sorted)\n  if false then",
        ),
        ("return not pending.err and #pending == 1", "return not pending.err"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            let keys = library.keys.clone();
            lend(library, "user9", &["kim"]);
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            // One would have to put geb back, the other to reserve a book.
            let events = [request(2, "user1", "geb,kim"), request(3, "user2", "lost")];
            events.iter().for_each(|event| give(library, &by, event));
            let asking: Vec<_> =
                events.iter().map(|one| InHand::fresh(one.clone()).first_asking()).collect();
            let answers = library.fetch(&by, &asked(&asking)).unwrap();
            library.redis.ask::<()>(&["XGROUP", "DESTROY", &keys.requests, LENDING_GROUP]);
            library.redis.ask::<()>(&["XGROUP", "CREATE", &keys.requests, LENDING_GROUP, "0"]);
            library.take(other.name(), Action::Request, 2);
            give(library, &other, &give_back(1, "user9", "kim"));
            let before = library.dump();
            let verdicts = library.decide(&by, &with_answers(asking, answers)).unwrap();
            let stale = verdicts.iter().all(|verdict| matches!(verdict, TryEnd::Stale));
            ensure!(stale, "{}, {}", told(&verdicts[0]), told(&verdicts[1]));
            let after = library.dump();
            ensure!(before == after, "it changed {}", before.difference(&after));
            Ok(())
        });
    }
}

// ---- More of keeping house.

/// A return takes back only loans of older requests, and knows them by these marks.
#[test]
fn the_mark_of_a_loan_is_not_swept() {
    guard("sweep", &[("      over = not lent\n", "      over = true\n")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["HSET", &states, "geb", "=5-0"]);
        sweep(library, &by, "look", ("geb", "=5-0"));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "nobody knows any more whose loan it is");
        Ok(())
    });
}

/// The reference application has lent it since: it was put on its shelf, and could be lent to two.
#[test]
fn a_lent_book_is_not_taken_back_by_shelving_for_an_old_reservation() {
    guard("sweep", &[("over = lent or stored or", "over = stored or")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        let states = reserved_for_5(library);
        library.redis.ask::<()>(&["HSET", &keys.loans, "geb", "user1"]);
        tidy(library, &by, "geb");
        let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
        ensure!(is_out, "it is lent and on its shelf");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept");
        Ok(())
    });
}

/// Hand-offs without a mark, some begun before others, or too many of them; and one that is done and kept,
/// which says nothing any more.
#[test]
fn what_is_known_of_handoffs_without_a_mark_holds_for_all_of_them() {
    let from = "local from = oldest and oldest[1] or info";
    let check = "if is_undone(stream, group, id) then\n      return true\n    end\n";
    let unsure = "book) == false then";
    let many = "  if too_many_handoffs then\n    return nil\n  end\n";
    for (part, without, number, stays_out) in [
        (from, "local from = info", 2, true),
        (check, "return true\n", 0, false),
        (unsure, "book) ~= true then", 1_000, true),
        (many, "", 1_000, true),
    ] {
        guard("sweep", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            reserved_for_5(library);
            match number {
                2 => {
                    add_handoff(library, "6-0", "geb");
                    add_handoff(library, "7-0", "momo");
                    library.take_handoffs("worker2", 2);
                }
                0 => {
                    library.redis.ask::<()>(&["XADD", &keys.handoffs, "6-0", "book_ids", "geb"]);
                    library.take_handoffs("worker2", 1);
                    library.redis.ask::<()>(&["XACK", &keys.handoffs, SHELVING_GROUP, "6-0"]);
                }
                // And perhaps a next one, with this book.
                _ => (0..number).for_each(|n| {
                    add_handoff(library, &format!("6-{n}"), &format!("book{n}"));
                }),
            }
            library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0"]);
            tidy(library, &by, "geb");
            let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
            ensure!(is_out == stays_out, "it is out: {is_out}");
            Ok(())
        });
    }
}

/// A request and a hand-off can have one id.
#[test]
fn a_handoff_is_not_taken_for_the_request_with_its_id() {
    let name = "local at = stream .. ' ' .. id\n";
    guard("sweep", &[(name, "local at = id\n")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        give(library, &by, &request(5, "user1", "geb"));
        let seen = [("geb", "?5-0"), ("kim", ">5-0")]
            .map(|(book, is): (&str, &str)| (book.to_owned(), is.to_owned()));
        for (book, is) in &seen {
            library.redis.ask::<()>(&["HSET", &states, book, is]);
        }
        library.sweep(&by, "look", &seen);
        let left: Vec<_> = library.dump().hash(&states).into_keys().collect();
        ensure!(left == ["geb"], "there is {left:?}");
        Ok(())
    });
}

/// Processes that died with it are counted, whoever survives a try of it.
#[test]
fn who_survives_a_try_leaves_what_others_died_of_and_takes_the_note_away_at_the_end() {
    for (part, without) in [
        ("tries.group + tries.alone == 0", "tries.alone == 0"),
        ("    redis.call('HDEL', tries_key, event)\n  elseif step", "  elseif step"),
    ] {
        guard("lone_try", &[(part, without)], |library| {
            let (died, by) = (library.instance("worker1"), library.instance("worker2"));
            let tries = library.keys.lone_tries.clone();
            let mut after = |by: &Instance, step: &str| {
                late(library, by, "lone_try", &[&tries], &[step, "request:5-0"]);
                library.dump().hash(&tries).remove("request:5-0")
            };
            after(&died, "group");
            after(&by, "group");
            let note = after(&by, "survived");
            ensure!(note.as_deref() == Some("1 0"), "it is {note:?}");
            let note = after(&by, "ended");
            ensure!(note.is_none(), "it stays: {note:?}");
            Ok(())
        });
    }
}

#[test]
fn the_note_of_a_try_of_a_return_stays_while_that_is_in_hand() {
    let of = "ARGV[at + 1] == 'request' and requests or returns";
    guard("old_tries", &[(of, "requests")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        // The group has been behind that id among the requests.
        give(library, &by, &request(9, "user1", "geb"));
        give(library, &by, &give_back(5, "user1", "geb"));
        library.redis.ask::<()>(&["HSET", &keys.lone_tries, "return:5-0", "1 1"]);
        let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
        let args = [LENDING_GROUP, "return:5-0", "return", "5-0"];
        late(library, &by, "old_tries", &touched, &args);
        ensure!(!library.dump().hash(&keys.lone_tries).is_empty(), "it is gone");
        Ok(())
    });
}

#[test]
fn what_shelving_has_answered_an_instance_last_goes_with_its_consumer() {
    guard("forget", &[("redis.call('HDEL', KEYS[4], ARGV[3])\n", "\n")], |library| {
        let by = library.instance("worker1");
        let answers = library.keys.fetch_answers.clone();
        acknowledged(library, 5);
        library.redis.ask::<()>(&["HSET", &answers, "reference", "token 1 "]);
        let word = forget(library, &by, "reference");
        ensure!(word == "FORGOTTEN", "{word}");
        ensure!(library.dump().hash(&answers).is_empty(), "the answer is left");
        Ok(())
    });
}

// ---- More of giving events up.

/// Shelving has it on record for a request that has put it into storage since.
#[test]
fn a_stored_book_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "\n        or redis.call('SISMEMBER', KEYS[7], book) == 1\n      -- What";
    guard("reject", &[(check, "\n      -- What")], |library| {
        let by = library.instance("worker1");
        let given_up = request(5, "user1", "geb,kim");
        store(library, &["geb"]);
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        give(library, &by, &given_up);
        let words = may_have(library, &by, &given_up)?;
        ensure!(words == ["kim"], "{words:?}");
        Ok(())
    });
}

/// The books that a request may have fetched, if it is given up.
fn may_have(library: &mut Library, by: &Instance, event: &Event) -> Result<Vec<String>, String> {
    let Ok(Value::Array(reply)) = library.reject(by, event.key, "given up", true) else {
        return Err("it cannot be looked at".into());
    };
    let words: Vec<String> = reply.iter().map(show).collect();
    ensure!(words[0] == "MAY_HAVE", "{words:?}");
    Ok(words[1..].to_vec())
}

/// An instance of the reference application works on one at a time: with a hundred in hand it is not known
/// what it has reserved. What is left out for it will be lent.
#[test]
fn nothing_is_taken_back_from_a_request_where_reservations_are_too_many_to_look_through() {
    for (part, without) in [
        ("if reserved and not reserved[book] and", "if not (reserved and reserved[book]) and"),
        ("if pending.err or #pending == MOST_RESERVATIONS then", "if pending.err then"),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (shelves, given_up) = (library.keys.shelves.clone(), request(5, "user1", "geb"));
            library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0"]);
            give(library, &by, &given_up);
            (6..106).for_each(|ms| library.add(&request(ms, "user2", "kim")));
            library.take("reference1", Action::Request, 100);
            let without_ttl = vec![b"reference1".to_vec()];
            by.session.note_neighbours(Neighbours { without_ttl, ..Neighbours::default() });
            let words = may_have(library, &by, &given_up)?;
            ensure!(words.is_empty(), "{words:?}");
            Ok(())
        });
    }
}

/// As for events that are decided: an answer that is waited for, and none that would be kept for ever.
#[test]
fn the_answer_to_an_event_that_is_given_up_is_kept_as_was_wished() {
    for (part, without) in [
        ("wish == 'wait' or wish == 'keep'", "wish == 'keep'"),
        ("and ms >= 1 and ms <= MOST_KEPT_MS and", "and ms >= 1 and"),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let stream = library.keys.requests.clone();
            for (n, (wish, at_most)) in
                [("wait", 86_400_000), ("keep:5000", 5_000), ("keep:2592000001", -2)]
                    .iter()
                    .enumerate()
            {
                let key = request(n as u64 + 1, "user1", "geb").key;
                let id = key.id.to_string();
                library.redis.ask::<()>(&["XADD", &stream, &id, "answer", wish]);
                library.read(by.name(), &stream, 1);
                library.reject(&by, key, "no user", false).unwrap();
                let left: i64 = library.redis.ask(&["PTTL", &library.keys.answer(key)]);
                let right = if *at_most < 0 { left == -2 } else { left > 0 && left <= *at_most };
                ensure!(right, "{wish}: {left} ms");
            }
            Ok(())
        });
    }
}

/// Somebody may have put anything there: megabytes, or lines that would be taken for other fields of the
/// answer.
#[test]
fn the_outcome_of_an_event_that_is_given_up_names_no_user_that_could_not_be_one() {
    let long = "u".repeat(257);
    for (part, without, who, named, answered) in [
        ("user and #user <= LONGEST_USER", "user", long.as_str(), false, true),
        (
            "if ms and not (user and string.find(user, '\\n', 1, true)) then",
            "if ms then",
            "u\nx",
            true,
            false,
        ),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, key) = (library.keys.clone(), request(5, "user1", "geb").key);
            let stream = &keys.requests;
            library.redis.ask::<()>(&["XADD", stream, "5-0", "user_id", who, "answer", "keep"]);
            library.read(by.name(), stream, 1);
            library.reject(&by, key, "no such user", false).unwrap();
            let outcome = library.dump().stream(&keys.outcomes).entries.remove(0).1;
            let has = outcome.iter().any(|(name, _)| name == "user_id");
            ensure!(has == named, "a user is named: {has}");
            let kept = library.redis.ask::<bool>(&["EXISTS", &keys.answer(key)]);
            ensure!(kept == answered, "there is an answer: {kept}");
            Ok(())
        });
    }
}

#[test]
fn where_events_are_kept_those_that_are_given_up_and_handoffs_that_are_done_are_too() {
    let shelved = ("if #done > 0 and ARGV[3] ~= 'keep' then", "if #done > 0 then");
    for (script, part) in
        [("reject", ("  if ARGV[4] ~= 'keep' then", "  if true then")), ("shelve", shelved)]
    {
        guard(script, &[part], |library| {
            library.keep_events(true);
            let by = library.instance("worker1");
            let (keys, given_up) = (library.keys.clone(), request(5, "user1", "geb"));
            give(library, &by, &given_up);
            library.reject(&by, given_up.key, "given up", false).unwrap();
            add_handoff(library, "6-0", "kim");
            shelve_all(library, &by);
            for stream in [&keys.requests, &keys.handoffs] {
                let left = library.redis.ask::<usize>(&["XLEN", stream]);
                ensure!(left == 1, "in {stream} there are {left}");
            }
            Ok(())
        });
    }
}

/// One of the two ids is of a client that knows nothing of submit.lua's: then nothing tells which is older,
/// and what the request was lent goes back.
#[test]
fn a_return_takes_back_a_loan_of_its_millisecond_where_one_id_tells_no_order() {
    let tie = "return not (is_ordered(a_id) and is_ordered(b_id))";
    guard("decide", &[(tie, "return not (is_ordered(a_id) or is_ordered(b_id))")], |library| {
        let by = library.instance("worker1");
        let geb = event(Action::Request, id(5, 1_000_007), "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let back = event(Action::Return, id(5, 1_000_000), "user1", "geb");
        is_done(&give_and_serve(library, &by, &back), "book_ids", "geb")
    });
}

/// Of two thousand at a time Redis is asked, and of a thousand it is told.
#[test]
fn the_main_storage_knows_each_of_very_many_books_that_are_asked_for_at_once() {
    for (part, without) in [
        (
            "local has = out[book] or requests[k - first + 1]",
            "local has = out[book] or requests[k]",
        ),
        ("for first = 1, #taken, SLICE do", "for first = 1, #taken, SLICE + 2 do"),
    ] {
        guard("fetch", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let shelves = library.keys.shelves.clone();
            library.redis.ask::<()>(&["HSET", &shelves, "book2400", "1-0"]);
            let asked: Vec<_> = (0..2_500).map(|n| (book(&format!("book{n}")), id(5, 0))).collect();
            let answers = library.fetch(&by, &asked).unwrap();
            let had = answers.iter().position(|answer| *answer == Answer::TakenBy("1-0".into()));
            ensure!(had == Some(2_400), "another has {had:?}");
            let out = library.redis.ask::<usize>(&["HLEN", &shelves]);
            ensure!(out == 2_500, "{out} are out");
            Ok(())
        });
    }
}

#[test]
fn what_shelving_has_answered_last_goes_with_who_resigns() {
    guard("resign", &[("redis.pcall('HDEL', KEYS[2], ARGV[2])\n", "\n")], |library| {
        let by = library.instance("worker1");
        let (answers, stream) = (library.keys.fetch_answers.clone(), library.keys.requests.clone());
        library.fetch(&by, &[(book("geb"), id(5, 0))]).unwrap();
        let word = late(library, &by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP]);
        ensure!(word == "RESIGNED", "{word}");
        ensure!(library.dump().hash(&answers).is_empty(), "the answer is left");
        Ok(())
    });
}
