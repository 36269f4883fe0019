//! What changes while it is looked at is looked at again, and not taken for wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// The request is decided, or lets the book go, between two looks.
#[test]
fn a_book_whose_reservation_ends_while_it_is_looked_at_is_no_violation() {
    let redis = Redis::new();
    for (book, number, meanwhile) in [
        ("geb", 2, &["DEL lending_requests_event_stream"]),
        ("x", 4, &["SREM request:9-0:temp x"]),
        ("x", 4, &["SREM request:10-0:temp x"]),
    ] {
        redis.cmd(&["FLUSHALL"]);
        healthy(&redis);
        redis.cmd(&["HSET", SHELVES, book, "1-0"]);
        for request in ["9-0", "10-0"] {
            redis.request_at(request, "user9", book);
            redis.cmd(&["SADD", &format!("request:{request}:temp"), book]);
        }
        check(&redis).exits(1);
        assert_eq!(check_while(&redis, &[], ("reserved", number), meanwhile).exits(0).stdout, WELL);
    }
}

/// A request of ours reserves for moments what it finds nowhere else.
#[test]
fn a_second_reservation_that_goes_and_comes_is_no_violation() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["HSET", SHELVES, "x", "1-0"]);
    redis.request_at("9-0", "user9", "x");
    redis.request_at("10-0", "user9", "x");
    redis.cmd(&["SADD", "request:9-0:temp", "x"]);
    redis.cmd(&["HSET", "lending_book_states", "x", "?10-0"]);
    check(&redis).exits(1);
    let meanwhile = &["HDEL lending_book_states x"];
    assert_eq!(check_while(&redis, &[], ("reserved", 5), meanwhile).exits(0).stdout, WELL);
}

#[test]
fn what_is_in_motion_is_no_violation() {
    let redis = Redis::new();
    healthy(&redis);
    let other = Other::alive(&redis, "other");
    // Reserved by a request that an instance works on: not fetched yet, and fetched.
    redis.request("user9", "asked,fetched");
    let request = other.take(REQUESTS);
    redis.cmd(&["HSET", "lending_book_states", "asked", &format!("?{request}")]);
    redis.cmd(&["HSET", "lending_book_states", "fetched", &format!("?{request}")]);
    redis.cmd(&["HSET", SHELVES, "fetched", &request]);
    // Handed out on the request's first try, of which no state tells.
    redis.cmd(&["HSET", SHELVES, "handed out", &request]);
    // Fetched by a reference instance, which notes that nowhere else; and a book from the storage,
    // which some request fetched long ago.
    redis.cmd(&["HSET", SHELVES, "taken", &request]);
    redis.cmd(&["HSET", SHELVES, "reserved", "1-0"]);
    redis.cmd(&["SADD", &format!("request:{request}:temp"), "reserved", "taken"]);
    // On their way to the shelves: delivered and not, marked by us and not by a reference.
    for book in ["in work", "marked in work", "waiting", "marked waiting"] {
        let id = redis.hand_off("*", &format!("x,{book}"));
        redis.cmd(&["HSET", SHELVES, book, "1-0"]);
        if book.starts_with("marked") {
            redis.cmd(&["HSET", "lending_book_states", book, &format!(">{id}")]);
        }
        if book.ends_with("work") {
            other.take(SHELVING);
        }
    }
    // Marks that are to be swept mean nothing, and harm nothing.
    redis.cmd(&["HSET", "lending_book_states", "old", "=1-0", "older", ">1-0"]);
    let before = redis.everything();
    assert_eq!(repair(&redis).exits(0).stdout, WELL);
    assert_eq!(redis.everything(), before);

    // The same books, once nobody is at it any more.
    other.acknowledge(REQUESTS, &request);
    redis.cmd(&["XGROUP", "SETID", SHELVING, "shelving_service", "$"]);
    let run = check(&redis).exits(1);
    for said in [
        "asked is reserved by",
        "fetched is reserved by",
        "taken is nowhere",
        "handed out is nowhere",
        "reserved is nowhere",
        "temp reserves 2 books",
        "I1: waiting is nowhere",
        "marked waiting is nowhere",
    ] {
        assert!(run.stdout.contains(said), "{said}: {run}");
    }
    assert!(!run.stdout.contains("in work is nowhere"), "{run}");
}

