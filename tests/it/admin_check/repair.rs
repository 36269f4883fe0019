//! What is mended, what is left alone, and that mending makes nothing worse.

use std::thread;

use super::*;

#[test]
fn what_can_be_mended_without_guessing_is_mended() {
    let redis = Redis::new();
    healthy(&redis);
    // An instance that is gone mends nothing.
    redis.cmd(&["XGROUP", "CREATECONSUMER", REQUESTS, "lending_service", "gone"]);
    redis.cmd(&["HSET", SHELVES, "lost", "17-0", "left", "17-0", "x", "16-0", "y", "16-0"]);
    redis.cmd(&["HSET", "lending_book_states", "reserved", "?17-0", "geb", "?17-0", "x", "?16-0"]);
    redis.cmd(&["SADD", "request:17-0:temp", "left", "geb", "stored3", "on its shelf"]);
    redis.cmd(&["SET", "user:user1:count", "5"]);
    redis.cmd(&["SET", "user:user2:count", "none"]);
    redis.cmd(&["SET", "user:user3:count", "1"]);
    let run = repair(&redis).exits(0);
    for said in [
        "lost is nowhere: out of main storage since request 17-0; mended: handed to shelving as ",
        "reserved is reserved by a request that is decided: ?17-0; mended: the reservation is gone\n",
        "x is reserved by a request that is decided: ?16-0; mended: handed to shelving as ",
        "geb is reserved by a request that is decided: ?17-0; mended: the reservation is gone\n",
        "request:17-0:temp reserves 4 books for a request that is decided; mended: 0 books handed to \
         shelving, 4 books let go that have their place\n",
        "the count of user1 is 5, with 2 books lent; mended: the count is 2 now\n",
        "the count of user2 is none, with 5 books lent; mended: the count is 5 now\n",
        "the count of user3 is 1, with 0 books lent; mended: the count is 0 now\n",
        "nothing is wrong, 10 mended\n",
    ] {
        assert!(run.stdout.contains(said), "{said}: {run}");
    }
    // What was handed over is on its way, and marked so, until an instance puts it on its shelf.
    let state = redis.everything();
    assert_eq!(state.0.get("request:17-0:temp"), None);
    let mut handed_over: Vec<_> = state
        .hash("lending_book_states")
        .into_iter()
        .filter(|(_, state)| state.starts_with('>'))
        .map(|(book, _)| book)
        .collect();
    handed_over.sort_unstable();
    assert_eq!(handed_over, ["left", "lost", "x", "y"]);
    assert_eq!(state.hash("lending_book_states").get("geb"), None);
    assert_eq!(check(&redis).exits(0).stdout, WELL);

    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.assert_at_rest();
    let request = redis.request("user9", "lost,left,reserved,x");
    assert_eq!(redis.outcome_of_request(&request)["book_ids"], "lost,left,reserved,x");
}

/// One took a key that the other had just mended for one of type none, and reported it.
#[test]
fn two_that_mend_at_once_find_nothing_wrong_with_what_the_other_mended() {
    let redis = Redis::new();
    for round in 0..3 {
        for n in 0..100 {
            redis.cmd(&["SADD", &format!("request:{round}-{n}:temp"), "geb"]);
            redis.cmd(&["HSET", SHELVES, &format!("lost{round}-{n}"), "1-0"]);
            redis.cmd(&["SET", &format!("user:user{n}:count"), "1"]);
        }
        thread::scope(|scope| {
            let both = [0, 1].map(|_| scope.spawn(|| repair(&redis)));
            for run in both {
                let run = run.join().unwrap().exits(0);
                assert!(!run.stdout.contains("not mended"), "{run}");
            }
        });
        assert_eq!(check(&redis).exits(0).stdout, WELL);
    }
}

#[test]
fn what_could_only_be_guessed_is_left_alone() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["HSET", LENT_BOOKS, "stored1", "user1"]);
    redis.cmd(&["INCR", "user:user1:count"]);
    redis.cmd(&["HDEL", SHELVES, "geb", "stored2"]);
    redis.cmd(&["SADD", STORAGE, "one more"]);
    // No id of a book could look like this: in a hand-off it would be two.
    redis.cmd(&["HSET", SHELVES, "one more", "1-0", "geb,momo", "1-0"]);
    redis.cmd(&["SADD", "request:17-0:temp", "geb,momo"]);
    redis.cmd(&["RPUSH", "user:user4:count", "1"]);
    let before = redis.everything();
    let run = repair(&redis).exits(1);
    assert_eq!(run.stdout.matches("; not mended: ").count(), 7, "{run}");
    assert!(run.stdout.contains("not mended: some of what it holds is no book's id\n"), "{run}");
    assert!(run.stdout.ends_with("\n7 violations\n"), "{run}");
    assert_eq!(redis.everything(), before);
}

