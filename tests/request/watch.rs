//! Outcomes as they happen, and those that were dropped before they could be read.

use std::io::{BufRead as _, BufReader, PipeReader, pipe};

use redis::Connection;

use crate::common::*;
use crate::harness::*;

/// One that watches, and its lines, by a pipe: that can be full, and nobody may read it any more.
fn watch(redis: &Redis) -> (Running, BufReader<PipeReader>) {
    let (reader, writer) = pipe().unwrap();
    let child = start_with(redis, &["watch"], |command| {
        command.stdout(writer);
    });
    (child, BufReader::new(reader))
}

#[test]
fn watch_tells_outcomes_as_they_happen_and_survives_a_restart_of_redis() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut db = redis.connect().unwrap();
    record(&mut db, "1000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "old"]);
    let (child, mut lines) = watch(&redis);
    let mut line = String::new();
    until_blocked(&mut db, "xread");
    record(&mut db, "2000-0", "request:2-0", "u", &["outcome", "accepted", "book_ids", "new"]);
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "1970-01-01T00:00:02.000Z request 2-0: lent to a user: new\n");
    redis.kill9();
    redis.restart();
    let mut db = redis.connect().unwrap();
    record(&mut db, "3000-0", "return:3-0", "u", &["outcome", "returned", "book_ids", "new"]);
    line.clear();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "1970-01-01T00:00:03.000Z return 3-0: taken back from a user: new\n");
    // Nobody reads any more: it ends by itself, quietly.
    drop(lines);
    record(&mut db, "4000-0", "return:4-0", "u", &["outcome", "returned", "book_ids", "new"]);
    let ended = child.ends();
    assert_eq!(ended.status(), Some(0), "{ended}");
    assert!(ended.stderr.contains("lost Redis at") && ended.stderr.contains("is back"), "{ended}");
}

#[test]
fn watch_says_if_outcomes_were_dropped_before_it_could_read_them() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut db = redis.connect().unwrap();
    record(&mut db, "1000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "old"]);
    let (mut child, mut lines) = watch(&redis);
    until_blocked(&mut db, "xread");
    // Stopped, it is cut off; before it comes back, three happen and two are dropped.
    child.process.signal(Signal::STOP);
    redis.kill9();
    redis.restart();
    let mut db = redis.connect().unwrap();
    record(&mut db, "2000-0", "request:2-0", "u", &["outcome", "accepted", "book_ids", "missed"]);
    record(&mut db, "2000-1", "request:2-1", "u", &["outcome", "accepted", "book_ids", "missed"]);
    record(&mut db, "3000-0", "request:3-0", "u", &["outcome", "accepted", "book_ids", "new"]);
    let trim = [OUTCOMES, "MINID", "3000"];
    redis::cmd("XTRIM").arg(&trim).exec(&mut db).unwrap();
    child.process.signal(Signal::CONT);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "1970-01-01T00:00:03.000Z request 3-0: lent to a user: new\n");
    // What is dropped once it was read is not missed.
    for id in ["4000-0", "5000-0"] {
        record(&mut db, id, "request:4-0", "u", &["outcome", "accepted", "book_ids", "newer"]);
        lines.read_line(&mut line).unwrap();
        redis::cmd("XTRIM").arg(&[OUTCOMES, "MAXLEN", "1"]).exec(&mut db).unwrap();
    }
    child.process.kill9();
    let ended = child.ends();
    let dropped = "outcomes before 1970-01-01T00:00:03.000Z were dropped before they could be read";
    assert!(ended.stderr.contains(dropped), "{ended}");
    assert_eq!(ended.stderr.matches("dropped").count(), 1, "{ended}");
}

#[test]
fn watch_says_if_outcomes_were_dropped_while_nobody_read_what_it_writes() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let (mut child, lines) = watch(&redis);
    until_blocked(&mut db, "xread");
    // More than a pipe holds: it cannot go on until somebody reads.
    let book = "b".repeat(200);
    for n in 1..=900 {
        let fields = ["outcome", "accepted", "book_ids", &*book];
        record(&mut db, &format!("{n}-0"), "request:1-0", "u", &fields);
    }
    let mut away = 0;
    until("it asks for no more", || {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut db).unwrap();
        away = if clients.contains("flags=b") { 0 } else { away + 1 };
        away == 50
    });
    for n in 1_001..=1_003 {
        record(&mut db, &format!("{n}-0"), "request:1-0", "u", &["outcome", "accepted"]);
    }
    let trim = [OUTCOMES, "MINID", "1003"];
    redis::cmd("XTRIM").arg(&trim).exec(&mut db).unwrap();
    let last = lines.lines().map(Result::unwrap).find(|line| line.contains("01.003Z"));
    assert!(last.is_some());
    child.process.kill9();
    let ended = child.ends();
    let dropped = "outcomes before 1970-01-01T00:00:01.003Z were dropped before they could be read";
    assert!(ended.stderr.contains(dropped), "{ended}");
}