/// A hand-off of the reference application leaves no mark on its books. Between two looks it was done, and
/// the book fetched for somebody and handed over again.
#[test]
fn a_book_that_looks_wrong_in_another_way_than_before_is_looked_at_again() {
    let redis = Redis::new();
    redis.cmd(&["HSET", SHELVES, "geb", "1-0"]);
    check(&redis).exits(1);
    let meanwhile = &[
        "HSET shelving_service_state geb 2-0",
        "XADD books_for_shelving_event_stream * book_ids geb",
    ];
    let run = check_while(&redis, &[], ("inspect", 2), meanwhile);
    assert_eq!(run.exits(0).stdout, WELL);
    redis.cmd(&["DEL", SHELVING]);
    let meanwhile = &["HSET shelving_service_state geb 3-0"];
    let run = check_while(&redis, &[], ("inspect", 2), meanwhile).exits(1);
    assert!(run.stdout.contains("geb is nowhere: out of main storage since request 3-0"), "{run}");
}

#[test]
fn a_book_that_looks_wrong_in_another_way_each_time_is_not_called_well() {
    let redis = Redis::new();
    redis.cmd(&["HSET", SHELVES, "geb", "1-0"]);
    let of_proxy = redis.clone();
    let proxy = Proxy::new(&redis, move |command| {
        if command.kind == "inspect" {
            of_proxy.cmd(&["HSET", SHELVES, "geb", &format!("{}-0", 1 + command.number)]);
        }
        None
    });
    let address = proxy.path().display().to_string();
    let run = TestCommand::library_admin(&redis, &["check", "-a", &address]).exits(3);
    assert!(run.stderr.contains("1 more looked wrong and changed too fast"), "{run}");
}

/// The book is on its shelf, fetched and lent before the reference application is done with its hand-off.
#[test]
fn a_hand_off_that_ends_while_it_is_looked_at_is_no_violation() {
    let redis = Redis::new();
    healthy(&redis);
    redis.hand_off("4-0", "geb");
    let other = Other::alive(&redis, "other");
    other.take(SHELVING);
    check(&redis).exits(1);
    let meanwhile = &["XACK books_for_shelving_event_stream shelving_service 4-0"];
    let run = check_while(&redis, &[], ("undone", 2), meanwhile);
    assert_eq!(run.exits(0).stdout, WELL);
}

/// An instance of the reference application may write an outcome before it acknowledges the event.
#[test]
fn an_event_that_goes_after_its_outcome_was_read_is_no_violation() {
    let redis = Redis::new();
    healthy(&redis);
    redis.request_at("1-0", "user1", "geb");
    check(&redis).exits(1);
    let meanwhile = &["XDEL lending_requests_event_stream 1-0"];
    let run = check_while(&redis, &[], ("undone", 2), meanwhile);
    assert_eq!(run.exits(0).stdout, WELL);
}

/// An instance of the reference application was slow: it reserved a book for a request that another had
/// decided, and lets it go.
#[test]
fn a_reservation_that_goes_while_it_is_looked_at_is_no_violation() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["SADD", "request:17-0:temp", "geb"]);
    check(&redis).exits(1);
    let run = check_while(&redis, &[], ("undone", 2), &["DEL request:17-0:temp"]);
    assert_eq!(run.exits(0).stdout, WELL);
}

#[test]
fn a_reservation_whose_request_is_worked_on_once_more_is_left_alone() {
    let redis = Redis::new();
    redis.cmd(&["SADD", "request:17-0:temp", "geb"]);
    let meanwhile = &["XADD lending_requests_event_stream 17-0 user_id u book_ids geb"];
    let run = check_while(&redis, &["--repair"], ("mend", 1), meanwhile);
    assert!(run.stdout.contains("not mended: its request is being worked on after all\n"), "{run}");
    assert_eq!(redis.everything().set("request:17-0:temp").len(), 1);
}

