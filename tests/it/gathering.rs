//! What comes together is worked on together: it costs Redis few calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use library_lending::shelving::reader::GATHER;

use crate::common::*;

/// A library whose calls of one script are counted.
fn counted(state: &Ledger, kind: &'static str) -> (Redis, Proxy, Daemon, Arc<AtomicUsize>) {
    let redis = Redis::new();
    state.lay_down(&redis);
    let (proxy, calls) = Proxy::counting(&redis, kind);
    let daemon = proxy.spawn(&redis, &["worker1"]).ready();
    (redis, proxy, daemon, calls)
}

/// Redis wakes a read of two streams with what has come into the first: the returns of a desk that
/// sends all that it has in one transaction were read after its requests, and decided by themselves.
/// After the first transaction it is known that more may come; also where only a few came into the
/// other stream, and those were read last.
#[test]
fn requests_and_returns_of_one_transaction_are_decided_in_one_call() {
    // Of one and one more often than a read looks twice after a large one.
    let sizes =
        [(8, 2), (8, 2), (4, 4), (9, 1), (3, 7), (1, 9), (5, 5), (1, 1), (1, 1), (1, 1), (1, 1)];
    let returns: usize = sizes.iter().map(|(_, returns)| returns).sum();
    let mut state = Ledger::new();
    for n in 0..returns {
        state = state.lent(&format!("user{n}"), &[&format!("lent{n}")], "17-0");
    }
    let (redis, _proxy, _daemon, calls) = counted(&state, "decide");
    let add = |stream: &str, user: String, book: String| xadd(stream, "*", &user, &book);
    let (mut requested, mut returned) = (0, 0);
    for (n, (requests, returns)) in sizes.into_iter().enumerate() {
        let before = calls.load(Ordering::SeqCst);
        let mut all = vec![vec!["MULTI".to_owned()]];
        for k in requested..requested + requests {
            all.push(add(REQUESTS, format!("new{k}"), format!("book{k}")));
        }
        for k in returned..returned + returns {
            all.push(add(RETURNS, format!("user{k}"), format!("lent{k}")));
        }
        all.push(vec!["EXEC".to_owned()]);
        redis.pipeline(&all);
        redis.wait_until_drained(DEADLINE);
        (requested, returned) = (requested + requests, returned + returns);
        redis.assert_one_outcome_each(requested + returned);
        let calls = calls.load(Ordering::SeqCst) - before;
        assert!(n == 0 || calls == 1, "{calls} calls of decide.lua: {requests} and {returns}");
    }
    redis.assert_at_rest();
}

/// Each hand-off woke shelving for itself, which cost Redis more than to put the book on its shelf.
#[test]
fn handoffs_in_quick_succession_are_gathered() {
    let books: Vec<String> = (0..300).map(|n| format!("book{n}")).collect();
    let books: Vec<&str> = books.iter().map(String::as_str).collect();
    let (redis, _proxy, _daemon, calls) = counted(&Ledger::new().nowhere(&books, "17-0"), "shelve");
    let start = Instant::now();
    for book in books {
        redis.hand_off("*", book);
    }
    redis.wait_until_drained(DEADLINE);
    // One is read at once; and the first call, before Redis knows the script, takes two.
    let most = start.elapsed().div_duration_f64(GATHER) as usize + 2;
    let calls = calls.load(Ordering::SeqCst);
    assert!(0 < calls && calls <= most, "{calls} calls of shelve.lua, {most} at most");
    redis.assert_at_rest();
}

/// A script's time grows with its books, and whoever shares the Redis waits for it to end.
#[test]
fn a_call_has_about_a_thousand_books_at_most_and_not_many_fewer() {
    const EVENTS: usize = 6;
    let books = |n: usize| (0..500).map(|k| format!("book{n}-{k}")).collect::<Vec<_>>().join(",");
    let events: Vec<_> = (0..EVENTS).map(books).collect();
    for (kind, stream) in [("decide", REQUESTS), ("shelve", SHELVING)] {
        let redis = Redis::new();
        let state = events.iter().fold(Ledger::new(), |state, books| {
            let of_hand_offs = if stream == SHELVING { books.as_str() } else { "" };
            state.nowhere(&of_hand_offs.split_terminator(',').collect::<Vec<_>>(), "17-0")
        });
        state.lay_down(&redis);
        for (n, books) in events.iter().enumerate() {
            if stream == SHELVING {
                redis.hand_off("*", books);
            } else {
                redis.request(&format!("user{n}"), books);
            }
        }
        let (proxy, calls) = Proxy::counting(&redis, kind);
        let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
        redis.wait_until_drained(DEADLINE);
        // Two events in each; and Redis does not know the script at first, when two may be under way.
        let calls = calls.load(Ordering::SeqCst) - EVENTS / 2;
        assert!((1..=2).contains(&calls), "{kind}: {calls} more than with two events in each");
    }
}

/// Sends a request and waits until it is decided, so many times.
fn ask_one_by_one(redis: &Redis, count: usize, book: impl Fn(usize) -> String) {
    for n in 0..count {
        let id = redis.request(&format!("user of {}", book(n)), &book(n));
        redis.outcome_of_request(&id);
    }
}

/// The second look is for what comes by the dozen; for each event alone it would be a third of its price.
#[test]
fn what_comes_one_by_one_is_not_looked_for_twice() {
    const EVENTS: usize = 50;
    let (redis, _daemon) = library(&Ledger::new());
    let before = redis.calls_of("xreadgroup");
    ask_one_by_one(&redis, EVENTS, |n| format!("book{n}"));
    let reads = redis.calls_of("xreadgroup") - before;
    assert!(reads < EVENTS * 3 / 2, "{reads} reads for {EVENTS} events");
}

/// To ask is a call for nothing where books are lent; not to ask is one more where they are not.
#[test]
fn shelving_is_asked_first_as_long_as_its_books_are_there() {
    const EVENTS: usize = 40;
    let (redis, _proxy, _daemon, decides) =
        counted(&Ledger::new().lent("user1", &["geb"], "1-0"), "decide");
    let calls = || (redis.calls_of_scripts(), decides.load(Ordering::SeqCst));
    let counted = |book: fn(usize) -> String| {
        let before = calls();
        ask_one_by_one(&redis, EVENTS, book);
        let after = calls();
        (after.0 - before.0, after.1 - before.1)
    };
    let lent = counted(|_| "geb".to_owned());
    assert!(
        lent.0 < EVENTS * 3 / 2,
        "{lent:?} calls for {EVENTS} refusals, of decide.lua the second"
    );
    let there = counted(|n| format!("book{n}"));
    assert!(
        there.1 < EVENTS * 3 / 2,
        "{there:?} calls for {EVENTS} loans, of decide.lua the second"
    );
}
