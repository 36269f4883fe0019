//! What no well-behaved client sends, and keys that are not what they should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use library_lending::workload::MOST_EVENTS;
use redis::Value;

use crate::common::*;

/// Fields as they are sent.
type Sent = Vec<(&'static str, Vec<u8>)>;

/// Events that can never be worked on, and the word for what is wrong with each.
fn malformed() -> Vec<(Sent, &'static str)> {
    let thousand_and_one = vec!["b"; 1001].join(",").into_bytes();
    let event =
        |user: &[u8], books: &[u8]| vec![("user_id", user.to_vec()), ("book_ids", books.to_vec())];
    vec![
        (vec![("book_ids", b"geb".to_vec())], "no_user_id"),
        (vec![("user_id", b"user1".to_vec())], "no_book_ids"),
        (vec![("user", b"user1".to_vec()), ("book_ids", b"geb".to_vec())], "no_user_id"),
        (event(b"user1", b""), "no_book_ids"),
        (event(b"", b"geb"), "user_id_empty"),
        (event(b"user1", b"geb,,momo"), "book_id_empty"),
        (event(b"user1", b"geb,"), "book_id_empty"),
        (event(b"\xff\xfe", b"geb"), "user_id_not_utf8"),
        (event(b"user1", b"geb,mo\xc3"), "book_id_not_utf8"),
        (event(&[b'u'; 257], b"geb"), "user_id_too_long"),
        (event(b"user1", &[b'b'; 257]), "book_id_too_long"),
        (event(b"user1", &vec![b'b'; 1 << 20]), "book_id_too_long"),
        (event(b"us,er", b"geb"), "user_id_with_comma"),
        (event(b"us\ner", b"geb"), "user_id_with_control_character"),
        (event(b"user1", b"geb\x1b[2J"), "book_id_with_control_character"),
        (event(b"user1", b"geb\0"), "book_id_with_control_character"),
        (event(b" user1", b"geb"), "user_id_with_outer_space"),
        (event(b"user1", b"geb, momo"), "book_id_with_outer_space"),
        (event(b"user1", &thousand_and_one), "too_many_book_ids"),
    ]
}

/// The fields of the dead letters, in their order, as they are.
fn dead_letters(redis: &Redis) -> Vec<RawFields> {
    redis.raw_entries(DEAD_LETTERS).into_iter().map(|(_, fields)| fields).collect()
}

/// Checks that the only dead letter is this event, complete.
fn assert_dead_letter(
    redis: &Redis,
    stream: &str,
    id: &str,
    cause: &str,
    original: &[(&str, &[u8])],
) {
    let mut letters = dead_letters(redis);
    assert_eq!(letters.len(), 1, "{letters:?}");
    let mut letter = letters.remove(0);
    let deliveries = letter.remove(3);
    assert_eq!(deliveries.0, b"deliveries");
    assert!(String::from_utf8(deliveries.1).unwrap().parse::<u32>().is_ok());
    let first = [("stream", stream), ("event_id", id), ("cause", cause)];
    let mut expected: RawFields =
        first.iter().map(|(f, v)| (f.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    expected.extend(original.iter().map(|(f, v)| (f.as_bytes().to_vec(), v.to_vec())));
    assert_eq!(letter, expected);
    redis.cmd(&["DEL", DEAD_LETTERS]);
}

#[test]
fn a_malformed_event_is_rejected_with_its_cause_and_the_service_goes_on() {
    let (redis, mut daemon) = library(&Ledger::new());
    for (action, stream) in [("request", REQUESTS), ("return", RETURNS)] {
        for (fields, cause) in malformed() {
            let fields: Vec<(&str, &[u8])> = fields.iter().map(|(f, v)| (*f, &v[..])).collect();
            let id = redis.add(stream, "*", &fields);
            let mut rejected = match action {
                "request" => redis.outcome_of_request(&id),
                _ => redis.outcome_of_return(&id),
            };
            let user = rejected.remove("user_id").unwrap_or_default();
            if let Some((_, sent)) = fields.iter().find(|(name, _)| *name == "user_id")
                && sent.len() <= 256
            {
                assert_eq!(user, text(sent.to_vec()), "as in the event");
            }
            rejected.remove("in_hand");
            let mut expected = outcome(action, &id, "", "rejected", &[("cause", cause)]);
            expected.remove("user_id");
            assert_eq!(rejected, expected);
            assert_dead_letter(&redis, stream, &id, cause, &fields);
        }
    }
    let id = redis.request("user1", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user1", &["geb"], &id));
    assert!(daemon.is_running());
}

#[test]
fn a_queue_full_of_malformed_events_holds_up_no_good_one() {
    let redis = Redis::new();
    let mut sent = 0;
    const ROUNDS: usize = 10;
    for _ in 0..ROUNDS {
        for (fields, _) in malformed() {
            let fields: Vec<(&str, &[u8])> = fields.iter().map(|(f, v)| (*f, &v[..])).collect();
            redis.add(REQUESTS, "*", &fields);
            redis.add(RETURNS, "*", &fields);
            sent += 2;
        }
        redis.request("user1", "geb");
        redis.give_back("user1", "geb");
        sent += 2;
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let outcomes = redis.assert_one_outcome_each(sent);
    let good: Vec<_> = outcomes.iter().filter(|o| o["outcome"] != "rejected").collect();
    assert_eq!(good.len(), 2 * ROUNDS);
    assert!(good.iter().all(|o| o.contains_key("book_ids")), "{good:?}");
    assert_eq!(redis.length(DEAD_LETTERS), sent - 2 * ROUNDS);
    redis.assert_at_rest();
}

/// So many events are taken in hand at most. An instance that does not let go of those that it has rejected
/// reads no more after them.
#[test]
fn after_more_malformed_events_than_are_taken_in_hand_others_are_served() {
    let (redis, _daemon) = library(&Ledger::new());
    let malformed = ["XADD", REQUESTS, "*", "no", "event"].map(str::to_owned).to_vec();
    let number = MOST_EVENTS + 100;
    redis.pipeline(&vec![malformed; number]);
    let id = redis.request("user1", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    assert_eq!(redis.length(DEAD_LETTERS), number);
    redis.assert_at_rest();
}

#[test]
fn a_malformed_hand_off_is_a_dead_letter_and_shelving_goes_on() {
    let (redis, _daemon) = library(&Ledger::new().nowhere(&["momo"], "5-0"));
    for (fields, cause) in [
        (&[("books", &b"geb"[..])][..], "no_book_ids"),
        (&[("book_ids", b"")], "no_book_ids"),
        (&[("book_ids", b"geb,\xff"), ("x", b"\xfe")], "book_id_not_utf8"),
    ] {
        let id = redis.add(SHELVING, "*", fields);
        assert!(eventually(DEADLINE, || redis.length(DEAD_LETTERS) == 1), "{cause}");
        assert_dead_letter(&redis, SHELVING, &id, cause, fields);
    }
    redis.hand_off("*", "momo");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new());
    assert_eq!(redis.length(OUTCOMES), 0, "a hand-off is no request and no return");
}

#[test]
fn a_cluster_is_refused_if_the_library_has_no_branch() {
    let redis = Redis::with(&["--cluster-enabled", "yes"]);
    let mut daemon = Daemon::spawn(&redis, &["worker1"]);
    assert_eq!(daemon.exit_status(), 78, "{}", daemon.log());
    assert!(daemon.log().contains("--branch"), "{}", daemon.log());
}

/// The reference application reserves as many as a request names, and whoever gives that up hands them over
/// in one.
#[test]
fn a_hand_off_is_never_given_up_for_the_number_of_its_books() {
    let books: Vec<String> = (0..2_500).map(|n| format!("book{n}")).collect();
    let names: Vec<&str> = books.iter().map(String::as_str).collect();
    let (redis, _daemon) = library(&Ledger::new().nowhere(&names, "5-0"));
    redis.hand_off("*", &books.join(","));
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new());
    assert_eq!(redis.length(DEAD_LETTERS), 0);
}

/// They were counted, and eight thousand of them, which waited for what another instance had in hand, took
/// 1.3 GB.
#[test]
fn of_requests_for_hundreds_of_books_only_so_many_are_in_hand() {
    const EVENTS: usize = 500;
    let redis = Redis::new();
    let other = Other::alive(&redis, "other");
    redis.request_at("10-0", "user1", "geb");
    other.take(REQUESTS);
    let books = |n| (0..400).map(|book| format!("{n}-{book}")).collect::<Vec<_>>().join(",");
    for n in 0..EVENTS {
        redis.request_at(&format!("{}-0", 20 + n), &format!("user{n}"), &books(n));
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let in_hand = || {
        let args = ["XPENDING", REQUESTS, "lending_service", "-", "+", "9999", "worker1"];
        redis.ask::<Vec<Value>>(&args).len()
    };
    // 131,072 books; and what a read brings beyond that.
    let most = 131_072_usize.div_ceil(400);
    assert!(eventually(DEADLINE, || in_hand() >= most), "{}", in_hand());
    assert!(stays(Duration::from_secs(2), || in_hand() < most + 128), "{}", in_hand());
    // The rest is read when something was decided.
    other.finishes("10-0");
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) + in_hand() == EVENTS), "{}", in_hand());
}

/// The last id that there is. Nothing can be behind it, and Redis refuses to be asked for that: a refusal
/// waited for ever, and with such an event in hand an instance never came to its next.
const LAST: &str = "18446744073709551615-18446744073709551615";

/// Another instance has a request in hand, which it gives the id of; a refusal of one with the last id
/// waits for that.
fn keeps_the_last_waiting(redis: &Redis) -> (Other<'_>, String) {
    Ledger::new().lent("user1", &["geb"], "5-0").lay_down(redis);
    let other = Other::alive(redis, "worker2");
    let older = redis.request_at("10-0", "user1", "momo");
    other.take(REQUESTS);
    redis.request_at(LAST, "user2", "geb");
    (other, older)
}

#[test]
fn an_event_with_the_last_id_of_all_is_one_like_others() {
    let redis = Redis::new();
    let (other, older) = keeps_the_last_waiting(&redis);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_return(&redis.give_back("user1", "geb"));
    redis.outcome_of_request(LAST);
    // Refused when nothing older is left, after a session that found it in hand; and nothing comes behind it.
    let refused = redis.give_back("user3", "emma");
    let _: Value = redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    other.finishes(&older);
    assert_eq!(redis.outcome_of_return(&refused)["outcome"], "unchanged");
    assert_eq!(daemon.stop(), 0);
    redis.assert_at_rest();
}

#[test]
fn an_event_with_the_last_id_of_all_is_found_in_hand() {
    let redis = Redis::new();
    let (other, older) = keeps_the_last_waiting(&redis);
    let daemon = Daemon::start(&redis, &["worker1"]);
    let is_in_hand = || {
        let pending: Vec<Value> =
            redis.ask(&["XPENDING", REQUESTS, "lending_service", LAST, LAST, "1", "worker1"]);
        pending.len() == 1
    };
    assert!(eventually(DEADLINE, is_in_hand));
    let _: Value = redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    let is_well = || daemon.log().contains("working again");
    assert!(eventually(DEADLINE, is_well), "no session lasts: {}", daemon.log());
    other.finishes(&older);
    assert_eq!(redis.outcome_of_request(LAST)["outcome"], "denied", "{}", daemon.log());
}

/// What the scripts add to took no more: events had been acknowledged by then.
#[test]
fn a_stream_that_has_given_its_last_id_ends_the_daemon_and_refuses_the_start() {
    // One in the stream of hand-offs is given up at once, and deleted.
    for (stream, ends) in [(OUTCOMES, true), (DEAD_LETTERS, true), (SHELVING, false)] {
        let (redis, mut daemon) = library(&Ledger::new());
        redis.cmd(&["XADD", stream, LAST, "a", "b"]);
        if ends {
            assert_eq!(daemon.exit_status(), 78, "{stream}: {}", daemon.log());
            assert!(daemon.log().contains(stream), "{}", daemon.log());
        }
        let mut again = Daemon::spawn(&redis, &["worker2"]);
        assert_eq!(again.exit_status(), 78, "{stream}: {}", again.log());
        assert!(again.log().contains(stream), "{}", again.log());
    }
}

/// XINFO STREAM tells the last id together with whole entries. Some kill whoever reads them, and are given up
/// unread.
#[test]
fn no_entry_is_read_but_to_be_worked_on() {
    let redis = Redis::new();
    let (turns, looks) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (of_turns, of_looks) = (Arc::clone(&turns), Arc::clone(&looks));
    let proxy = Proxy::new(&redis, move |command| {
        of_turns.fetch_add(usize::from(command.kind == "renew"), Ordering::SeqCst);
        of_looks.fetch_add(usize::from(command.kind == "stream"), Ordering::SeqCst);
        None
    });
    // The second finds its groups there.
    for _ in 0..2 {
        let mut daemon = proxy.spawn(&redis, &["--lease", "1", "worker1"]).ready();
        redis.outcome_of_request(&redis.request("user1", "geb"));
        let before = turns.load(Ordering::SeqCst);
        assert!(eventually(DEADLINE, || turns.load(Ordering::SeqCst) > before + 2));
        assert_eq!(daemon.stop(), 0);
    }
    assert_eq!(looks.load(Ordering::SeqCst), 0);
}

/// More deliveries than Lua can count exactly: the claim was refused at every turn.
#[test]
fn an_event_of_a_dead_instance_is_taken_over_however_often_it_was_delivered() {
    let redis = Redis::new();
    let id = redis.request_at("10-0", "user1", "geb");
    let dead = Other::gone(&redis, "worker2");
    dead.take(REQUESTS);
    let most = i64::MAX.to_string();
    redis.cmd(&["XCLAIM", REQUESTS, "lending_service", "worker2", "0", &id, "RETRYCOUNT", &most]);
    let daemon = Daemon::start(&redis, &["--lease", "1", "worker1"]);
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted", "{}", daemon.log());
}

#[test]
fn an_event_deleted_while_it_was_in_hand_is_rejected_as_vanished() {
    let redis = Redis::new();
    redis.request_at("10-0", "user1", "geb");
    redis.request_at("11-0", "user1", "momo");
    Other::gone(&redis, "worker1").take(REQUESTS);
    redis.cmd(&["XDEL", REQUESTS, "10-0"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let rejected = redis.outcome_of_request("10-0");
    assert_eq!((&*rejected["outcome"], &*rejected["cause"]), ("rejected", "vanished"));
    assert_eq!(redis.outcome_of_request("11-0")["outcome"], "accepted");
    assert_dead_letter(&redis, REQUESTS, "10-0", "vanished", &[]);
    redis.assert_at_rest();
}

#[test]
fn more_fields_in_an_event_choose_no_key_and_change_nothing() {
    let (redis, _daemon) = library(&Ledger::new());
    let id = redis.add(
        REQUESTS,
        "*",
        &[
            ("user_id", b"user1"),
            ("book_ids", b"geb"),
            ("answer", b"user:user2:count"),
            ("reply_to", b"lent_books"),
            ("request_id", b"../../x"),
            ("event_id", b"1-1"),
            ("outcome", b"denied"),
            ("\u{1b}[31m\n", b"\xff\n"),
        ],
    );
    let more = [("book_ids", "geb"), ("in_hand", "1")];
    assert_eq!(redis.outcome_of_request(&id), outcome("request", &id, "user1", "accepted", &more));
    redis.assert_at_rest();
    let mut keys: Vec<_> = redis.everything().without("instance_lock:").0.into_keys().collect();
    let ours = ["lending_book_states", "lending_books_of_users", "shelving_service_answers"];
    keys.retain(|key| !key.ends_with("_event_stream") && !ours.contains(&key.as_str()));
    assert_eq!(keys, [LENT_BOOKS, SHELVES, "user:user1:count"]);
}

/// Lays a spoilt key down, sends a request and a return of user1 and one request of user2, and
/// checks that the first two fail and nothing of the library has changed by them.
fn assert_only_user1_fails(spoil: &[&str]) {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["mine"], "5-0").stored(&["stored"], "5-0").lay_down(&redis);
    redis.cmd(&["DEL", "user:user1:count"]);
    redis.cmd(spoil);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let request = redis.request("user1", "geb,stored");
    let back = redis.give_back("user1", "mine");
    let good = redis.request("user2", "momo");
    assert_eq!(redis.outcome_of_request(&good)["outcome"], "accepted", "{spoil:?}");
    for rejected in [redis.outcome_of_request(&request), redis.outcome_of_return(&back)] {
        assert_eq!(rejected["outcome"], "rejected", "{spoil:?}");
        assert!(rejected.contains_key("cause"), "{rejected:?}");
    }
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.length(DEAD_LETTERS), 2);
    let ledger = redis.ledger();
    assert_eq!(ledger.loans.get("mine").map(String::as_str), Some("user1"));
    assert!(!ledger.loans.contains_key("geb") && !ledger.loans.contains_key("stored"));
    let mut violations = redis.violations();
    violations.retain(|violation| !violation.starts_with("I2: the count of user1"));
    assert_eq!(violations, Vec::<String>::new(), "{spoil:?}");
}

#[test]
fn a_users_count_of_the_wrong_type_fails_only_that_users_events() {
    assert_only_user1_fails(&["RPUSH", "user:user1:count", "1"]);
    assert_only_user1_fails(&["SET", "user:user1:count", "many"]);
    assert_only_user1_fails(&["SET", "user:user1:count", "1.5"]);
}

#[test]
fn a_reservation_of_the_wrong_type_fails_only_that_request() {
    let redis = Redis::new();
    redis.request_at("10-0", "user1", "geb");
    redis.request_at("11-0", "user1", "momo");
    redis.cmd(&["SET", "request:10-0:temp", "geb"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request("10-0")["outcome"], "rejected");
    assert_eq!(redis.outcome_of_request("11-0")["outcome"], "accepted");
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.length(DEAD_LETTERS), 1);
    assert_eq!(redis.ledger(), Ledger::new().lent("user1", &["momo"], "11-0"));
}

const SHARED: [&str; 4] = [LENT_BOOKS, STORAGE, SHELVES, "lending_book_states"];

#[test]
fn a_wrong_type_on_a_shared_key_stops_the_daemon_and_rejects_nothing() {
    for key in SHARED {
        let (redis, mut daemon) = library(&Ledger::new());
        redis.cmd(&["SET", key, "no hash and no set"]);
        let ids: Vec<_> =
            (0..3).map(|n| redis.request(&format!("user{n}"), &format!("book{n}"))).collect();
        assert_eq!(daemon.exit_status(), 78, "{key}: {}", daemon.log());
        assert!(daemon.log().contains(key), "the log does not name {key}: {}", daemon.log());
        assert_eq!(redis.length(DEAD_LETTERS), 0, "{key}");
        assert_eq!(redis.outcomes(), Vec::<Fields>::new(), "{key}");
        // Mended, it goes on where it was.
        redis.cmd(&["DEL", key]);
        let _daemon = Daemon::start(&redis, &["-f", "worker1"]);
        for id in ids {
            assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted", "{key}");
        }
        redis.assert_at_rest();
    }
}

#[test]
fn a_wrong_type_on_a_shared_key_refuses_the_start() {
    for key in SHARED.into_iter().chain([REQUESTS, RETURNS, SHELVING, OUTCOMES, DEAD_LETTERS]) {
        let redis = Redis::new();
        redis.cmd(&["SET", key, "no hash, no set and no stream"]);
        let mut daemon = Daemon::spawn(&redis, &["worker1"]);
        assert_eq!(daemon.exit_status(), 78, "{key}: {}", daemon.log());
        assert!(daemon.log().contains(key), "the log does not name {key}: {}", daemon.log());
        let left: bool = redis.ask(&["EXISTS", "instance_lock:worker1"]);
        assert!(!left, "{key}: the lock is left");
    }
}

/// It said that nothing was consumed, also after it had lent.
#[test]
fn a_key_that_goes_bad_later_is_told_in_words_that_are_true_then_too() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["SET", "lent_books", "no hash"]);
    redis.request("user2", "momo");
    assert_eq!(daemon.exit_status(), 78, "{}", daemon.log());
    let said = "where a hash is expected: nothing is decided while it is so; mend or remove it";
    assert!(daemon.log().contains(said), "{}", daemon.log());
}

