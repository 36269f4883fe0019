//! `library-admin` but for its check: status, dead letters, lost consumer groups, command lines.

use std::collections::HashMap;
use std::io::pipe;
use std::ops::RangeInclusive;
use std::thread;

use redis::Value;

use crate::common::*;

fn admin(redis: &Redis, args: &[&str]) -> TestCommand {
    TestCommand::library_admin(redis, args)
}

/// Runs it, and this before Redis has one of its commands of a kind, for each that has such a number.
fn admin_while(
    redis: &Redis,
    args: &[&str],
    (kind, numbers): (&'static str, RangeInclusive<usize>),
    meanwhile: impl Fn(&Redis) + Send + Sync + 'static,
) -> TestCommand {
    let of_proxy = redis.clone();
    let proxy = Proxy::new(redis, move |command| {
        if command.kind == kind && numbers.contains(&command.number) {
            meanwhile(&of_proxy);
        }
        None
    });
    let address = proxy.path().display().to_string();
    admin(redis, &[args, &["-a", &address]].concat())
}

/// Adds the dead letter of an event that came from this stream. Returns its id.
fn add_letter(redis: &Redis, stream: &str) -> String {
    let fields: [(&str, &[u8]); 5] = [
        ("stream", stream.as_bytes()),
        ("event_id", b"1-0"),
        ("cause", b"no_user_id"),
        ("deliveries", b"1"),
        ("book_ids", b"geb"),
    ];
    redis.add(DEAD_LETTERS, "*", &fields)
}

/// The value of a string member of a JSON object on one line.
fn member<'a>(json: &'a str, name: &str) -> &'a str {
    let (_, rest) = json.split_once(&format!("\"{name}\":\"")).expect("it has this member");
    rest.split('"').next().expect("there is always a first part")
}

#[test]
fn status_tells_of_instances_what_waits_and_what_is_kept() {
    let redis = Redis::new();
    Ledger::new()
        .lent("user1", &["geb", "momo"], "1-0")
        .stored(&["a", "b", "c"], "1-0")
        .lay_down(&redis);
    let held = Other::alive(&redis, "held");
    let reference = Other::of_the_reference(&redis, "reference\x1b[2J");
    let gone = Other::gone(&redis, "gone");
    for n in 0..1_203 {
        redis.request_at(&format!("{}-0", 1_000 + n), "user1", "geb");
    }
    assert_eq!(held.take(REQUESTS), "1000-0");
    assert_eq!(reference.take(REQUESTS), "1001-0");
    redis.give_back_at("900-5", "user1", "geb");
    gone.take(RETURNS);
    redis.hand_off("7-0", "lost");
    redis.add(DEAD_LETTERS, "*", &[("stream", b"s")]);
    redis.add(OUTCOMES, "*", &[("outcome", b"denied")]);

    let said = admin(&redis, &["status"]).exits(0).stdout;
    let lines: Vec<_> =
        said.lines().map(|line| line.split_once(char::is_whitespace).unwrap().1.trim()).collect();
    assert!(lines[0].starts_with("gone: gone, 1 in hand, idle for "), "{said}");
    assert!(lines[1].starts_with("held: lease "), "{said}");
    assert!(
        lines[2].starts_with("reference\\u{1b}[2J: no lease (reference application), 1 in hand"),
        "{said}"
    );
    for (word, told) in [
        ("requests", "1201 waiting, 2 in hand, the oldest 1000-0 since "),
        ("returns", "0 waiting, 1 in hand, the oldest 900-5 since "),
        ("handoffs", "1 waiting, 0 in hand, the oldest 7-0 since "),
        ("oldest event", "since "),
        ("dead letters", "1"),
        ("automated storage", "3/20"),
        ("loans", "2"),
        ("outcomes kept", "1"),
    ] {
        let line = said.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default();
        assert!(line.trim().starts_with(told), "{word}: {said}");
    }
    assert!(said.contains("(no consumer group)"), "{said}");
    assert_eq!(said.matches("instances").count(), 1, "{said}");

    let json = admin(&redis, &["status", "--json"]).exits(0).stdout;
    assert_eq!(json.lines().count(), 1, "{json}");
    for part in [
        r#"{"name":"gone","lease":"gone","in_hand":1,"idle_ms":"#,
        r#"{"name":"held","lease":"held","lease_left_ms":5"#,
        r#"{"name":"reference\u001b[2J","lease":"none","in_hand":1,"#,
        r#"{"stream":"requests","key":"lending_requests_event_stream","group":true,"lost":false,"ahead":false,"backlog":1201,"pending":2,"oldest":"1000-0","oldest_age_ms":"#,
        r#""stream":"handoffs","key":"books_for_shelving_event_stream","group":false,"lost":false,"ahead":false,"backlog":1,"pending":0,"oldest":"7-0""#,
        r#""oldest_waiting":{"stream":"returns","event_id":"900-5","age_ms":"#,
        r#""dead_letters":1,"automated_storage":{"books":3,"capacity":20},"loans":2,"outcomes":1,"memory":{"used_bytes":"#,
    ] {
        assert!(json.contains(part), "{part}: {json}");
    }
}

