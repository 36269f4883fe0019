//! Hostile input to the scripts: keys of wrong types, counts that are none, events that are too
//! large or no events at all. Nothing is half-written, nothing is lost.

use library_lending::event::{Action, EventKey};
use library_lending::keys::{LENDING_GROUP, SHELVING_GROUP};
use library_lending::lending::decide::{self, Fetched, Finality, Try, TryEnd};
use library_lending::lending::{Content, Delivered, reject};
use library_lending::session::Neighbours;
use library_lending::shelving::fetch::{self, Answer};
use library_lending::shelving::worker::discard;
use redis::{Arg, Cmd, Value};

use crate::choices::{Choices, check};
use crate::library::{Instance, Library, whole_text};
use crate::redis::show;
use crate::world::*;

/// The keys that a call of a script names.
fn keys_of(cmd: &Cmd) -> Vec<String> {
    let args: Vec<String> = cmd
        .args_iter()
        .map(|arg| match arg {
            Arg::Simple(arg) => String::from_utf8_lossy(arg).into_owned(),
            _ => panic!("an argument that is not plain"),
        })
        .collect();
    let number: usize = args[2].parse().unwrap();
    args[3..3 + number].to_vec()
}

fn call(script: &str, keys: &[&str], args: &[&str]) -> Cmd {
    let mut cmd = ::redis::cmd("EVAL");
    cmd.arg(whole_text(script)).arg(keys.len()).arg(keys).arg(args);
    cmd
}

/// What is laid down makes each script write as much as it can. Returns a call of each.
fn calls(library: &mut Library, by: &Instance) -> Vec<(&'static str, Cmd)> {
    let keys = library.keys.clone();
    let lock = by.session.lock();
    let token = by.session.token.as_str();
    let redis = &mut library.redis;
    let mut ask = |args: &[&str]| redis.ask::<Value>(args);
    for n in 0..20 {
        ask(&["SADD", &keys.storage, &format!("filler{n}")]);
        ask(&["HSET", &keys.shelves, &format!("filler{n}"), "0-1"]);
    }
    for (book, who) in [("geb", "user1"), ("kim", "user1")] {
        ask(&["HSET", &keys.loans, book, who]);
        ask(&["HSET", &keys.shelves, book, "0-1"]);
    }
    ask(&["SET", "user:user1:count", "2"]);
    ask(&["SADD", "request:5-0:temp", "momo", "emma"]);
    ask(&["HSET", &keys.shelves, "momo", "5-0", "emma", "5-0"]);
    // States that mean nothing, and one of a book that is reserved for nobody.
    ask(&["HSET", &keys.book_states, "a", "=1-0", "b", ">1-0", "c", "?1-0"]);
    ask(&["XADD", &keys.handoffs, "1-0", "book_ids", "ulysses"]);
    ask(&["XADD", &keys.handoffs, "2-0", "book_ids", "a,,b"]);
    library.read(by.name(), &keys.handoffs, 2);
    // A request that the reference has decided and left.
    library.add(&event(Action::Request, id(4, 0), "user3", "x"));
    library.take("reference", Action::Request, 1);
    library.redis.ask::<()>(&["XACK", &keys.requests, LENDING_GROUP, "4-0"]);
    let mut request = event(Action::Request, id(5, 0), "user2", "momo,filler3");
    request.answer = library_lending::event::AnswerWish::Wait;
    let back = event(Action::Return, id(6, 0), "user1", "geb,kim");
    for event in [&request, &back] {
        library.add(event);
        library.take(by.name(), event.key.action, 1);
    }
    library.add(&event(Action::Request, id(7, 0), "user3", "x"));
    library.take("dead", Action::Request, 1);
    let asked = request.books.iter().map(|book| (book.clone(), request.key.id));
    library.fetch(by, &asked.collect::<Vec<_>>()).unwrap();
    let answers = vec![Some(Answer::Left); request.books.len()];
    let fetched = Some(Fetched { finality: Finality::First, answers });
    let tries = [Try { fetched, ..first_try(&request) }, first_try(&back)];
    let number = library.fetches();
    let books = [book("x"), book("y")];
    let other = keys.lock(&"dead".parse().unwrap());
    vec![
        (
            "decide",
            decide::call(&by.session, &Neighbours::default(), &tries, Some(number)).by_text(),
        ),
        ("fetch", fetch::call(&by.session, books.iter().map(|b| (b, id(8, 0))), 1).by_text()),
        ("unfetch", fetch::undo(&by.session, [(&b"momo"[..], id(5, 0))]).by_text()),
        ("reject", reject::call(&by.session, &[(request.key, "hostile".into())]).by_text()),
        ("discard", discard(&by.session, id(2, 0), "hostile").by_text()),
        (
            "shelve",
            call(
                "shelve",
                &[lock, &keys.handoffs, &keys.shelves],
                &[token, SHELVING_GROUP, "delete", &keys.bell, by.name(), "1-0", "1", "ulysses"],
            ),
        ),
        (
            "sweep",
            call(
                "sweep",
                &[
                    lock,
                    &keys.book_states,
                    &keys.loans,
                    &keys.handoffs,
                    &keys.requests,
                    &keys.storage,
                ],
                &[
                    token,
                    LENDING_GROUP,
                    SHELVING_GROUP,
                    "unfetched",
                    "a",
                    "=1-0",
                    "b",
                    ">1-0",
                    "c",
                    "?1-0",
                ],
            ),
        ),
        (
            "clear",
            call(
                "clear",
                &[lock, &keys.requests, &keys.kept_events],
                &[token, LENDING_GROUP, "1", "delete"],
            ),
        ),
        (
            "claim",
            call(
                "claim",
                &[lock, &keys.requests, &other],
                &[token, LENDING_GROUP, by.name(), "dead", "10", "-", "3", "0"],
            ),
        ),
        (
            "forget",
            call(
                "forget",
                &[
                    lock,
                    &keys.requests,
                    &keys.lock(&"reference".parse().unwrap()),
                    &keys.fetch_answers,
                ],
                &[token, LENDING_GROUP, "reference"],
            ),
        ),
        ("lone_try", call("lone_try", &[lock, &keys.lone_tries], &[token, "alone", "request:5-0"])),
        ("renew", call("renew", &[lock], &[token, "6000"])),
    ]
}

