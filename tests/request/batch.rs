//! Many events from a file: once each, in the order of their lines, whoever else is at work.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use library_lending::request::submit::Chunk;
use redis::{Commands as _, Connection};

use crate::common::*;
use crate::harness::*;

#[test]
fn a_batch_and_its_answers_are_known_as_long_as_was_asked_for() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = redis.directory().join("events");
    fs::write(&file, "return u geb\n").unwrap();
    let batch = ["batch", file.to_str().unwrap(), "--batch-id", "night"];
    let run = req(&redis, &[&batch[..], &["--timeout", "0", "--remember", "3d"]].concat());
    assert_eq!(run.status(), Some(3), "{run}");
    const DAY_S: i64 = 24 * 3_600;
    let left: i64 = db.ttl("lending_batch:night:0").unwrap();
    assert!((2 * DAY_S..=3 * DAY_S).contains(&left), "{left}");
    let entries = entries(&mut db, RETURNS);
    assert!(format!("{entries:?}").contains("keep:259200000"), "{entries:?}");
}

#[test]
fn a_batch_with_bad_lines_sends_nothing_unless_told_to_send_the_good_ones() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = redis.directory().join("events");
    let input = b"request user1 geb,x momo\n# a comment\n\nlend x y\nreturn 'Jorge Luis' \"a b\"\n\
                  request u last";
    fs::write(&file, input).unwrap();
    let file = file.to_str().unwrap();
    let rejected = format!("{file}.rejected");
    let told = format!(
        "library-req: line 1: book id \"geb,x\" has a comma in it\n\
         library-req: line 4: begins with \"lend\", not with request or return\n\
         library-req: the bad lines are in {rejected}\n"
    );
    req(&redis, &["batch", file, "--no-wait"]).is(
        2,
        "",
        &format!(
            "{told}library-req: 2 bad lines, 2 good: nothing was sent (--partial sends the \
             good ones)\n"
        ),
    );
    assert!(entries(&mut db, REQUESTS).is_empty());
    assert_eq!(fs::read_to_string(&rejected).unwrap(), "request user1 geb,x momo\nlend x y\n");
    req(&redis, &["batch", file, "--no-wait", "--partial"]).is(
        2,
        "line 1: book id \"geb,x\" has a comma in it\n\
         line 4: begins with \"lend\", not with request or return\nOK\nOK\n",
        &format!("{told}library-req: 2 events queued; 2 bad lines not sent\n"),
    );
    assert_eq!(entries(&mut db, REQUESTS)[0].1, ["user_id", "u", "book_ids", "last"]);
    assert_eq!(entries(&mut db, RETURNS)[0].1, ["user_id", "Jorge Luis", "book_ids", "a b"]);
}

/// The manual had results of what is only sent, and the command did not take both options. Without results there was
/// no way to learn the ids but JSON.
#[test]
fn what_nobody_waits_for_has_results_with_ids() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = redis.directory().join("results.csv");
    let no_wait = ["batch", "--no-wait", "--partial", "--results"];
    let run = |results: &str| {
        req_fed(&redis, &[&no_wait[..], &[results]].concat(), b"request u geb\nlend x y\n")
    };
    let ended = run(file.to_str().unwrap());
    assert_eq!((ended.status(), ended.stdout.as_str()), (Some(2), ""), "{ended}");
    let id = &entries(&mut db, REQUESTS)[0].0;
    let written = fs::read_to_string(&file).unwrap();
    let rows: Vec<_> = written.lines().skip(1).map(|row| row.trim_end_matches(',')).collect();
    let bad = "2,,,bad_line,\"begins with \"\"lend\"\", not with request or return\"";
    assert_eq!(rows, [format!("1,request,{id},queued").as_str(), bad]);
    assert_eq!(run("-").stdout, written, "sent once");
}

/// Whoever could write to the spool of the nightly returns could borrow for anybody.
#[test]
fn lines_of_the_other_kind_are_bad_where_only_one_is_taken() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let batch = ["batch", "--no-wait", "--partial", "--json", "--only"];
    for (only, line) in [("return", 2), ("request", 1)] {
        let lines = b"return u a\nrequest u b\n";
        let ended = req_fed(&redis, &[&batch[..], &[only]].concat(), lines);
        let other = if only == "return" { "request" } else { "return" };
        let said =
            format!("library-req: line {line}: is a {other}, and not taken with --only {only}\n");
        assert!(ended.stderr.starts_with(&said), "{ended}");
        assert_eq!((ended.status(), ended.stdout.lines().count()), (Some(2), 2), "{ended}");
    }
    assert_eq!(entries(&mut db, RETURNS)[0].1[3], "a");
    assert_eq!(entries(&mut db, REQUESTS)[0].1[3], "b");
    assert_eq!((entries(&mut db, RETURNS).len(), entries(&mut db, REQUESTS).len()), (1, 1));
}

