//! One request or return: how it is queued, and how its outcome is told.

use std::fs::File;
use std::io::pipe;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use redis::{Commands as _, Connection};

use crate::common::*;
use crate::harness::*;

#[test]
fn an_event_has_the_fields_of_the_reference_client_and_a_wish_for_an_answer() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    req(&redis, &["request", "user1", "geb", "momo", "geb", "--no-wait"]).is(0, "OK\n", "");
    req(&redis, &["--no-wait", "return", "--", "user1", "--geb"]).is(0, "OK\n", "");
    let requests = entries(&mut db, REQUESTS);
    assert_eq!(requests[0].1, ["user_id", "user1", "book_ids", "geb,momo"]);
    assert_eq!(entries(&mut db, RETURNS)[0].1, ["user_id", "user1", "book_ids", "--geb"]);
    req(&redis, &["request", "user1", "geb", "--timeout", "0.01"]);
    assert_eq!(entries(&mut db, REQUESTS)[1].1[4..], ["answer", "wait"]);
    req(&redis, &["request", "user1", "geb", "--no-wait", "--id", "x"]);
    assert_eq!(entries(&mut db, REQUESTS)[2].1[4..], ["answer", "keep"]);
}

#[test]
fn what_is_only_queued_is_told_as_json_too_where_that_is_asked_for() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let ended = req(&redis, &["request", "u", "geb", "--no-wait", "--json"]);
    let id = &entries(&mut db, REQUESTS)[0].0;
    let out = format!("{{\"event_id\":\"{id}\",\"action\":\"request\",\"outcome\":\"queued\"}}\n");
    ended.is(0, &out, "");
    // It was nothing at all, and the id only in a sentence.
    let ended = req(&redis, &["return", "u", "geb", "--json", "--timeout", "0.1"]);
    let id = &entries(&mut db, RETURNS)[0].0;
    let out =
        format!("{{\"event_id\":\"{id}\",\"action\":\"return\",\"outcome\":\"unanswered\"}}\n");
    assert_eq!((ended.status(), &*ended.stdout), (Some(3), &*out), "{ended}");
    redis.cmd(&["DEL", RETURNS]);
    let input = b"return u geb\nnonsense\nrequest u geb\n";
    let ended = req_fed(&redis, &["batch", "--no-wait", "--json", "--partial"], input);
    let (returned, requested) = (&entries(&mut db, RETURNS)[0].0, &entries(&mut db, REQUESTS)[1].0);
    let lines = [
        format!(
            "{{\"line\":1,\"action\":\"return\",\"event_id\":\"{returned}\",\"outcome\":\"queued\"}}\n"
        ),
        "{\"line\":2,\"outcome\":\"bad_line\",\"cause\":\"begins with \\\"nonsense\\\", not with \
         request or return\"}\n"
            .to_owned(),
        format!(
            "{{\"line\":3,\"action\":\"request\",\"event_id\":\"{requested}\",\"outcome\":\"queued\"}}\n"
        ),
    ];
    assert_eq!((ended.status(), &*ended.stdout), (Some(2), &*lines.concat()), "{ended}");
}

#[test]
fn the_outcome_is_printed_in_words_or_as_json_and_stays_for_later_readers() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    alive(&mut db, REQUESTS, "worker1");
    let fields = ["user_id", "user1", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    for (form, out) in [
        ("--timeout=30", "lent to user1: geb (1 in hand)\n"),
        (
            "--json",
            "{\"event_id\":\"ID\",\"action\":\"request\",\"user_id\":\"user1\",\
             \"outcome\":\"accepted\",\"book_ids\":[\"geb\"],\"in_hand\":1}\n",
        ),
        ("--quiet", ""),
    ] {
        let _: () = db.del(REQUESTS).unwrap();
        alive(&mut db, REQUESTS, "worker1");
        let child = start(&redis, &["request", "user1", "geb", form]);
        let id = wait_for_entry(&mut db, REQUESTS);
        answer(&mut db, &format!("request:{id}"), &fields);
        let out = out.replace("ID", &id);
        child.ends().is(0, &out, "");
        let key = format!("lending_answer:request:{id}");
        let (kept, ttl): (u64, i64) = redis::pipe().llen(&key).pttl(&key).query(&mut db).unwrap();
        assert!(kept == 1 && ttl > 3_000_000, "{kept} {ttl}");
    }
}

