//! What an instance that died, hangs or is cut off had in hand, and how soon others have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;

/// A request was tried, waited, and put its book into storage; somebody else was lent it from
/// there and gave it back, into a hand-off. Shelving still had the first request on record as who
/// fetched the book: asked again by the next instance, it said yes, and the book was lent while it
/// was on its way to its shelf.
#[test]
fn a_request_taken_over_is_not_lent_a_book_that_it_once_had_and_that_is_on_its_way() {
    let redis = Redis::new();
    let stored: Vec<_> = (0..19).map(|n| format!("stored{n}")).collect();
    Ledger::new()
        .stored(&stored, "1-0")
        .lent("user9", &["lent"], "1-0")
        .lent("user3", &["momo"], "1-0")
        .lay_down(&redis);
    // Nobody can be refused before this one is decided.
    let holder = Other::alive(&redis, "holder");
    redis.request_at("2-0", "user8", "old");
    holder.take(REQUESTS);
    let proxy = Proxy::at(&redis, "shelve", 1, Fault::KillBefore);
    let mut first = proxy.spawn(&redis, &["--lease", "1", "worker1"]).ready();

    let waiting = redis.request_at("3-0", "user1", "geb,lent");
    assert!(eventually(DEADLINE, || redis.ledger().storage.contains("geb")));
    let granted = redis.request_at("4-0", "user2", "geb");
    assert_eq!(redis.outcome_of_request(&granted)["outcome"], "accepted");
    redis.outcome_of_return(&redis.give_back_at("5-0", "user3", "momo"));
    redis.outcome_of_return(&redis.give_back_at("6-0", "user2", "geb"));
    assert_eq!(first.exit_status(), -9);
    // The hand-off is in the hands of an instance that takes its time.
    let hand_off = redis.entries(SHELVING)[0].0.clone();
    redis.cmd(&["XCLAIM", SHELVING, "shelving_service", "holder", "0", &hand_off]);

    let _second = Daemon::start(&redis, &["--lease", "1", "worker2"]);
    let taken_over = || {
        let pending = redis.everything().stream(REQUESTS).groups["lending_service"].pending.clone();
        pending.get(&waiting).is_some_and(|by| by == "worker2")
    };
    assert!(eventually(DEADLINE, taken_over));
    let waits = || redis.outcomes_of("request", &waiting).is_empty();
    assert!(stays(Duration::from_millis(500), waits), "{:?}", redis.outcomes());
    holder.die();
    let outcome_now = redis.outcome_of_request(&waiting);
    let more = [("book_ids", "geb"), ("lent_to_another", "lent"), ("in_hand", "1")];
    assert_eq!(outcome_now, outcome("request", &waiting, "user1", "accepted", &more));
    redis.assert_one_outcome_each(5);
    redis.assert_at_rest();
}

/// A request had fetched a book, and the link broke before it was decided. Tried anew it had to
/// wait for an older one, and did not know that it had the book; the older one was told so by
/// shelving, and waited for the book.
#[test]
fn a_book_that_was_fetched_before_the_link_broke_is_put_back_while_its_request_waits() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    let older = redis.request_at("2-0", "user1", "geb");
    holder.take(REQUESTS);
    let younger = redis.request_at("3-0", "user2", "geb,lent");
    let proxy = Proxy::at(&redis, "decide", 1, Fault::CutBefore);
    let _daemon = proxy.spawn(&redis, &["worker1"]);
    assert!(eventually(DEADLINE, || redis.ledger().storage.contains("geb")));
    holder.die();
    assert_eq!(redis.outcome_of_request(&older)["outcome"], "accepted");
    assert_eq!(redis.outcome_of_request(&younger)["lent_to_another"], "geb,lent");
    redis.assert_at_rest();
}

/// The keeper claimed a hand-off that instances had died with, took it for one that kills, and
/// left it to be found ten seconds later. Hand-offs are never given up: there is nothing to wait
/// for, and every refusal waits for it.
#[test]
fn a_hand_off_that_was_in_hand_when_instances_died_is_done_at_once() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "1-0").lay_down(&redis);
    let dead = Other::gone(&redis, "dead");
    let id = redis.hand_off("*", "geb");
    dead.take(SHELVING);
    let args = ["XCLAIM", SHELVING, "shelving_service", "dead", "0", &id, "RETRYCOUNT", "9"];
    redis.cmd(&[&args[..], &["JUSTID"]].concat());
    let begin = Instant::now();
    let _daemon = Daemon::start(&redis, &["--lease", "1", "worker1"]);
    redis.assert_at_rest();
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
}