#[test]
fn an_instance_is_told_with_all_that_it_has_in_hand_and_since_when_nothing_was_heard_of_it() {
    let redis = Redis::new();
    let other = Other::alive(&redis, "other");
    let idle = |stream| -> u64 {
        let consumers: Vec<HashMap<String, Value>> =
            redis.ask(&["XINFO", "CONSUMERS", stream, "lending_service"]);
        redis::from_redis_value(consumers[0]["idle"].clone()).unwrap()
    };
    redis.request_at("1-0", "user1", "geb");
    other.take(REQUESTS);
    assert!(eventually(DEADLINE, || idle(REQUESTS) > 500));
    redis.give_back_at("2-0", "user1", "geb");
    other.take(RETURNS);
    let said = admin(&redis, &["status", "--json"]).exits(0).stdout;
    let (_, told) = said.split_once(r#""in_hand":2,"idle_ms":"#).expect("two are in hand");
    let told: u64 = told.split('}').next().unwrap().parse().unwrap();
    assert!(told <= idle(RETURNS), "{told}");
}

#[test]
fn who_reads_no_further_has_seen_enough() {
    let redis = Redis::new();
    redis.cmd(&["SET", "user:user1:count", "3"]);
    for (command, status) in [("status", 0), ("check", 1)] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let program = env!("CARGO_BIN_EXE_library-admin");
        let run = Running::start(&redis, program, &[command], |command| {
            command.stdout(writer);
        });
        assert_eq!(run.ends().exits(status).stderr, "");
    }
}

/// A library that was well was told as wrong by the status; a letter stayed, and groups stayed lost, and
/// that as done.
#[test]
fn who_reads_nothing_is_told_by_the_status_what_was_done() {
    let redis = Redis::new();
    let unread = |args: &[&str]| {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let program = env!("CARGO_BIN_EXE_library-admin");
        let run = Running::start(&redis, program, args, |command| {
            command.stdout(writer);
        });
        run.ends()
    };
    let streams = [REQUESTS, RETURNS, SHELVING];
    for stream in streams {
        redis.add(stream, "5-0", &[("user_id", b"user1"), ("book_ids", b"geb")]);
    }
    unread(&["regroup", "--from", "1-0"]).exits(0);
    for stream in streams {
        assert_eq!(redis.everything().stream(stream).groups.len(), 1, "{stream}");
    }
    let id = add_letter(&redis, REQUESTS);
    let dropped = unread(&["dead-letters", "drop", &id]).exits(1);
    assert!(
        dropped.stderr.ends_with(&format!("the output is closed: {id} is not dropped\n")),
        "{dropped}"
    );
    assert_eq!(redis.length(DEAD_LETTERS), 1);
    unread(&["check"]).exits(0);
}

/// Redis refuses to be asked for what comes behind the last id of all.
#[test]
fn status_tells_of_a_stream_that_has_given_its_last_id() {
    let redis = Redis::new();
    let last = format!("{0}-{0}", u64::MAX);
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0", "MKSTREAM"]);
    redis.request_at(&last, "user1", "geb");
    assert_eq!(Other::alive(&redis, "other").take(REQUESTS), last);
    let said = admin(&redis, &["status", "--json"]).exits(0).stdout;
    let of_requests = r#""group":true,"lost":false,"ahead":false,"backlog":0,"pending":1,"oldest":"18446744073709551615-"#;
    assert!(said.contains(of_requests), "{said}");
}