/// Makes a key one of another type. An answer is a list once it is there, and is not there yet.
fn spoil(library: &mut Library, key: &str) {
    let is: String = library.redis.ask(&["TYPE", key]);
    library.redis.ask::<()>(&["DEL", key]);
    if is == "list" || is == "string" || key.starts_with("lending_answer:") {
        library.redis.ask::<()>(&["SADD", key, "spoilt"]);
    } else {
        library.redis.ask::<()>(&["RPUSH", key, "spoilt"]);
    }
}

#[test]
fn a_key_of_a_wrong_type_leaves_nothing_half_written() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let number_of_scripts = calls(&mut library, &by).len();
    for script in 0..number_of_scripts {
        for key in 0.. {
            library.clear();
            let by = library.instance("worker1");
            let (name, cmd) = calls(&mut library, &by).swap_remove(script);
            let keys = keys_of(&cmd);
            let Some(key) = keys.get(key) else { break };
            spoil(&mut library, key);
            let before = library.dump();
            let reply: Result<Value, _> = cmd.query(library.redis.connection());
            let after = library.dump();
            let failed = match &reply {
                Err(_) => true,
                Ok(Value::Array(list)) => list.iter().all(|one| match one {
                    Value::Array(verdict) => show(&verdict[0]) == "FAILED",
                    _ => false,
                }),
                Ok(_) => false,
            };
            assert!(
                !failed || before == after,
                "{name}.lua with {key} spoilt: {reply:?}, changed\n{}",
                before.difference(&after)
            );
            // A wrong type on what all share is nobody's event's fault: nothing may be done then.
            let of_one = key.starts_with("user:")
                || key.starts_with("request:")
                || key.starts_with("lending_answer:")
                || *key == library.keys.lock(&"dead".parse().unwrap());
            assert!(
                before == after || of_one,
                "{name}.lua with {key} spoilt did its work: {reply:?}"
            );
        }
    }
}