/// An earlier version could make a stream of its own lock.
#[test]
fn a_wrong_type_of_the_lock_is_told_with_its_name() {
    let redis = Redis::new();
    redis.cmd(&["LPUSH", "instance_lock:worker1", "no token"]);
    let mut daemon = Daemon::spawn(&redis, &["worker1"]);
    assert_eq!(daemon.exit_status(), 78, "{}", daemon.log());
    let said = "the key instance_lock:worker1 is a list where a string is expected";
    assert!(daemon.log().contains(said), "{}", daemon.log());
}

/// Bytes that are no text.
const NO_TEXT: &[u8] = b"\xff\xfe";
/// It looks like the id of an event, and is larger than any.
const NO_ID: &str = "5-99999999999999999999999";

fn set_field(redis: &Redis, hash: &str, field: &[u8], value: &[u8]) {
    redis.cmd(&[b"HSET", hash.as_bytes(), field, value]);
}

/// Serves these requests, each of which is to be accepted, without a word of trouble.
fn assert_served_without_trouble(redis: &Redis, requests: &[String], tidied: impl Fn() -> bool) {
    let mut daemon = Daemon::start(redis, &["--lease", "1", "worker1"]);
    for request in requests {
        assert_eq!(redis.outcome_of_request(request)["outcome"], "accepted");
    }
    assert!(eventually(DEADLINE, tidied), "{}", daemon.log());
    redis.outcome_of_request(&redis.request("user9", "another"));
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

/// The keeper read the states of books as text, failed at the first that is none, and took the
/// session with it; so did the next session's, for ever. A state that names an id larger than any
/// made the scripts fail in the same way.
#[test]
fn states_of_books_that_are_no_text_or_name_no_event_are_swept_and_end_no_session() {
    let redis = Redis::new();
    let states = "lending_book_states";
    let mut requests = Vec::new();
    set_field(&redis, states, NO_TEXT, b"=1-0");
    for (n, of) in [NO_ID, "x", "", "5-", "5-0-0"].iter().enumerate() {
        for kind in ["=", "?", ">"] {
            let book = format!("book{n}{kind}");
            set_field(&redis, states, book.as_bytes(), format!("{kind}{of}").as_bytes());
            requests.push(redis.request(&format!("user{kind}{n}"), &book));
        }
    }
    for (kind, user) in [(b'=', "user6"), (b'?', "user7"), (b'>', "user8")] {
        let state = [&[kind][..], NO_TEXT].concat();
        set_field(&redis, states, user.as_bytes(), &state);
        requests.push(redis.request(user, user));
    }
    assert_served_without_trouble(&redis, &requests, || {
        let states: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = redis.ask(&["HGETALL", states]);
        states.len() == requests.len()
    });
}

/// The same with notes of events that wait for each other.
#[test]
fn notes_of_ties_that_are_of_no_event_end_no_session() {
    let redis = Redis::new();
    for (event, books) in [(NO_TEXT, NO_TEXT), (b"x", b"y"), (b"", b""), (b"#front", b"x")] {
        set_field(&redis, "lending_ties", event, books);
    }
    redis.request_at("5-0", "user1", "geb");
    let requests = ["5-1", "5-2"].map(|id| redis.request_at(id, "user2", id));
    redis.give_back_at("5-0", "user3", "kim");
    assert_served_without_trouble(&redis, &requests, || true);
}

/// The same with the notes of tries of events that instances died with.
#[test]
fn notes_of_tries_that_are_no_text_or_name_no_event_end_no_session() {
    let redis = Redis::new();
    let notes = "lending_lone_tries";
    for event in [&b"request:x"[..], b"request:5-", b"x:5-0", b"x", b"", NO_TEXT] {
        set_field(&redis, notes, event, b"1 0");
    }
    set_field(&redis, notes, format!("return:{NO_ID}").as_bytes(), b"1 0");
    let request = redis.request_at("9-0", "user1", "geb");
    set_field(&redis, notes, b"request:9-0", NO_TEXT);
    set_field(&redis, notes, b"request:8-0", NO_TEXT);
    let died = Other::gone(&redis, "worker1");
    died.take(REQUESTS);
    let claim = ["XCLAIM", REQUESTS, "lending_service", "worker1", "0", "9-0", "RETRYCOUNT", "5"];
    redis.cmd(&claim);
    assert_served_without_trouble(&redis, &[request], || {
        !redis.ask::<bool>(&["HEXISTS", notes, "request:8-0"])
    });
}

/// What the main storage has noted of a book named an id larger than any: Redis would not tell
/// whether that request is undecided, and whoever asked for the book waited for ever.
#[test]
fn a_book_that_is_out_for_a_request_that_cannot_be_is_waited_for_by_nobody() {
    let redis = Redis::new();
    set_field(&redis, SHELVES, b"geb", NO_ID.as_bytes());
    set_field(&redis, SHELVES, b"kim", NO_TEXT);
    let requests = ["geb,momo", "kim,emma"].map(|books| redis.request(&books[..3], books));
    assert_served_without_trouble(&redis, &requests, || true);
    let unavailable = redis.outcomes().into_iter().filter(|it| it.contains_key("unavailable"));
    assert_eq!(unavailable.count(), 2);
}

/// Consumers whose names are no text were passed over: what such a one had in hand when it died was
/// taken over by nobody, and held up every refusal (I5).
#[test]
fn what_a_consumer_had_in_hand_whose_name_is_no_text_is_taken_over() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    let mut requests = vec![redis.request("user1", "geb"), redis.request("user2", "kim,lent")];
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0"]);
    let read = ["XREADGROUP", "GROUP", "lending_service"].map(str::as_bytes);
    let one = ["COUNT", "1", "STREAMS", REQUESTS, ">"].map(str::as_bytes);
    redis.cmd(&[&read[..], &[NO_TEXT], &one].concat());
    for asked in [&["status"][..], &["status", "--json"]] {
        let said = TestCommand::library_admin(&redis, asked).exits(0).stdout;
        assert!(said.contains("gone"), "{said}");
    }
    requests.push(redis.request("user3", "momo"));
    assert_served_without_trouble(&redis, &requests, || true);
}