#[test]
fn a_refusal_is_told_by_the_exit_status() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    alive(&mut db, RETURNS, "worker1");
    for (fields, status, out) in [
        (
            &["outcome", "unchanged", "not_lent", "geb"],
            0,
            "nothing to take back from user1; geb: nobody has it\n",
        ),
        (
            &["outcome", "unchanged", "lent_to_another", "geb"],
            1,
            "nothing to take back from user1; geb: lent to someone else\n",
        ),
        (
            &["outcome", "rejected", "cause", "wrong_type"],
            1,
            "rejected, for user1: wrong type; the event went to the dead letters\n",
        ),
    ] {
        let _: () = db.del(RETURNS).unwrap();
        alive(&mut db, RETURNS, "worker1");
        let child = start(&redis, &["return", "user1", "geb"]);
        let id = wait_for_entry(&mut db, RETURNS);
        let fields = [&["user_id", "user1"], &fields[..]].concat();
        answer(&mut db, &format!("return:{id}"), &fields);
        child.ends().is(status, out, "");
    }
}

#[test]
fn with_no_instance_running_it_says_so_at_once_and_waits_on() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    // A consumer of a dead instance, and no group at all on the other stream.
    alive(&mut db, REQUESTS, "worker1");
    let _: () = db.del("instance_lock:worker1").unwrap();
    for (action, stream) in [("request", REQUESTS), ("return", RETURNS)] {
        let child = start(&redis, &[action, "user1", "geb", "--timeout", "1"]);
        let id = wait_for_entry(&mut db, stream);
        let begun = Instant::now();
        let ended = child.ends();
        assert!(begun.elapsed() < Duration::from_secs(4));
        let address = redis.address();
        ended.is(
            3,
            "",
            &format!(
                "library-req: no libraryd is running on {address}: \
                 it is queued as {action} {id} and waits for one\n\
                 library-req: no outcome within 1 s: \
                 it is queued as {action} {id} and will be processed (library-req outcome \
                 {action}:{id} tells what became of it)\n"
            ),
        );
    }
    // And that who ran does so no more, long before the time is up.
    let _: () = db.set("instance_lock:worker1", "its token").unwrap();
    let said = redis.directory().join("said");
    let mut child =
        start_with(&redis, &["request", "user1", "momo", "--timeout", "60"], |command| {
            command.stderr(File::create(&said).unwrap());
        });
    until_blocked(&mut db, "blmove");
    let _: () = db.del("instance_lock:worker1").unwrap();
    let told = || std::fs::read_to_string(&said).unwrap();
    until("it is told", || told().contains("no libraryd is running on "));
    // Once.
    until_blocked(&mut db, "blmove");
    assert_eq!(told().lines().count(), 1, "{}", told());
    child.process.signal(Signal::INT);
    assert_eq!(child.ends().exit.and_then(|exit| exit.signal()), Some(2));
    // A group that nobody has joined. And who wants to hear of errors only is told of that one; nor is one
    // told who may not look for instances.
    redis.cmd(&["XGROUP", "CREATE", RETURNS, "lending_service", "$"]);
    let rights = ["+@all", "-xinfo", "+xinfo|stream", "+xinfo|groups"];
    redis.cmd(&[&["ACL", "SETUSER", "clerk", "on", ">pw", "~*"], &rights[..]].concat());
    for (options, lines) in
        [(&[][..], 2), (&["-q"], 1), (&["--username", "clerk", "--password", "pw"], 1)]
    {
        let args = [&["return", "user1", "geb", "--timeout", "0.3"], options].concat();
        let ended = req(&redis, &args);
        assert_eq!((ended.status(), ended.stderr.lines().count()), (Some(3), lines), "{ended}");
    }
}