/// Where it began before the first outcome, or after all had been dropped, it said nothing of what was
/// dropped before it could read.
#[test]
fn watch_tells_of_dropped_outcomes_wherever_it_began_and_raises_no_false_alarm() {
    for (emptied, dropped) in [(false, false), (false, true), (true, false), (true, true)] {
        let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let mut db = redis.connect().unwrap();
        let trim = |db: &mut Connection, kept: usize| {
            let args = [OUTCOMES, "MAXLEN", &kept.to_string()];
            redis::cmd("XTRIM").arg(&args).exec(db).unwrap();
        };
        if emptied {
            record(&mut db, "1-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "old"]);
            trim(&mut db, 0);
        }
        let (mut child, mut lines) = watch(&redis);
        until_blocked(&mut db, "xread");
        // Stopped, it is cut off; it reads when it comes back.
        redis.kill9();
        child.process.signal(Signal::STOP);
        redis.restart();
        let mut db = redis.connect().unwrap();
        for (id, book) in [("1000-0", "missed"), ("2000-0", "geb")] {
            let fields = ["outcome", "accepted", "book_ids", book];
            record(&mut db, id, "request:1-0", "u", &fields);
        }
        if dropped {
            trim(&mut db, 1);
        }
        child.process.signal(Signal::CONT);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains(if dropped { "geb" } else { "missed" }), "{line}");
        child.process.kill9();
        let ended = child.ends();
        assert!(ended.stderr.contains("is back"), "{ended}");
        let told =
            "outcomes before 1970-01-01T00:00:02.000Z were dropped before they could be read";
        assert_eq!(ended.stderr.contains(told), dropped, "{ended}");
        assert_eq!(ended.stderr.contains("dropped"), dropped, "{ended}");
    }
}

/// What it had read when there was no stream yet it did not count: it said that it had missed as much, as soon
/// as the stream was trimmed.
#[test]
fn watch_counts_the_very_first_outcomes_too() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let (mut child, mut lines) = watch(&redis);
    until_blocked(&mut db, "xread");
    let mut burst = redis::pipe();
    burst.atomic();
    for n in 1..=50 {
        burst.cmd("XADD").arg(OUTCOMES).arg(format!("{n}-0"));
        burst.arg(&["event_id", "1-0", "action", "request", "user_id", "u", "outcome", "accepted"]);
    }
    burst.exec(&mut db).unwrap();
    let mut line = String::new();
    for _ in 0..50 {
        lines.read_line(&mut line).unwrap();
    }
    redis::cmd("XTRIM").arg(&[OUTCOMES, "MAXLEN", "10"]).exec(&mut db).unwrap();
    record(&mut db, "1000-0", "request:2-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("geb"), "{line}");
    // Behind the answer to the next question, to which it would say so.
    until_blocked(&mut db, "xread");
    record(&mut db, "2000-0", "request:3-0", "u", &["outcome", "accepted", "book_ids", "momo"]);
    lines.read_line(&mut line).unwrap();
    child.process.kill9();
    let ended = child.ends();
    assert_eq!(ended.stderr, "", "{ended}");
}

/// The system ends a wait for Redis when a process goes on that was stopped (Ctrl-Z and fg), and it was
/// told as the loss of Redis.
#[test]
fn watch_that_was_stopped_goes_on_without_a_word() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let (mut child, mut lines) = watch(&redis);
    until_blocked(&mut db, "xread");
    child.process.signal(Signal::STOP);
    until_state(&child, 'T');
    child.process.signal(Signal::CONT);
    record(&mut db, "1000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("geb"), "{line}");
    child.process.kill9();
    let ended = child.ends();
    assert_eq!(ended.stderr, "", "{ended}");
}

/// Where connecting works and nothing behind it, ten pairs of lines a second said that Redis was lost, and
/// back.
#[test]
fn watch_tells_an_outage_and_its_end_once_each() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let (mut child, mut lines) = watch(&redis);
    until_blocked(&mut db, "xread");
    // The connection that is open goes on; whoever comes new is accepted and turned away.
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).exec(&mut db).unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec(&mut db).unwrap();
    let turned_away = |db: &mut Connection| -> usize {
        let stats: String = redis::cmd("INFO").arg("stats").query(db).unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("rejected_connections:"));
        line.unwrap().trim().parse().unwrap()
    };
    until("it has tried a few times", || turned_away(&mut db) >= 3);
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "100"]).exec(&mut db).unwrap();
    record(&mut db, "1000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("geb"), "{line}");
    child.process.kill9();
    let ended = child.ends();
    assert_eq!(ended.stderr.matches("lost Redis at").count(), 1, "{ended}");
    assert_eq!(ended.stderr.matches("is back").count(), 1, "{ended}");
}