/// The loans expired: every lent book was put back on its shelf, and lent to another while its user had it
/// at home, and every count set to 0. What is noted of each user told still who had them.
#[test]
fn books_whose_loans_were_lost_are_not_given_to_others() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    for (user, books) in [("user1", "geb,momo"), ("user2", "kim"), ("user3", "ulysses")] {
        redis.outcome_of_request(&redis.request(user, books));
    }
    redis.outcome_of_return(&redis.give_back("user3", "ulysses"));
    redis.assert_at_rest();
    assert_eq!(daemon.stop(), 0);
    let loans = redis.everything().hash(LENT_BOOKS);
    redis.cmd(&["DEL", LENT_BOOKS]);
    // Of these no user's notes and count tell that anybody has them.
    redis.cmd(&["HSET", SHELVES, "lost", "1-0", "stale", "1-0"]);
    redis.cmd(&["HSET", "lending_books_of_users", "user3", "stale"]);
    redis.cmd(&["SET", "user:user4:count", "1"]);
    let missing = |book, user| {
        format!(
            "I1: {book} is nowhere, and its loan is missing: it is noted as lent to {user}, whose count is \
             more than what is lent; out of main storage since request "
        )
    };
    let run = check(&redis).exits(1);
    let all = [missing("geb", "user1"), missing("momo", "user1"), missing("kim", "user2")];
    for said in &all {
        assert!(run.stdout.contains(said), "{said}: {run}");
    }
    assert!(run.stdout.ends_with("\n8 violations\n"), "{run}");
    let run = repair(&redis).exits(1);
    for said in all {
        let line = run.stdout.lines().find(|line| line.starts_with(&said)).unwrap();
        assert!(line.ends_with("; not mended: that cannot be done without guessing"), "{run}");
    }
    for said in [
        "lost is nowhere: out of main storage since request 1-0; mended: handed to shelving as ",
        "stale is nowhere: out of main storage since request 1-0; mended: handed to shelving as ",
        "the count of user1 is 2, with 0 books lent; not mended: a book that is nowhere is noted as lent ",
        "the count of user2 is 1, with 0 books lent; not mended: a book that is nowhere is noted as lent ",
        "the count of user4 is 1, with 0 books lent; mended: the count is 0 now\n",
        "5 violations, 3 mended\n",
    ] {
        assert!(run.stdout.contains(said), "{said}: {run}");
    }
    let run = TestCommand::library_admin(&redis, &["check", "--json"]).exits(1);
    let kim =
        r#"{"invariant":"I1","fault":"loan_missing","book":"kim","user":"user2","fetched_by":""#;
    assert!(run.stdout.contains(kim), "{run}");

    // The loan is put back; or the count says that the user has no more.
    redis.cmd(&["HSET", LENT_BOOKS, "geb", &loans["geb"], "kim", &loans["kim"]]);
    redis.cmd(&["SET", "user:user1:count", "1"]);
    let run = repair(&redis).exits(0);
    assert!(run.stdout.starts_with("I1: momo is nowhere: "), "{run}");
    assert!(run.stdout.ends_with("\nnothing is wrong, 1 mended\n"), "{run}");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.assert_at_rest();
    assert_eq!(
        redis.outcome_of_request(&redis.request("user9", "geb,momo,kim"))["book_ids"],
        "momo"
    );
}