#[test]
fn status_tells_of_a_running_instance_and_of_a_branch_of_its_own() {
    let redis = Redis::new();
    let branch = redis.branch("south");
    let _daemon = Daemon::start(&branch, &["worker1"]);
    let json = admin(&branch, &["status", "--json"]).exits(0).stdout;
    assert!(json.contains(r#"{"name":"worker1","lease":"held","lease_left_ms":"#), "{json}");
    assert!(json.contains(r#""oldest_waiting":null"#), "{json}");
    assert_eq!(admin(&branch, &["status"]).exits(0).stderr, "");
    // Or a branch that was mistyped.
    let run = admin(&redis, &["status", "--json"]).exits(0);
    assert!(run.stderr.contains("library-admin: there is no library on Redis at "), "{run}");
    let json = run.stdout;
    assert!(json.contains(r#""instances":[]"#), "{json}");
}

#[test]
fn a_dead_letter_is_shown_and_put_back_unchanged() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let fields: [(&str, &[u8]); 5] = [
        ("user_id", b"us\xffer\x1b[2J"),
        ("book_ids", b"geb"),
        ("stream", b"of the client's"),
        ("", b""),
        ("user_id", b"twice"),
    ];
    let event = redis.add(REQUESTS, "*", &fields);
    assert_eq!(redis.outcome_of_request(&event)["outcome"], "rejected");
    assert_eq!(daemon.stop(), 0);

    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    let id = said.split(' ').next().unwrap().to_owned();
    assert_eq!(id, redis.raw_entries(DEAD_LETTERS)[0].0);
    let shown = format!(
        "Z requests {event}: user_id_not_utf8, deliveries: 1; user_id=us\\xffer\\u{{1b}}[2J \
         book_ids=geb stream=\"of the client's\" \"\"=\"\" user_id=twice\n"
    );
    assert!(said.ends_with(&shown), "{said}");
    let json = admin(&redis, &["dead-letters", "list", "--json"]).exits(0).stdout;
    assert_eq!(member(&json, "id"), id);
    assert_eq!(member(&json, "cause"), "user_id_not_utf8");
    assert!(json.contains(r#"{"name":"stream","value":"of the client's"}"#), "{json}");

    let said = admin(&redis, &["dead-letters", "retry", &id]).exits(0).stdout;
    let (new, now) = redis.raw_entries(REQUESTS).remove(0);
    assert_eq!(said, format!("{id} is back: event {new} of requests\n"));
    let fields = fields.map(|(field, value)| (field.as_bytes().to_vec(), value.to_vec()));
    assert_eq!(now, fields);
    assert_eq!(redis.length(DEAD_LETTERS), 0);
    let run = admin(&redis, &["dead-letters", "retry", &id]).exits(1);
    assert!(run.stderr.contains("no dead letter has the id"), "{run}");
    assert_eq!(redis.length(REQUESTS), 1, "it is not put back twice");

    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request(&new)["outcome"], "rejected", "it is a new event");
    assert_eq!(redis.length(DEAD_LETTERS), 1);
}

/// One at a time it was a process for each of thousands.
#[test]
fn several_letters_are_put_back_or_dropped_by_one_command_and_one_that_is_gone_is_told() {
    let redis = Redis::new();
    let ids: Vec<String> = (0..4).map(|_| add_letter(&redis, REQUESTS)).collect();
    let run = admin(&redis, &["dead-letters", "retry", &ids[2], "1-0", &ids[0], "--json"]).exits(1);
    let told: Vec<_> = run.stdout.lines().map(|line| member(line, "retried")).collect();
    assert_eq!(told, [&ids[2][..], &ids[0]]);
    assert!(run.stderr.contains("no dead letter has the id 1-0"), "{run}");
    assert_eq!(redis.length(REQUESTS), 2);
    let said = admin(&redis, &["dead-letters", "drop", &ids[1], &ids[3]]).exits(0).stdout;
    assert_eq!(said.matches(" is dropped\n").count(), 2, "{said}");
    assert_eq!((redis.length(REQUESTS), redis.length(DEAD_LETTERS)), (2, 0));
}

#[test]
fn a_dead_letter_that_several_put_back_at_once_comes_back_once() {
    let redis = Redis::new();
    for round in 0..5 {
        let id = add_letter(&redis, REQUESTS);
        thread::scope(|scope| {
            for verb in ["retry", "retry", "retry", "retry"] {
                let (redis, id) = (&redis, &id);
                scope.spawn(move || admin(redis, &["dead-letters", verb, id]));
            }
        });
        assert_eq!(redis.length(REQUESTS), round + 1);
        assert_eq!(redis.length(DEAD_LETTERS), 0);
    }
}

#[test]
fn an_event_is_put_back_though_letters_are_added_meanwhile_if_not_all_the_time() {
    let redis = Redis::new();
    let id = add_letter(&redis, REQUESTS);
    for (changes, status, events) in [(usize::MAX, 1, 0), (2, 0, 1)] {
        let retry = ["dead-letters", "retry", &id];
        let run = admin_while(&redis, &retry, ("transaction", 1..=changes), |redis| {
            redis.add(DEAD_LETTERS, "*", &[("one", b"more")]);
        });
        assert_eq!(run.status(), Some(status), "{run}");
        assert_eq!(run.stderr.contains("is not put back: the dead letters"), events == 0, "{run}");
        assert_eq!(redis.length(REQUESTS), events);
    }
}

#[test]
fn a_letter_that_somebody_else_has_dropped_meanwhile_is_not_said_to_be_dropped() {
    let redis = Redis::new();
    let id = redis.add(DEAD_LETTERS, "*", &[("book_ids", b"geb")]);
    let run = admin_while(&redis, &["dead-letters", "drop", &id], ("delete", 1..=1), |redis| {
        redis.cmd(&["DEL", DEAD_LETTERS]);
    });
    assert!(run.status() == Some(1) && !run.stdout.contains("is dropped"), "{run}");
    assert!(run.stderr.contains(&format!("somebody else has put {id} back or dropped")), "{run}");
}

/// A transaction takes nothing back: the letter was gone, and the event not back.
#[test]
fn a_letter_whose_event_cannot_be_put_back_stays() {
    let redis = Redis::new();
    let id = add_letter(&redis, RETURNS);
    let retry = || admin(&redis, &["dead-letters", "retry", &id]);
    let last_of_all = "18446744073709551615-18446744073709551615";
    for (spoil, said) in [
        (&["SET", RETURNS, "no stream"][..], "WRONGTYPE"),
        (&["XADD", RETURNS, last_of_all, "no", "more"], "last possible ID"),
    ] {
        redis.cmd(spoil);
        let before = redis.everything();
        let run = retry().exits(4);
        assert!(run.stderr.contains(said), "{run}");
        assert_eq!(redis.everything(), before, "{spoil:?}");
        redis.cmd(&["DEL", RETURNS]);
    }
    for command in ["xadd", "xdel", "xinfo"] {
        let but = format!("-{command}");
        redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all", &but]);
        let before = redis.everything();
        let args = ["--username", "clerk", "--password", "right", "dead-letters", "retry", &id];
        admin(&redis, &args).exits(4);
        assert_eq!(redis.everything(), before, "without {command}");
        redis.cmd(&["ACL", "DELUSER", "clerk"]);
    }
    retry().exits(0);
    assert_eq!(redis.entries(RETURNS)[0].1["book_ids"], "geb");
    assert_eq!(redis.length(DEAD_LETTERS), 0);
}

/// As the one before, in the very instant before the event is put back.
#[test]
fn a_letter_stays_if_its_stream_goes_bad_while_it_is_put_back() {
    let redis = Redis::new();
    let script = concat!(
        include_str!("../../lua/order.lua"),
        include_str!("../../lua/last_given.lua"),
        include_str!("../../lua/retry.lua")
    );
    let letter = redis.add(DEAD_LETTERS, "*", &[("book_ids", b"geb")]);
    let take = |stream: &str| -> Vec<Value> {
        redis.ask(&["EVAL", script, "2", stream, DEAD_LETTERS, &letter])
    };
    redis.cmd(&["SET", REQUESTS, "no stream"]);
    redis.add(RETURNS, "18446744073709551615-18446744073709551615", &[("no", b"more")]);
    for stream in [REQUESTS, RETURNS] {
        assert_eq!(take(stream), [Value::BulkString(b"LEFT".into())], "{stream}");
        assert_eq!(redis.length(DEAD_LETTERS), 1);
    }
    redis.add(SHELVING, "18446744073709551615-18446744073709551614", &[("one", b"more")]);
    assert_eq!(take(SHELVING)[1], Value::Int(1));
    assert_eq!(redis.length(DEAD_LETTERS), 0);
    assert_eq!(redis.length(SHELVING), 1, "that is left to who calls it");
}

#[test]
fn an_event_that_lies_there_as_several_letters_is_treated_as_one() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let names: Vec<_> = (0..7_000).map(|n| format!("field{n}")).collect();
    let fields: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let before = redis.add(RETURNS, "*", &[("user_id", b"u")]);
    redis.outcome_of_return(&before);
    let event = redis.add(RETURNS, "*", &fields);
    redis.outcome_of_return(&event);
    let behind = redis.add(RETURNS, "*", &[("user_id", b"u")]);
    redis.outcome_of_return(&behind);
    assert_eq!(daemon.stop(), 0);
    assert_eq!(redis.length(DEAD_LETTERS), 5);

    let list = |more: &[&str]| {
        let args = [&["dead-letters", "list", "--json"], more].concat();
        let said = admin(&redis, &args).exits(0).stdout;
        said.lines().map(|line| member(line, "event_id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), [&*before, &event, &behind]);
    assert_eq!(list(&["--last", "2"]), [&*event, &behind]);
    assert_eq!(list(&["--last", "1"]), [&*behind]);
    assert_eq!(list(&["--last", "9"]), [&*before, &event, &behind]);
    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    let lines: Vec<&str> = said.lines().collect();
    let last = admin(&redis, &["dead-letters", "list", "--last", "2"]).exits(0).stdout;
    assert_eq!(last.lines().collect::<Vec<_>>(), lines[1..]);
    assert!(said.contains(" 3 letters; field0=field0 field1=field1 "), "{said}");
    assert!(said.contains(" ... (7000 fields)\n"), "{said}");
    assert!(said.len() < 2_000, "{said}");

    // By any of its letters, here the one in the middle.
    let middle = redis.raw_entries(DEAD_LETTERS)[2].0.clone();
    admin(&redis, &["dead-letters", "retry", &middle]).exits(0);
    let now = redis.raw_entries(RETURNS).remove(0).1;
    let sent: RawFields =
        names.iter().map(|name| (name.clone().into_bytes(), name.clone().into_bytes())).collect();
    assert_eq!(now, sent);
    assert_eq!(list(&[]), [&*before, &behind]);
}

#[test]
fn a_letter_that_could_not_take_more_has_no_part_in_the_next_event() {
    let redis = Redis::new();
    let letter = |event: &str, fields: usize| {
        let front: [(&str, &[u8]); 4] = [
            ("stream", REQUESTS.as_bytes()),
            ("event_id", event.as_bytes()),
            ("cause", b"no_user_id"),
            ("deliveries", b"1"),
        ];
        redis.add(DEAD_LETTERS, "*", &[&front[..], &vec![("f", &b"v"[..]); fields]].concat())
    };
    letter("1-0", 3_000);
    let next = letter("2-0", 1);
    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    assert_eq!(said.lines().count(), 2, "{said}");
    admin(&redis, &["dead-letters", "drop", &next]).exits(0);
    assert_eq!(redis.length(DEAD_LETTERS), 1);
}

#[test]
fn a_dropped_letter_is_printed_whole_and_gone() {
    let redis = Redis::new();
    let long = "x".repeat(5_000);
    let letter = |event: &str| {
        let fields: [(&str, &[u8]); 5] = [
            ("stream", REQUESTS.as_bytes()),
            ("event_id", event.as_bytes()),
            ("cause", b"no_book_ids"),
            ("deliveries", b"1"),
            ("user_id", long.as_bytes()),
        ];
        let more = [("more", &b"v"[..]); 40];
        redis.add(DEAD_LETTERS, "*", &[&fields[..], &more].concat())
    };
    let (kept, dropped) = (letter("1-0"), letter("2-0"));
    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    assert!(said.contains("xxx... (5000 bytes)"), "a list stays readable: {said}");
    let run = admin(&redis, &["dead-letters", "drop", &dropped]).exits(0);
    assert!(run.stdout.contains(&long), "{run}");
    assert_eq!(run.stdout.matches(" more=v").count(), 40, "{run}");
    assert!(run.stdout.ends_with(&format!("\n{dropped} is dropped\n")), "{run}");
    assert_eq!(redis.raw_entries(DEAD_LETTERS)[0].0, kept);
    assert_eq!(redis.length(DEAD_LETTERS), 1);
    assert_eq!(redis.length(REQUESTS), 0);
    admin(&redis, &["dead-letters", "drop", &dropped]).exits(1);
}

/// Two letters whose users differ were the same in JSON, where both bytes became one sign, and `drop`
/// removed for good what it had shown so; in words the second could not be told from the third.
#[test]
fn letters_that_differ_are_shown_differently_in_words_and_in_json() {
    let redis = Redis::new();
    let letter = |user: &[u8], deliveries: &[u8]| {
        let fields: [(&str, &[u8]); 5] = [
            ("stream", REQUESTS.as_bytes()),
            ("event_id", b"1-0"),
            ("cause", b"user_id_not_utf8"),
            ("deliveries", deliveries),
            ("user_id", user),
        ];
        redis.add(DEAD_LETTERS, "*", &fields)
    };
    let letters = [letter(b"a\xfeb", b"3"), letter(b"a\xffb", b"many"), letter(br"a\xffb", b"03")];
    let list = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    let words = [r"3; user_id=a\xfeb", r"many; user_id=a\xffb", r"03; user_id=a\\xffb"];
    assert_eq!(list.lines().count(), words.len(), "{list}");
    for (line, words) in list.lines().zip(words) {
        assert!(line.ends_with(&format!(" deliveries: {words}")), "{line}");
    }
    for ((id, line), (deliveries, value)) in letters.iter().zip(list.lines()).zip([
        ("3", r#""value":"a�b","value_hex":"61fe62"}"#),
        (r#""many""#, r#""value":"a�b","value_hex":"61ff62"}"#),
        (r#""03""#, r#""value":"a\\xffb"}"#),
    ]) {
        let time = line.split(' ').nth(1).unwrap();
        let json = format!(
            r#"{{"id":"{id}","time":"{time}","stream":"{REQUESTS}","event_id":"1-0","cause":"user_id_not_utf8","deliveries":{deliveries},"fields":[{{"name":"user_id",{value}]}}"#
        );
        let run = admin(&redis, &["dead-letters", "drop", id, "--json"]).exits(0);
        assert_eq!(run.stdout, json + "\n");
    }
}

#[test]
fn a_letter_without_fields_ends_without_a_semicolon() {
    let redis = Redis::new();
    let vanished: [(&str, &[u8]); 4] = [
        ("stream", REQUESTS.as_bytes()),
        ("event_id", b"1-0"),
        ("cause", b"vanished"),
        ("deliveries", b"1"),
    ];
    redis.add(DEAD_LETTERS, "*", &vanished);
    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    assert!(said.ends_with(" requests 1-0: vanished, deliveries: 1\n"), "{said}");
}

#[test]
fn nothing_is_put_back_into_a_key_that_is_no_stream_of_the_library() {
    let redis = Redis::new();
    let front = |stream: &'static str| -> [(&str, &[u8]); 4] {
        [("stream", stream.as_bytes()), ("event_id", b"1-0"), ("cause", b"c"), ("deliveries", b"1")]
    };
    let mut foreign = front("user:user1:count").to_vec();
    foreign.push(("user_id", b"u"));
    let foreign = redis.add(DEAD_LETTERS, "*", &foreign);
    let empty = redis.add(DEAD_LETTERS, "*", &front(REQUESTS));
    let no_letter = redis.add(DEAD_LETTERS, "*", &[("book_ids", b"geb")]);
    let before = redis.everything();
    for (id, why) in [
        (&foreign, "does not name a stream"),
        (&empty, "nothing is left"),
        (&no_letter, "does not name a stream"),
    ] {
        let run = admin(&redis, &["dead-letters", "retry", id]).exits(1);
        assert!(run.stderr.contains(why) && run.stderr.contains("can only be dropped"), "{run}");
    }
    assert_eq!(redis.everything(), before);
    let said = admin(&redis, &["dead-letters", "list"]).exits(0).stdout;
    assert!(said.ends_with(" book_ids=geb\n"), "{said}");
}

#[test]
fn after_a_lost_group_only_undecided_events_are_worked_on() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    let first = redis.request("user1", "geb");
    redis.outcome_of_request(&first);
    assert_eq!(daemon.stop(), 0);
    let second = redis.request("user2", "momo");
    let third = redis.request("user3", "alice");
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    assert_eq!(Daemon::spawn(&redis, &["--keep-events", "worker1"]).exit_status(), 78);

    // That of a stream in which nothing is left libraryd makes again.
    let returns = "returns            0 waiting, 0 in hand (no consumer group)\n";
    redis.cmd(&["XGROUP", "DESTROY", RETURNS, "lending_service"]);
    assert!(admin(&redis, &["status"]).exits(0).stdout.contains(returns));
    redis.cmd(&["XGROUP", "CREATE", RETURNS, "lending_service", "0"]);
    // It counted the decided ones too, and told the age of the oldest of them.
    let status = admin(&redis, &["status"]).exits(0).stdout;
    let lost = "requests           the consumer group is lost: see library-admin regroup\n";
    assert!(status.contains(lost) && status.contains("oldest event       none\n"), "{status}");
    let status = admin(&redis, &["status", "--json"]).exits(0).stdout;
    assert!(status.contains(r#""group":false,"lost":true,"#), "{status}");
    assert!(status.contains(r#""oldest_waiting":null"#), "{status}");

    let run = admin(&redis, &["regroup", "--from", &second, "--stream", "returns"]).exits(1);
    assert!(run.stderr.contains("the group of returns is not lost"), "{run}");
    let said = admin(&redis, &["regroup"]).exits(0).stdout;
    let first_undecided =
        format!("lost; the first event that is not decided is {second}. Go on with:");
    assert!(said.contains(&first_undecided), "{said}");
    assert!(said.ends_with(&format!(" --stream requests --from {second}\n")), "{said}");
    assert!(redis.everything().stream(REQUESTS).groups.is_empty(), "it is only told");
    let run = admin(&redis, &["regroup", "--from", &second]).exits(0);
    assert_eq!(
        run.stdout,
        format!(
            "requests: the group lending_service is back; from {second} on, 2 events to be worked \
             on, 0 decided already (start libraryd again where it has ended)\n"
        )
    );
    let run = admin(&redis, &["regroup", "--from", &second]).exits(1);
    assert!(run.stderr.contains("no group is lost: nothing was done"), "{run}");

    let _daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    assert_eq!(redis.outcome_of_request(&third)["book_ids"], "alice");
    assert_eq!(redis.outcome_of_request(&second)["book_ids"], "momo");
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.outcomes().len(), 3, "nothing was decided again");
}

#[test]
fn an_event_that_waited_while_a_later_one_was_decided_is_worked_on_after_a_lost_group() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["geb"], "1-0").lent("user2", &["momo"], "2-0").lay_down(&redis);
    redis.cmd(&["HSET", "lending_kept_events", REQUESTS, "decided events are kept"]);
    for (id, user, book) in [
        ("1-0", "user1", "geb"),
        ("2-0", "user2", "momo"),
        ("3-0", "user3", "alice"),
        ("4-0", "user4", "bob"),
        ("5-0", "user5", "eve"),
    ] {
        redis.request_at(id, user, book);
    }
    // 1 and 3 were decided, 2 waits, and so do those behind; a return of that id is no request.
    for (id, action) in
        [("1-0", "request"), ("3-0", "request"), ("2-0", "return"), ("9-0", "return")]
    {
        let fields: [(&str, &[u8]); 3] =
            [("event_id", id.as_bytes()), ("action", action.as_bytes()), ("outcome", b"denied")];
        redis.add(OUTCOMES, "*", &fields);
    }
    assert_eq!(Daemon::spawn(&redis, &["--keep-events", "worker1"]).exit_status(), 78);
    // The oldest outcome is younger than all of them: others may be gone.
    let run = admin(&redis, &["regroup", "--from", "2-0"]).exits(1);
    assert!(run.stderr.contains("event 2-0 of requests has no outcome"), "{run}");
    let args = ["regroup", "--from", "2-0", "--before-outcomes", "--json"];
    let run = admin(&redis, &args).exits(0);
    assert_eq!(
        run.stdout, "{\"regrouped\":\"requests\",\"from\":\"2-0\",\"waiting\":3,\"decided\":1}\n",
        "{run}"
    );

    let _daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    assert_eq!(redis.outcome_of_request("2-0")["already_yours"], "momo");
    assert_eq!(redis.outcome_of_request("4-0")["book_ids"], "bob");
    assert_eq!(redis.outcome_of_request("5-0")["book_ids"], "eve");
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.length(OUTCOMES), 4 + 3, "nothing was decided again");
}

/// The advice was to begin with the first event that has no outcome. Where events are kept for longer than
/// outcomes, that is the oldest that was decided.
#[test]
fn what_is_older_than_the_outcomes_is_not_decided_again_after_a_lost_group() {
    let redis = Redis::new();
    let args = ["--keep-events", "--outcomes-kept", "100", "worker1"];
    let mut daemon = Daemon::start(&redis, &args);
    let first = redis.request("alice", "geb");
    let back = redis.give_back("alice", "geb");
    redis.outcome_of_return(&back);
    for n in 0..600 {
        let user = format!("user{n}");
        redis.request(&user, "momo");
        redis.give_back(&user, "momo");
    }
    redis.wait_until_drained(3 * DEADLINE);
    assert!(redis.outcomes_of("request", &first).is_empty(), "its outcome is gone");
    assert_eq!(daemon.stop(), 0);
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let mut daemon = Daemon::spawn(&redis, &args);
    assert_eq!(daemon.exit_status(), 78);
    assert!(daemon.log().contains("library-admin regroup, with the address"), "{}", daemon.log());

    let said = admin(&redis, &["regroup"]).exits(0).stdout;
    assert!(said.contains("no event is undecided; "), "{said}");
    assert!(said.contains(&format!("{first} the first, are most likely decided")), "{said}");
    let from = said.trim_end().rsplit(' ').next().unwrap().to_owned();
    let json = admin(&redis, &["regroup", "--json"]).exits(0).stdout;
    let told = format!(
        r#"{{"lost":"requests","from":"{from}","undecided":false,"unknown_from":"{first}"}}"#
    );
    assert_eq!(json.trim_end(), told);

    let before = redis.everything();
    let run = admin(&redis, &["regroup", "--from", &first]).exits(1);
    let refused =
        format!("event {first} of requests has no outcome and is older than the outcomes");
    assert!(run.stderr.contains(&refused), "{run}");
    assert!(run.stderr.contains(&format!("--from {from} begins")), "{run}");
    assert_eq!(redis.everything(), before);

    let undecided = redis.request("bob", "emma");
    let said = admin(&redis, &["regroup"]).exits(0).stdout;
    assert!(said.ends_with(&format!(" --from {undecided}\n")), "{said}");
    admin(&redis, &["regroup", "--from", &undecided]).exits(0);
    let _daemon = Daemon::start(&redis, &args);
    assert_eq!(redis.outcome_of_request(&undecided)["book_ids"], "emma");
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.ledger().loans.len(), 1, "geb is not lent again");
}

/// Whose milliseconds were compared said that outcomes were missing.
#[test]
fn where_no_outcome_is_missing_a_group_begins_with_the_first_event_of_all() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    let first = redis.request("user1", "geb");
    redis.outcome_of_request(&first);
    assert_eq!(daemon.stop(), 0);
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let run = admin(&redis, &["regroup", "--from", &first]).exits(0);
    assert!(run.stdout.contains(" on, 0 events to be worked on, 1 decided already "), "{run}");
    assert_eq!(run.stderr, "", "{run}");
}

#[test]
fn an_event_as_old_as_the_oldest_outcome_counts_as_decided() {
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_kept_events", REQUESTS, "decided events are kept"]);
    for id in ["4000-0", "5000-0", "5001-0"] {
        redis.request_at(id, "user1", "geb");
    }
    redis.add(OUTCOMES, "5000-0", &[("event_id", b"4000-0"), ("action", b"request")]);
    let said = admin(&redis, &["regroup"]).exits(0).stdout;
    assert!(said.contains("the first event that is not decided is 5001-0;"), "{said}");
    assert!(said.contains(", 5000-0 the first, are most likely decided"), "{said}");
}

#[test]
fn a_group_that_is_made_anew_meanwhile_is_left_as_it_is() {
    let redis = Redis::new();
    redis.request_at("17-0", "user1", "geb");
    redis.request_at("18-0", "user2", "momo");
    let args = ["regroup", "--from", "18-0"];
    let run = admin_while(&redis, &args, ("regroup", 1..=1), |redis| {
        redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "17-0"]);
    });
    assert!(run.status() == Some(1) && run.stdout.is_empty(), "{run}");
    assert!(run.stderr.contains("the group of requests is not lost any more"), "{run}");
}

/// Ids go on from the highest one: while they are ahead of the clock, an event that was decided, and whose
/// outcome is gone, looks younger than the oldest outcome.
#[test]
fn ids_that_are_ahead_of_the_clock_do_not_make_old_events_undecided() {
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_kept_events", REQUESTS, "decided events are kept"]);
    let id = |seq: u64| format!("9999999999999-{seq}");
    for seq in 1..5 {
        redis.request_at(&id(seq), "user1", "geb");
    }
    let event = id(3);
    let outcome: [(&str, &[u8]); 2] = [("event_id", event.as_bytes()), ("action", b"request")];
    redis.add(OUTCOMES, "*", &outcome);
    let run = admin(&redis, &["regroup", "--from", &id(1)]).exits(1);
    assert!(run.stderr.contains(&format!("--from {} begins", id(4))), "{run}");
}

/// Nobody could tell from the outcomes. Whoever began with the first of all had books put on their shelves
/// that were lent.
#[test]
fn after_a_lost_group_of_hand_offs_those_are_done_whose_books_are_marked() {
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_kept_events", SHELVING, "decided events are kept"]);
    redis.add(OUTCOMES, "*", &[("action", b"return")]);
    Ledger::new()
        .lent("user1", &["lent", "lent since"], "1-0")
        .stored(&["stored"], "1-0")
        .nowhere(&["on its way", "too"], "1-0")
        .lay_down(&redis);
    let mark = |book: &str, hand_off: &str| {
        redis.cmd(&["HSET", "lending_book_states", book, &format!(">{hand_off}")]);
    };
    // Done, with marks that are still to be swept: lent, on its shelf, stored, one of each.
    let done = ["lent", "shelved", "stored", "shelved too,lent since"].map(|books| {
        let id = redis.hand_off("*", books);
        books.split(',').for_each(|book| mark(book, &id));
        id
    });
    // Done as well: since then one was fetched for a request in work, the other handed over again.
    let request = redis.request("user2", "fetched");
    redis.cmd(&["HSET", SHELVES, "fetched", &request]);
    mark("fetched", &redis.hand_off("*", "fetched,too"));
    let undone = redis.hand_off("*", "on its way,too");
    mark("on its way", &undone);
    mark("too", &undone);
    let last = redis.hand_off("*", "lent");
    mark("gone", "1-0");
    assert_eq!(Daemon::spawn(&redis, &["--keep-events", "worker1"]).exit_status(), 78);

    let said = admin(&redis, &["regroup"]).exits(0).stdout;
    assert!(said.ends_with(&format!(" --stream handoffs --from {undone}\n")), "{said}");
    let run = admin(&redis, &["regroup", "--from", &done[0]]).exits(0);
    assert!(run.stdout.contains("; 1 hand-off to be worked on, all others are done"), "{run}");
    let group = redis.everything().stream(SHELVING).groups.remove("shelving_service").unwrap();
    assert_eq!(group.last_delivered, last);
    assert_eq!(group.pending.into_keys().collect::<Vec<_>>(), [undone]);

    let _daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    assert_eq!(redis.outcome_of_request(&request)["book_ids"], "fetched");
    redis.assert_at_rest();
}

/// With a digit too many the group was ahead of its stream: nothing that was sent was served any more.
#[test]
fn no_group_begins_behind_the_end_of_its_stream() {
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_kept_events", REQUESTS, "decided events are kept"]);
    redis.request_at("17-0", "user1", "geb");
    redis.give_back_at("19-0", "user1", "geb");
    let before = redis.everything();
    let said = admin(&redis, &["regroup", "--stream", "requests"]).exits(0).stdout;
    assert!(said.contains("; no outcome is kept; events that are older"), "{said}");
    for (args, said) in [
        (
            &["--from", "170-0"][..],
            "--from 170-0 is beyond the last event (requests 17-0, returns 19-0)",
        ),
        (&["--from", "17-2", "--stream", "requests"], "beyond the last event (requests 17-0)"),
    ] {
        let run = admin(&redis, &[&["regroup"], args].concat()).exits(2);
        assert!(run.stderr.contains(said), "{run}");
        assert_eq!(redis.everything(), before);
    }
    // Nothing is left to be decided.
    admin(&redis, &["regroup", "--from", "17-1", "--stream", "requests"]).exits(0);
    let delivered =
        |stream| redis.everything().stream(stream).groups["lending_service"].last_delivered.clone();
    assert_eq!(delivered(REQUESTS), "17-0");
    // What ends earlier than the others begins at its end.
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let run = admin(&redis, &["regroup", "--from", "19-1"]).exits(0);
    assert_eq!([delivered(REQUESTS), delivered(RETURNS)], ["17-0", "19-0"]);
    assert!(
        run.stderr.contains("event 19-0 of returns is before 19-1 and has no outcome"),
        "{run}"
    );
}

#[test]
fn lost_groups_of_returns_and_handoffs_come_back_too() {
    let redis = Redis::new();
    for id in ["0-5", "3-0", "4-0"] {
        redis.hand_off(id, "geb");
        redis.give_back_at(id, "user1", "geb");
    }
    admin(&redis, &["regroup", "--from", "3-0", "--stream", "handoffs"]).exits(0);
    let groups = |stream| redis.everything().stream(stream).groups;
    assert_eq!(groups(SHELVING)["shelving_service"].last_delivered, "2-18446744073709551615");
    assert!(groups(RETURNS).is_empty());
    // Requests have no stream at all: the daemon makes that with its group.
    let run = admin(&redis, &["regroup", "--from", "0-0"]).exits(0);
    assert_eq!(run.stdout.lines().count(), 1, "{run}");
    assert_eq!(groups(RETURNS)["lending_service"].last_delivered, "0-0");
    assert_eq!(redis.everything().0.get(REQUESTS), None);
}

#[test]
fn a_wrong_command_line_touches_nothing_and_is_told_in_two_lines() {
    let redis = Redis::new();
    for args in [
        &[][..],
        &["no-such-command"],
        &["status", "now"],
        &["check", "--no-such-option"],
        &["dead-letters"],
        &["dead-letters", "retry"],
        &["dead-letters", "retry", "everything"],
        &["dead-letters", "list", "--last", "none"],
        &["regroup", "--before-outcomes"],
        &["regroup", "--from", "yesterday"],
        &["status", "--repair"],
        &["two\nlines"],
        &["status", "--db", "many"],
    ] {
        let run = admin(&redis, args).exits(2);
        let lines: Vec<_> = run.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{run}");
        assert!(lines[0].starts_with("library-admin: "), "{run}");
        assert!(lines[1].starts_with("library-admin: usage: library-admin "), "{run}");
        assert_eq!(run.stdout, "", "{run}");
    }
    assert!(redis.everything().0.is_empty());
}

#[test]
fn help_and_version_of_the_operators_command_need_no_redis() {
    let redis = Redis::new();
    redis.kill9();
    for (args, said) in [
        (&["--help"][..], "dead-letters"),
        (&["-h", "check"], "--repair"),
        (&["check", "--help"], "--repair"),
        (&["check", "--help", "--frob"], "--repair"),
        (&["help"], "dead-letters"),
        (&["help", "check"], "--repair"),
        (&["-V"], env!("CARGO_PKG_VERSION")),
    ] {
        let run = admin(&redis, args).exits(0);
        assert!(run.stdout.contains(said), "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
}

#[test]
fn a_redis_that_cannot_be_reached_or_refuses_is_told_with_what_to_do() {
    let redis = Redis::new();
    redis.cmd(&["CONFIG", "SET", "requirepass", "secret"]);
    for (args, hint) in [
        (&["status"][..], "--password-file"),
        (&["check", "--password", "wrong"], "--password-file"),
        (&["status", "-a", "/no/such/socket"], "is Redis running there?"),
    ] {
        let run = admin(&redis, args).exits(4);
        assert!(run.stderr.contains(hint), "{run}");
        assert_eq!(run.stderr.lines().count(), 1, "{run}");
    }
    admin(&redis, &["status", "--password", "secret"]).exits(0);
}

#[test]
fn a_wrong_type_of_a_shared_key_is_told_with_what_to_do() {
    let redis = Redis::new();
    redis.cmd(&["SET", LENT_BOOKS, "none"]);
    let run = admin(&redis, &["status"]).exits(4);
    assert!(run.stderr.contains("library-admin check says which key"), "{run}");
}
