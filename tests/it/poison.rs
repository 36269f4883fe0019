//! Events that kill who reads them, and events that only happen to be in hand when instances die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::*;

/// The event that kills. Its id is in no other's.
const POISON: &str = "5-7777";

/// A proxy that kills the daemon whenever it asks shelving for the poison or decides it, as long
/// as `armed` says so.
fn deadly(redis: &Redis, armed: &Arc<AtomicBool>) -> Proxy {
    let armed = Arc::clone(armed);
    Proxy::new(redis, move |command| {
        let fault = match command.kind {
            "fetch" => Fault::KillAfter,
            "decide" => Fault::KillBefore,
            _ => return None,
        };
        (armed.load(Ordering::SeqCst) && command.mentions(POISON)).then_some(fault)
    })
}

/// Starts the daemon again and again until the poison is given up; how often it died.
fn start_until_it_is_given_up(redis: &Redis, proxy: &Proxy) -> (usize, Daemon) {
    for deaths in 0..20 {
        // Forced, because nobody wants to wait for the lease each time.
        let mut daemon = proxy.spawn(redis, &["-f", "worker1"]);
        let over = eventually(DEADLINE, || !daemon.is_running() || redis.length(DEAD_LETTERS) > 0);
        assert!(over, "neither did it die nor did it give the event up");
        if daemon.is_running() {
            return (deaths, daemon);
        }
    }
    panic!("it died 20 times");
}

/// What became of the poison.
fn assert_given_up(redis: &Redis, action: &str) {
    let letters = redis.entries(DEAD_LETTERS);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].1["event_id"], POISON);
    assert_eq!(letters[0].1["cause"], "given_up_after_3_tries");
    let outcomes = redis.outcomes_of(action, POISON);
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0]["outcome"], "rejected");
}

fn assert_only_the_poison_is_given_up(stream: &str) {
    let redis = Redis::new();
    Ledger::new().lent("user0", &["momo"], "1-0").lay_down(&redis);
    // 30 requests before it and 30 behind it, and as many returns.
    for n in 0..60 {
        let id = if n < 30 { format!("5-{}", 100 + n) } else { format!("5-{}", 8000 + n) };
        if n == 30 {
            let book = if stream == REQUESTS { "geb" } else { "momo" };
            redis.add(stream, POISON, &[("user_id", b"user0"), ("book_ids", book.as_bytes())]);
        }
        redis.request_at(&id, &format!("user{n}"), &format!("book{n}"));
        redis.give_back_at(&id, &format!("user{n}"), "nothing");
    }
    let proxy = deadly(&redis, &armed());
    let (deaths, _daemon) = start_until_it_is_given_up(&redis, &proxy);
    // Twice with the others, before it is suspected; twice with other suspects, first with many and
    // then with few; three times alone.
    assert_eq!(deaths, 7);
    let outcomes = redis.assert_one_outcome_each(121);
    assert_given_up(&redis, if stream == REQUESTS { "request" } else { "return" });
    for outcome in outcomes.iter().filter(|outcome| outcome["event_id"] != POISON) {
        let good = if outcome["action"] == "request" { "accepted" } else { "unchanged" };
        assert_eq!(outcome["outcome"], good, "{outcome:?}");
    }
    redis.assert_at_rest();
    // What it had fetched is on its shelf again.
    let id = redis.request("user61", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
}

fn armed() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

#[test]
fn a_request_that_kills_whoever_tries_it_is_given_up_and_others_are_unharmed() {
    assert_only_the_poison_is_given_up(REQUESTS);
}

#[test]
fn a_return_that_kills_whoever_tries_it_is_given_up_and_others_are_unharmed() {
    assert_only_the_poison_is_given_up(RETURNS);
}

// The link breaks whenever events have been claimed at the start of a process, so that it is the second
// session that reads them.
#[test]
fn an_event_that_kills_is_suspected_also_after_a_reconnect() {
    let redis = Redis::new();
    redis.request_at(POISON, "user1", "geb");
    let proxy = Proxy::new(&redis, |command| match command.kind {
        "claim" if command.mentions(REQUESTS) => Some(Fault::CutAfter),
        "decide" if command.mentions(POISON) => Some(Fault::KillBefore),
        _ => None,
    });
    let (deaths, _daemon) = start_until_it_is_given_up(&redis, &proxy);
    assert_eq!(deaths, 7);
    assert_given_up(&redis, "request");
    redis.assert_at_rest();
}

// Instances had died with it. Then an operator moved it to one that runs, which finds it as it finds
// what was in a reply that got lost.
#[test]
fn an_event_that_kills_is_suspected_also_where_it_is_found_in_nobodys_hands() {
    let redis = Redis::new();
    let holder = Other::alive(&redis, "holder");
    let proxy = deadly(&redis, &armed());
    let mut daemon = proxy.spawn(&redis, &["--lease", "1", "worker1"]).ready();
    holder.takes_new(POISON, "user1", "geb");
    redis.cmd(&["HSET", "lending_lone_tries", &format!("request:{POISON}"), "2 2"]);
    let claim = ["XCLAIM", REQUESTS, "lending_service", "worker1", "0", POISON, "RETRYCOUNT", "3"];
    redis.cmd(&[&claim[..], &["IDLE", "60000", "JUSTID"]].concat());
    assert_eq!(daemon.exit_status(), -9);
    // That was the third time, alone.
    let (deaths, _daemon) = start_until_it_is_given_up(&redis, &proxy);
    assert_eq!(deaths, 0);
    assert_given_up(&redis, "request");
    redis.assert_at_rest();
}

/// A process that dies while the event waits did not die of it. And the next asks shelving first: what the
/// event was handed out before would be out of reach of older ones, which it waits for.
#[test]
fn a_suspect_that_waits_is_not_in_a_try_and_has_nothing() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").nowhere(&["geb"], "5-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    let died = Other::gone(&redis, "worker1");
    redis.request_at("4-0", "user8", "geb");
    holder.take(REQUESTS);
    let id = redis.request_at("5-0", "user1", "geb,lent");
    died.take(REQUESTS);
    redis.cmd(&["XCLAIM", REQUESTS, "lending_service", "worker1", "0", &id, "RETRYCOUNT", "5"]);
    let daemon = Daemon::start(&redis, &["worker1"]);
    let told = || daemon.log().matches("tried apart from others").count();
    assert!(eventually(DEADLINE, || told() > 0));
    let is_noted = || redis.ask::<bool>(&["EXISTS", "lending_lone_tries"]);
    assert!(eventually(DEADLINE, || !is_noted()), "{:?}", redis.everything());
    assert!(eventually(DEADLINE, || redis.ledger().storage.contains("geb")));
    assert!(redis.outcomes().is_empty(), "it did not wait");
    holder.die();
    assert_eq!(redis.outcome_of_request("4-0")["book_ids"], "geb");
    assert_eq!(redis.outcome_of_request(&id)["lent_to_another"], "geb,lent");
    redis.assert_at_rest();
    assert_eq!(told(), 1, "{}", daemon.log());
}