/// The nightly unit is not repeated after 2, so one bad line left a night's results incomplete.
#[test]
fn a_batch_with_bad_lines_and_unanswered_ones_is_worth_repeating() {
    let redis = Redis::new();
    let batch = ["batch", "-", "--partial", "--timeout", "0.2", "--rejected", "/dev/null"];
    let ended = req_fed(&redis, &batch, b"request u a\nlend x y\n");
    assert_eq!(ended.status(), Some(3), "{ended}");
    assert!(!ended.stderr.contains("the bad lines are in"), "nobody finds them there: {ended}");
}

/// It told of `1 event queued (1 of them by an earlier run)`.
#[test]
fn one_event_is_no_plural() {
    let redis = Redis::new();
    for earlier in ["", " (by an earlier run)"] {
        let ended = req_fed(&redis, &["batch", "--no-wait"], b"request u a\n");
        ended.is(0, "OK\n", &format!("library-req: 1 event queued{earlier}\n"));
    }
}

#[test]
fn a_batch_keeps_the_order_of_its_lines_across_both_streams_and_is_sent_once() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    const PAIRS: usize = 5_000;
    let lines = many_lines(2 * PAIRS);
    for earlier in ["", " (10000 of them by an earlier run)"] {
        let ended = req_fed(&redis, &["batch", "-", "--no-wait"], lines.as_bytes());
        let told = format!("library-req: 10000 events queued{earlier}\n");
        ended.is(0, &"OK\n".repeat(2 * PAIRS), &told);
    }
    assert!(sent_lines(&mut db) == lines, "the order of the ids is that of the lines");
    // Under another name it is another batch.
    let ended = req_fed(&redis, &["batch", "--no-wait", "-q", "--batch-id", "b"], lines.as_bytes());
    ended.is(0, "", "");
    assert_eq!(entries(&mut db, REQUESTS).len(), 2 * PAIRS);
    let ended = req_fed(&redis, &["batch", "--no-wait", "--batch-id", "b"], b"return u b\n");
    assert_eq!(ended.status(), Some(2), "{ended}");
    assert!(ended.stderr.contains("with other content"), "{ended}");
    assert!(ended.stderr.ends_with("); nothing was sent\n"), "{ended}");
    assert_eq!(entries(&mut db, RETURNS).len(), 2 * PAIRS);
}

#[test]
fn two_runs_of_one_batch_at_once_send_it_once_and_in_its_order() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let mut lines = String::new();
    for (n, run) in [100, 3, 1, 40, 32, 31, 1_200, 700, 2].into_iter().cycle().take(60).enumerate()
    {
        let action = if n % 2 == 0 { "request" } else { "return" };
        for book in 0..run {
            lines.push_str(&format!("{action} u{n} b{book}\n"));
        }
    }
    let file = redis.directory().join("events");
    fs::write(&file, &lines).unwrap();
    for args in [&["--no-wait"][..], &["--timeout", "0", "--batch-id", "waits"]] {
        let _: () = db.del(&[REQUESTS, RETURNS]).unwrap();
        let args = [&["batch", file.to_str().unwrap()], args].concat();
        let runs = [0, 1, 2].map(|_| start(&redis, &args));
        for run in runs {
            let ended = run.ends();
            assert!(matches!(ended.status(), Some(0 | 3)), "{:?} {}", ended.status(), ended.stderr);
        }
        assert!(sent_lines(&mut db) == lines, "all lines, each once, in order: {args:?}");
    }
}

#[test]
fn a_permission_that_is_missing_within_a_script_ends_a_batch_at_once() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let rights = ["SETUSER", "half", "on", ">pw", "~*", "+@all", "-xadd"];
    redis::cmd("ACL").arg(&rights).exec(&mut db).unwrap();
    let begun = Instant::now();
    let args = ["--username=half", "--password=pw", "batch"];
    let ended = req_fed(&redis, &args, b"request u geb\n");
    assert!(begun.elapsed() < Duration::from_secs(5), "it is not tried again and again");
    assert_eq!(ended.status(), Some(4), "{ended}");
    for words in
        ["this Redis user needs more permissions", "; this run has queued nothing; run the same"]
    {
        assert!(ended.stderr.contains(words), "{ended}");
    }
}

