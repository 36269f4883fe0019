//! The contract's paragraph on order (I8): grants happen as soon as they can, a refusal waits for
//! whatever is older and for books on their way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::*;

/// How long something is watched that must not happen. A daemon that is wrong does it in a few
/// milliseconds.
const A_WHILE: Duration = Duration::from_millis(400);

/// Asserts that a request or return is not decided, though the daemon is at work: an event that
/// came later and can be granted is.
fn assert_waits(redis: &Redis, action: &str, id: &str) {
    let sentinel = redis.request(&format!("sentinel of {id}"), &format!("for {id}"));
    assert_eq!(redis.outcome_of_request(&sentinel)["outcome"], "accepted");
    assert!(
        stays(A_WHILE, || redis.outcomes_of(action, id).is_empty()),
        "{action} {id} did not wait: {:?}",
        redis.outcomes_of(action, id)
    );
}

/// Every request was accepted and every return took something back; else shows what was decided
/// up to then.
fn assert_all_granted(outcomes: &[Fields]) {
    for (n, outcome) in outcomes.iter().enumerate() {
        let granted = ["accepted", "returned"].contains(&outcome["outcome"].as_str());
        assert!(granted, "not granted: {:#?}", &outcomes[n.saturating_sub(10)..=n]);
    }
}

#[test]
fn a_return_and_a_request_for_its_book_work_right_after_each_other() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user1", "geb");
    redis.request_at("11-0", "user2", "geb");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_return("10-0")["book_ids"], "geb");
    assert_eq!(redis.outcome_of_request("11-0")["book_ids"], "geb");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user2", &["geb"], "5-0"));
}

/// Shelving was asked for one of them at a time, since plain XADDs may tie, though no return was left to tie with: a
/// queue of refusals took twenty times as long behind one return as without.
#[test]
fn one_return_in_the_millisecond_of_a_request_does_not_slow_down_those_behind_it() {
    const REQUESTS_SENT: usize = 4_000;
    let redis = Redis::new();
    let _daemon = Daemon::start(&redis, &["worker1"]);
    for part in 0..REQUESTS_SENT / 500 {
        let request = |n: usize| {
            let books: Vec<_> = (0..=library_lending::lending::MOST_BOOKS_IN_HAND)
                .map(|book| format!("book{n}-{book}"))
                .collect();
            let user = format!("user{n}");
            xadd(REQUESTS, "*", &user, &books.join(","))
        };
        let mut events: Vec<_> = (part * 500..part * 500 + 500).map(request).collect();
        if part == 0 {
            events.insert(250, xadd(RETURNS, "*", "nobody", "none"));
        }
        redis.pipeline(&events);
    }
    let outcomes = redis.assert_one_outcome_each(REQUESTS_SENT + 1);
    let refused = |outcome: &Fields| ["denied", "unchanged"].contains(&outcome["outcome"].as_str());
    assert!(outcomes.iter().all(refused));
    redis.assert_at_rest();
    let calls = redis.calls_of_scripts();
    assert!(calls < REQUESTS_SENT / 2, "{calls} calls of scripts for {REQUESTS_SENT} events");
}

#[test]
fn a_request_and_its_return_that_are_queued_together_lose_nothing() {
    let redis = Redis::new();
    redis.request_at("10-0", "user1", "geb,momo");
    redis.give_back_at("11-0", "user1", "geb,momo");
    redis.request_at("12-0", "user2", "momo,geb");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request("10-0")["book_ids"], "geb,momo");
    assert_eq!(redis.outcome_of_return("11-0")["book_ids"], "geb,momo");
    assert_eq!(redis.outcome_of_request("12-0")["book_ids"], "momo,geb");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user2", &["geb", "momo"], "10-0"));
}

#[test]
fn books_change_hands_a_hundred_times_without_waiting_for_an_answer() {
    let (redis, _daemon) = library(&Ledger::new());
    // Plain XADD into two streams: many of these share a millisecond.
    for n in 0..100 {
        let (user, book) = (format!("user{n}"), format!("book{}", n % 3));
        redis.request(&user, &book);
        redis.give_back(&user, &book);
    }
    assert_all_granted(&redis.assert_one_outcome_each(200));
    redis.assert_at_rest();
    assert!(redis.ledger().loans.is_empty());
}