/// Nobody noticed the TTL of a key that all share, or of a count, before it was gone.
#[test]
fn a_key_that_has_to_stay_is_told_if_it_expires_and_kept() {
    const KEPT: [&str; 14] = [
        REQUESTS,
        RETURNS,
        SHELVING,
        OUTCOMES,
        DEAD_LETTERS,
        STORAGE,
        LENT_BOOKS,
        SHELVES,
        "lending_book_states",
        "lending_lone_tries",
        "lending_books_of_users",
        "lending_kept_events",
        "shelving_service_answers",
        "user:user2:count",
    ];
    let redis = Redis::new();
    healthy(&redis);
    redis.add(DEAD_LETTERS, "*", &[("stream", b"none")]);
    for hash in &KEPT[8..13] {
        redis.cmd(&["HSET", hash, "one", "=1-0"]);
    }
    // These expire by design.
    redis.cmd(&["HSET", "lending_ties", "1-0", "x"]);
    redis.cmd(&["SET", "instance_lock:worker1", "x"]);
    redis.cmd(&["SET", "lending_submission:mine", "1-0"]);
    redis.cmd(&["RPUSH", "lending_answer:request:1-0", "x"]);
    let keys: Vec<String> = redis.ask(&["KEYS", "*"]);
    for key in keys.iter().filter(|key| !key.starts_with("user:")) {
        redis.cmd(&["EXPIRE", key, "1000"]);
    }
    redis.cmd(&["EXPIRE", "user:user2:count", "1000"]);
    let run = check(&redis).exits(1);
    for key in KEPT {
        assert!(
            run.stdout.contains(&format!("ttl: the key {key} expires in 16 min\n")),
            "{key}: {run}"
        );
    }
    assert!(run.stdout.ends_with("\n14 violations\n"), "{run}");
    let run = TestCommand::library_admin(&redis, &["check", "--json"]).exits(1);
    let loans = r#"{"invariant":"ttl","fault":"expires","key":"lent_books","expires_in_ms":99"#;
    assert!(run.stdout.contains(loans), "{run}");

    let run = repair(&redis).exits(0);
    assert_eq!(run.stdout.matches("; mended: it stays\n").count(), 14, "{run}");
    assert!(run.stdout.ends_with("\nnothing is wrong, 14 mended\n"), "{run}");
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    let ttl = |key: &str| redis.ask::<i64>(&["TTL", key]);
    assert_eq!(KEPT.map(ttl), [-1; 14]);
    assert!(ttl("lending_ties") > 0 && ttl("instance_lock:worker1") > 0);
}

#[test]
fn what_the_instances_put_right_by_themselves_is_left_to_them() {
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_book_states", "lost", "?17-0"]);
    redis.cmd(&["HSET", SHELVES, "lost", "17-0"]);
    let other = Other::alive(&redis, "other");
    redis.give_back("user1", "geb");
    other.take(RETURNS);
    let before = redis.everything();
    let run = repair(&redis).exits(1);
    assert!(
        run.stdout.contains("not mended: the instances at work do that within seconds"),
        "{run}"
    );
    assert_eq!(redis.everything(), before);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert!(eventually(DEADLINE, || check(&redis).stdout == WELL));
    other.die();
    redis.assert_at_rest();
}

#[test]
fn no_count_is_mended_beside_an_instance_that_writes_no_outcomes() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["SET", "user:user1:count", "1"]);
    let reference = Other::of_the_reference(&redis, "reference");
    redis.request("user9", "geb");
    let request = reference.take(REQUESTS);
    let not_mended = |run: TestCommand| {
        let told = "not mended: an instance of the reference application";
        assert!(run.status() == Some(1) && run.stdout.contains(told), "{run}");
    };
    not_mended(repair(&redis));
    // Nor beside one that comes, or goes, after the books were looked at.
    for meanwhile in [&["DEL instance_lock:reference"], &["SET instance_lock:reference 1"]] {
        not_mended(check_while(&redis, &["--repair"], ("recount", 1), meanwhile));
    }
    reference.acknowledge(REQUESTS, &request);
    reference.die();
    let run = repair(&redis).exits(0);
    assert!(run.stdout.contains("mended: the count is 2 now"), "{run}");
}

#[test]
fn what_somebody_else_has_set_right_is_not_said_to_be_mended() {
    let redis = Redis::new();
    healthy(&redis);
    for (spoil, step, meanwhile) in [
        (["SET", "user:user1:count", "5"], ("recount", 3), &["SET user:user1:count 2"]),
        (["EXPIRE", LENT_BOOKS, "1000"], ("persist", 1), &["PERSIST lent_books"]),
    ] {
        redis.cmd(&spoil);
        check(&redis).exits(1);
        let run = check_while(&redis, &["--repair"], step, meanwhile);
        assert_eq!(run.exits(0).stdout, WELL, "{spoil:?}");
    }
}

#[test]
fn a_loan_that_is_made_while_loans_are_counted_is_counted() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["SET", "user:user1:count", "4"]);
    check(&redis).exits(1);
    let meanwhile = &[
        "HSET lent_books emma user1",
        "HSET shelving_service_state emma 9-0",
        "XADD lending_outcomes_event_stream * event_id 9-0 action request user_id user1 \
         outcome accepted book_ids emma",
    ];
    let run = check_while(&redis, &["--repair"], ("recount", 1), meanwhile).exits(0);
    let mended = "I2: the count of user1 is 4, with 3 books lent; mended: the count is 3 now\n";
    assert!(run.stdout.starts_with(mended), "{run}");
}
