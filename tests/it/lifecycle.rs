//! An instance's start, its lease, its end.

use std::fs::{self, File};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;

/// Shorter than the blocking read by far, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

fn time_to_live_ms(redis: &Redis, name: &str) -> i64 {
    redis.ask(&["PTTL", &redis.key(&format!("instance_lock:{name}"))])
}

fn is_locked(redis: &Redis, name: &str) -> bool {
    redis.ask(&["EXISTS", &redis.key(&format!("instance_lock:{name}"))])
}

#[test]
fn ready_means_that_both_services_read_under_the_instances_name() {
    let (redis, _daemon) = library(&Ledger::new());
    for (stream, group) in [
        (REQUESTS, "lending_service"),
        (RETURNS, "lending_service"),
        (SHELVING, "shelving_service"),
    ] {
        assert!(redis.everything().stream(stream).groups.contains_key(group), "{stream}");
    }
    let request = redis.request("user1", "geb");
    let back = redis.give_back("user2", "momo");
    redis.hand_off("*", "emma");
    redis.outcome_of_request(&request);
    redis.outcome_of_return(&back);
    redis.assert_at_rest();
    for stream in [REQUESTS, RETURNS, SHELVING] {
        assert_eq!(redis.consumers(stream), ["worker1"], "{stream}");
    }
}

/// Where each command takes Redis a second, coming back takes longer than systemd waits for a sign of life.
#[test]
fn each_step_of_coming_back_is_a_sign_of_life() {
    let redis = Redis::new();
    let mut daemon = Daemon::spawn(&redis, &["worker1"]);
    let mut signs = 0;
    let ready = eventually(DEADLINE, || {
        let notice = daemon.next_notice();
        signs += usize::from(notice.as_deref() == Some("WATCHDOG=1"));
        notice.as_deref() == Some("READY=1")
    });
    assert!(ready && signs >= 5, "{signs} signs");
}

#[test]
fn the_lock_is_a_lease_that_is_renewed_and_released() {
    let (redis, mut daemon) = library(&Ledger::new());
    let mut last = time_to_live_ms(&redis, "worker1");
    assert!((1..=6000).contains(&last), "{last}");
    let renewed = eventually(DEADLINE, || {
        let now = time_to_live_ms(&redis, "worker1");
        let renewed = now > last;
        last = now;
        renewed
    });
    assert!(renewed, "the lease was never renewed");
    assert_eq!(daemon.stop(), 0);
    assert!(!is_locked(&redis, "worker1"));
}