#[test]
fn questions_and_checks_get_along_with_bytes_that_are_no_text() {
    let redis = Redis::new();
    for hash in [LENT_BOOKS, SHELVES, "lending_book_states", "lending_books_of_users"] {
        set_field(&redis, hash, NO_TEXT, NO_TEXT);
        set_field(&redis, hash, b"geb", NO_TEXT);
        set_field(&redis, hash, b"kim", format!(">{NO_ID}").as_bytes());
        set_field(&redis, hash, b"momo", format!("?{NO_ID}").as_bytes());
        set_field(&redis, hash, b"emma", NO_ID.as_bytes());
        set_field(&redis, hash, NO_ID.as_bytes(), b"x");
    }
    redis.cmd(&[b"SADD", STORAGE.as_bytes(), NO_TEXT, b"kim"]);
    redis.cmd(&[&b"SET"[..], b"user:\xff:count", NO_TEXT]);
    redis.cmd(&[&b"SADD"[..], b"request:\xff:temp", NO_TEXT]);
    redis.cmd(&["SADD", &format!("request:{NO_ID}:temp"), "geb"]);
    redis.add(SHELVING, "*", &[("book_ids", NO_TEXT)]);
    redis.add(OUTCOMES, "*", &[("event_id", NO_ID.as_bytes()), ("action", NO_TEXT)]);
    redis.add(OUTCOMES, "*", &[("event_id", NO_TEXT), ("outcome", b"accepted")]);
    redis.add(DEAD_LETTERS, "*", &[("stream", NO_TEXT), ("event_id", NO_TEXT)]);
    redis.cmd(&["XGROUP", "CREATE", SHELVING, "shelving_service", "0"]);
    for (args, status) in [
        (&["check"][..], 1),
        (&["check", "--json"], 1),
        (&["check", "--repair"], 1),
        (&["status"], 0),
        (&["dead-letters", "list"], 0),
        (&["dead-letters", "list", "--json"], 0),
    ] {
        TestCommand::library_admin(&redis, args).exits(status);
    }
    for args in [
        &["loans", "emma"][..],
        &["where", "geb", "--show-user"],
        &["where", "kim"],
        &["where", "momo"],
        &["where", "emma"],
        &["history"],
        &["history", "--json"],
    ] {
        TestCommand::library_req(&redis, args).exits(0);
    }
}

