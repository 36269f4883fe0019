//! The bell: what waits for another instance is tried again at once when that one has decided
//! something. Where the bell cannot be heard, it is found by trying again and again, as ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;

const BELL: &str = "lending_bell";

/// How long something waits before it is decided.
const A_WHILE: Duration = Duration::from_millis(500);

fn is_listened_to(redis: &Redis) -> bool {
    let (_, listeners): (String, u64) = redis.ask(&["PUBSUB", "NUMSUB", BELL]);
    listeners > 0
}

/// A request that another instance has got, and a younger return that waits for it.
fn one_waits_for_another(other: &Other<'_>, redis: &Redis, n: u32) -> (String, String) {
    let older = format!("{n}0-0");
    other.takes_new(&older, "user1", "geb");
    let younger = redis.give_back_at(&format!("{n}1-0"), "user2", "momo");
    (older, younger)
}

/// The other instance is done with its request, and rings if it can. How long the return waits then.
fn other_is_done(redis: &Redis, other: &Other<'_>, older: &str, younger: &str) -> Duration {
    assert!(redis.outcomes_of("return", younger).is_empty(), "it did not wait");
    let decided = redis.length(OUTCOMES);
    let start = Instant::now();
    other.finishes(older);
    redis.cmd(&["PUBLISH", BELL, "other"]);
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > decided));
    let took = start.elapsed();
    assert_eq!(redis.outcome_of_return(younger)["outcome"], "unchanged");
    took
}

/// Returns that wait. The more there are, the rarer the rounds in which all are tried again: 300 us for each.
fn add_crowd(redis: &Redis) {
    let crowd = (1..7_000).map(|n| {
        let id = format!("100-{n}");
        xadd(RETURNS, &id, "user3", "kim")
    });
    redis.pipeline(&crowd.collect::<Vec<_>>());
}

#[test]
fn what_waits_for_another_instance_is_decided_when_that_one_rings() {
    let redis = Redis::new();
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let other = Other::alive(&redis, "other");
    let pairs: Vec<_> = (1..=9).map(|n| one_waits_for_another(&other, &redis, n)).collect();
    add_crowd(&redis);
    let took = pairs.iter().map(|(older, younger)| {
        let start = Instant::now();
        redis.outcome_of_request(&redis.request(&format!("reader-{older}"), younger));
        let alone = start.elapsed();
        let decided = redis.length(OUTCOMES);
        // The oldest are looked at 5 ms after a decision, 10 after that and so on, and then each 200 ms: after
        // 315, 515 and 715.
        assert!(stays(Duration::from_millis(550), || redis.length(OUTCOMES) == decided));
        (other_is_done(&redis, &other, older, younger), alone)
    });
    let (mut took, mut alone): (Vec<_>, Vec<_>) = took.unzip();
    took.sort();
    alone.sort();
    // Without the bell it is 150 ms or so. The machine may be busy with something else.
    assert!(
        took[4] < Duration::from_millis(30) + 3 * alone[4],
        "{took:?}; nobody to wait for: {alone:?}"
    );
}