#[test]
fn with_both_streams_full_at_the_start_every_return_and_every_later_request_is_granted() {
    const ROUNDS: u32 = 300;
    let redis = Redis::new();
    // All of one round share a book; the storage is full, so that books travel to the shelves.
    let stored: Vec<_> = (0..20).map(|n| format!("stored-{n}")).collect();
    Ledger::new().stored(&stored, "1-0").lay_down(&redis);
    for n in 0..ROUNDS {
        let (first, second, book) = (format!("a{n}"), format!("b{n}"), format!("book{n}"));
        redis.request_at(&format!("{}-0", 10 * n + 2), &first, &book);
        redis.give_back_at(&format!("{}-0", 10 * n + 3), &first, &book);
        redis.request_at(&format!("{}-0", 10 * n + 4), &second, &book);
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_all_granted(&redis.assert_one_outcome_each(3 * ROUNDS as usize));
    redis.assert_at_rest();
    assert_eq!(redis.ledger().loans.len(), ROUNDS as usize);
}

#[test]
fn a_user_at_the_limit_who_returns_one_and_asks_for_one_gets_it() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["a", "b", "c", "d", "e"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user1", "c");
    redis.request_at("11-0", "user1", "f");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let more = [("book_ids", "f"), ("in_hand", "5")];
    assert_eq!(
        redis.outcome_of_request("11-0"),
        outcome("request", "11-0", "user1", "accepted", &more)
    );
    redis.assert_at_rest();
}

#[test]
fn a_refusal_waits_for_an_older_return_in_the_hands_of_another_instance() {
    for other_takes_it_back in [true, false] {
        let redis = Redis::new();
        Ledger::new().lent("user2", &["geb"], "5-0").lay_down(&redis);
        redis.give_back_at("10-0", "user2", "geb");
        let other = Other::alive(&redis, "other");
        assert_eq!(other.take(RETURNS), "10-0");
        let _daemon = Daemon::start(&redis, &["worker1"]);
        let id = redis.request("user1", "geb");
        assert_waits(&redis, "request", &id);
        let expected = if other_takes_it_back {
            other.take_back("user2", "geb");
            outcome("request", &id, "user1", "accepted", &[("book_ids", "geb"), ("in_hand", "1")])
        } else {
            let more = [("cause", "none_available"), ("lent_to_another", "geb"), ("in_hand", "0")];
            outcome("request", &id, "user1", "denied", &more)
        };
        other.acknowledge(RETURNS, "10-0");
        assert_eq!(redis.outcome_of_request(&id), expected);
        redis.assert_at_rest();
    }
}

#[test]
fn a_request_that_would_be_accepted_in_part_waits_and_gets_all() {
    let redis = Redis::new();
    Ledger::new().lent("user2", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user2", "geb");
    let other = Other::alive(&redis, "other");
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "momo,geb");
    assert_waits(&redis, "request", &id);
    other.take_back("user2", "geb");
    other.acknowledge(RETURNS, "10-0");
    let more = [("book_ids", "momo,geb"), ("in_hand", "2")];
    assert_eq!(redis.outcome_of_request(&id), outcome("request", &id, "user1", "accepted", &more));
    redis.assert_at_rest();
}

#[test]
fn a_denial_for_too_many_books_waits_for_an_older_return() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["a", "b", "c", "d", "e"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user1", "a");
    let other = Other::alive(&redis, "other");
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "f");
    assert_waits(&redis, "request", &id);
    other.take_back("user1", "a");
    other.acknowledge(RETURNS, "10-0");
    assert_eq!(redis.outcome_of_request(&id)["book_ids"], "f");
    redis.assert_at_rest();
}