#[test]
fn a_second_live_instance_of_one_name_is_refused_and_told_about_force() {
    let (redis, mut daemon) = library(&Ledger::new());
    let mut second = Daemon::spawn(&redis, &["worker1"]);
    assert_eq!(second.exit_status(), 75);
    let log = second.log();
    assert!(log.contains("worker1") && log.contains("-f"), "{log}");
    assert!(daemon.is_running());
    let id = redis.request("user1", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
}

#[test]
fn force_takes_the_name_and_the_old_instance_stops_without_changing_anything() {
    let (redis, mut old) = library(&Ledger::new());
    let mut new = Daemon::start(&redis, &["-f", "worker1"]);
    assert_eq!(old.exit_status(), 69);
    let taken = "took the name worker1 from an instance that was running";
    assert_eq!(new.log().matches(taken).count(), 1, "{}", new.log());
    assert!(is_locked(&redis, "worker1"), "the old one released what is not its own");
    let id = redis.request("user1", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
    assert_eq!(new.stop(), 0);
    // From here on nobody has it, and nobody but itself when its link was cut.
    let free = Daemon::start(&redis, &["-f", "worker1"]);
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert!(eventually(DEADLINE, || free.log().contains("working again")), "{}", free.log());
    assert!(!free.log().contains("took the name"), "{}", free.log());
}

#[test]
fn an_instance_that_wakes_up_after_it_was_replaced_changes_nothing() {
    let (redis, mut old) = library(&Ledger::new());
    old.signal(Signal::STOP);
    let mut new = Daemon::start(&redis, &["--force", "worker1"]);
    for n in 0..50 {
        redis.request(&format!("user{n}"), "geb");
        redis.request(&format!("user{n}"), &format!("book{n}"));
    }
    let outcomes = redis.assert_one_outcome_each(100);
    let before = redis.everything().without("instance_lock:");
    old.signal(Signal::CONT);
    assert_eq!(old.exit_status(), 69);
    assert_eq!(redis.everything().without("instance_lock:"), before);
    Ledger::new().replay(&outcomes);
    assert!(new.is_running());
}

/// Its events were with others, and neither log said why.
#[test]
fn a_pause_longer_than_the_lease_is_told() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["--lease", "3", "worker1"]);
    let told = |daemon: &Daemon| {
        daemon.log().matches("WARN  [libraryd] nothing was heard from Redis for").count()
    };
    daemon.signal(Signal::STOP);
    daemon.signal(Signal::CONT);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert_eq!(told(&daemon), 0, "{}", daemon.log());
    daemon.signal(Signal::STOP);
    let begin = Instant::now();
    let is_over = || !is_locked(&redis, "worker1") && begin.elapsed() > Duration::from_secs(5);
    assert!(eventually(DEADLINE, is_over));
    daemon.signal(Signal::CONT);
    assert!(eventually(DEADLINE, || told(&daemon) == 1), "{}", daemon.log());
    redis.outcome_of_request(&redis.request("user1", "momo"));
    assert_eq!(told(&daemon), 1, "{}", daemon.log());
}

#[test]
fn after_kill_9_the_name_starts_again_by_itself_when_its_lease_has_run_out() {
    let (redis, mut daemon) = library(&Ledger::new());
    daemon.kill9();
    assert!(is_locked(&redis, "worker1"));
    let id = redis.request("user1", "geb");
    let start = Instant::now();
    let _again = Daemon::start(&redis, &["worker1"]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
}

#[test]
fn a_lock_without_a_ttl_refuses_the_start_unless_it_is_forced() {
    let redis = Redis::new();
    redis.cmd(&["SET", "instance_lock:worker1", "1"]);
    let mut refused = Daemon::spawn(&redis, &["worker1"]);
    assert_eq!(refused.exit_status(), 75);
    assert!(refused.log().contains("-f"), "{}", refused.log());
    assert_eq!(time_to_live_ms(&redis, "worker1"), -1, "the lock is as it was");
    // Whatever is in it.
    redis.cmd(&["SET", "instance_lock:worker1", ""]);
    assert_eq!(Daemon::spawn(&redis, &["worker1"]).exit_status(), 75);
    let mut forced = Daemon::start(&redis, &["worker1", "-f"]);
    assert!(time_to_live_ms(&redis, "worker1") > 0);
    assert_eq!(forced.stop(), 0);
}

#[test]
fn a_lock_that_nobody_renews_is_waited_out() {
    let redis = Redis::new();
    redis.cmd(&["SET", "instance_lock:worker1", "somebody", "PX", "1500"]);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(daemon.stop(), 0);
}

// A process was killed while it took its lease again after a broken link. The command arrived when
// the next process of that name had begun to watch the lock: it took the dead one for alive.
#[test]
fn the_last_word_of_a_dead_instance_is_no_sign_of_life() {
    let redis = Redis::new();
    redis.cmd(&["SET", "instance_lock:worker1", "dead:1", "PX", "1500"]);
    let daemon = Daemon::spawn(&redis, &["worker1"]);
    assert!(eventually(DEADLINE, || daemon.log().contains("is leased")));
    redis.cmd(&["SET", "instance_lock:worker1", "dead:2", "PX", "1500"]);
    assert_eq!(daemon.ready().stop(), 0);
}

#[test]
fn each_signal_to_stop_is_obeyed_during_the_blocking_read() {
    let took = [Signal::INT, Signal::TERM, Signal::HUP].map(|signal| {
        let (redis, mut daemon) = library(&Ledger::new());
        let id = redis.request("user1", "geb");
        redis.outcome_of_request(&id);
        let start = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.exit_status(), 0, "{signal:?}");
        let took = start.elapsed();
        assert!(took < AT_ONCE, "{signal:?} took {took:?}");
        assert!(!is_locked(&redis, "worker1"), "{signal:?}");
        // It stopped reading: what comes now waits for the next start.
        let id = redis.request("user1", "momo");
        assert!(redis.outcomes_of("request", &id).is_empty());
        assert!(!redis.is_drained());
        took
    });
    // The readers are woken; by themselves they come back after two seconds. The machine may be busy.
    assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
}

