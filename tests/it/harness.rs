//! The harness itself: a check that cannot fail is worse than none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::*;

/// A state that violates nothing: a book lent, two in storage, a mark of a hand-off long done.
fn sound() -> (Redis, Ledger) {
    let redis = Redis::new();
    let ledger = Ledger::new().lent("user1", &["geb"], "17-0").stored(&["momo", "faust"], "18-0");
    ledger.lay_down(&redis);
    redis.cmd(&["SET", "user:user9:count", "0"]);
    redis.cmd(&["HSET", "lending_book_states", "geb", "=17-0", "emma", ">5-0"]);
    (redis, ledger)
}

#[test]
fn a_sound_state_violates_nothing_and_reads_back_as_it_was_laid_down() {
    let (redis, ledger) = sound();
    assert_eq!(redis.violations(), Vec::<String>::new());
    assert_eq!(redis.ledger(), ledger);
    redis.assert_at_rest();
}

#[test]
fn each_violation_of_an_invariant_is_found() {
    let (redis, ledger) = sound();
    for (spoil, violation) in [
        (&["SADD", STORAGE, "geb"][..], "I1: geb is lent to user1 and in storage"),
        (&["HDEL", SHELVES, "geb"], "I1: geb is lent to user1 and on its shelf"),
        (&["HDEL", SHELVES, "momo"], "I1: momo is in storage and on its shelf"),
        (&["SREM", STORAGE, "momo"], "I1: momo is nowhere"),
        (&["SET", "user:user1:count", "2"], "I2: the count of user1 is 2, with 1 books lent"),
        (&["DEL", "user:user1:count"], "I2: the count of user1 is 0, with 1 books lent"),
        (&["SET", "user:user2:count", "1"], "I2: the count of user2 is 1, with 0 books lent"),
        (&["SADD", "request:17-0:temp", "x"], "I6: request:17-0:temp is left"),
        (&["HSET", "lending_book_states", "x", "?17-0"], "I6: x is still reserved by 17-0"),
        (
            &["HSET", "lending_book_states", "x", "lent"],
            "x has the state \"lent\", which means nothing",
        ),
    ] {
        redis.cmd(spoil);
        assert_eq!(redis.violations(), [violation], "{spoil:?}");
        let rest = catch_unwind(AssertUnwindSafe(|| redis.assert_at_rest()));
        assert!(rest.is_err(), "{spoil:?}");
        redis.cmd(&["FLUSHALL"]);
        ledger.lay_down(&redis);
    }
    Ledger::new()
        .lent("user2", &["1", "2", "3", "4", "5", "6"], "3-0")
        .stored(&["a", "b", "c", "d", "e", "f", "g", "h", "i"], "4-0")
        .stored(&["j", "k", "l", "m", "n", "o", "p", "q", "r"], "4-0")
        .stored(&["s"], "4-0")
        .lay_down(&redis);
    assert_eq!(redis.violations(), ["I2: user2 has 6 books", "I3: 21 books in storage"]);
}

#[test]
fn a_branch_is_judged_by_its_own_keys() {
    let (redis, _) = sound();
    let branch = redis.branch("north");
    assert_eq!(branch.ledger(), Ledger::new());
    branch.cmd(&["SET", "{north}:user:user1:count", "7"]);
    assert_eq!(branch.violations(), ["I2: the count of user1 is 7, with 0 books lent"]);
    assert_eq!(redis.violations(), Vec::<String>::new());
    assert_eq!(branch.branch_name(), Some("north"));
    assert_eq!(branch.key(REQUESTS), "{north}:lending_requests_event_stream");
}

#[test]
fn a_stream_is_drained_when_all_is_delivered_and_acknowledged() {
    let redis = Redis::new();
    let other = Other::alive(&redis, "other");
    assert!(redis.is_drained());
    for (stream, add) in [
        (REQUESTS, Redis::request as fn(&Redis, &str, &str) -> String),
        (RETURNS, Redis::give_back),
        (SHELVING, |redis, _, books| redis.hand_off("*", books)),
    ] {
        let id = add(&redis, "user1", "geb");
        assert!(!redis.is_drained(), "{stream}: nobody has read it");
        assert_eq!(other.take(stream), id);
        assert!(!redis.is_drained(), "{stream}: it is in hand");
        other.acknowledge(stream, &id);
        assert!(redis.is_drained(), "{stream}");
    }
}