/// Requests that all can be granted, in the hands of an instance without a lock.
fn lay_in_hand_of(redis: &Redis, name: &str, count: usize) {
    let event = |n: usize| {
        let (user, book) = (format!("user{n}"), format!("book{n}"));
        xadd(REQUESTS, "*", &user, &book)
    };
    redis.pipeline(&(0..count).map(event).collect::<Vec<_>>());
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0"]);
    let read = ["XREADGROUP", "GROUP", "lending_service", name, "COUNT", "1000000", "STREAMS"];
    redis.cmd(&[&read[..], &[REQUESTS, ">"]].concat());
}

/// The keeper took over all that a dead instance had in hand in one go, as fast as it was decided, and
/// renewed no lease meanwhile: it ran out, others took over in turn, and so on.
#[test]
fn the_lease_is_kept_while_very_much_is_taken_over() {
    const EVENTS: usize = 60_000;
    /// Some seconds are enough. A page at each renewal would take eighty.
    const IN_TIME: Duration = Duration::from_secs(60);
    let redis = Redis::new();
    lay_in_hand_of(&redis, "dead", EVENTS);
    let daemon = Daemon::start(&redis, &["--lease", "2", "worker1"]);
    assert!(eventually(IN_TIME, || redis.length(OUTCOMES) == EVENTS));
    assert!(!daemon.log().contains("trying again"), "the lease was lost");
}

#[test]
fn a_stop_ends_a_takeover_that_has_only_begun() {
    const EVENTS: usize = 40_000;
    let redis = Redis::new();
    lay_in_hand_of(&redis, "dead", EVENTS);
    let mut daemon = Daemon::start(&redis, &["--lease", "30", "worker1"]);
    assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > 0));
    assert_eq!(daemon.stop(), 0);
    let decided = redis.length(OUTCOMES);
    assert!(decided < EVENTS, "it was waited for");
    assert_eq!(decided + redis.length(REQUESTS), EVENTS);
}

/// More than is claimed at a time.
#[test]
fn all_that_an_instance_had_in_hand_when_it_died_is_finished_at_its_next_start() {
    const EVENTS: usize = 1_200;
    let redis = Redis::new();
    lay_in_hand_of(&redis, "worker1", EVENTS);
    let daemon = Daemon::start(&redis, &["worker1"]);
    redis.assert_one_outcome_each(EVENTS);
    assert!(!daemon.log().contains("did not arrive"), "some were found later");
}

/// An hour is longer than a test: when an instance was last heard of is changed where Redis keeps it.
#[test]
fn the_consumer_of_an_instance_that_is_long_gone_is_removed_and_no_other() {
    let redis = Redis::with(&["--rdbchecksum", "no"]);
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0", "MKSTREAM"]);
    for name in ["gone", "living", "long gone", "of the reference"] {
        redis.cmd(&["XGROUP", "CREATECONSUMER", REQUESTS, "lending_service", name]);
    }
    hear_nothing_for_two_hours(&redis, &["living", "long gone", "of the reference"]);
    let _living = Other::alive(&redis, "living");
    let _of_the_reference = Other::of_the_reference(&redis, "of the reference");
    let daemon = Daemon::start(&redis, &["--log-level", "debug", "--lease", "1", "worker1"]);
    let told = || daemon.log().matches("is long gone: removed").count();
    assert!(eventually(DEADLINE, || told() > 0), "{}", daemon.log());
    assert_eq!(redis.consumers(REQUESTS), ["gone", "living", "of the reference", "worker1"]);
    assert_eq!(told(), 1, "{}", daemon.log());
}

/// Sets back the time at which these consumers were last heard of.
fn hear_nothing_for_two_hours(redis: &Redis, consumers: &[&str]) {
    redis.cmd(&["SAVE"]);
    redis.kill9();
    let path = redis.directory().join("dump.rdb");
    let mut dump = std::fs::read(&path).unwrap();
    for name in consumers {
        // Its length, the name, and then the time.
        let name = [&[name.len() as u8], name.as_bytes()].concat();
        let at = dump.windows(name.len()).position(|bytes| bytes == name).unwrap() + name.len();
        let heard_ms = &mut dump[at..at + 8];
        let before = u64::from_le_bytes(heard_ms.try_into().unwrap()) - 2 * 3_600_000;
        heard_ms.copy_from_slice(&before.to_le_bytes());
    }
    std::fs::write(&path, dump).unwrap();
    redis.restart();
}