/// Nobody read what it told its supervisor: when the socket was full, after an outage of some
/// seconds, it waited there for ever, and did not even stop when asked to.
#[test]
fn a_supervisor_that_does_not_listen_holds_nothing_up() {
    let (redis, mut daemon) = library(&Ledger::new());
    let files = std::fs::read_dir(redis.directory()).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let socket = paths.into_iter().find(|path| path.extension().is_some_and(|it| it == "notify"));
    let full = std::os::unix::net::UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send_to(b"STATUS=full", socket.as_ref().unwrap()).is_ok() {}
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert_eq!(redis.outcome_of_request(&redis.request("user1", "geb"))["outcome"], "accepted");
    assert_eq!(daemon.stop(), 0);
}

/// A signal ended the supervisor's wait for the reply to a PING, and that ended the session: libraryd stopped,
/// but its lock stayed, and what was in work was not finished.
#[test]
fn a_signal_while_the_supervisor_waits_for_redis_is_obeyed_like_any_other() {
    let (redis, mut daemon) = library(&Ledger::new());
    // The system call in which the main thread sleeps. Between two looks at what has come that is not one
    // which waits for a reply.
    let sleeps_in = || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", daemon.pid())).unwrap();
        call.split_whitespace().next().map(str::to_owned).filter(|call| call != "running")
    };
    let mut idle = None;
    assert!(eventually(DEADLINE, || {
        idle = sleeps_in();
        idle.is_some() && stays(Duration::from_millis(100), || sleeps_in() == idle)
    }));
    redis.signal(Signal::STOP);
    // Not a moment's call, which comes before the wait.
    let waits = || sleeps_in().is_some_and(|call| Some(call) != idle);
    assert!(eventually(DEADLINE, || waits() && stays(Duration::from_millis(50), waits)));
    daemon.signal(Signal::TERM);
    redis.signal(Signal::CONT);
    assert_eq!(daemon.exit_status(), 0, "{}", daemon.log());
    assert!(daemon.log().contains("worker1 stops"), "{}", daemon.log());
    assert!(!is_locked(&redis, "worker1"));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (redis, mut daemon) = library(&Ledger::new());
    // With a Redis that does not answer nothing in flight can be finished.
    redis.signal(Signal::STOP);
    // At once is not twice: `timeout` signals the process and its group.
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::INT);
    assert!(stays(Duration::from_millis(200), || daemon.is_running()), "{}", daemon.log());
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    let status = daemon.exit_status();
    redis.signal(Signal::CONT);
    assert_eq!(status, 1);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn a_graceful_stop_under_load_leaves_nothing_half_done_and_the_next_start_goes_on() {
    let redis = Redis::new();
    for n in 0..400 {
        let (user, book) = (format!("user{}", n % 40), format!("book{}", n % 60));
        redis.request(&user, &book);
        redis.give_back(&user, &book);
    }
    let mut starts = 0;
    while redis.length(OUTCOMES) < 800 && starts < 20 {
        starts += 1;
        let mut daemon = Daemon::start(&redis, &["worker1"]);
        assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > starts * 20));
        assert_eq!(daemon.stop(), 0);
        let reserved: Vec<_> =
            redis.violations().into_iter().filter(|v| v.starts_with("I6")).collect();
        assert_eq!(reserved, Vec::<String>::new(), "what is in flight is finished");
    }
    let _daemon = Daemon::start(&redis, &["worker1"]);
    Ledger::new().replay(&redis.assert_one_outcome_each(800));
    redis.assert_at_rest();
}

