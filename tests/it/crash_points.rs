//! Every point at which a link or a process can die while a scenario runs: before each command of
//! the daemon reaches Redis, and after Redis has executed it. What comes of the events is the same
//! each time.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use crate::common::*;

/// How the events of the scenario are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// Each when the one before it is decided.
    Single,
    /// All before the daemon starts.
    Batch,
}

/// Points of one kind: the first, the second, and so on until there are no more.
#[derive(Clone, Copy, Debug)]
struct Series {
    sending: Sending,
    kind: &'static str,
    fault: Fault,
}

/// A full storage; loans to be refused, to be given back and to be at the limit with; a book that
/// a hand-off brings.
fn beginning() -> Ledger {
    let stored: Vec<_> = (1..=20).map(|n| format!("stored{n}")).collect();
    Ledger::new()
        .stored(&stored, "1-0")
        .lent("other", &["lent"], "1-1")
        .lent("back", &["back1", "back2"], "1-2")
        .lent("limit", &["limit1", "limit2", "limit3", "limit4"], "1-3")
        .nowhere(&["handed"], "1-4")
}

/// The events, by the second half of their ids: an acceptance from the shelf and from storage, one
/// in part, both denials (with books that go back to storage and to the shelves), a return that
/// refills storage and hands the rest over, a return of nothing, a hand-off and a request for its
/// book, and a malformed one of each kind, which in a batch are given up in the write that decides the
/// others.
const EVENTS: [(&str, &str, &str); 11] = [
    (REQUESTS, "whole", "new1,stored1,stored2"),
    (REQUESTS, "part", "new2,lent"),
    (REQUESTS, "none", "lent"),
    (REQUESTS, "limit", "new3,new4,stored3,new5"),
    (REQUESTS, "more", "stored4"),
    (RETURNS, "back", "back1,back2,lent"),
    (RETURNS, "none", "elsewhere"),
    (SHELVING, "", "handed"),
    (REQUESTS, "shelf", "handed,new6"),
    (REQUESTS, "fumbler", ""),
    (RETURNS, "fumbler", ""),
];

fn send(redis: &Redis, n: usize) {
    let (stream, user, books) = EVENTS[n];
    let id = id(n);
    match stream {
        REQUESTS => redis.request_at(&id, user, books),
        RETURNS => redis.give_back_at(&id, user, books),
        // Behind the hand-offs of the daemon.
        _ => redis.hand_off("*", books),
    };
}

fn id(n: usize) -> String {
    format!("2-{}", n + 1)
}

/// What the contract says must come of them.
fn outcomes() -> Vec<Fields> {
    let request = |n: usize, verdict, more: &[(&str, &str)]| {
        outcome("request", &id(n), EVENTS[n].1, verdict, more)
    };
    let give_back = |n: usize, verdict, more: &[(&str, &str)]| {
        outcome("return", &id(n), EVENTS[n].1, verdict, more)
    };
    vec![
        request(0, "accepted", &[("book_ids", "new1,stored1,stored2"), ("in_hand", "3")]),
        request(
            1,
            "accepted",
            &[("book_ids", "new2"), ("lent_to_another", "lent"), ("in_hand", "1")],
        ),
        request(
            2,
            "denied",
            &[("cause", "none_available"), ("lent_to_another", "lent"), ("in_hand", "0")],
        ),
        request(
            3,
            "denied",
            &[
                ("cause", "too_many_books"),
                ("put_back", "new3,new4,stored3,new5"),
                ("in_hand", "4"),
            ],
        ),
        request(4, "accepted", &[("book_ids", "stored4"), ("in_hand", "1")]),
        give_back(
            5,
            "returned",
            &[("book_ids", "back1,back2"), ("lent_to_another", "lent"), ("in_hand", "0")],
        ),
        give_back(6, "unchanged", &[("not_lent", "elsewhere"), ("in_hand", "0")]),
        request(8, "accepted", &[("book_ids", "handed,new6"), ("in_hand", "2")]),
        request(9, "rejected", &[("cause", "no_book_ids")]),
        give_back(10, "rejected", &[("cause", "no_book_ids")]),
    ]
}

/// The state that they lead to when they come one after the other.
fn end() -> Ledger {
    let stored: Vec<_> =
        (1..=20).filter(|n| ![1, 2, 4].contains(n)).map(|n| format!("stored{n}")).collect();
    Ledger::new()
        .stored(&stored, "1-0")
        .stored(&["new3", "new4"], &id(3))
        .stored(&["back1"], "1-2")
        .lent("other", &["lent"], "1-1")
        .lent("limit", &["limit1", "limit2", "limit3", "limit4"], "1-3")
        .lent("whole", &["new1"], &id(0))
        .lent("whole", &["stored1", "stored2"], "1-0")
        .lent("part", &["new2"], &id(1))
        .lent("more", &["stored4"], "1-0")
        .lent("shelf", &["handed", "new6"], &id(8))
}