#[test]
fn a_return_that_finds_nothing_lent_waits_for_an_older_request() {
    for books in ["geb", "momo,geb"] {
        let redis = Redis::new();
        Ledger::new().nowhere(&["geb"], "10-0").lent("user1", &["momo"], "5-0").lay_down(&redis);
        redis.request_at("10-0", "user1", "geb");
        let other = Other::alive(&redis, "other");
        assert_eq!(other.take(REQUESTS), "10-0");
        let _daemon = Daemon::start(&redis, &["worker1"]);
        let id = redis.give_back("user1", books);
        assert_waits(&redis, "return", &id);
        other.lend("user1", "geb");
        other.acknowledge(REQUESTS, "10-0");
        assert_eq!(redis.outcome_of_return(&id)["book_ids"], books);
        redis.assert_at_rest();
    }
}

#[test]
fn a_grant_waits_for_nothing() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["momo"], "5-0").lay_down(&redis);
    redis.request_at("10-0", "user2", "geb");
    redis.give_back_at("10-0", "user2", "geb");
    let other = Other::alive(&redis, "other");
    other.take(REQUESTS);
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let request = redis.request("user1", "emma");
    let back = redis.give_back("user1", "momo");
    assert_eq!(redis.outcome_of_request(&request)["book_ids"], "emma");
    assert_eq!(redis.outcome_of_return(&back)["book_ids"], "momo");
}

#[test]
fn a_book_on_its_way_to_its_shelf_is_waited_for() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "5-0").lay_down(&redis);
    redis.hand_off("10-0", "emma,geb");
    let other = Other::alive(&redis, "other");
    assert_eq!(other.take(SHELVING), "10-0");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "geb");
    assert_waits(&redis, "request", &id);
    redis.cmd(&["HDEL", SHELVES, "geb"]);
    other.acknowledge(SHELVING, "10-0");
    assert_eq!(redis.outcome_of_request(&id)["book_ids"], "geb");
    redis.assert_at_rest();
    assert_eq!(redis.ledger().shelves["geb"], id);
}