/// Returns that are newer than all requests that are read wait in the reader until those are read as far.
/// A stop comes meanwhile.
#[test]
fn a_stop_finishes_what_was_read_ahead() {
    const RETURNS_AHEAD: usize = 100;
    let redis = Redis::new();
    let users: Vec<_> = (0..RETURNS_AHEAD).map(|n| format!("lender{n}")).collect();
    let lent = |ledger: Ledger, user: &String| ledger.lent(user, &[&format!("of {user}")], "1-0");
    users.iter().fold(Ledger::new(), lent).lay_down(&redis);
    for n in 0..400 {
        redis.request_at(&format!("2-{n}"), &format!("user{n}"), &format!("book{n}"));
    }
    for (n, user) in users.iter().enumerate() {
        redis.give_back_at(&format!("3-{n}"), user, &format!("of {user}"));
    }
    // The second read, of more requests, takes until it is known of the stop.
    let (reads, goes_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, is_released) = (Arc::clone(&reads), Arc::clone(&goes_on));
    let proxy = Proxy::new(&redis, move |command| {
        if command.kind == "read" {
            count.store(command.number, Ordering::SeqCst);
            if command.number == 2 {
                let _in_time = eventually(DEADLINE, || is_released.load(Ordering::SeqCst));
            }
        }
        None
    });
    let mut daemon = proxy.spawn(&redis, &["worker1"]);
    assert!(eventually(DEADLINE, || reads.load(Ordering::SeqCst) == 2));
    daemon.signal(Signal::TERM);
    assert!(eventually(DEADLINE, || daemon.log().contains("what is in work is finished")));
    goes_on.store(true, Ordering::SeqCst);
    assert_eq!(daemon.exit_status(), 0);
    let returned = redis.outcomes().iter().filter(|one| one["outcome"] == "returned").count();
    assert_eq!(returned, RETURNS_AHEAD);
    assert!(redis.length(REQUESTS) > 0, "the requests were read further");
}

#[test]
fn a_stop_tells_how_much_is_left_to_others() {
    let (redis, mut daemon) = library(&Ledger::new());
    let other = Other::alive(&redis, "other");
    for n in 1..=2 {
        other.takes_new(&format!("{n}-0"), "user1", "geb");
        let id = redis.give_back_at(&format!("{n}-1"), "user2", "momo");
        let has_read = || format!("{:?}", redis.everything().stream(RETURNS).groups).contains(&id);
        assert!(eventually(DEADLINE, has_read));
    }
    assert_eq!(daemon.stop(), 0);
    let log = daemon.log();
    assert!(
        log.contains(" INFO  [libraryd] what waits for others is left to them: 2 events"),
        "{log}"
    );
}

#[test]
fn own_pending_events_are_finished_first() {
    let redis = Redis::new();
    redis.request_at("10-0", "user1", "geb");
    redis.give_back_at("10-1", "user2", "momo");
    Ledger::new().nowhere(&["emma"], "5-0").lay_down(&redis);
    redis.hand_off("10-0", "emma");
    let before = Other::gone(&redis, "worker1");
    for stream in [REQUESTS, RETURNS, SHELVING] {
        before.take(stream);
    }
    redis.request_at("11-0", "user1", "faust");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let outcomes = redis.assert_one_outcome_each(3);
    let of_user1: Vec<_> =
        outcomes.iter().filter(|o| o["user_id"] == "user1").map(|o| &o["event_id"]).collect();
    assert_eq!(of_user1, ["10-0", "11-0"]);
    redis.assert_at_rest();
    assert_eq!(redis.ledger().loans.len(), 2);
}