/// The count was wrong by one, and the loan that was made meanwhile not seen: they fitted, by chance.
#[test]
fn a_count_that_fits_what_was_seen_of_a_busy_user_is_counted_again() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["geb"], "1-0").lay_down(&redis);
    redis.cmd(&["SET", "user:user1:count", "0"]);
    let meanwhile = &[
        "HSET lent_books momo user1",
        "INCR user:user1:count",
        "XADD lending_outcomes_event_stream * user_id user1 outcome accepted book_ids momo",
    ];
    let run = check_while(&redis, &[], ("read counts", 1), meanwhile);
    let said = "I2: the count of user1 is 1, with 2 books lent\n1 violation\n";
    assert_eq!(run.exits(1).stdout, said);
}

#[test]
fn what_goes_while_it_is_looked_at_is_no_violation() {
    let redis = Redis::new();
    redis.cmd(&["SADD", STORAGE, "no,book"]);
    redis.cmd(&["HSET", "instance_lock:worker1", "no", "lock"]);
    let said = check(&redis).exits(1).stdout;
    assert!(said.ends_with("3 violations\n"), "{said}");
    let of_proxy = redis.clone();
    let proxy = Proxy::new(&redis, move |command| {
        let gone = match command.kind {
            "type" if command.mentions("instance_lock:") => "instance_lock:worker1",
            "is stored" => STORAGE,
            _ => return None,
        };
        of_proxy.cmd(&["DEL", gone]);
        None
    });
    let address = proxy.path().display().to_string();
    let run = TestCommand::library_admin(&redis, &["check", "-a", &address]);
    assert_eq!(run.exits(0).stdout, WELL);
}

#[test]
fn a_count_that_is_wrong_in_another_way_than_before_is_looked_at_again() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["SET", "user:user1:count", "5"]);
    check(&redis).exits(1);
    let of_proxy = redis.clone();
    let proxy = Proxy::new(&redis, move |command| {
        let count = match (command.kind, command.number) {
            ("recount", 2) => "4",
            ("recount", 3) => "2",
            _ => return None,
        };
        of_proxy.cmd(&["SET", "user:user1:count", count]);
        None
    });
    let address = proxy.path().display().to_string();
    let run = TestCommand::library_admin(&redis, &["check", "-a", &address]);
    assert_eq!(run.exits(0).stdout, WELL);
}

#[test]
fn a_count_that_is_wrong_in_another_way_each_time_is_not_called_well() {
    let redis = Redis::new();
    healthy(&redis);
    let of_proxy = redis.clone();
    let proxy = Proxy::new(&redis, move |command| {
        if command.kind == "recount" {
            of_proxy.cmd(&["SET", "user:user1:count", &(10 + command.number).to_string()]);
        }
        None
    });
    redis.cmd(&["SET", "user:user1:count", "5"]);
    let address = proxy.path().display().to_string();
    let run = TestCommand::library_admin(&redis, &["check", "-a", &address]).exits(3);
    assert!(run.stderr.contains("1 more looked wrong and changed too fast"), "{run}");
}

/// Of so many not all are looked at.
#[test]
fn a_count_is_no_fault_where_more_books_are_lent_than_are_counted() {
    let redis = Redis::new();
    let books: Vec<_> = (0..1_100).map(|n| n.to_string()).collect();
    let books: Vec<_> = books.iter().map(String::as_str).collect();
    Ledger::new().lent("user1", &books, "1-0").lay_down(&redis);
    let run = repair(&redis).exits(1);
    let many = "I2: user1 has at least 1000 books, and 5 are the most allowed; not mended: ";
    assert!(run.stdout.starts_with(many) && run.stdout.ends_with("\n1 violation\n"), "{run}");
    assert_eq!(redis.ledger().counts["user1"], "1100");
}