#[test]
fn a_daemon_rings_when_it_has_decided_something_and_when_books_are_on_their_shelves() {
    let redis = Redis::new();
    let stored: Vec<_> = (0..20).map(|n| format!("stored-{n}")).collect();
    let long = |prefix: &str| -> Vec<String> {
        (0..80).map(|n| format!("{prefix}{n}-{}", "x".repeat(240))).collect()
    };
    let mut ledger = Ledger::new().stored(&stored, "1-0").lent("user1", &["geb"], "2-0");
    for (user, books) in [("user6", long("a")), ("user7", long("b"))] {
        let books: Vec<_> = books.iter().map(String::as_str).collect();
        ledger = ledger.lent(user, &books, "3-0");
    }
    ledger.lent("user5", &["faust"], "5-0").lay_down(&redis);
    let mut connection = redis.connect().unwrap();
    let mut bell = connection.as_pubsub();
    bell.subscribe(BELL).unwrap();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let mut next_ring = || bell.get_message().unwrap().get_payload::<String>().unwrap();
    assert_eq!(next_ring(), "worker1", "it tries whether it may");
    redis.give_back("user1", "geb");
    assert_eq!(next_ring(), "worker1\nuser1,geb", "the return is decided");
    assert_eq!(next_ring(), "worker1\n,geb", "its book is on its shelf");
    redis.request("user2", "momo,kim");
    assert_eq!(next_ring(), "worker1\nuser2,momo,kim", "one alone");
    redis.pipeline(&[
        vec!["MULTI".to_owned()],
        xadd(REQUESTS, "*", "user3", "dune"),
        xadd(REQUESTS, "*", "user4", "emma"),
        vec!["EXEC".to_owned()],
    ]);
    assert_eq!(next_ring(), "worker1\nuser3,dune\nuser4,emma");
    redis.add(REQUESTS, "*", &[("user_id", b"user1")]);
    assert_eq!(next_ring(), "worker1", "a malformed event is in the dead letters");
    redis.request("user3", "momo");
    assert_eq!(next_ring(), "worker1\n", "a refusal changes nothing for anybody");
    redis.request("user3", "1,2,3,4,5,6");
    assert_eq!(next_ring(), "worker1\n", "what it puts back is told when it arrives");
    assert_eq!(next_ring(), "worker1\n,1,2,3,4,5,6");
    // As long as that, it would be work for every listener.
    redis.give_back("user6", &long("a").join(","));
    assert_eq!(next_ring(), "worker1");
    assert_eq!(
        [next_ring(), next_ring()].concat().matches('x').count(),
        80 * 240,
        "on their shelves"
    );
    // Behind another one of the same call it was not heard of at all.
    redis.pipeline(&[
        vec!["MULTI".to_owned()],
        xadd(RETURNS, "*", "user5", "faust"),
        xadd(RETURNS, "*", "user7", &long("b").join(",")),
        vec!["EXEC".to_owned()],
    ]);
    assert_eq!(next_ring(), "worker1\nuser5,faust");
    assert_eq!(next_ring(), "worker1");
    let mut shelved = String::new();
    while shelved.matches('x').count() < 80 * 240 {
        shelved += &next_ring();
    }
    // Many with long names come in several messages, and each of them is told.
    let user = |n| format!("{n}-{}", "x".repeat(200));
    let requests = (0..120).map(|n| xadd(REQUESTS, "*", &user(n), &format!("book{n}")));
    let transaction = std::iter::once(vec!["MULTI".to_owned()]).chain(requests);
    redis.pipeline(&transaction.chain([vec!["EXEC".to_owned()]]).collect::<Vec<_>>());
    let mut told = Vec::new();
    while told.len() < 120 {
        let ring = next_ring();
        assert!(ring.len() <= 17_000, "{}", ring.len());
        told.extend(ring.lines().skip(1).map(str::to_owned));
    }
    let expected: Vec<_> = (0..120).map(|n| format!("{},book{n}", user(n))).collect();
    assert_eq!(told, expected);
    assert_eq!(daemon.stop(), 0);
}

/// Behind thousands that waited for an instance that had died, a request waited a second for a book that had
/// come back to another one: it was tried among the oldest, or in a round.
#[test]
fn what_another_instance_tells_of_is_tried_at_once_however_many_wait() {
    let redis = Redis::new();
    Ledger::new().lent("user8", &["a", "b", "c", "d", "e"], "1-0").lay_down(&redis);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    Other::alive(&redis, "other").takes_new("10-0", "user1", "geb");
    add_crowd(&redis);
    let mut took: Vec<_> = ["a", "b", "c", "d", "e"]
        .iter()
        .map(|book| {
            let request = redis.request(&format!("user-{book}"), book);
            assert!(stays(A_WHILE, || redis.outcomes_of("request", &request).is_empty()));
            let start = Instant::now();
            redis.pipeline(&other_takes_back("user8", book));
            assert_eq!(redis.outcome_of_request(&request)["outcome"], "accepted");
            start.elapsed()
        })
        .collect();
    took.sort();
    // In rounds it takes two seconds. The machine may be busy for some of them.
    assert!(took[2] < Duration::from_millis(300), "{took:?}");
}

/// Another instance takes a book back into storage, and tells of it.
fn other_takes_back(user: &str, book: &str) -> Vec<Vec<String>> {
    let (count, news) = (format!("user:{user}:count"), format!("other\n{user},{book}"));
    let commands: [&[&str]; 7] = [
        &["MULTI"],
        &["HDEL", "lent_books", book],
        &["HDEL", "lending_book_states", book],
        &["DECR", &count],
        &["SADD", "automated_book_storage", book],
        &["PUBLISH", BELL, &news],
        &["EXEC"],
    ];
    commands.iter().map(|args| args.iter().map(|&arg| arg.to_owned()).collect()).collect()
}