#[test]
fn killing_the_daemon_again_and_again_loses_nothing_and_does_nothing_twice() {
    let redis = Redis::new();
    let mut sent = 0;
    for round in 0..4 {
        for n in 0..150 {
            let user = format!("user{}", (n + round) % 30);
            redis.request(&user, &format!("book{},book{}", n % 50, (n * 7) % 50));
            redis.give_back(&user, &format!("book{}", (n * 3) % 50));
        }
        sent += 300;
        let decided = redis.length(OUTCOMES);
        // Forced, because nobody wants to wait for the lease four times.
        let mut daemon = Daemon::start(&redis, &["-f", "worker1"]);
        assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > decided + 20 * (round + 1)));
        daemon.kill9();
    }
    let _daemon = Daemon::start(&redis, &["-f", "worker1"]);
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
}

#[test]
fn what_was_requested_before_the_first_start_is_served() {
    let redis = Redis::new();
    let ids: Vec<_> = (0..50).map(|n| redis.request(&format!("u{n}"), &format!("b{n}"))).collect();
    let _daemon = Daemon::start(&redis, &["worker1"]);
    for id in ids {
        assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    }
    redis.assert_at_rest();
}

#[test]
fn a_lost_group_is_made_again_and_nothing_is_replayed_or_skipped() {
    let (redis, mut daemon) = library(&Ledger::new());
    let first = redis.request("user1", "geb");
    redis.outcome_of_request(&first);
    assert_eq!(daemon.stop(), 0);
    let second = redis.request("user1", "momo");
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    redis.cmd(&["XGROUP", "DESTROY", SHELVING, "shelving_service"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request(&second)["in_hand"], "2");
    redis.assert_one_outcome_each(2);
    redis.assert_at_rest();
}

#[test]
fn a_lost_group_over_processed_events_stops_the_start_and_changes_nothing() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1", "--keep-events"]);
    let id = redis.request("user1", "geb");
    redis.outcome_of_request(&id);
    assert_eq!(daemon.stop(), 0);
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let before = redis.everything();
    for args in [&["worker1"][..], &["worker1", "--keep-events"]] {
        let mut daemon = Daemon::spawn(&redis, args);
        assert_eq!(daemon.exit_status(), 78);
        assert!(daemon.log().contains("regroup"), "{}", daemon.log());
        // No lock is left either, which whoever starts next would have to wait for.
        assert_eq!(redis.everything(), before);
    }
    // Where none of them is left there is nothing to be decided again.
    redis.cmd(&["XTRIM", REQUESTS, "MAXLEN", "0"]);
    let _daemon = Daemon::start(&redis, &["worker1", "--keep-events"]);
    redis.outcome_of_request(&redis.request("user1", "momo"));
}

/// Each can be what costs a library its loans, and none of them is an error of Redis.
#[test]
fn settings_under_which_redis_loses_loans_are_warned_of_once() {
    const WORDS: [&str; 3] = ["append-only file", "maxmemory-policy", "is a replica"];
    let told = |daemon: &Daemon| WORDS.map(|words| daemon.log().matches(words).count());
    let options = ["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"];
    let redis = Redis::with(&[&options[..], &["--replica-read-only", "no"]].concat());
    // Nobody answers there.
    redis.cmd(&["REPLICAOF", "127.0.0.1", "1"]);
    let daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(told(&daemon), [1; 3], "{}", daemon.log());
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert!(eventually(DEADLINE, || daemon.log().contains("working again")));
    assert_eq!(told(&daemon), [1; 3], "{}", daemon.log());
    let redis = Redis::with(&["--appendonly", "yes", "--maxmemory-policy", "noeviction"]);
    let daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(told(&daemon), [0; 3], "{}", daemon.log());
}