/// The keeper asked for the lock of each consumer by itself and compared each with all: where somebody
/// had left very many, that took longer than the lease.
#[test]
fn very_many_consumers_of_instances_that_are_gone_cost_no_lease() {
    let redis = Redis::new();
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0", "MKSTREAM"]);
    let consumer = |n: usize| {
        let name = format!("gone{n}");
        ["XGROUP", "CREATECONSUMER", REQUESTS, "lending_service", &name].map(str::to_owned).to_vec()
    };
    redis.pipeline(&(0..30_000).map(consumer).collect::<Vec<_>>());
    // With the usual lease: on a machine that has much else to do, taking the list apart takes a second.
    let daemon = Daemon::start(&redis, &["worker1"]);
    let lives = || !daemon.log().contains("trying again");
    assert!(stays(Duration::from_secs(10), lives), "the lease was lost");
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert!(lives(), "the lease was lost");
}

/// The keeper asks Redis what is pending, and then looks at what is in hand: what had waited for long and
/// was decided in between was told as delivered and lost, and tried again in vain.
#[test]
fn what_is_decided_while_the_keeper_looks_is_not_taken_for_lost() {
    let redis = Redis::new();
    let other = Other::alive(&redis, "worker2");
    Ledger::new().lent("user1", &["geb"], "5-0").lay_down(&redis);
    let older = redis.request("user1", "momo");
    other.take(REQUESTS);
    // A refusal, which waits for what is older.
    let younger = redis.request("user2", "geb");
    let (start, looks) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&looks);
    let proxy = Proxy::new(&redis, move |command| {
        let looks = command.kind == "pending" && command.mentions(REQUESTS);
        // After so long without being decided an event may be lost.
        let may_be_lost = looks && start.elapsed() > Duration::from_millis(11_000);
        let number = seen.fetch_add(usize::from(may_be_lost), Ordering::SeqCst);
        (may_be_lost && number == 0).then_some(Fault::LateReply)
    });
    let mut daemon = proxy.spawn(&redis, &["worker1"]).ready();
    assert!(eventually(DEADLINE, || proxy.has_struck()), "the keeper never looked");
    other.finishes(&older);
    assert_eq!(redis.outcome_of_request(&younger)["outcome"], "denied");
    // It says so when it has let go of it.
    assert!(eventually(DEADLINE, || daemon.log().contains("DENIED")));
    proxy.release();
    // The next time.
    assert!(eventually(DEADLINE, || looks.load(Ordering::SeqCst) > 2));
    assert_eq!(daemon.stop(), 0);
    assert!(!daemon.log().contains("did not arrive"), "{}", daemon.log());
}

/// Two requests and two hand-offs come after a process hangs and another takes its name: the first of
/// each were delivered to the one that hangs, whose reads were the first in line, and found only
/// after ten seconds.
#[test]
fn what_comes_when_a_name_is_taken_by_force_is_not_delivered_to_the_one_that_hangs() {
    let (redis, mut old) = library(&Ledger::new().nowhere(&["emma", "faust"], "1-0"));
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.hand_off("*", "emma");
    redis.wait_until_drained(DEADLINE);
    old.signal(Signal::STOP);
    let _new = Daemon::start(&redis, &["-f", "worker1"]);
    let begin = Instant::now();
    redis.hand_off("*", "faust");
    let ids = ["user2", "user3"].map(|user| redis.request(user, user));
    for id in ids {
        assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    }
    redis.assert_at_rest();
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    old.signal(Signal::CONT);
    assert_eq!(old.exit_status(), 69);
}