#[test]
fn without_spoilt_keys_the_same_calls_do_their_work() {
    let mut library = Library::new();
    for script in 0.. {
        library.clear();
        let by = library.instance("worker1");
        let mut calls = calls(&mut library, &by);
        if script >= calls.len() {
            break;
        }
        let (name, cmd) = calls.swap_remove(script);
        let before = library.dump();
        let reply: Value = cmd.query(library.redis.connection()).unwrap();
        // A consumer and a time to live are not in a dump.
        let seen = !["forget", "renew"].contains(&name);
        assert!(!seen || before != library.dump(), "{name}.lua did nothing: {reply:?}");
    }
}

/// A count of one user that is none is that event's trouble; the others of its chunk are served.
#[test]
fn a_count_that_is_none_fails_its_event_alone() {
    let mut library = Library::new();
    for (count, cause) in [
        (Some("abc"), "count_not_a_number"),
        (Some(""), "count_not_a_number"),
        (Some("1e1"), "count_not_a_number"),
        (Some(" 1"), "count_not_a_number"),
        (Some("0x2"), "count_not_a_number"),
        (Some("nan"), "count_not_a_number"),
        (Some("99999999999999999999"), "count_not_a_number"),
        (None, "count_of_wrong_type"),
    ] {
        library.clear();
        let by = library.instance("worker1");
        match count {
            Some(count) => library.redis.ask::<()>(&["SET", "user:user1:count", count]),
            None => library.redis.ask::<()>(&["RPUSH", "user:user1:count", "1"]),
        }
        let keys = library.keys.clone();
        library.redis.ask::<()>(&["SADD", &keys.storage, "geb", "kim"]);
        library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "0-1", "kim", "0-1"]);
        let events = [
            event(Action::Request, id(5, 0), "user1", "geb"),
            event(Action::Request, id(6, 0), "user2", "kim"),
            event(Action::Return, id(7, 0), "user1", "kim"),
        ];
        for event in &events {
            library.add(event);
            library.take("worker1", event.key.action, 1);
        }
        let tries: Vec<Try> = events.iter().map(first_try).collect();
        let verdicts = library.decide(&by, &tries).unwrap();
        for n in [0, 2] {
            let TryEnd::Failed(why) = &verdicts[n] else { panic!("{count:?}: {:?}", verdicts[n]) };
            assert_eq!(why, cause, "{count:?}");
        }
        assert!(matches!(verdicts[1], TryEnd::Done(_)), "{:?}", verdicts[1]);
        let dump = library.dump();
        assert_eq!(dump.set(&keys.storage).into_iter().collect::<Vec<_>>(), ["geb"]);
        assert_eq!(dump.stream(&keys.outcomes).entries.len(), 1);
        assert_eq!(library.pending("worker1", &keys.requests).len(), 1);
    }
}

#[test]
fn the_largest_event_is_worked_on_at_once() {
    let mut world = World::new(Library::new());
    let by = world.library.instance("worker1");
    let books: Vec<String> = (0..1000).map(|n| format!("{n:0>256}")).collect();
    let books = books.join(",");
    world.add(event(Action::Request, id(5, 0), &"u".repeat(256), &books));
    world.add(event(Action::Return, id(6, 0), &"u".repeat(256), &books));
    crate::histories::finish(&mut world, &by, Vec::new(), Vec::new()).unwrap();
    let outcomes = &world.model.outcomes;
    assert_eq!(outcomes[0]["cause"], "too_many_books");
    assert_eq!(outcomes[0]["put_back"], books);
    assert_eq!(outcomes[1]["outcome"], "unchanged");
    assert_eq!(world.model.storage.len(), 20);
}

#[test]
fn an_event_of_thousands_of_fields_is_kept_in_the_dead_letters() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    let names: Vec<String> = (0..20_000).map(|n| format!("field{n}")).collect();
    let mut args = vec!["XADD", &keys.requests, "5-0"];
    for name in &names {
        args.extend([name.as_str(), "value"]);
    }
    library.redis.ask::<()>(&args);
    library.read("worker1", &keys.requests, 1);
    let key = EventKey { id: id(5, 0), action: Action::Request };
    library.reject(&by, key, "no_user_id", false).unwrap();
    let dump = library.dump();
    let kept: Vec<String> = dump
        .stream(&keys.dead_letters)
        .entries
        .into_iter()
        .flat_map(|(_, fields)| fields.into_iter().skip(4).map(|(name, _)| name))
        .collect();
    assert_eq!(kept, names);
    assert_eq!(dump.stream(&keys.outcomes).entries.len(), 1);
}

