//! Several instances side by side on one Redis, under load.

use std::thread;
use std::time::Duration;

use crate::common::*;

/// Requests and returns of few users for few books, so that all branches are taken.
fn events(seed: u64, count: usize) -> Vec<Vec<String>> {
    let mut numbers = Numbers(seed);
    let one = |_| {
        let stream = if numbers.below(5) < 3 { REQUESTS } else { RETURNS };
        let user = format!("user{}", numbers.below(12));
        let books: Vec<_> =
            (0..=numbers.below(4)).map(|_| format!("book{}", numbers.below(60))).collect();
        xadd(stream, "*", &user, &books.join(","))
    };
    (0..count).map(one).collect()
}

/// Sends from several clients at once while the instances are at work.
fn send(redis: &Redis, clients: u64, each: usize) -> usize {
    thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || {
                for part in events(client, each).chunks(25) {
                    redis.pipeline(part);
                }
            });
        }
    });
    clients as usize * each
}

fn assert_instances_share_the_work(names: &[&str]) {
    let redis = Redis::new();
    // Half of it is there before they start.
    let mut sent = send(&redis, 2, 200);
    let mut daemons: Vec<_> = names.iter().map(|name| Daemon::spawn(&redis, &[*name])).collect();
    daemons = daemons.into_iter().map(Daemon::ready).collect();
    sent += send(&redis, 4, 100);
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
    for stream in [REQUESTS, RETURNS, SHELVING] {
        assert_eq!(redis.length(stream), 0, "{stream}");
    }
    assert_eq!(redis.length(DEAD_LETTERS), 0);
    for mut daemon in daemons {
        assert_eq!(daemon.stop(), 0);
    }
    let refused: Vec<_> =
        redis.outcomes().into_iter().filter(|o| o.contains_key("unavailable")).collect();
    assert_eq!(refused, Vec::<Fields>::new(), "in a healthy library nothing is nowhere");
}

#[test]
fn two_instances_under_load_keep_all_invariants() {
    assert_instances_share_the_work(&["worker1", "worker2"]);
}

#[test]
fn four_instances_under_load_keep_all_invariants() {
    assert_instances_share_the_work(&["worker1", "worker2", "worker3", "worker4"]);
}

/// With thousands of plain XADDs that tie, each instance was busy with tries in vain, which every refusal of an event
/// for a popular book brought about, and did not get to those for which the other one waited: two instances took
/// ten times as long as one.
#[test]
fn two_instances_do_not_keep_each_other_waiting_where_thousands_tie() {
    const EVENTS: usize = 8_000;
    let redis = Redis::new();
    let _daemons = ["worker1", "worker2"].map(|name| Daemon::start(&redis, &[name]));
    let mut numbers = Numbers(1);
    let mut event = || {
        let stream = [REQUESTS, RETURNS][numbers.below(2) as usize];
        let user = format!("user{}", numbers.below(300));
        let books: Vec<_> =
            (0..=numbers.below(3)).map(|_| format!("book{}", numbers.below(200))).collect();
        xadd(stream, "*", &user, &books.join(","))
    };
    for _ in 0..EVENTS / 40 {
        redis.pipeline(&(0..40).map(|_| event()).collect::<Vec<_>>());
    }
    Ledger::new().replay(&redis.assert_one_outcome_each(EVENTS));
    redis.assert_at_rest();
    let calls = redis.calls_of_scripts();
    assert!(calls < EVENTS, "{calls} calls of scripts for {EVENTS} events");
}

#[test]
fn two_instances_asked_for_one_book_lend_it_once() {
    let redis = Redis::new();
    let _daemons = ["worker1", "worker2"].map(|name| Daemon::start(&redis, &[name]));
    for round in 0..20 {
        let book = format!("book{round}");
        thread::scope(|scope| {
            for user in 0..4 {
                let (redis, book) = (&redis, &book);
                scope.spawn(move || {
                    let id = redis.request(&format!("user{user} of {round}"), book);
                    redis.outcome_of_request(&id)
                });
            }
        });
        let accepted = redis.outcomes().into_iter().filter(|o| o["outcome"] == "accepted").count();
        assert_eq!(accepted, round + 1);
    }
    Ledger::new().replay(&redis.assert_one_outcome_each(80));
    redis.assert_at_rest();
}

