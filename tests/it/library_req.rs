//! `library-req` and `libraryd` together. Alone it is tried in tests/request.

use std::fs;

use crate::common::*;

/// `library-req` with these arguments, which are given as one line.
fn req(redis: &Redis, line: &str) -> TestCommand {
    TestCommand::library_req(redis, &line.split(' ').collect::<Vec<_>>())
}

#[test]
fn the_exit_status_says_how_it_ended() {
    let (redis, _daemon) = library(&Ledger::new().lent("user2", &["theirs"], "5-0"));
    redis.cmd(&["SET", "user:user9:count", "many"]);
    for (line, status, said) in [
        ("request user1 geb", 0, "geb"),
        ("request user1 momo theirs", 0, "theirs"),
        ("request user1 theirs", 1, "theirs"),
        ("request user1 a b c d", 1, "a"),
        ("return user1 momo", 0, "momo"),
        ("return user1 unheard-of", 0, "unheard-of"),
        ("return user1 theirs", 1, "theirs"),
        ("return user1 theirs unheard-of", 1, "theirs"),
        ("return user1 theirs geb", 0, "geb"),
        ("request user9 geb", 1, "count"),
    ] {
        let run = req(&redis, line).exits(status);
        assert!(run.stdout.contains(said) && run.stdout.lines().count() == 1, "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
}

#[test]
fn json_has_the_outcomes_fields_with_lists_as_arrays() {
    let state = Ledger::new().lent("user2", &["theirs"], "5-0").nowhere(&["gone"], "6-0");
    let (redis, _daemon) = library(&state);
    for (line, status, expected) in [
        (
            "request --json user1 geb theirs gone momo",
            0,
            r#"{"event_id":"ID","action":"request","user_id":"user1","outcome":"accepted","book_ids":["geb","momo"],"lent_to_another":["theirs"],"unavailable":["gone"],"in_hand":2}"#,
        ),
        (
            "--json request user1 geb gone",
            1,
            r#"{"event_id":"ID","action":"request","user_id":"user1","outcome":"denied","cause":"none_available","already_yours":["geb"],"unavailable":["gone"],"in_hand":2}"#,
        ),
        (
            "request user1 a b c d --json",
            1,
            r#"{"event_id":"ID","action":"request","user_id":"user1","outcome":"denied","cause":"too_many_books","put_back":["a","b","c","d"],"in_hand":2}"#,
        ),
        (
            "return user1 theirs geb x --json",
            0,
            r#"{"event_id":"ID","action":"return","user_id":"user1","outcome":"returned","book_ids":["geb"],"lent_to_another":["theirs"],"not_lent":["x"],"in_hand":1}"#,
        ),
    ] {
        let run = req(&redis, line).exits(status);
        let id = redis.outcomes().last().expect("there is one")["event_id"].clone();
        assert_eq!(run.stdout, expected.replace("ID", &id) + "\n", "{run}");
    }
}

#[test]
fn who_does_not_wait_is_told_ok_and_the_event_is_served() {
    let (redis, _daemon) = library(&Ledger::new());
    let run = req(&redis, "request --no-wait user1 geb").exits(0);
    assert_eq!(run.stdout, "OK\n");
    let outcomes = redis.assert_one_outcome_each(1);
    assert_eq!(outcomes[0]["book_ids"], "geb");
}

#[test]
fn with_nobody_running_it_says_so_and_the_event_is_served_later() {
    let redis = Redis::new();
    let run = req(&redis, "request --timeout 1 user1 geb").exits(3);
    assert!(!run.stderr.is_empty(), "{run}");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.assert_one_outcome_each(1)[0]["book_ids"], "geb");
    // The next one is not kept waiting by the answer that nobody fetched.
    req(&redis, "request user2 geb").exits(1);
    redis.assert_at_rest();
}

#[test]
fn a_request_sent_twice_under_one_id_is_added_once_and_answered_twice() {
    let (redis, _daemon) = library(&Ledger::new());
    let first = req(&redis, "request --id order-1 --json user1 geb").exits(0);
    let between = req(&redis, "return user1 geb").exits(0);
    assert!(between.stdout.contains("geb"), "{between}");
    let second = req(&redis, "request --id order-1 --json user1 geb").exits(0);
    assert_eq!(second.stdout, first.stdout);
    redis.assert_one_outcome_each(2);
    assert!(redis.ledger().loans.is_empty());
}

#[test]
fn ids_grow_across_both_streams() {
    let redis = Redis::new();
    let lines: String = (0..200).map(|n| format!("request u{n} b\nreturn u{n} b\n")).collect();
    fs::write(redis.directory().join("events"), lines).unwrap();
    req(&redis, "batch --no-wait events").exits(0);
    let numbers = |stream: &str| -> Vec<(u64, u64)> {
        redis.entries(stream).iter().map(|(id, _)| numbers(id)).collect()
    };
    let (requests, returns) = (numbers(REQUESTS), numbers(RETURNS));
    assert_eq!((requests.len(), returns.len()), (200, 200));
    let sent: Vec<_> = requests.into_iter().zip(returns).flat_map(|(a, b)| [a, b]).collect();
    assert!(sent.is_sorted_by(|a, b| a < b), "{sent:?}");
}

#[test]
fn in_a_batch_every_return_finds_what_its_request_was_lent_with_two_instances() {
    const ROUNDS: usize = 300;
    let redis = Redis::new();
    let stored: Vec<_> = (0..20).map(|n| format!("stored-{n}")).collect();
    Ledger::new().stored(&stored, "1-0").lay_down(&redis);
    let lines: String = (0..ROUNDS)
        .map(|n| format!("request a{n} x{n} y{n}\nreturn a{n} y{n} x{n}\nrequest b{n} y{n}\n"))
        .collect();
    fs::write(redis.directory().join("events"), lines).unwrap();
    let _daemons = ["worker1", "worker2"].map(|name| Daemon::start(&redis, &[name]));
    let run = req(&redis, "batch events").exits(0);
    let done = run.stdout.matches(",accepted,").count() + run.stdout.matches(",returned,").count();
    assert_eq!(done, 3 * ROUNDS, "{run}");
    assert_returns_find_their_loans(&redis.assert_one_outcome_each(3 * ROUNDS));
    redis.assert_at_rest();
}

#[test]
fn a_redis_that_is_not_there_is_told_with_what_to_do() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all"]);
    let run = req(&redis, "request --username clerk --password wrong user1 geb").exits(4);
    assert!(!run.stderr.is_empty() && !run.stderr.contains("wrong "), "{run}");
    assert!(redis.entries(REQUESTS).is_empty());
    redis.kill9();
    let run = req(&redis, "request user1 geb").exits(4);
    assert!(run.stderr.contains("redis.sock"), "{run}");
}