#[test]
fn who_takes_a_name_by_force_leaves_the_readers_of_others_alone() {
    let (redis, _old) = library(&Ledger::new());
    let others =
        ["worker1:1", "worker", "worker11", "worker 1"].map(|name| Daemon::start(&redis, &[name]));
    let _of_a_branch = Daemon::start(&redis.branch("a"), &["worker1"]);
    let _in_another_database = Daemon::start(&redis, &["--db", "1", "worker1"]);
    let readers = || -> Vec<String> {
        let clients = text(redis.ask(&["CLIENT", "LIST"]));
        let readers = clients.lines().filter(|line| line.contains(" name=libraryd:"));
        readers.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    let before = readers();
    assert_eq!(before.len(), 14);
    let _new = Daemon::start(&redis, &["-f", "worker1"]);
    let now = readers();
    assert_eq!(before.iter().filter(|reader| !now.contains(reader)).count(), 2);
    for other in &others {
        assert!(!other.log().contains("trying again"), "{}", other.log());
    }
}

#[test]
fn a_user_who_may_not_name_or_close_connections_serves_and_takes_names_all_the_same() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all", "-client", "-watch"]);
    let args = ["--username", "clerk", "--password", "right", "worker1", "-f"];
    let mut old = Daemon::start(&redis, &args);
    let mut new = Daemon::start(&redis, &args);
    assert_eq!(old.exit_status(), 69);
    redis.cmd(&["ACL", "SETUSER", "clerk", "+watch", "+client|list", "+client|setname"]);
    let mut newer = Daemon::start(&redis, &args);
    assert_eq!(new.exit_status(), 69);
    let _newest = Daemon::start(&redis, &args);
    assert_eq!(newer.exit_status(), 69);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.assert_at_rest();
}

#[test]
fn a_link_on_which_nothing_arrives_any_more_is_given_up_in_seconds() {
    /// A reply may take five seconds, a blocking read two more.
    const SECONDS: Duration = Duration::from_secs(10);
    std::thread::scope(|scope| {
        for kind in ["fetch", "decide", "read", "shelve", "read hand-offs", "renew", "claim"] {
            scope.spawn(move || {
                let redis = Redis::new();
                let stored: Vec<_> = (0..20).map(|n| format!("stored{n}")).collect();
                Ledger::new()
                    .stored(&stored, "1-0")
                    .lent("user2", &["momo"], "1-0")
                    .lay_down(&redis);
                let request = redis.request_at("2-0", "user1", "geb");
                let back = redis.give_back_at("2-1", "user2", "momo");
                let proxy = Proxy::at(&redis, kind, 1, Fault::Silence);
                let begin = Instant::now();
                let mut daemon = proxy.spawn(&redis, &["worker1"]);
                assert!(eventually(DEADLINE, || proxy.has_struck()), "{kind}");
                assert_eq!(redis.outcome_of_request(&request)["outcome"], "accepted");
                assert_eq!(redis.outcome_of_return(&back)["outcome"], "returned");
                redis.assert_at_rest();
                // It may be a link that has no more to say to these events.
                redis.outcome_of_request(&redis.request("user3", "momo"));
                assert!(begin.elapsed() < SECONDS, "{kind} took {:?}", begin.elapsed());
                assert!(daemon.is_running(), "{kind}");
            });
        }
    });
}

/// Each byte of a reply came in time, and the reply never. Nothing but the lease of such an instance and
/// the health signal to systemd tell others that it does nothing any more.
#[test]
fn an_instance_that_is_stuck_lets_its_lease_run_out_and_feeds_no_watchdog() {
    let redis = Redis::new();
    // Each time, since a pause of the machine ends a wait.
    let proxy = Proxy::new(&redis, |command| (command.kind == "fetch").then_some(Fault::Drip));
    let mut stuck = proxy.spawn(&redis, &["--lease", "1", "stuck"]).ready();
    let id = redis.request("user1", "geb");
    assert!(eventually(DEADLINE, || proxy.has_struck()));
    assert!(eventually(DEADLINE, || stuck.has_notified("WATCHDOG=1")));
    let _other = Daemon::start(&redis, &["--lease", "1", "other"]);
    // For twenty seconds it may be busy.
    assert!(eventually(4 * DEADLINE, || !redis.outcomes().is_empty()), "it is not given up");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    // The reader's or the worker's, whichever had it.
    let told = |thread| stuck.log().contains(&format!("the thread {thread} has made no progress"));
    assert!(told("lending-reader") || told("lending-worker"), "{}", stuck.log());
    assert_eq!(stuck.log().matches("has made no progress").count(), 1, "{}", stuck.log());
    while stuck.next_notice().is_some() {}
    assert!(stays(Duration::from_secs(1), || stuck.next_notice().is_none()), "it is fed");
    assert!(stuck.is_running());
    redis.assert_at_rest();
}