#[test]
fn a_replay_finds_what_cannot_have_happened() {
    let lent = |id: &str, user: &str, in_hand: &str| {
        outcome("request", id, user, "accepted", &[("book_ids", "geb"), ("in_hand", in_hand)])
    };
    let back = outcome("return", "18-0", "a", "returned", &[("book_ids", "geb"), ("in_hand", "0")]);
    let refused = |user: &str, list: &str| {
        let more = [("cause", "none_available"), (list, "geb"), ("in_hand", "0")];
        outcome("request", "9-0", user, "denied", &more)
    };
    let fails = |outcomes: &[Fields]| {
        catch_unwind(AssertUnwindSafe(|| Ledger::new().replay(outcomes))).is_err()
    };
    let first = lent("17-0", "a", "1");
    assert!(!fails(&[first.clone(), back.clone(), lent("19-0", "b", "1")]));
    assert!(!fails(&[first.clone(), refused("b", "lent_to_another")]));
    assert!(fails(&[first.clone(), lent("19-0", "b", "1")]), "lent twice");
    assert!(fails(&[lent("17-0", "b", "1"), back.clone()]), "taken from somebody else");
    assert!(fails(&[lent("17-0", "a", "2")]), "a wrong count");
    assert!(fails(&[refused("a", "lent_to_another")]), "refused though nobody has it");
    assert!(fails(&[first, refused("b", "already_yours")]), "refused for the wrong reason");
}

#[test]
fn a_server_with_an_append_only_file_keeps_its_data_over_a_kill() {
    let redis = Redis::tcp(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = redis.url();
    redis.request_at("17-0", "user1", "geb");
    let before = redis.everything();
    redis.kill9();
    assert!(redis.try_ask::<String>(&["PING"]).is_err());
    redis.restart();
    assert_eq!(redis.everything(), before);
    assert_eq!(redis.url(), url);
    assert!(format!("{before}").contains("17-0 user_id=user1 book_ids=geb"));
}

fn alive(pid: u32) -> bool {
    let mut kill = Command::new("kill");
    kill.args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn dropping_a_server_ends_it() {
    let redis = Redis::new();
    let pid = redis.pid();
    assert!(alive(pid));
    drop(redis);
    assert!(!alive(pid));
}

/// This test alone, in a process of its own in which `role` is set.
fn play(role: &str, test: &str) -> Command {
    let mut runner = Command::new(std::env::current_exe().unwrap());
    runner.args(["--exact", test, "--nocapture"]).env(role, "1").stderr(Stdio::null());
    runner
}

#[test]
fn a_test_that_fails_prints_all_logs_and_what_redis_held() {
    const FAILS: &str = "LIBRARY_TEST_FAILS";
    if std::env::var_os(FAILS).is_some() {
        let (redis, _daemon) = library(&Ledger::new().lent("user1", &["geb"], "17-0"));
        redis.request_at("18-0", "user1", "momo");
        redis.outcome_of_request("18-0");
        panic!("as it is meant to");
    }
    let test = "harness::a_test_that_fails_prints_all_logs_and_what_redis_held";
    let output = play(FAILS, test).output().unwrap();
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "---- redis.log",
        "Ready to accept connections",
        "---- libraryd-0.log",
        "18-0 by user1",
        "lent_books: Hash({\"geb\": \"user1\", \"momo\": \"user1\"})",
    ] {
        let printed = printed.to_lowercase();
        assert!(printed.contains(&expected.to_lowercase()), "no {expected:?} in {printed}");
    }
}

#[test]
fn a_killed_test_runner_leaves_no_process_behind() {
    use std::io::{BufRead as _, BufReader};
    const HANG: &str = "LIBRARY_TEST_HANGS";
    if std::env::var_os(HANG).is_some() {
        // This is the runner that is killed.
        let redis = Redis::new();
        println!("redis-server is {}", redis.pid());
        assert!(stays(Duration::from_secs(60), || true));
    }
    let test = "harness::a_killed_test_runner_leaves_no_process_behind";
    let mut runner = play(HANG, test).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(runner.stdout.take().unwrap()).lines();
    let pid = loop {
        let line = lines.next().expect("it prints the server's pid").unwrap();
        if let Some((_, pid)) = line.split_once("redis-server is ") {
            break pid.parse().unwrap();
        }
    };
    assert!(alive(pid));
    runner.kill().unwrap();
    runner.wait().unwrap();
    assert!(eventually(DEADLINE, || !alive(pid)), "redis-server {pid} outlived its test");
}