#[test]
fn what_changes_too_fast_to_be_sure_is_not_called_well() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["SET", "user:user1:count", "1"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Outcomes come and are gone again: nobody can tell what was lent meanwhile.
            while !stop.load(Ordering::Relaxed) {
                redis.cmd(&["XADD", OUTCOMES, "MAXLEN", "1", "*", "action", "request"]);
            }
        });
        let run = repair(&redis);
        stop.store(true, Ordering::Relaxed);
        let run = run.exits(3);
        assert!(run.stderr.contains("changed too fast to be sure: run it again"), "{run}");
    });
    assert_eq!(redis.ledger().counts["user1"], "1");
    repair(&redis).exits(0);
    assert_eq!(redis.ledger().counts["user1"], "2");
}

/// Sends requests and returns of few users for few books, as long as `work` takes, and then waits
/// until they are done. Gives how many were sent.
fn under_load(redis: &Redis, work: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|client: u64| {
                let stop = &stop;
                scope.spawn(move || {
                    let (mut sent, mut numbers) = (0, Numbers(client));
                    let mut below = |bound| numbers.below(bound);
                    while !stop.load(Ordering::Relaxed) {
                        let mut batch = Vec::new();
                        for _ in 0..20 {
                            let stream = if below(2) == 0 { REQUESTS } else { RETURNS };
                            let user = format!("user{}", below(8));
                            let books: Vec<_> =
                                (0..=below(3)).map(|_| format!("book{}", below(40))).collect();
                            let books = books.join(",");
                            let add = ["XADD", stream, "*", "user_id", &user, "book_ids", &books];
                            batch.push(add.map(str::to_owned).to_vec());
                        }
                        sent += batch.len();
                        redis.pipeline(&batch);
                        // The instances keep up: an event's effects are what is wanted here.
                        while redis.length(REQUESTS) > 100 && !stop.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                    sent
                })
            })
            .collect();
        // Also if it panics: the clients must end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let sent = clients.into_iter().map(|client| client.join().unwrap()).sum();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent
    })
}

#[test]
fn beside_instances_at_work_nothing_is_taken_for_wrong() {
    let redis = Redis::new();
    let _daemons = ["worker1", "worker2"].map(|name| Daemon::start(&redis, &[name]));
    let sent = under_load(&redis, || {
        let (start, before) = (Instant::now(), redis.length(OUTCOMES));
        for round in 0.. {
            let args = if round % 2 == 0 { &["check"][..] } else { &["check", "--repair"] };
            let run = TestCommand::library_admin(&redis, args).exits(0);
            assert_eq!(run.stdout, WELL, "{run}");
            if round > 10 && redis.length(OUTCOMES) > before + 1_000 {
                break;
            }
            assert!(start.elapsed() < 3 * DEADLINE, "the instances decide next to nothing");
        }
    });
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
}

#[test]
fn beside_instances_at_work_what_is_wrong_is_found_and_mended() {
    let redis = Redis::new();
    let _daemons = ["worker1", "worker2"].map(|name| Daemon::start(&redis, &[name]));
    under_load(&redis, || {
        assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > 100));
        // Users that are lent books, and give them back, all the time.
        redis.cmd(&["INCR", "user:user1:count"]);
        redis.cmd(&["INCRBY", "user:user2:count", "2"]);
        redis.cmd(&["HSET", SHELVES, "lost", "1-0"]);
        redis.cmd(&["SADD", "request:1-0:temp", "geb"]);
        let run = check(&redis).exits(1);
        for said in ["lost is nowhere", "temp reserves", "count of user1", "count of user2"] {
            assert_eq!(run.stdout.matches(said).count(), 1, "{said}: {run}");
        }
        let run = repair(&redis).exits(0);
        assert_eq!(run.stdout.matches("; mended: ").count(), 4, "{run}");
        assert_eq!(check(&redis).exits(0).stdout, WELL);
    });
    redis.assert_at_rest();
}