/// A reference instance has reserved geb for the younger request 20-0 and works on it. The older
/// request 10-0 for geb comes to us from `holder`, which is `worker1` itself or goes away.
fn assert_waits_for_a_reservation(holder: &'static str, goes_away: bool) {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "20-0").lay_down(&redis);
    redis.request_at("10-0", "user1", "geb");
    redis.request_at("20-0", "user2", "geb");
    let ours = if goes_away { Other::alive(&redis, holder) } else { Other::gone(&redis, holder) };
    assert_eq!(ours.take(REQUESTS), "10-0");
    let reference = Other::of_the_reference(&redis, "reference1");
    assert_eq!(reference.take(REQUESTS), "20-0");
    redis.cmd(&["SADD", "request:20-0:temp", "geb"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    if goes_away {
        ours.die();
        let taken_over = || {
            redis.everything().stream(REQUESTS).groups["lending_service"].pending.get("10-0")
                != Some(&holder.to_owned())
        };
        assert!(eventually(DEADLINE, taken_over));
    }
    assert_waits(&redis, "request", "10-0");
    redis.cmd(&["DEL", "request:20-0:temp"]);
    reference.lend("user2", "geb");
    reference.acknowledge(REQUESTS, "20-0");
    let more = [("cause", "none_available"), ("lent_to_another", "geb"), ("in_hand", "0")];
    assert_eq!(
        redis.outcome_of_request("10-0"),
        outcome("request", "10-0", "user1", "denied", &more)
    );
    redis.assert_at_rest();
}

#[test]
fn a_book_reserved_by_another_request_in_work_is_waited_for() {
    assert_waits_for_a_reservation("another", true);
}

#[test]
fn a_book_reserved_by_another_request_in_work_is_waited_for_from_the_start() {
    assert_waits_for_a_reservation("worker1", false);
}

#[test]
fn of_two_that_wait_for_one_book_the_older_gets_it() {
    let redis = Redis::new();
    Ledger::new().lent("user3", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user3", "geb");
    let other = Other::alive(&redis, "other");
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let ids: Vec<_> = (0..8).map(|n| redis.request(&format!("waiting{n}"), "geb")).collect();
    assert_waits(&redis, "request", &ids[7]);
    other.take_back("user3", "geb");
    other.acknowledge(RETURNS, "10-0");
    assert_eq!(redis.outcome_of_request(&ids[0])["book_ids"], "geb");
    for id in &ids[1..] {
        assert_eq!(redis.outcome_of_request(id)["lent_to_another"], "geb");
    }
    redis.assert_at_rest();
}

#[test]
fn a_newer_request_does_not_overtake_one_that_waits_for_the_same_book() {
    const ROUNDS: usize = 300;
    let redis = Redis::new();
    let books: Vec<_> = (0..ROUNDS).map(|n| format!("book{n}")).collect();
    let lent = books
        .iter()
        .enumerate()
        .fold(Ledger::new(), |ledger, (n, book)| ledger.lent(&format!("had{n}"), &[book], "5-0"));
    lent.lay_down(&redis);
    // As long as this one is undecided nothing is refused.
    redis.give_back_at("10-0", "somebody", "something");
    let other = Other::alive(&redis, "other");
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let mut waited = Vec::new();
    for (n, book) in books.iter().enumerate() {
        // The first waits, the second frees the book, the third must not get it.
        let add = |stream: &str, user: String| xadd(stream, "*", &user, book);
        let ids = redis.pipeline(&[
            add(REQUESTS, format!("waits{n}")),
            add(RETURNS, format!("had{n}")),
            add(REQUESTS, format!("comes later{n}")),
        ]);
        waited.push(redis::from_redis_value::<String>(ids[0].clone()).unwrap());
    }
    let decided = eventually(DEADLINE, || redis.length(OUTCOMES) == 2 * ROUNDS);
    assert!(decided, "{} outcomes", redis.length(OUTCOMES));
    let overtaken: Vec<_> = redis
        .outcomes()
        .into_iter()
        .filter(|outcome| outcome["user_id"].starts_with("comes later"))
        .collect();
    assert_eq!(overtaken, Vec::<Fields>::new(), "{} of {ROUNDS}", overtaken.len());
    other.acknowledge(RETURNS, "10-0");
    redis.assert_one_outcome_each(3 * ROUNDS);
    for id in &waited {
        assert_eq!(redis.outcomes_of("request", id)[0]["outcome"], "accepted");
    }
    redis.assert_at_rest();
}

/// The second comes when it is not known yet that the first waits, and the book comes free just before
/// the second is tried.
#[test]
fn a_newer_request_does_not_overtake_one_for_the_same_book_that_is_under_way() {
    let redis = Redis::new();
    Ledger::new().lent("user3", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user3", "geb");
    Other::alive(&redis, "other").take(RETURNS);
    let (of_proxy, is_free) = (redis.clone(), AtomicBool::new(false));
    let proxy = Proxy::new(&redis, move |command| {
        let tries_second = command.kind == "decide" && command.mentions("12-0");
        if tries_second && !is_free.swap(true, Ordering::SeqCst) {
            let other = Other::alive(&of_proxy, "other");
            other.take_back("user3", "geb");
            other.acknowledge(RETURNS, "10-0");
        }
        None
    });
    let _daemon = proxy.spawn(&redis, &["--batch", "1", "worker1"]).ready();
    // From then on Redis knows the scripts.
    redis.outcome_of_request(&redis.request_at("10-0", "user0", "momo"));
    let request = |id: &str, user: &str| xadd(REQUESTS, id, user, "geb");
    let both = [request("11-0", "user1"), request("12-0", "user2")];
    redis.pipeline(&[&[vec!["MULTI".to_owned()]], &both[..], &[vec!["EXEC".to_owned()]]].concat());
    assert_eq!(redis.outcome_of_request("11-0")["outcome"], "accepted");
    assert_eq!(redis.outcome_of_request("12-0")["lent_to_another"], "geb");
    redis.assert_at_rest();
}

#[test]
fn a_refusal_waits_for_the_other_streams_events_of_its_own_millisecond() {
    for back in ["10-0", "10-5", "10-9"] {
        let redis = Redis::new();
        Ledger::new().lent("user2", &["geb"], "5-0").lay_down(&redis);
        redis.request_at("10-5", "user1", "geb");
        redis.give_back_at(back, "user2", "geb");
        let _daemon = Daemon::start(&redis, &["worker1"]);
        assert_eq!(redis.outcome_of_request("10-5")["book_ids"], "geb", "return at {back}");
        assert_eq!(redis.outcome_of_return(back)["book_ids"], "geb");
        redis.assert_at_rest();
    }
}

#[test]
fn a_return_takes_back_what_a_request_of_its_own_millisecond_was_lent() {
    for back in ["10-0", "10-5", "10-9"] {
        let redis = Redis::new();
        redis.request_at("10-5", "user1", "geb");
        redis.give_back_at(back, "user1", "geb");
        let _daemon = Daemon::start(&redis, &["worker1"]);
        assert_eq!(redis.outcome_of_return(back)["book_ids"], "geb", "return at {back}");
        redis.assert_at_rest();
        assert_eq!(redis.ledger(), Ledger::new().stored(&["geb"], "10-5"));
    }
}

#[test]
fn where_two_of_one_millisecond_wait_only_for_each_other_the_smaller_id_is_decided_first() {
    // At equal ids the request.
    for (back, request_first) in [("10-0", false), ("10-5", true), ("10-9", true)] {
        let redis = Redis::new();
        Ledger::new().lent("user3", &["geb"], "5-0").lay_down(&redis);
        redis.request_at("10-5", "user1", "geb");
        redis.give_back_at(back, "user2", "momo");
        let _daemon = Daemon::start(&redis, &["worker1"]);
        let outcomes = redis.assert_one_outcome_each(2);
        assert_eq!(outcomes[0]["action"] == "request", request_first, "return at {back}");
        let denied = redis.outcome_of_request("10-5");
        assert_eq!(denied["lent_to_another"], "geb");
        assert_eq!(redis.outcome_of_return(back)["not_lent"], "momo");
        redis.assert_at_rest();
    }
}

#[test]
fn a_chain_of_refusals_in_one_millisecond_comes_to_its_end() {
    let redis = Redis::new();
    Ledger::new().lent("user3", &["geb"], "5-0").lay_down(&redis);
    for n in 0..20 {
        redis.request_at(&format!("10-{}", n + 1), "user1", "geb");
        redis.give_back_at(&format!("10-{}", n + 1), "user2", "momo");
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let order: Vec<_> = redis
        .assert_one_outcome_each(40)
        .into_iter()
        .map(|outcome| format!("{} {}", outcome["event_id"], outcome["action"]))
        .collect();
    let expected: Vec<_> = (0..20)
        .flat_map(|n| ["request", "return"].map(|action| format!("10-{} {action}", n + 1)))
        .collect();
    assert_eq!(order, expected);
    redis.assert_at_rest();
}

#[test]
fn an_instance_that_died_with_the_oldest_event_holds_up_no_refusal_for_long() {
    let redis = Redis::new();
    Ledger::new().lent("user2", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user2", "geb");
    let other = Other::alive(&redis, "other");
    other.take(RETURNS);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "geb");
    assert_waits(&redis, "request", &id);
    other.die();
    assert_eq!(redis.outcome_of_return("10-0")["book_ids"], "geb");
    assert_eq!(redis.outcome_of_request(&id)["book_ids"], "geb");
    redis.assert_at_rest();
}

#[test]
fn a_silent_instance_without_a_lease_holds_up_no_refusal_for_ever_and_is_named() {
    let redis = Redis::new();
    Ledger::new().lent("user2", &["geb"], "5-0").lay_down(&redis);
    redis.give_back_at("10-0", "user2", "geb");
    assert_eq!(Other::of_the_reference(&redis, "reference1").take(RETURNS), "10-0");
    let _nothing_in_hand = Other::of_the_reference(&redis, "reference2");
    redis.cmd(&["XGROUP", "CREATECONSUMER", RETURNS, "lending_service", "reference2"]);
    let daemon = Daemon::start(&redis, &["worker1", "--silent-after", "3", "--lease", "1"]);
    let id = redis.request("user1", "geb");
    assert_waits(&redis, "request", &id);
    assert_eq!(redis.outcome_of_request(&id)["lent_to_another"], "geb");
    let is_told_once = || {
        let log = daemon.log();
        let told: Vec<_> =
            log.lines().filter(|line| line.contains("holds up no refusal")).collect();
        told.len() == 1 && told[0].contains(" WARN ") && told[0].contains("reference1")
    };
    // The keeper looks three times a second.
    assert!(stays(Duration::from_millis(700), is_told_once), "{}", daemon.log());
    // It is given time, not robbed of its event.
    assert_eq!(
        redis.everything().stream(RETURNS).groups["lending_service"].pending["10-0"],
        "reference1"
    );
}

/// Of hundreds of plain XADDs in one millisecond the one in front waited for some that were tried when
/// thousands of others had been: a dozen were decided in a second.
#[test]
fn events_that_tie_by_the_hundred_are_not_tried_in_vain() {
    const EVENTS: usize = 3_000;
    const IN_A_MILLISECOND: usize = 200;
    let mut numbers = Numbers(5);
    let mut number = |bound| numbers.below(bound);
    let events: Vec<_> = (0..EVENTS)
        .map(|n| {
            let stream = if number(5) < 3 { REQUESTS } else { RETURNS };
            let id = format!("{}-{}", 10 + n / IN_A_MILLISECOND, n % IN_A_MILLISECOND);
            let books: Vec<_> = (0..=number(4)).map(|_| format!("book{}", number(200))).collect();
            let (user, books) = (format!("user{}", number(26)), books.join(","));
            xadd(stream, &id, &user, &books)
        })
        .collect();
    assert_decided_in_fewer_calls(&events, 2 * EVENTS);
}

/// Adds events, each by a command of its own, and has them decided.
fn assert_decided_in_fewer_calls(events: &[Vec<String>], calls: usize) {
    let redis = Redis::new();
    let (proxy, tries) = Proxy::counting(&redis, "decide");
    redis.pipeline(events);
    let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
    Ledger::new().replay(&redis.assert_one_outcome_each(events.len()));
    redis.assert_at_rest();
    let tries = tries.load(Ordering::SeqCst);
    assert!(tries < calls, "{tries} calls of decide.lua for {} events", events.len());
}

/// The one in front has as many books as a call takes of what waits, and went alone, time and again, where it
/// should have come along with one that it waits for: 600 events took minutes.
#[test]
fn events_of_very_many_books_that_tie_are_not_tried_in_vain() {
    const EVENTS: usize = 120;
    let events: Vec<_> = (0..EVENTS)
        .map(|n| {
            let stream = if n % 2 == 0 { REQUESTS } else { RETURNS };
            let (id, user) = (format!("{}-{}", 10 + n / 4, n % 4), format!("user{}", n / 2));
            let books = (0..1_000).map(|book| format!("{}-{book}", n / 2)).collect::<Vec<_>>();
            let books = books.join(",");
            xadd(stream, &id, &user, &books)
        })
        .collect();
    assert_decided_in_fewer_calls(&events, 10 * EVENTS);
}

/// A book that two of them ask for had every request behind the second reserve its books in a call of its
/// own, be given them in a second and refused in a third, until the queue was empty: 1,500 calls for 500
/// requests, and 16,000 for 5,000.
#[test]
fn a_queue_of_refusals_that_one_book_has_held_up_flows_by_the_dozen_again() {
    let redis = Redis::new();
    let book = |n| if n == 30 { 29 } else { n };
    let lines: String = (0..500).map(|n| format!("request user1 book{}\n", book(n))).collect();
    let file = redis.directory().join("batch");
    std::fs::write(&file, lines).unwrap();
    TestCommand::library_req(&redis, &["batch", "--no-wait", file.to_str().unwrap()]).exits(0);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let outcomes = redis.assert_one_outcome_each(500);
    let granted = outcomes.iter().filter(|outcome| outcome["outcome"] == "accepted").count();
    assert_eq!(granted, 5);
    Ledger::new().replay(&outcomes);
    redis.assert_at_rest();
    let calls = redis.calls_of_scripts();
    assert!(calls < 500, "{calls} calls for 500 events");
}

/// Redis wakes who waits for both streams with what came into one. A hundred of the user's requests were
/// tried without the returns between them, and later ones took the place of the first under the limit: of
/// 2,000 a dozen to 300 were denied.
#[test]
fn a_batch_of_one_users_requests_each_with_its_return_is_granted_whole() {
    const PAIRS: usize = 2_000;
    let (redis, _daemon) = library(&Ledger::new());
    let lines: String =
        (0..PAIRS).map(|n| format!("request user1 book{n}\nreturn user1 book{n}\n")).collect();
    let file = redis.directory().join("batch");
    std::fs::write(&file, lines).unwrap();
    let file = file.display().to_string();
    let ended =
        TestCommand::library_req(&redis, &["batch", "--results", "/dev/null", &file]).exits(0);
    assert!(ended.stderr.contains(": 4000 done, 0 refused"), "{ended}");
    redis.assert_at_rest();
}

/// What ties is tried several times in a call. Asked for again in front of that, a request found its own books
/// on their way back to their shelves, waited for these, and held up the next: twice the calls, and three
/// times the hand-offs.
#[test]
fn requests_that_tie_with_returns_are_not_asked_for_again_in_vain() {
    const PAIRS: u64 = 300;
    let (redis, _daemon) = library(&Ledger::new().lent("user1", &["a", "b", "c", "d", "e"], "1-0"));
    let other = Other::alive(&redis, "other");
    other.takes_new("5-0", "user3", "geb");
    let add = |stream: &str, ms, user: &str, book: String| {
        let id = format!("{ms}-0");
        xadd(stream, &id, user, &book)
    };
    let events = (10..10 + PAIRS).flat_map(|ms| {
        let request = add(REQUESTS, ms, "user1", format!("book{ms}"));
        [request, add(RETURNS, ms, "user2", format!("nobody's{ms}"))]
    });
    redis.pipeline(&events.collect::<Vec<_>>());
    // All have been tried, and wait.
    let pending = || redis.ask::<Vec<redis::Value>>(&["XPENDING", REQUESTS, "lending_service"]);
    assert!(
        eventually(DEADLINE, || pending().first() == Some(&redis::Value::Int(PAIRS as i64 + 1)))
    );
    assert!(stays(Duration::from_millis(300), || redis.length(OUTCOMES) == 0));
    other.finishes("5-0");
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) as u64 == 2 * PAIRS));
    redis.wait_until_drained(DEADLINE);
    let calls = redis.calls_of_scripts();
    assert!(calls < 7 * PAIRS as usize, "{calls} calls for {PAIRS} pairs");
}

/// A queue of refusals had flowed, and the next was stuck behind what another instance had in hand: each of its
/// requests was asked for again with every try, and its books went back to their shelves each time.
#[test]
fn what_waits_for_another_instance_is_not_asked_for_again_and_again() {
    const REQUESTS_EACH: u32 = 20;
    let redis = Redis::new();
    Ledger::new().lent("user1", &["a", "b", "c", "d", "e"], "1-0").lay_down(&redis);
    let (proxy, fetches) = Proxy::counting(&redis, "fetch");
    let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
    let other = Other::alive(&redis, "other");
    let wait_behind = |older: &str, ms: u32| {
        other.takes_new(older, "user2", "momo");
        let add = |n| {
            let (id, book) = (format!("{ms}-{n}000000"), format!("book{ms}-{n}"));
            xadd(REQUESTS, &id, "user1", &book)
        };
        redis.pipeline(&(1..=REQUESTS_EACH).map(add).collect::<Vec<_>>());
        let fetches = || fetches.load(Ordering::SeqCst);
        let asked = fetches();
        assert!(eventually(DEADLINE, || fetches() > asked));
        // There are rounds meanwhile.
        let is_over = || {
            let asked = fetches();
            stays(A_WHILE, || fetches() == asked)
        };
        assert!(eventually(DEADLINE, is_over), "it asks and asks");
        assert_eq!(redis.length(OUTCOMES) as u32 % REQUESTS_EACH, 0, "they did not wait");
        other.finishes(older);
        let decided = u64::from(ms / 10 * REQUESTS_EACH);
        assert!(eventually(DEADLINE, || redis.length(OUTCOMES) as u64 == decided));
    };
    wait_behind("9-0", 10);
    wait_behind("19-0", 20);
    redis.assert_at_rest();
}

/// The older of two requests for a book waited for the younger one, which had fetched it when a session broke, and
/// the younger one for the older. Whether the book had been put back since could not be looked up for a while, as
/// thousands of hand-offs were under way, or an instance had died with hundreds of events: so the younger one let
/// it go, and never asked for it again.
#[test]
fn a_request_that_lets_go_of_what_it_may_have_asks_for_it_again() {
    const MANY: u32 = 1_000;
    for other_is_of_the_reference in [false, true] {
        let redis = Redis::new();
        let stored: Vec<_> = (0..20).map(|n| format!("stored{n}")).collect();
        let mut state = Ledger::new().lent("z", &["d"], "1-0").stored(&stored, "1-0");
        state.lay_down(&redis);
        let older = redis.request_at("1000-0", "a", "c");
        let younger = redis.request_at("2000-0", "b", "c,d");
        let before = Other::gone(&redis, "worker1");
        assert_eq!(
            [before.take(REQUESTS), before.take(REQUESTS)],
            [older.clone(), younger.clone()]
        );
        redis.cmd(&["HSET", "shelving_service_state", "c", &younger]);
        let (other, stream) = if other_is_of_the_reference {
            (Other::of_the_reference(&redis, "other"), REQUESTS)
        } else {
            (Other::alive(&redis, "other"), SHELVING)
        };
        let theirs: Vec<String> = (0..MANY)
            .map(|n| {
                let fields: &[(&str, &[u8])] = match stream {
                    REQUESTS => &[("user_id", b"y"), ("book_ids", b"e")],
                    _ => &[("book_ids", b"e")],
                };
                redis.add(stream, &format!("{}-0", 3_000 + n), fields)
            })
            .collect();
        for id in &theirs {
            assert_eq!(other.take(stream), *id);
        }
        let daemon = Daemon::start(&redis, &["worker1"]);
        let are_undecided = || redis.length(OUTCOMES) == 0;
        assert!(stays(Duration::from_millis(1_500), are_undecided), "{:?}", redis.outcomes());
        for id in &theirs {
            other.acknowledge(stream, id);
            redis.cmd(&["XDEL", stream, id]);
        }
        assert_eq!(redis.outcome_of_request(&older)["book_ids"], "c", "{}", daemon.log());
        assert_eq!(redis.outcome_of_request(&younger)["lent_to_another"], "c,d");
        state = state.lent("a", &["c"], &older);
        assert_eq!(redis.ledger(), state);
    }
}

/// A hand-off was lost: a book that everybody believed to be on its way to its shelf was still out for a request
/// which waited for an older one, and the older one for the book. Both waited until libraryd was started again.
#[test]
fn a_request_that_has_a_book_without_knowing_it_asks_in_the_end() {
    let redis = Redis::new();
    let stored: Vec<_> = (0..20).map(|n| format!("stored{n}")).collect();
    Ledger::new().lent("z", &["d"], "1-0").stored(&stored, "1-0").lay_down(&redis);
    let daemon = Daemon::start(&redis, &["worker1"]);
    let other = Other::alive(&redis, "other");
    other.takes_new("1000-0", "y", "e");
    let older = redis.request_at("2000-0", "a", "c,d");
    let younger = redis.request_at("3000-0", "b", "c,d");
    let has_put_back = || !redis.everything().hash("shelving_service_state").contains_key("c");
    assert!(stays(A_WHILE, || redis.length(OUTCOMES) == 0) && eventually(DEADLINE, has_put_back));
    redis.cmd(&["HSET", "shelving_service_state", "c", &younger]);
    other.finishes("1000-0");
    let is_decided = || redis.length(OUTCOMES) == 2;
    assert!(eventually(2 * DEADLINE, is_decided), "{}", daemon.log());
    assert_eq!(redis.outcome_of_request(&older)["book_ids"], "c");
    assert_eq!(redis.outcome_of_request(&younger)["lent_to_another"], "c,d");
    redis.assert_at_rest();
}