/// Redis refuses an id that is larger than any: the request could not be given up, and whoever tried
/// lost the session.
#[test]
fn a_request_for_a_book_whose_state_names_no_handoff_can_be_given_up() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let states = library.keys.book_states.clone();
    library.redis.ask::<()>(&["HSET", &states, "geb", ">5-99999999999999999999999"]);
    let request = event(Action::Request, id(5, 0), "user1", "geb");
    library.add(&request);
    library.take("worker1", Action::Request, 1);
    let Ok(Value::Array(may_have)) = library.reject(&by, request.key, "hostile", true) else {
        panic!("it cannot be looked at")
    };
    assert_eq!(may_have.iter().map(show).collect::<Vec<_>>(), ["MAY_HAVE", "geb"]);
    assert!(library.reject(&by, request.key, "hostile", false).is_ok());
}

/// Anything that a client may have put into a field.
fn some_bytes(choices: &mut Choices) -> Vec<u8> {
    const PIECES: [&[u8]; 14] = [
        b"geb",
        b"user1",
        b",",
        b"",
        b" ",
        b"\n",
        b"\0",
        b"\xff\xfe",
        b"{x}",
        b":count",
        b"5-0",
        b"%s%d",
        b"'\"\\",
        b"\xf0\x9f\x93\x9a",
    ];
    let mut bytes = Vec::new();
    for _ in 0..choices.below(5) {
        bytes.extend_from_slice(PIECES[choices.below(PIECES.len())]);
    }
    if choices.one_in(20) {
        bytes.resize(300_000, b'x');
    }
    bytes
}

/// Whatever stands in an event, it ends in one outcome, and if it is not well-formed, in the dead
/// letters as it came.
#[test]
fn whatever_is_in_an_event_it_ends_once() {
    let mut library = Library::new();
    check(100, |choices| {
        library.clear();
        any_event(&mut library, choices)
    });
}

fn any_event(library: &mut Library, choices: &mut Choices) -> Result<(), String> {
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    let action = [Action::Request, Action::Return][choices.below(2)];
    let stream = keys.stream(action).to_owned();
    const NAMES: [&[u8]; 6] = [b"user_id", b"book_ids", b"answer", b"outcome", b"", b"\xff"];
    let mut fields: Vec<Vec<u8>> = Vec::new();
    for _ in 0..choices.between(1, 4) {
        fields.push(NAMES[choices.below(NAMES.len())].to_vec());
        let word: &[u8] = [&b"wait"[..], b"keep", b"user1", b"geb,kim"][choices.below(4)];
        fields.push(if choices.one_in(2) { some_bytes(choices) } else { word.to_vec() });
    }
    let mut args = vec![b"XADD".to_vec(), stream.clone().into_bytes(), b"5-0".to_vec()];
    args.extend(fields.iter().cloned());
    library.redis.ask::<()>(&args);
    let entry = library.read("worker1", &stream, 1).remove(0);
    let delivered = Delivered::read(action, &entry, true);
    let well_formed = match delivered.content {
        Content::Event(event) => {
            let mut tries = vec![first_try(&event)];
            for _ in 0..4 {
                let verdict = library.decide(&by, &tries).map_err(|e| e.to_string())?.remove(0);
                let TryEnd::Fetch { finality, books } = verdict else { break };
                let asking = vec![tries.remove(0).after_reserving(finality, &books)];
                let answers = library.fetch(&by, &asked(&asking)).map_err(|e| e.to_string())?;
                tries = with_answers(asking, answers);
            }
            true
        }
        Content::Fault(fault) => {
            let reply = library.reject(&by, delivered.key, fault.cause(), false);
            ensure!(reply.is_ok(), "{reply:?}");
            false
        }
        Content::Suspect => return Err("it was delivered once".into()),
    };
    let dump = library.dump();
    let outcomes = dump.stream(&keys.outcomes).entries;
    ensure!(outcomes.len() == 1, "outcomes {outcomes:?}");
    ensure!(dump.stream(&stream).entries.is_empty(), "it is still there");
    let letters: Value = library.redis.ask(&["XRANGE", &keys.dead_letters, "-", "+"]);
    let kept = letter(&letters);
    let expected = if well_formed { Vec::new() } else { fields };
    ensure!(kept == expected, "kept {kept:?}, expected {expected:?}");
    let known = |key: &String| {
        key.starts_with("lending_")
            || key.starts_with("instance_lock:")
            || ["automated_book_storage", "lent_books"].contains(&key.as_str())
            || key.starts_with("shelving_service_")
            || key.starts_with("book")
            || (well_formed && key.starts_with("user:") && key.ends_with(":count"))
    };
    let strange = dump.0.keys().find(|key| !known(key));
    ensure!(strange.is_none(), "there is a key {strange:?}");
    Ok(())
}