#[test]
fn ids_grow_across_both_streams_whatever_they_hold_already() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let send = |action: &str| req(&redis, &["--no-wait", action, "u", "b"]).is(0, "OK\n", "");
    let last = |db: &mut Connection, stream: &str| entries(db, stream).pop().unwrap().0;
    let id = |text: &str| text.parse::<library_lending::ids::EventId>().unwrap();
    send("request");
    send("return");
    assert!(id(&last(&mut db, RETURNS)) > id(&last(&mut db, REQUESTS)));
    // Ids from the future, sequence numbers that doubles cannot count, and nines to carry over.
    for (stream, far, action, next) in [
        (REQUESTS, "9000000000000-7", "return", "9000000000000-1000000"),
        (REQUESTS, "9000000000000-1000001", "return", "9000000000000-2000000"),
        // Where the other stream is not as far, in its milliseconds or within them.
        (REQUESTS, "9000000000001-5000000", "return", "9000000000001-6000000"),
        (REQUESTS, "9000000000001-9000000", "return", "9000000000001-10000000"),
        (RETURNS, "9000000000999-18446744073709551615", "request", "9000000001000-1000000"),
        (REQUESTS, "9007199254740993-9007199254740993", "return", "9007199254740994-1000000"),
        (REQUESTS, "9999999999999999999-100000000000000", "return", "10000000000000000000-1000000"),
        (RETURNS, "18446744073709551615-99", "request", "18446744073709551615-1000000"),
    ] {
        let _: String = redis::cmd("XADD").arg(&[stream, far, "f", "v"]).query(&mut db).unwrap();
        send(action);
        let other = if stream == REQUESTS { RETURNS } else { REQUESTS };
        assert_eq!(last(&mut db, other), next);
    }
    let end = format!("18446744073709551615-{}", u64::MAX);
    let _: String = redis::cmd("XADD").arg(&[RETURNS, &end, "f", "v"]).query(&mut db).unwrap();
    let ended = req(&redis, &["--no-wait", "request", "u", "b"]);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("used up all ids") && ended.stderr.contains("nothing was sent"));
}

#[test]
fn a_stream_of_the_wrong_type_is_named_and_nothing_is_sent() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let _: () = db.set(RETURNS, "x").unwrap();
    let ended = req(&redis, &["request", "u", "b", "--id", "x"]);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains(RETURNS) && ended.stderr.contains("nothing was sent"), "{ended}");
    let keys: Vec<String> = db.keys("*").unwrap();
    assert_eq!(keys, [RETURNS]);
}

#[test]
fn under_an_id_an_event_is_queued_once_and_answered_with_the_first_outcome() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    req(&redis, &["request", "u", "geb", "--id", "mine", "--no-wait"]).is(0, "OK\n", "");
    let id = wait_for_entry(&mut db, REQUESTS);
    let fields = ["user_id", "u", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    answer(&mut db, &format!("request:{id}"), &fields);
    for _ in 0..2 {
        req(&redis, &["request", "u", "geb", "--id", "mine"]).is(
            0,
            "lent to u: geb (1 in hand)\n",
            "",
        );
    }
    // The same id with other content is a mistake.
    for other in [["request", "u", "momo"], ["request", "v", "geb"], ["return", "u", "geb"]] {
        let ended = req(&redis, &[&other[..], &["--id", "mine"]].concat());
        assert_eq!(ended.status(), Some(2), "{ended}");
        assert!(ended.stderr.contains(&id) && ended.stderr.contains("nothing was sent"), "{ended}");
    }
    assert_eq!(entries(&mut db, REQUESTS).len(), 1);
    assert!(entries(&mut db, RETURNS).is_empty());
    let ttl: i64 = db.pttl("lending_submission:mine").unwrap();
    assert!(ttl > 86_000_000, "{ttl}");
    let for_an_hour = ["request", "u", "geb", "--id", "hour", "--remember", "1h", "--no-wait"];
    req(&redis, &for_an_hour).is(0, "OK\n", "");
    let ttl: i64 = db.pttl("lending_submission:hour").unwrap();
    assert!((3_000_000..=3_600_000).contains(&ttl), "{ttl}");
    // The answer is to be there as long.
    assert_eq!(entries(&mut db, REQUESTS)[1].1[4..], ["answer", "keep:3600000"]);
}