/// Waits until the scenario has run through and compares everything with what must be.
fn assert_as_expected(redis: &Redis, sending: Sending) {
    let mut came = redis.assert_one_outcome_each(outcomes().len());
    redis.assert_at_rest();
    beginning().replay(&came);
    came.sort_by_key(|outcome| numbers(&outcome["event_id"]));
    assert_eq!(came, outcomes());
    assert_eq!(redis.length(DEAD_LETTERS), 2);
    let (ledger, expected) = (redis.ledger(), end());
    assert_eq!((&ledger.loans, &ledger.counts), (&expected.loans, &expected.counts));
    if sending == Sending::Single {
        // In a batch it is not fixed in which order books come and go.
        assert_eq!(ledger, expected);
    }
    for stream in [REQUESTS, RETURNS, SHELVING] {
        assert_eq!(redis.length(stream), 0, "{stream}");
    }
}

/// Runs the scenario with one fault, which the daemon (or after its death another) gets over.
/// False if the point was not reached.
fn run(redis: &Redis, series: Series, number: usize) -> bool {
    let Series { sending, kind, fault } = series;
    redis.cmd(&["FLUSHALL"]);
    beginning().lay_down(redis);
    if sending == Sending::Batch {
        (0..EVENTS.len()).for_each(|n| send(redis, n));
    }
    let proxy = Proxy::at(redis, kind, number, fault);
    let mut first = proxy.spawn(redis, &["--lease", "1", "worker1"]);
    let mut second = None;
    let mut replace = |first: &mut Daemon| {
        let kills = matches!(fault, Fault::KillBefore | Fault::KillAfter);
        if kills && second.is_none() && proxy.has_struck() {
            assert_eq!(first.exit_status(), -9);
            second = Some(Daemon::spawn(redis, &["--lease", "1", "worker2"]));
        }
    };
    if sending == Sending::Single {
        let mut decided = 0;
        for (n, (stream, ..)) in EVENTS.iter().enumerate() {
            send(redis, n);
            decided += usize::from(*stream != SHELVING);
            let is_decided =
                || redis.length(OUTCOMES) == decided && (*stream != SHELVING || redis.is_drained());
            let came = eventually(DEADLINE, || {
                replace(&mut first);
                is_decided()
            });
            assert!(came, "{} was not decided in time", id(n));
        }
    }
    let came = eventually(DEADLINE, || {
        replace(&mut first);
        redis.length(OUTCOMES) >= outcomes().len() && redis.is_drained()
    });
    assert!(came, "the scenario did not run through in time");
    assert_as_expected(redis, sending);
    if fault == Fault::Late {
        // If it did not arrive before: now.
        proxy.release();
        assert_as_expected(redis, sending);
    }
    proxy.has_struck()
}

fn every_series() -> VecDeque<Series> {
    const KINDS: [&str; 11] = [
        "fetch",
        "decide",
        "reject",
        "read",
        "shelve",
        "read hand-offs",
        "acquire",
        "claim",
        "renew",
        "sweep",
        "clear",
    ];
    let faults =
        [Fault::CutBefore, Fault::CutAfter, Fault::Late, Fault::KillBefore, Fault::KillAfter];
    let mut all = VecDeque::new();
    for sending in [Sending::Single, Sending::Batch] {
        for kind in KINDS {
            all.extend(faults.map(|fault| Series { sending, kind, fault }));
        }
    }
    // A late read gives events to nobody; they are taken up again, but that takes longer.
    all.retain(|series| series.fault != Fault::Late || !series.kind.starts_with("read"));
    all
}

#[test]
fn whatever_the_point_at_which_a_link_or_a_process_dies_the_outcomes_are_the_same() {
    /// Most of a run is waiting.
    const RUNNERS: usize = 6;
    /// No scenario has so many commands of one kind.
    const MOST: usize = 60;
    let queue = Mutex::new(every_series());
    let points = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..RUNNERS {
            scope.spawn(|| {
                let redis = Redis::new();
                // Scripts are known from here on: each call is one command.
                let (sending, kind, fault) = (Sending::Batch, "decide", Fault::CutBefore);
                assert!(!run(&redis, Series { sending, kind, fault }, MOST));
                loop {
                    let next = queue.lock().unwrap().pop_front();
                    let Some(series) = next else { return };
                    let mut number = 1;
                    while catch_unwind(AssertUnwindSafe(|| run(&redis, series, number)))
                        .unwrap_or_else(|_| panic!("at number {number} of {series:?}"))
                    {
                        number += 1;
                        assert!(number < MOST, "{series:?} does not end");
                    }
                    *points.lock().unwrap().entry(series.kind).or_insert(0) += number - 1;
                }
            });
        }
    });
    let points = points.into_inner().unwrap();
    println!("points: {points:?}");
    // Each with five faults (four for reads), one by one and in a batch.
    for (kind, least) in [
        ("fetch", 5 * (6 + 2)),
        ("decide", 5 * (8 + 3)),
        ("reject", 5 * (2 + 2)),
        ("read", 4 * (10 + 1)),
        ("shelve", 5 * (3 + 2)),
        ("read hand-offs", 4 * (3 + 2)),
        ("acquire", 5 * 2),
        ("claim", 5 * 2 * 2),
        ("renew", 5 * 2),
    ] {
        assert!(points[kind] >= least, "{kind}: {points:?}");
    }
}