#[test]
fn a_daemon_that_may_not_listen_says_so_once_and_finds_what_waits_all_the_same() {
    let redis = Redis::new();
    for (n, rights) in [&["resetchannels"][..], &["&*", "-subscribe"]].into_iter().enumerate() {
        let user = ["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all"];
        redis.cmd(&[&user[..], rights].concat());
        let mut daemon =
            Daemon::start(&redis, &["--username", "clerk", "--password", "right", "worker1"]);
        let other = Other::alive(&redis, "other");
        for round in 1..=2 {
            let (older, younger) = one_waits_for_another(&other, &redis, (2 * n + round) as u32);
            assert!(stays(A_WHILE, || { redis.outcomes_of("return", &younger).is_empty() }));
            other_is_done(&redis, &other, &older, &younger);
        }
        assert!(!is_listened_to(&redis));
        // Nor does the next session say it.
        redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert!(eventually(DEADLINE, || daemon.log().contains("working again")));
        let told = daemon.log().lines().filter(|line| line.contains(BELL)).count();
        assert_eq!(told, 1, "{}", daemon.log());
        assert_eq!(daemon.log().matches("trying again until it works").count(), 1);
        assert_eq!(daemon.stop(), 0);
    }
}

/// It was asked to listen all the time, could not, and said nothing on its connection meanwhile: Redis closed
/// that, and the session was over when nothing waited any more.
#[test]
fn who_may_not_listen_keeps_its_connection_while_something_waits() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all", "resetchannels"]);
    let daemon = Daemon::start(&redis, &["--username", "clerk", "--password", "right", "worker1"]);
    let other = Other::alive(&redis, "other");
    let (older, younger) = one_waits_for_another(&other, &redis, 1);
    redis.cmd(&["CONFIG", "SET", "timeout", "2"]);
    let connections = || redis.ask::<String>(&["CLIENT", "LIST"]).matches("user=clerk").count();
    let before = connections();
    assert!(before > 5, "{before} connections");
    assert!(stays(Duration::from_secs(4), || connections() == before), "{}", connections());
    other_is_done(&redis, &other, &older, &younger);
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
}

#[test]
fn a_daemon_whose_listening_connection_is_killed_listens_again() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let other = Other::alive(&redis, "other");
    let (older, younger) = one_waits_for_another(&other, &redis, 1);
    for _ in 0..3 {
        // A new session tries whether it may listen first: then it listens for a moment only.
        let kill = || redis.ask::<u64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert!(eventually(DEADLINE, || kill() == 1));
    }
    assert!(eventually(DEADLINE, || is_listened_to(&redis)));
    other_is_done(&redis, &other, &older, &younger);
    // Nobody waits any more.
    assert!(eventually(DEADLINE, || !is_listened_to(&redis)));
    assert_eq!(daemon.stop(), 0);
}

/// One that waited was tried every 5 ms for ever, each instance that had one taking a tenth of Redis:
/// what it waited for was in the hands of the reference application, at a desk where it was night.
#[test]
fn what_waits_in_vain_is_tried_less_and_less_often() {
    let redis = Redis::new();
    let (proxy, tries) = Proxy::counting(&redis, "decide");
    let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
    let other = Other::alive(&redis, "other");
    let (older, younger) = one_waits_for_another(&other, &redis, 1);
    let (rarer, last) = gets_rarer(&tries, 1);
    assert!(rarer, "{last} tries in {A_WHILE:?}");
    let took = other_is_done(&redis, &other, &older, &younger);
    assert!(took < A_WHILE, "it was decided after {took:?}");
    // It listens all the time, and is not at it again and again. The first is to see whether it may.
    let subscribed = redis.calls_of("subscribe");
    assert!(subscribed <= 3, "it subscribed {subscribed} times");
}

/// Reserving the book and asking for it again made a newcomer of a request that waited for another's: alone
/// in the room it was tried every 5 ms for ever, with three calls each time.
#[test]
fn what_waits_in_vain_for_a_book_is_tried_less_and_less_often() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "10-0").lay_down(&redis);
    let (proxy, tries) = Proxy::counting(&redis, "decide");
    let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
    let other = Other::alive(&redis, "other");
    other.takes_new("10-0", "user1", "geb");
    let younger = redis.request_at("11-0", "user2", "geb");
    let (rarer, last) = gets_rarer(&tries, 2);
    assert!(rarer, "{last} calls in {A_WHILE:?}");
    other.finishes("10-0");
    redis.cmd(&["PUBLISH", BELL, "other"]);
    // The other has left it nowhere.
    assert_eq!(redis.outcome_of_request(&younger)["unavailable"], "geb");
}

/// Whether calls get as rare as rounds are in the end, so many for each; and how many there were last.
fn gets_rarer(calls: &AtomicUsize, for_each: usize) -> (bool, usize) {
    let mut last = 0;
    let rarer = eventually(DEADLINE, || {
        let before = calls.load(Ordering::SeqCst);
        assert!(stays(A_WHILE, || true));
        last = calls.load(Ordering::SeqCst) - before;
        before > 0 && last <= 4 * for_each
    });
    (rarer, last)
}