// A request waited, and its book was put back by a hand-off. Another instance asked for the book
// again and died before it could note that, three times. The mark of the hand-off, long done, was
// taken for one on its way: the book stayed out of the shelves for ever.
#[test]
fn what_a_poisonous_request_fetched_again_after_waiting_goes_back_to_its_shelf() {
    let redis = Redis::new();
    let stored: Vec<_> = (0..20).map(|n| format!("stored{n}")).collect();
    Ledger::new().stored(&stored, "1-0").lent("user9", &["lent"], "1-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    redis.request_at("4-0", "user8", "old");
    holder.take(REQUESTS);
    let armed = Arc::new(AtomicBool::new(false));
    let proxy = deadly(&redis, &armed);
    redis.request_at(POISON, "user1", "geb,lent");
    let mut first = proxy.spawn(&redis, &["worker1"]).ready();
    let put_back = || {
        let groups = format!("{:?}", redis.cmd(&["XINFO", "GROUPS", SHELVING]));
        // All of it: the end of every tenth hand-off's id looks the same.
        redis.length(SHELVING) == 0 && !groups.contains("\"0-0\"")
    };
    assert!(eventually(DEADLINE, put_back), "it has waited and put its book back");
    armed.store(true, Ordering::SeqCst);
    assert_eq!(first.exit_status(), -9);
    let (_, _daemon) = start_until_it_is_given_up(&redis, &proxy);
    assert_given_up(&redis, "request");
    holder.die();
    redis.assert_one_outcome_each(2);
    redis.assert_at_rest();
    let id = redis.request("user2", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
}

// A request that was given up had fetched a book, and just then another had reserved the book in
// order to ask for it: the book was not found to be the first one's.
#[test]
fn what_a_poisonous_request_fetched_goes_to_whoever_has_reserved_it_meanwhile() {
    let redis = Redis::new();
    redis.request_at(POISON, "user1", "geb");
    suspected(&redis);
    redis.cmd(&["HSET", "lending_lone_tries", &format!("request:{POISON}"), "2 3"]);
    redis.cmd(&["HSET", SHELVES, "geb", POISON]);
    let holder = Other::alive(&redis, "holder");
    let id = redis.request_at("6-0", "user2", "geb");
    holder.take(REQUESTS);
    redis.cmd(&["HSET", "lending_book_states", "geb", &format!("?{id}")]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(POISON);
    assert_given_up(&redis, "request");
    holder.die();
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
}

// The same while the other asked: it was told that a poisonous request had the book, and when it had
// asked for its second book as well, the first was back on its shelf.
#[test]
fn what_shelving_said_of_a_poisonous_request_is_not_believed_when_that_is_given_up() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], POISON).nowhere(&["momo"], "6-0").lay_down(&redis);
    redis.request_at(POISON, "user1", "geb");
    Other::alive(&redis, "holder").take(REQUESTS);
    redis.request_at("6-0", "user2", "geb,momo");
    Other::gone(&redis, "worker1").take(REQUESTS);
    redis.cmd(&["HSET", "lending_book_states", "geb", "?6-0"]);
    let of_proxy = redis.clone();
    let proxy = Proxy::new(&redis, move |command| {
        if command.kind == "fetch" && command.mentions("momo") && !command.mentions("geb") {
            of_proxy.cmd(&["HDEL", SHELVES, "geb"]);
            Other::alive(&of_proxy, "holder").finishes(POISON);
        }
        None
    });
    let _daemon = proxy.spawn(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request("6-0")["book_ids"], "geb,momo");
    redis.assert_at_rest();
}