#[test]
fn a_batch_whose_permissions_are_taken_away_in_the_middle_can_be_run_again() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = many_lines(12_000);
    let file = redis.directory().join("events");
    fs::write(&file, &lines).unwrap();
    let args = ["batch", file.to_str().unwrap(), "--no-wait", "-q"];
    let args = [&args[..], &["--username", "half", "--password", "pw"]].concat();
    for taken in ["-set", "-get", "-xadd", "-eval", "-client|reply", "-type", "-@write"] {
        redis::cmd("FLUSHALL").exec(&mut db).unwrap();
        let give = |db: &mut Connection, right: &str| {
            let rights = ["SETUSER", "half", "on", ">pw", "~*", "+@all", right];
            redis::cmd("ACL").arg(&rights).exec(db).unwrap();
        };
        give(&mut db, "+@all");
        let batch = start(&redis, &args);
        until("some are sent", || redis.length(RETURNS) >= 500);
        give(&mut db, taken);
        let ended = batch.ends();
        // Now and then it is done before.
        assert!(matches!(ended.status(), Some(0 | 4)), "{taken}: {ended}");
        let said = ended.stderr.contains("run the same again to go on");
        assert_eq!(said, ended.status() == Some(4), "{taken}: {ended}");
        give(&mut db, "+@all");
        req(&redis, &args).is(0, "", "");
        assert!(sent_lines(&mut db) == lines, "all lines, each once, in order: {taken}");
    }
}

#[test]
fn a_batch_among_other_senders_keeps_its_order_and_is_sent_once() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = many_lines(20_000);
    let file = redis.directory().join("events");
    fs::write(&file, &lines).unwrap();
    let mut batch = start(&redis, &["batch", file.to_str().unwrap(), "--no-wait", "-q"]);
    // Each of them takes an id that a chunk under way was to have.
    let mut others = 0;
    while batch.process.ended().is_none() {
        for stream in [REQUESTS, RETURNS] {
            let event = [stream, "*", "user_id", "other", "book_ids", "x"];
            redis::cmd("XADD").arg(&event).exec(&mut db).unwrap();
            others += 1;
        }
    }
    batch.ends().is(0, "", "");
    let sent = sent_lines(&mut db);
    let ours: String = sent.split_inclusive('\n').filter(|line| !line.contains("other")).collect();
    assert!(ours == lines, "all lines, each once, in order");
    assert_eq!(sent.lines().count(), 20_000 + others);
}

#[test]
fn one_event_of_another_sender_shuts_out_only_what_is_under_way() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = many_lines(30_000);
    let file = redis.directory().join("events");
    fs::write(&file, &lines).unwrap();
    let batch = start(&redis, &["batch", file.to_str().unwrap(), "--no-wait", "-q"]);
    until("some are sent", || redis.length(RETURNS) >= 500);
    let event = [REQUESTS, "*", "user_id", "other", "book_ids", "x"];
    redis::cmd("XADD").arg(&event).exec(&mut db).unwrap();
    batch.ends().is(0, "", "");
    // Of 60 chunks, those that were under way are sent twice.
    let sent = redis.calls_of("eval");
    assert!((60..=70).contains(&sent), "{sent} times");
}

#[test]
fn a_batch_that_was_killed_in_the_middle_and_run_again_is_sent_once_and_in_order() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = many_lines(40_000);
    let file = redis.directory().join("events");
    fs::write(&file, &lines).unwrap();
    let args = ["batch", file.to_str().unwrap(), "--no-wait", "-q"];
    for killed_at in [1, 7_000, 19_000] {
        redis::cmd("FLUSHALL").exec(&mut db).unwrap();
        let mut first = start(&redis, &args);
        until("so many are sent", || redis.length(RETURNS) >= killed_at);
        first.process.kill9();
        req(&redis, &args).is(0, "", "");
        assert!(sent_lines(&mut db) == lines, "all lines, each once, in order: {killed_at}");
    }
}