/// The original fields in the one dead letter, if there is one.
fn letter(letters: &Value) -> Vec<Vec<u8>> {
    let Value::Array(letters) = letters else { return Vec::new() };
    let Some(Value::Array(parts)) = letters.first() else { return Vec::new() };
    let Value::Array(fields) = &parts[1] else { panic!("fields") };
    let bytes = fields.iter().map(|field| match field {
        Value::BulkString(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    });
    // The stream, the event, the cause, the deliveries.
    bytes.skip(8).collect()
}

/// Where all books of a call are lent, no state is read, so its type is not checked; but what else is
/// in a reservation of the reference application is put back, and its state removed.
#[test]
fn states_of_a_wrong_type_leave_nothing_half_written_where_all_books_are_lent() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    library.redis.ask::<()>(&["HSET", &keys.loans, "geb", "user1"]);
    library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "0-1", "emma", "5-0"]);
    library.redis.ask::<()>(&["SET", "user:user1:count", "1"]);
    library.redis.ask::<()>(&["SADD", "request:5-0:temp", "emma"]);
    library.redis.ask::<()>(&["RPUSH", &keys.book_states, "spoilt"]);
    let request = event(Action::Request, id(5, 0), "user2", "geb");
    library.add(&request);
    library.take("worker1", Action::Request, 1);
    let before = library.dump();
    let tries = [Try { event: request, doubt: Doubt::None, fetched: None }];
    let reply = library.decide_raw(&by, &Neighbours::default(), &tries, None);
    let after = library.dump();
    assert!(reply.is_ok() || before == after, "{reply:?}, changed\n{}", before.difference(&after));
}

/// Redis refuses to keep so many, and did so when the event had been acknowledged: it was lost.
#[test]
fn a_number_of_outcomes_that_redis_does_not_take_loses_no_event() {
    let mut library = Library::new();
    library.keep_outcomes(u64::MAX);
    let by = library.instance("worker1");
    let request = event(Action::Request, id(5, 0), "user2", "geb");
    library.add(&request);
    library.take("worker1", Action::Request, 1);
    library.fetch(&by, &[(book("geb"), request.key.id)]).unwrap();
    let before = library.dump();
    let fetched = Some(Fetched { finality: Finality::First, answers: vec![Some(Answer::Yes)] });
    let tries = [Try { fetched, ..first_try(&request) }];
    library.decide_raw(&by, &Neighbours::default(), &tries, None).unwrap_err();
    assert_eq!(before, library.dump());
}

#[test]
fn a_count_of_less_than_nothing_is_none() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    crate::guards::lend(&mut library, "user1", &["geb"]);
    library.redis.ask::<()>(&["SET", "user:user2:count", "-0"]);
    let request = event(Action::Request, id(5, 0), "user2", "geb");
    let verdict = crate::guards::give_and_serve(&mut library, &by, &request);
    crate::guards::is_done(&verdict, "in_hand", "0").unwrap();
}

/// What the main storage has noted of a book that is out names no request: nothing at all was taken
/// for "not asked", and asked for again and again; "yes" for its being on its shelf.
#[test]
fn a_book_that_is_out_for_what_is_no_request_is_nowhere() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    for (n, holder) in ["", "yes", "again", "fetched", "5-0x"].iter().enumerate() {
        let name = format!("book{n}");
        library.redis.ask::<()>(&["HSET", &keys.shelves, &name, holder]);
        let request = event(Action::Request, id(5 + n as u64, 0), "user2", &name);
        let verdict = crate::guards::give_and_serve(&mut library, &by, &request);
        crate::guards::is_done(&verdict, "unavailable", &name).unwrap();
    }
}