#[test]
fn a_paused_instance_loses_its_events_to_another_and_recovers_when_it_goes_on() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
    let holder = Other::alive(&redis, "holder");
    redis.request_at("2-0", "user8", "old");
    holder.take(REQUESTS);
    let mut paused = Daemon::start(&redis, &["--lease", "1", "paused"]);
    for n in 0..100 {
        redis.request(&format!("user{n}"), "lent");
    }
    let in_hand_of = |name: &str| {
        let pending = redis.everything().stream(REQUESTS).groups["lending_service"].pending.clone();
        pending.values().filter(|by| *by == name).count()
    };
    assert!(eventually(DEADLINE, || in_hand_of("paused") == 100));
    paused.signal(Signal::STOP);
    let begin = Instant::now();
    let _other = Daemon::start(&redis, &["--lease", "1", "other"]);
    assert!(eventually(DEADLINE, || in_hand_of("other") == 100));
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    let has_tried = || redis.everything().hash("shelving_service_answers").contains_key("other");
    assert!(eventually(DEADLINE, has_tried));
    let before = redis.everything().without("instance_lock:");
    paused.signal(Signal::CONT);
    let works_again = || redis.ask::<bool>(&["EXISTS", "instance_lock:paused"]);
    assert!(eventually(DEADLINE, works_again), "{}", paused.log());
    assert_eq!(redis.everything().without("instance_lock:").0, before.0);
    holder.die();
    let outcomes = redis.assert_one_outcome_each(101);
    Ledger::new().lent("user9", &["lent"], "1-0").replay(&outcomes);
    redis.assert_at_rest();
    assert_eq!(redis.length(DEAD_LETTERS), 0);
    // Both work on.
    for _ in 0..20 {
        redis.outcome_of_request(&redis.request("user7", "lent"));
    }
    assert!(paused.is_running());
    assert_eq!(paused.stop(), 0);
}

/// It was made again after half a second. What an instance whose link stalled had sent before the loss had a
/// valid token still: it fetched books for a request that was decided by then, and they were nowhere.
#[test]
fn a_lost_group_is_made_again_when_every_lease_is_one_that_was_taken_since() {
    let (redis, daemon) = library(&Ledger::new());
    redis.outcome_of_request(&redis.request("user1", "geb"));
    // The second has no token that it could leave.
    let _reference = Other::of_the_reference(&redis, "reference");
    for name in ["other", "reference"] {
        redis.cmd(&["XGROUP", "CREATECONSUMER", RETURNS, "lending_service", name]);
    }
    let lock_for = |ms: &str| redis.cmd(&["SET", "instance_lock:other", "token:1", "PX", ms]);
    let is_there = || redis.everything().stream(REQUESTS).groups.contains_key("lending_service");
    for notices in [false, true] {
        lock_for(if notices { "600000" } else { "2500" });
        redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
        let holds = || redis.ask::<bool>(&["EXISTS", "instance_lock:other"]);
        assert!(stays(Duration::from_millis(1_500), || !is_there()), "{}", daemon.log());
        assert!(holds());
        if notices {
            redis.cmd(&["HSET", "lending_lost_groups", "other", "token:1"]);
        }
        assert!(eventually(DEADLINE, is_there), "{}", daemon.log());
        assert_eq!(holds(), notices);
        let outcome = redis.outcome_of_request(&redis.request("user1", "momo"));
        assert_eq!(outcome["action"], "request", "{}", daemon.log());
    }
    // Somebody else has made it.
    redis.cmd(&["HSET", "lending_lost_groups", "other", "another token"]);
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let has_noticed = || redis.everything().hash("lending_lost_groups").contains_key("worker1");
    assert!(eventually(DEADLINE, has_noticed), "{}", daemon.log());
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0"]);
    redis.outcome_of_request(&redis.request("user1", "emma"));
    assert!(!daemon.log().contains("is not waited for any longer"), "{}", daemon.log());
    let noticed = redis.everything().hash("lending_lost_groups");
    assert_eq!(noticed.keys().collect::<Vec<_>>(), ["other"], "each takes its own word back");
}