#[test]
fn a_chunk_that_one_stream_cannot_take_is_added_to_neither() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = "request u b\n".repeat(100) + "return u b\n";
    for wait in ["--no-wait", "--json"] {
        let _: () = db.set(RETURNS, "x").unwrap();
        let ended = req_fed(&redis, &["batch", wait], lines.as_bytes());
        assert_eq!(ended.status(), Some(4), "{ended}");
        assert!(ended.stderr.contains("is no stream"), "{ended}");
        assert!(entries(&mut db, REQUESTS).is_empty());
        let _: () = db.del(RETURNS).unwrap();
        let end = format!("18446744073709551615-{}", u64::MAX);
        let _: String = redis::cmd("XADD").arg(&[RETURNS, &end, "f", "v"]).query(&mut db).unwrap();
        let ended = req_fed(&redis, &["batch", wait], lines.as_bytes());
        assert!(ended.stderr.contains("used up all ids"), "{ended}");
        assert!(entries(&mut db, REQUESTS).is_empty());
        let _: () = db.del(RETURNS).unwrap();
    }
}

#[test]
fn a_full_redis_takes_no_part_of_a_batch() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let set = |db: &mut Connection, bytes: &str| {
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec(db).unwrap();
    };
    set(&mut db, "1");
    let lines = "request u b\n".repeat(100);
    let args = ["batch", "--no-wait", "--timeout", "0.2", "-q"];
    let ended = req_fed(&redis, &args, lines.as_bytes());
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("OOM"), "{ended}");
    assert!(entries(&mut db, REQUESTS).is_empty());
    set(&mut db, "0");
    req_fed(&redis, &args, lines.as_bytes()).is(0, "", "");
    assert!(sent_lines(&mut db) == lines);
}

#[test]
fn a_batch_writes_a_result_for_every_line_and_so_does_a_second_run() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    alive(&mut db, REQUESTS, "worker1");
    alive(&mut db, RETURNS, "worker1");
    let file = redis.directory().join("events");
    const PAIRS: usize = 500;
    fs::write(&file, many_lines(2 * PAIRS)).unwrap();
    let csv = redis.directory().join("results.csv");
    let args = ["batch", file.to_str().unwrap(), "--results", csv.to_str().unwrap()];
    let child = start(&redis, &args);
    until("all events arrive", || {
        [REQUESTS, RETURNS].map(|stream| redis.length(stream)) == [PAIRS, PAIRS]
    });
    answer_all(&mut db);
    let ended = child.ends();
    // Denied is a refusal; a return of what nobody has is none.
    ended.is(1, "", "library-req: 1000 events queued: 950 done, 50 refused\n");
    let results = fs::read_to_string(&csv).unwrap();
    let rows: Vec<&str> = results.lines().collect();
    assert_eq!(rows.len(), 1 + 2 * PAIRS);
    let id = entries(&mut db, REQUESTS)[1].0.clone();
    assert_eq!(rows[3], format!("3,request,{id},denied,none_available,,,b1,,,"));
    assert!(rows[4].starts_with("4,return,") && rows[4].ends_with(",unchanged,,,,,,b1,"));
    fs::remove_file(&csv).unwrap();
    let again = req(&redis, &args);
    again.is(
        1,
        "",
        "library-req: 1000 events queued (1000 of them by an earlier run): 950 done, 50 refused\n",
    );
    assert_eq!(fs::read_to_string(&csv).unwrap(), results);
    let json = req(&redis, &["batch", file.to_str().unwrap(), "--json"]);
    assert_eq!(json.stdout.lines().count(), 2 * PAIRS);
    assert!(json.stdout.lines().nth(1).unwrap().contains("\"outcome\":\"returned\""));
}

#[test]
fn a_batch_that_nobody_answers_ends_with_3_and_its_results_say_so() {
    let redis = Redis::new();
    let ended =
        req_fed(&redis, &["batch", "--timeout", "0.3", "--json"], b"request u a\nrequest u b\n");
    assert_eq!(ended.status(), Some(3), "{ended}");
    assert_eq!(ended.stdout.matches("\"unanswered\"").count(), 2, "{ended}");
    assert!(ended.stderr.contains("2 unanswered so far"), "{ended}");
    assert!(ended.stderr.contains("library-req: no libraryd is running on "), "{ended}");
    assert_eq!(
        ended.stderr.lines().count(),
        2,
        "a log is told now and then how far it is: {ended}"
    );
}

/// Answers those of the requests in their stream, counted from 0, that `has_answer` picks.
fn answer_requests(db: &mut Connection, has_answer: impl Fn(usize) -> bool) {
    for (n, (id, _)) in entries(db, REQUESTS).iter().enumerate().filter(|(n, _)| has_answer(*n)) {
        answer(db, &format!("request:{id}"), &["outcome", "accepted", "book_ids", &n.to_string()]);
    }
}