/// A digit too many in an XGROUP SETID. What was sent from then on was never delivered, and deleted as
/// decided.
#[test]
fn a_group_that_is_ahead_of_its_stream_ends_the_daemon_and_nothing_is_deleted() {
    for (stream, group) in [
        (REQUESTS, "lending_service"),
        (RETURNS, "lending_service"),
        (SHELVING, "shelving_service"),
    ] {
        let (redis, mut daemon) = library(&Ledger::new());
        let first = redis.request("user1", "geb");
        redis.outcome_of_request(&first);
        redis.cmd(&["XGROUP", "SETID", stream, group, "9999999999999-0"]);
        let sent = redis.add(stream, "*", &[("user_id", b"user1"), ("book_ids", b"momo")]);
        assert_eq!(daemon.exit_status(), 78, "{stream}: {}", daemon.log());
        let mut daemon = Daemon::spawn(&redis, &["worker2"]);
        assert_eq!(daemon.exit_status(), 78, "{stream}: {}", daemon.log());
        let said = format!("{group} of {stream} is ahead of its stream");
        assert!(daemon.log().contains(&said), "{stream}: {}", daemon.log());
        assert_eq!(redis.entries(stream)[0].0, sent);

        // As it is told.
        redis.cmd(&["XGROUP", "DESTROY", stream, group]);
        let _daemon = Daemon::start(&redis, &["worker1"]);
        redis.wait_until_drained(DEADLINE);
        assert_eq!(redis.length(stream), 0);
    }
}

/// With `--keep-events` nobody looked while the daemon ran, and what was sent was passed over without a word.
#[test]
fn a_group_that_is_ahead_of_its_stream_is_noticed_where_events_are_kept() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["XGROUP", "SETID", REQUESTS, "lending_service", "9999999999999-0"]);
    // What is as old as the oldest outcome counts as decided.
    redis.wait_for_next_millisecond();
    let sent = redis.request("user1", "momo");
    assert_eq!(daemon.exit_status(), 78, "{}", daemon.log());
    let admin = |args: &[&str]| TestCommand::library_admin(&redis, args).exits(0).stdout;
    let status = admin(&["status"]);
    assert!(status.contains("(its group is ahead of it: see library-admin check)"), "{status}");
    assert!(admin(&["status", "--json"]).contains(r#""group":true,"lost":false,"ahead":true,"#));
    // As it is told.
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    assert!(admin(&["regroup"]).contains(&sent));
    admin(&["regroup", "--from", &sent]);
    let _daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    assert_eq!(redis.outcome_of_request(&sent)["outcome"], "accepted");
}

#[test]
fn a_wrong_password_and_a_missing_permission_end_it_with_a_message() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+ping"]);
    for (password, said) in [("wrong", "WRONGPASS"), ("right", "NOPERM")] {
        let args = ["--username", "clerk", "--password", password, "worker1"];
        let mut daemon = Daemon::spawn(&redis, &args);
        assert_eq!(daemon.exit_status(), 77, "{said}: {}", daemon.log());
    }
}

/// What a script may not do, Redis says in words of its own: the daemon tried again for ever. Worse,
/// the script had acknowledged events by then: they were lost (I4).
#[test]
fn a_permission_that_is_missing_ends_it_with_a_message_before_anything_is_lost() {
    let commands = [
        "type",
        "xlen",
        "xgroup",
        "xinfo",
        "xrange",
        "xpending",
        "xreadgroup",
        "xclaim",
        "evalsha",
        "get",
        "pexpire",
        "hscan",
        "hmget",
        "xack",
        "xadd",
        "hset",
        "xdel",
        "xtrim",
        "hdel",
        "smismember",
        "mget",
        "mset",
        "scard",
        "hlen",
        "hget",
        "hexists",
        "sadd",
        "srem",
        "rpush",
        "xrevrange",
        "exists",
        "del",
    ];
    std::thread::scope(|scope| {
        for commands in commands.chunks(8) {
            scope.spawn(|| commands.iter().for_each(|command| assert_ends_without(command)));
        }
    });
}