/// Makes the next request look as if instances had died with it in hand, twice, and the next start
/// were the third time.
fn suspected_by(redis: &Redis, dead: &Other<'_>) {
    let id = dead.take(REQUESTS);
    let args = ["XCLAIM", REQUESTS, "lending_service", "worker1", "0", &id, "RETRYCOUNT", "2"];
    redis.cmd(&[&args[..], &["JUSTID"]].concat());
}

fn suspected(redis: &Redis) {
    suspected_by(redis, &Other::gone(redis, "worker1"));
}

// The link died when Redis had counted a try and before the daemon knew: the daemon survived, but
// the try counted.
#[test]
fn a_try_that_a_broken_link_ended_does_not_count_wherever_it_broke() {
    let assert_does_not_count = |kinds: &'static [&'static str], fault| {
        let redis = Redis::new();
        redis.request_at(POISON, "user1", "geb");
        suspected(&redis);
        // The count of tries begins when it is tried alone.
        redis.cmd(&["HSET", "lending_lone_tries", &format!("request:{POISON}"), "2 0"]);
        let proxy = Proxy::new(&redis, move |command| {
            (kinds.contains(&command.kind) && command.number <= 5).then_some(fault)
        });
        // It is not to be left to others meanwhile.
        let mut daemon = proxy.spawn(&redis, &["--lease", "20", "worker1"]);
        let outcome = redis.outcome_of_request(POISON);
        assert_eq!(outcome["outcome"], "accepted", "{fault:?} of {kinds:?}");
        assert!(daemon.is_running());
        redis.assert_at_rest();
        let forgotten = || redis.ask::<u32>(&["EXISTS", "lending_lone_tries"]) == 0;
        assert!(eventually(DEADLINE, forgotten), "a count is left");
    };
    std::thread::scope(|scope| {
        for fault in [Fault::CutAfter, Fault::CutBefore] {
            for kinds in [&["lone_try"][..], &["lone_try", "fetch"], &["fetch", "decide"]] {
                scope.spawn(move || assert_does_not_count(kinds, fault));
            }
        }
    });
}

// The link died in a try, and the process was killed when it was back again, before the next one: it
// had survived the try, and died in none.
#[test]
fn a_try_that_a_broken_link_ended_does_not_count_though_its_process_dies_later() {
    let redis = Redis::new();
    redis.request_at(POISON, "user1", "geb");
    suspected(&redis);
    redis.cmd(&["HSET", "lending_lone_tries", &format!("request:{POISON}"), "2 2"]);
    let was_cut = AtomicBool::new(false);
    let proxy = Proxy::new(&redis, move |command| match command.kind {
        "fetch" => (!was_cut.swap(true, Ordering::SeqCst)).then_some(Fault::CutBefore),
        "lone_try" if was_cut.load(Ordering::SeqCst) && command.mentions("alone") => {
            Some(Fault::KillBefore)
        }
        _ => None,
    });
    let mut killed = proxy.spawn(&redis, &["worker1"]);
    assert_eq!(killed.exit_status(), -9);
    let _daemon = Daemon::start(&redis, &["-f", "worker1"]);
    assert_eq!(redis.outcome_of_request(POISON)["outcome"], "accepted");
    redis.assert_at_rest();
}