#[test]
fn an_instance_that_is_killed_under_load_is_replaced_by_the_other() {
    let redis = Redis::new();
    let mut sent = send(&redis, 2, 200);
    let lease = ["--lease", "2"];
    let mut killed = Daemon::start(&redis, &["worker1", lease[0], lease[1]]);
    let _daemon = Daemon::start(&redis, &["worker2", lease[0], lease[1]]);
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > 50));
    killed.kill9();
    sent += send(&redis, 2, 100);
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
    let left = || redis.everything().stream(REQUESTS).groups["lending_service"].pending.clone();
    assert!(left().is_empty());
}

#[test]
fn an_instance_that_is_paused_for_longer_than_its_lease_harms_nothing_when_it_goes_on() {
    let redis = Redis::new();
    let lease = ["--lease", "1"];
    let mut paused = Daemon::start(&redis, &["worker1", lease[0], lease[1]]);
    let mut other = Daemon::start(&redis, &["worker2", lease[0], lease[1]]);
    let mut sent = send(&redis, 2, 100);
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > 20));
    paused.signal(Signal::STOP);
    sent += send(&redis, 2, 50);
    redis.assert_one_outcome_each(sent);
    let before = redis.everything().without("instance_lock:");
    paused.signal(Signal::CONT);
    assert!(stays(Duration::from_secs(1), || {
        redis.everything().without("instance_lock:").0[OUTCOMES] == before.0[OUTCOMES]
    }));
    // It has started again cleanly, or ended with a clear message.
    if !paused.is_running() {
        assert_eq!(paused.exit_status(), 69);
    }
    sent += send(&redis, 2, 50);
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
    assert_eq!(other.stop(), 0);
}

/// For each round a request, right behind it its return, and behind that a request by somebody
/// else for the same book: with ids that grow across both streams, or by plain XADD in one
/// pipeline, where many share a millisecond and a return often gets a smaller id than its request.
fn queue_rounds(redis: &Redis, rounds: u32, growing: bool) {
    let commands: Vec<Vec<String>> = (0..rounds)
        .flat_map(|n| {
            [(REQUESTS, 'a', 2), (RETURNS, 'a', 3), (REQUESTS, 'b', 4)].map(|(stream, user, at)| {
                let id = if growing { format!("{}-0", 10 * n + at) } else { "*".to_owned() };
                let (user, book) = (format!("{user}{n}"), format!("book{n}"));
                xadd(stream, &id, &user, &book)
            })
        })
        .collect();
    redis.pipeline(&commands);
}

fn assert_full_streams_are_served(names: &[&str], growing: bool) {
    const ROUNDS: u32 = 300;
    let redis = Redis::new();
    // The storage is full, so that books travel to the shelves and back.
    let stored: Vec<_> = (0..20).map(|n| format!("stored-{n}")).collect();
    Ledger::new().stored(&stored, "1-0").lay_down(&redis);
    queue_rounds(&redis, ROUNDS, growing);
    let daemons: Vec<_> = names.iter().map(|name| Daemon::spawn(&redis, &[*name])).collect();
    let _daemons: Vec<_> = daemons.into_iter().map(Daemon::ready).collect();
    assert_returns_find_their_loans(&redis.assert_one_outcome_each(3 * ROUNDS as usize));
    redis.assert_at_rest();
}

#[test]
fn with_full_streams_every_return_finds_its_loans_and_every_later_request_is_granted() {
    for names in [&["one"][..], &["one", "two"], &["one", "two", "three", "four"]] {
        assert_full_streams_are_served(names, true);
    }
}

#[test]
fn with_full_streams_of_equal_milliseconds_every_return_finds_its_loans_as_well() {
    for names in [&["one"][..], &["one", "two"], &["one", "two", "three", "four"]] {
        assert_full_streams_are_served(names, false);
    }
}

/// Whoever shares the Redis waits for a script to end.
#[test]
fn a_smaller_batch_makes_shorter_scripts() {
    let scripts = |args: &[&str]| {
        let redis = Redis::new();
        let events: Vec<_> = (0..300).map(|n| ("user".to_owned() + &n.to_string(), n)).collect();
        for (user, n) in &events {
            redis.request(user, &format!("book{n}"));
        }
        let _daemon = Daemon::start(&redis, args);
        Ledger::new().replay(&redis.assert_one_outcome_each(events.len()));
        redis.assert_at_rest();
        redis.calls_of_scripts()
    };
    let (usual, small) = (scripts(&["worker1"]), scripts(&["worker1", "--batch", "2"]));
    assert!(usual < 100, "{usual} scripts for 300 events");
    assert!(small >= 150, "{small} scripts for 300 events, two at a time");
}