/// What happens needs every command, and the daemon's user lacks one.
fn assert_ends_without(command: &str) {
    let redis = Redis::new();
    Ledger::new()
        .lent("user1", &["geb"], "1-0")
        .stored(&["stored"], "1-0")
        .nowhere(&["emma"], "1-0")
        .lay_down(&redis);
    redis.request_at("2-0", "user2", "momo,stored");
    Other::gone(&redis, "dead").take(REQUESTS);
    redis.give_back_at("3-0", "user1", "geb");
    redis.hand_off("*", "emma");
    let but = format!("-{command}");
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">right", "~*", "+@all", &but]);
    let args = ["--username", "clerk", "--password", "right", "--lease", "1", "worker1"];
    let mut daemon = Daemon::spawn(&redis, &args);
    assert_eq!(daemon.exit_status(), 77, "without {command}: {}", daemon.log());
    // The keeper has its own time.
    let is_early = command == "hscan" || !daemon.log().contains("is ready");
    assert!(is_early, "without {command}: {}", daemon.log());
    let said = daemon.log().to_lowercase();
    let named = said.contains(command) || said.contains("could not take the lease");
    assert!(named, "without {command}: {said}");
    redis.cmd(&["ACL", "SETUSER", "clerk", "+@all"]);
    let _daemon = Daemon::start(&redis, &["-f", "--lease", "1", "worker1"]);
    assert_eq!(redis.outcome_of_request("2-0")["in_hand"], "2", "without {command}");
    assert_eq!(redis.outcome_of_return("3-0")["outcome"], "returned", "without {command}");
    redis.assert_at_rest();
}

#[test]
fn a_redis_that_dies_and_comes_back_is_worked_on_again() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let first = redis.request("user1", "geb");
    redis.outcome_of_request(&first);
    redis.kill9();
    redis.restart();
    let second = redis.request("user2", "geb,momo");
    let more = [("book_ids", "momo"), ("lent_to_another", "geb"), ("in_hand", "1")];
    assert_eq!(
        redis.outcome_of_request(&second),
        outcome("request", &second, "user2", "accepted", &more)
    );
    redis.assert_one_outcome_each(2);
    redis.assert_at_rest();
    assert!(daemon.is_running());
    assert_eq!(daemon.stop(), 0);
}

/// Where the system gave no thread, the process panicked, and ended with SIGABRT; or with 1, which a second
/// signal stands for.
#[test]
fn a_system_that_gives_no_thread_is_waited_for_and_told() {
    let redis = Redis::new();
    // Each thread takes a gigabyte for its stack: one, and none more, or not even one.
    let within = |gibibytes: u64| {
        let log = redis.directory().join(format!("log-{gibibytes}"));
        let limit = format!("ulimit -v {}; exec \"$@\"", gibibytes << 20 | 1 << 19);
        let mut command = Command::new("sh");
        command
            .args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_libraryd")])
            .args(["-a", &redis.address(), "worker1"])
            .env("RUST_MIN_STACK", (1_u64 << 30).to_string())
            .stderr(File::create(&log).unwrap());
        (Process::spawn(&mut command), log)
    };
    let (mut hindered, log) = within(2);
    let told = || fs::read_to_string(&log).unwrap();
    assert!(eventually(DEADLINE, || told().contains("could not start a thread")), "{}", told());
    assert!(stays(Duration::from_millis(300), || hindered.ended().is_none()), "{}", told());
    hindered.signal(Signal::TERM);
    assert_eq!(hindered.wait(DEADLINE).and_then(|status| status.code()), Some(0), "{}", told());
    assert_eq!(told().matches("could not start a thread").count(), 1, "{}", told());
    let (mut hopeless, _) = within(0);
    assert_eq!(hopeless.wait(DEADLINE).and_then(|status| status.code()), Some(71));
}

/// nohup was of no use: whoever closed the terminal stopped the library.
#[test]
fn a_signal_that_was_ignored_from_the_start_stays_so() {
    let redis = Redis::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_libraryd")])
        .args(["-a", &redis.address(), "worker1"])
        .stderr(File::create(redis.directory().join("log")).unwrap());
    let mut daemon = Process::spawn(&mut command);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    daemon.signal(Signal::HUP);
    redis.outcome_of_return(&redis.give_back("user1", "geb"));
    assert!(stays(Duration::from_millis(300), || daemon.ended().is_none()));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(DEADLINE).and_then(|status| status.code()), Some(0));
}