#[test]
fn an_id_that_is_not_remembered_any_more_names_another_event() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let args = ["request", "u", "geb", "--id", "mine", "--remember", "1s", "--no-wait"];
    req(&redis, &args).is(0, "OK\n", "");
    until("it is forgotten", || !db.exists::<_, bool>("lending_submission:mine").unwrap());
    req(&redis, &args).is(0, "OK\n", "");
    assert_eq!(entries(&mut db, REQUESTS).len(), 2);
}

#[test]
fn a_failed_xadd_leaves_no_submission_behind() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "half", "on", ">pw", "~*", "+@all", "-xadd"])
        .query(&mut db)
        .unwrap();
    let args = ["--username=half", "--password=pw", "request", "u", "geb", "--id", "mine"];
    let ended = req(&redis, &args);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("nothing was sent"), "{ended}");
    until("the submission is gone", || !db.exists::<_, bool>("lending_submission:mine").unwrap());
}

/// It sounded as if nothing had been sent.
#[test]
fn an_answer_that_cannot_be_written_says_what_became_of_the_event() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    alive(&mut db, REQUESTS, "worker1");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let fields = ["user_id", "u", "outcome", "accepted", "book_ids", "geb"];
    let unwritten =
        "library-req: could not write the answer: No space left on device (os error 28)";
    for form in ["--timeout=30", "--json", "--no-wait"] {
        let _: () = db.del(REQUESTS).unwrap();
        alive(&mut db, REQUESTS, "worker1");
        let child = start_with(&redis, &["request", "u", "geb", form], |command| {
            command.stdout(full());
        });
        let id = wait_for_entry(&mut db, REQUESTS);
        answer(&mut db, &format!("request:{id}"), &fields);
        let ask = format!("library-req outcome request:{id} tells");
        let fate = match form {
            "--no-wait" => format!("it is queued as request {id} ({ask} what became of it)"),
            _ => format!("request {id} ended as accepted ({ask} it again)"),
        };
        let told = format!("{unwritten}; {fate}\n");
        child.ends().is(74, "", &told);
    }
    // Who reads no more wants no more.
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let unread = start_with(&redis, &["request", "u", "geb", "--no-wait"], |command| {
        command.stdout(writer);
    });
    unread.ends().is(0, "", "");
}

#[test]
fn ctrl_c_while_waiting_says_that_the_event_stays_queued() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let mut child = start(&redis, &["request", "u", "geb"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    until_blocked(&mut db, "blmove");
    child.process.signal(Signal::INT);
    let ended = child.ends();
    assert_eq!(ended.exit.and_then(|exit| exit.signal()), Some(2), "{ended}");
    assert!(ended.stderr.contains(&format!("library-req outcome request:{id}")), "{ended}");
    let event = format!("request:{id}");
    let still = req(&redis, &["outcome", &event]);
    assert_eq!(still.status(), Some(3), "{still}");
    assert!(still.stderr.contains("still queued"), "{still}");
    answer_all(&mut db);
    req(&redis, &["outcome", &event]).is(0, "lent to a user: geb\n", "");
    req(&redis, &["outcome", &id]).is(0, "lent to a user: geb\n", "");
}