/// Each chunk was waited for anew: with --timeout 600 a batch of 100,000 lines took 33 hours.
#[test]
fn a_batch_in_which_each_chunk_has_a_line_without_an_outcome_takes_one_timeout() {
    const CHUNKS: usize = 6;
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = redis.directory().join("events");
    let lines: Vec<String> =
        (0..CHUNKS * Chunk::MAX_EVENTS).map(|n| format!("request u {n}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    let run = |timeout: &str| {
        let begun = Instant::now();
        let ended = req(&redis, &["batch", file.to_str().unwrap(), "-q", "--timeout", timeout]);
        (ended.status(), begun.elapsed())
    };
    assert_eq!(run("0").0, Some(3));
    assert_eq!(redis.calls_of("exists"), 0, "who does not wait needs not know what comes later");
    answer_requests(&mut db, |n| n % Chunk::MAX_EVENTS != 250);
    let (status, took) = run("3");
    assert_eq!(status, Some(3));
    // Waited for one by one, the chunks take six times as long.
    assert!((3..12).contains(&took.as_secs()), "it took {took:?}");
    let counted = redis.calls_of("exists");
    answer_requests(&mut db, |n| n % Chunk::MAX_EVENTS == 250);
    assert_eq!(run("1").0, Some(0));
    assert_eq!(redis.calls_of("exists"), counted, "nothing was waited for");
}

/// The outcome of a line that waits for others comes after those of many later lines.
#[test]
fn a_line_is_waited_for_while_outcomes_of_later_chunks_come() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines: String = (0..2 * Chunk::MAX_EVENTS).map(|n| format!("request u {n}\n")).collect();
    let args = ["batch", "--json", "--timeout", "2"];
    let mut batch = start_fed(&redis, &args, lines.as_bytes());
    until("all events arrive", || redis.length(REQUESTS) == 2 * Chunk::MAX_EVENTS);
    answer_requests(&mut db, |n| (1..Chunk::MAX_EVENTS).contains(&n));
    // For more than twice the timeout.
    let (begun, mut answered) = (Instant::now(), Chunk::MAX_EVENTS);
    while begun.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(100));
        answer_requests(&mut db, |n| n == answered);
        answered += 1;
    }
    assert_eq!(batch.process.ended(), None, "it waits");
    answer_requests(&mut db, |n| n == 0 || n >= answered);
    let ended = batch.ends();
    assert_eq!(ended.status(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout.matches("\"accepted\"").count(), 2 * Chunk::MAX_EVENTS);
}

#[test]
fn a_batch_is_waited_for_as_long_as_outcomes_come_from_its_beginning_or_from_its_end() {
    const LINES: usize = 40;
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let batches = [("request", REQUESTS), ("return", RETURNS)].map(|(word, stream)| {
        let lines: String = (0..LINES).map(|n| format!("{word} u {n}\n")).collect();
        let batch = start_fed(&redis, &["batch", "--timeout", "1", "-q"], lines.as_bytes());
        until("all events arrive", || entries(&mut db, stream).len() == LINES);
        batch
    });
    let ids = [REQUESTS, RETURNS].map(|stream| entries(&mut db, stream));
    // For three times the timeout.
    for n in 0..LINES {
        thread::sleep(Duration::from_millis(75));
        for event in
            [format!("request:{}", ids[0][n].0), format!("return:{}", ids[1][LINES - 1 - n].0)]
        {
            answer(&mut db, &event, &["outcome", "returned"]);
        }
    }
    for batch in batches {
        batch.ends().is(0, "", "");
    }
}

#[test]
fn who_may_not_count_answers_waits_for_them_all_the_same() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">pw", "~*", "+@all", "-exists"]);
    let args = ["batch", "--timeout", "0.2", "-q", "--username", "clerk", "--password", "pw"];
    let lines = many_lines(2 * Chunk::MAX_EVENTS);
    req_fed(&redis, &args, lines.as_bytes()).is(3, "", "");
}

#[test]
fn a_batch_that_redis_refuses_says_what_is_queued_and_that_it_can_be_run_again() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let _: () = db.set(RETURNS, "x").unwrap();
    let ended = req_fed(&redis, &["batch"], b"request u b\nrequest u c\n");
    assert_eq!((ended.status(), &*ended.stdout), (Some(4), ""), "{ended}");
    assert!(ended.stderr.contains("; this run has queued nothing; run the same again"), "{ended}");
}