/// A lock whose value is no text was no answer that the start understood: it asked again for ever.
#[test]
fn a_lock_that_is_no_text_is_held_like_any_other() {
    let redis = Redis::new();
    redis.cmd(&[b"SET", b"instance_lock:worker1".as_slice(), NO_TEXT]);
    let mut refused = Daemon::spawn(&redis, &["worker1"]);
    assert_eq!(refused.exit_status(), 75, "{}", refused.log());
    redis.cmd(&["PEXPIRE", "instance_lock:worker1", "1000"]);
    assert_eq!(Daemon::start(&redis, &["worker1"]).stop(), 0);
}

#[test]
fn large_malformed_events_end_in_the_dead_letters_all_of_them() {
    let redis = Redis::new();
    let books: Vec<String> = (0..1_000).map(|n| format!("book{n}")).collect();
    let commands: Vec<Vec<String>> = (0..150)
        .map(|n| match n % 3 {
            0 => vec!["XADD".into(), RETURNS.into(), "*".into(), "user_id".into(), "user1".into()],
            _ => ["XADD", REQUESTS, "*", "book_ids", &books.join(",")].map(String::from).to_vec(),
        })
        .collect();
    redis.pipeline(&commands);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    assert!(eventually(DEADLINE, || dead_letters(&redis).len() == 150));
    assert_eq!(redis.outcomes().len(), 151);
    assert_eq!(daemon.stop(), 0);
}

/// Redis takes no MAXLEN beyond 2^63 - 1.
#[test]
fn more_outcomes_than_redis_can_count_are_not_taken_for_a_number() {
    let redis = Redis::new();
    let most = i64::MAX as u64;
    TestCommand::libraryd(&redis, &["--outcomes-kept", &(most + 1).to_string(), "worker1"])
        .exits(2);
    let _daemon = Daemon::start(&redis, &["--outcomes-kept", &most.to_string(), "worker1"]);
    assert_eq!(redis.outcome_of_request(&redis.request("user1", "geb"))["in_hand"], "1");
}