#[test]
fn clients_that_wait_at_once_are_each_told_their_own_outcome() {
    let (redis, _daemon) = library(&Ledger::new());
    std::thread::scope(|scope| {
        for client in 0..10 {
            let redis = &redis;
            scope.spawn(move || {
                for n in 0..5 {
                    let (user, book) = (format!("user{client}"), format!("book{client}-{n}"));
                    let run = req(redis, &format!("request --json {user} {book}")).exits(0);
                    assert!(run.stdout.contains(&user) && run.stdout.contains(&book), "{run}");
                }
            });
        }
    });
    redis.assert_one_outcome_each(50);
    redis.assert_at_rest();
}

/// Which books a user has is answered without going through all loans, and rightly even so where an
/// instance of the reference application has lent and taken back without a note.
#[test]
fn the_loans_of_a_user_are_found_without_a_scan_and_those_without_a_note_as_well() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb,momo,kim"));
    redis.outcome_of_return(&redis.give_back("user1", "momo"));
    // It scans as well, now and then.
    assert_eq!(daemon.stop(), 0);
    let loans = || TestCommand::library_req(&redis, &["loans", "user1"]).exits(0).stdout;
    let scans = || {
        let stats: String = redis.ask(&["INFO", "commandstats"]);
        stats.lines().any(|line| line.starts_with("cmdstat_hscan"))
    };
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    assert_eq!(loans(), "user1 has 2 of 5 books: geb, kim\n");
    assert!(!scans());
    // As the reference application does it.
    redis.cmd(&["HDEL", "lent_books", "kim"]);
    redis.cmd(&["HSET", "lent_books", "emma", "user1", "ronja", "user1"]);
    redis.cmd(&["SET", "user:user1:count", "3"]);
    assert_eq!(loans(), "user1 has 3 of 5 books: emma, geb, ronja\n");
    // What is lent after that has no part in what is outdated.
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.cmd(&["HSET", "shelving_service_state", "emma", "1-0", "ronja", "1-0"]);
    redis.outcome_of_request(&redis.request("user1", "alice"));
    redis.outcome_of_return(&redis.give_back("user1", "emma,ronja,geb"));
    redis.outcome_of_request(&redis.request("user1", "a,b,c,d"));
    assert_eq!(redis.ask::<String>(&["HGET", "lending_books_of_users", "user1"]), "a,b,c,d,alice");
}