/// No consumer is left then that could tell of it; but what it has fetched can be harmed most. What it has
/// said of an earlier loss is not about this one.
#[test]
fn where_all_groups_are_lost_an_instance_with_an_answer_of_shelving_is_waited_for() {
    let (redis, daemon) = library(&Ledger::new());
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["SET", "instance_lock:other", "token:2", "PX", "600000"]);
    redis.cmd(&["HSET", "shelving_service_answers", "other", "token:2 1 "]);
    redis.cmd(&["HSET", "lending_lost_groups", "other", "token:1"]);
    for (stream, group) in [
        (REQUESTS, "lending_service"),
        (RETURNS, "lending_service"),
        (SHELVING, "shelving_service"),
    ] {
        redis.cmd(&["XGROUP", "DESTROY", stream, group]);
    }
    let word_of = |name: &str| redis.everything().hash("lending_lost_groups").contains_key(name);
    let is_there = || redis.everything().stream(REQUESTS).groups.contains_key("lending_service");
    assert!(eventually(DEADLINE, || word_of("worker1") || is_there()), "{}", daemon.log());
    assert!(stays(Duration::from_millis(1_500), || !is_there()), "{}", daemon.log());
    redis.cmd(&["HSET", "lending_lost_groups", "other", "token:2"]);
    assert!(eventually(DEADLINE, is_there), "{}", daemon.log());
    let outcome = redis.outcome_of_request(&redis.request("user1", "momo"));
    assert_eq!(outcome["outcome"], "accepted", "{}", daemon.log());
}

/// Threads were taken to be stuck since before they had begun: the keeper, which begins first, said so, and
/// renewed no lease until its next turn. With four of them it happened to two.
#[test]
fn who_has_waited_long_for_others_takes_no_thread_for_stuck() {
    let redis = Redis::new();
    let branches = ["1", "2", "3", "4"].map(|name| redis.branch(name));
    let mut daemons = branches.each_ref().map(|branch| {
        branch.add(OUTCOMES, "*", &[("outcome", b"denied")]);
        // It never notices.
        branch.cmd(&["SET", &branch.key("instance_lock:other"), "token:1", "PX", "600000"]);
        branch.cmd(&["HSET", &branch.key("shelving_service_answers"), "other", "token:1 1 "]);
        Daemon::spawn(branch, &["worker1"])
    });
    for daemon in &mut daemons {
        assert!(daemon.becomes_ready(Duration::from_secs(60)), "{}", daemon.log());
        assert!(daemon.log().contains("is not waited for any longer"), "{}", daemon.log());
    }
    for (branch, daemon) in branches.iter().zip(&daemons) {
        branch.request("user1", "geb");
        assert!(eventually(DEADLINE, || branch.length(OUTCOMES) == 2));
        assert!(!daemon.log().contains("no progress"), "{}", daemon.log());
    }
}

/// An instance whose every session failed took its lease again each time, a second later at most. Its event
/// was decided by nobody, and refusals waited for that for ever.
#[test]
fn who_decides_nothing_session_after_session_leaves_its_events_to_others() {
    let redis = Redis::new();
    let proxy = Proxy::new(&redis, |command| {
        (command.kind == "decide").then(|| {
            // A link that swallows replies is given up after a while: no session is a good one for that.
            std::thread::sleep(Duration::from_millis(1_200));
            Fault::CutBefore
        })
    });
    let failing = proxy.spawn(&redis, &["--lease", "1", "failing"]);
    let id = redis.request("user1", "geb");
    let is_in_hand = || {
        let groups = redis.everything().stream(REQUESTS).groups;
        groups.values().any(|group| !group.pending.is_empty())
    };
    assert!(eventually(DEADLINE, is_in_hand), "{}", failing.log());
    let _other = Daemon::start(&redis, &["--lease", "1", "other"]);
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted", "{}", failing.log());
    let told = failing.log();
    assert!(told.contains("the lease is left to run out"), "{told}");
    assert!(!told.contains("working again"), "{told}");
    assert!(told.lines().count() < 20, "{told}");
}

/// A pause of two leases, for a link that was broken for a moment, or silent twice.
#[test]
fn a_few_sessions_that_fail_leave_nothing_to_others() {
    for (failures, lasting_ms, lease) in [(4, 0, "6"), (2, 1_200, "1")] {
        let redis = Redis::new();
        let proxy = Proxy::new(&redis, move |command| {
            (command.kind == "decide" && command.number <= failures).then(|| {
                std::thread::sleep(Duration::from_millis(lasting_ms));
                Fault::CutBefore
            })
        });
        let daemon = proxy.spawn(&redis, &["--lease", lease, "worker1"]).ready();
        redis.outcome_of_request(&redis.request("user1", "geb"));
        let told = daemon.log();
        assert!(told.contains("trying again"), "{told}");
        assert!(!told.contains("the lease is left to run out"), "{told}");
    }
}