// A try that ended in waiting cleared the event of suspicion; tried again out of the waiting room,
// among others, it killed the next instance, and so on for ever.
#[test]
fn an_event_that_kills_only_after_it_has_waited_is_given_up_as_well() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    redis.request_at("4-0", "user8", "old");
    holder.take(REQUESTS);
    redis.request_at(POISON, "user1", "lent");
    let mut others: Vec<_> =
        (0..20).map(|n| redis.request_at(&format!("5-{}", 8000 + n), "user2", "lent")).collect();
    let tries = Arc::new(AtomicUsize::new(0));
    let of_proxy = Arc::clone(&tries);
    let proxy = Proxy::new(&redis, move |command| {
        let tried = command.kind == "decide" && command.mentions(POISON);
        (tried && of_proxy.fetch_add(1, Ordering::SeqCst) > 0).then_some(Fault::KillBefore)
    });
    let mut deaths = 0;
    let _daemon = loop {
        tries.store(0, Ordering::SeqCst);
        let mut daemon = proxy.spawn(&redis, &["-f", "worker1"]);
        let over = || !daemon.is_running() || redis.length(DEAD_LETTERS) > 0;
        assert!(eventually(DEADLINE, over), "neither did it die nor did it give the event up");
        if daemon.is_running() {
            break daemon;
        }
        deaths += 1;
        assert!(deaths < 10, "it dies again and again");
    };
    assert_given_up(&redis, "request");
    holder.die();
    redis.assert_one_outcome_each(22);
    redis.assert_at_rest();
    others.retain(|id| redis.outcome_of_request(id)["cause"] != "none_available");
    assert_eq!(others, Vec::<String>::new());
}

// Each suspect was tried alone, with four calls, and until all were through nothing else was done:
// after two deaths with full hands everybody's refusals waited for minutes.
#[test]
fn hundreds_of_suspects_are_served_with_a_few_calls() {
    const SUSPECTS: usize = 600;
    let redis = Redis::new();
    let commands: Vec<_> = (0..SUSPECTS)
        .map(|n| {
            let (user, book) = (format!("user{n}"), format!("book{n}"));
            xadd(REQUESTS, "*", &user, &book)
        })
        .collect();
    redis.pipeline(&commands);
    let dead = Other::gone(&redis, "worker1");
    for _ in 0..SUSPECTS {
        suspected_by(&redis, &dead);
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.assert_one_outcome_each(SUSPECTS);
    redis.assert_at_rest();
    assert!(redis.calls_of_scripts() < SUSPECTS / 3, "{} calls", redis.calls_of_scripts());
}

// Suspects that waited were tried again and again, and those that had not been tried at all, never.
#[test]
fn a_suspect_is_tried_although_older_ones_come_back_again_and_again() {
    const WAITING: usize = 150;
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    redis.request_at("4-0", "user8", "old");
    holder.take(REQUESTS);
    for n in 0..WAITING {
        let id = redis.request_at(&format!("5-{n}"), &format!("user{n}"), "lent");
        suspected(&redis);
        redis.cmd(&["HSET", "lending_lone_tries", &format!("request:{id}"), "2 0"]);
    }
    let id = redis.request_at("6-0", "user7", "geb");
    suspected(&redis);
    // Noted and decided long ago.
    redis.cmd(&["HSET", "lending_lone_tries", "request:1-7", "1 1 alone somebody"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    holder.die();
    redis.assert_one_outcome_each(WAITING + 2);
    redis.assert_at_rest();
    let forgotten = || redis.ask::<u32>(&["EXISTS", "lending_lone_tries"]) == 0;
    assert!(eventually(DEADLINE, forgotten), "{:?}", redis.everything().hash("lending_lone_tries"));
}

#[test]
fn fifty_reconnects_with_full_hands_reject_nothing() {
    const WAITING: usize = 3_000;
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    // Nobody can be refused before this one is decided.
    let holder = Other::alive(&redis, "holder");
    redis.request_at("4-0", "user8", "old");
    holder.take(REQUESTS);
    let commands: Vec<_> = (0..WAITING)
        .map(|n| {
            let user = format!("user{n}");
            xadd(REQUESTS, "*", &user, "lent")
        })
        .collect();
    redis.pipeline(&commands);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let in_hand = || redis.everything().stream(REQUESTS).groups["lending_service"].pending.len();
    assert!(eventually(DEADLINE, || in_hand() > WAITING));
    for _ in 0..50 {
        redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert!(daemon.is_running());
    assert_eq!(redis.length(OUTCOMES), 0, "they wait");
    holder.die();
    let outcomes = redis.assert_one_outcome_each(WAITING + 1);
    assert_eq!(redis.length(DEAD_LETTERS), 0);
    assert!(outcomes[1..].iter().all(|outcome| outcome["cause"] == "none_available"));
    redis.assert_at_rest();
}
