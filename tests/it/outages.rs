//! Redis goes away, comes back, or forgets: the daemon comes back by itself, loses nothing and
//! does nothing twice.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;

/// Requests and returns that are all decided without waiting for long, from many users.
fn send(redis: &Redis, round: usize, count: usize) -> usize {
    let commands: Vec<_> = (0..count)
        .flat_map(|n| {
            let (user, book) = (format!("user{}", n % 40), format!("book{}", (n + round) % 70));
            [REQUESTS, RETURNS].map(|stream| xadd(stream, "*", &user, &book))
        })
        .collect();
    redis.pipeline(&commands);
    commands.len()
}

/// Does something to Redis again and again while the daemon has its hands full; at the end
/// everything is decided once.
fn assert_survives(redis: &Redis, rounds: usize, mut trouble: impl FnMut(&Redis)) -> Daemon {
    let mut daemon = Daemon::start(redis, &["worker1"]);
    let mut sent = 0;
    for round in 0..rounds {
        let decided = redis.length(OUTCOMES);
        sent += send(redis, round, 150);
        assert!(eventually(DEADLINE, || redis.length(OUTCOMES) > decided));
        trouble(redis);
    }
    sent += send(redis, rounds, 10);
    Ledger::new().replay(&redis.assert_one_outcome_each(sent));
    redis.assert_at_rest();
    assert_eq!(redis.length(DEAD_LETTERS), 0, "an outage rejects nothing");
    assert!(daemon.is_running());
    daemon
}

#[test]
fn connections_that_are_cut_again_and_again_cost_nothing() {
    assert_survives(&Redis::new(), 6, |redis| {
        redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    });
}

#[test]
fn scripts_that_are_flushed_are_loaded_again() {
    let redis = Redis::new();
    let daemon = assert_survives(&redis, 10, |redis| {
        redis.cmd(&["SCRIPT", "FLUSH"]);
    });
    assert!(!daemon.log().contains("NOSCRIPT"), "{}", daemon.log());
}

/// What shelving said to the fetch in front of it is what a call decides by. Where that is gone, or
/// Redis knows only one of the two scripts, the call does nothing, and both go out once more.
#[test]
fn a_call_that_finds_no_answer_of_shelving_is_sent_again() {
    type Trouble = fn(&Redis);
    let gone: Trouble = |redis| {
        // The fetch goes to Redis on another link than this. Until it was there, the answer is an older one.
        let fetched = || redis.ask::<bool>(&["HEXISTS", SHELVES, "geb"]);
        assert!(eventually(DEADLINE, fetched));
        assert_eq!(redis.ask::<usize>(&["DEL", "shelving_service_answers"]), 1);
    };
    let half_known: Trouble = |redis| {
        redis.cmd(&["SCRIPT", "FLUSH"]);
        redis.cmd(&["SCRIPT", "LOAD", &library_lending::script::bare(DECIDE)]);
    };
    for (before, trouble) in [("decide", gone), ("fetch", half_known)] {
        let redis = Arc::new(Redis::new());
        Ledger::new().lent("user9", &["lent"], "1-0").lay_down(&redis);
        let (of_proxy, calls) = (Arc::clone(&redis), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&calls);
        let proxy = Proxy::new(&redis, move |command| {
            if command.kind == before
                && command.mentions("geb")
                && count.fetch_add(1, Ordering::SeqCst) == 0
            {
                trouble(&of_proxy);
            }
            None
        });
        let mut daemon = proxy.spawn(&redis, &["worker1"]);
        let first = redis.request("user2", "kim");
        redis.outcome_of_request(&first);
        let id = redis.request("user1", "geb,lent");
        assert_eq!(redis.outcome_of_request(&id)["book_ids"], "geb");
        redis.assert_at_rest();
        assert_eq!(calls.load(Ordering::SeqCst), 2, "{before}");
        assert!(daemon.is_running());
    }
}

#[test]
fn groups_that_are_destroyed_are_made_again() {
    assert_survives(&Redis::new(), 3, |redis| {
        for (stream, group) in [
            (REQUESTS, "lending_service"),
            (RETURNS, "lending_service"),
            (SHELVING, "shelving_service"),
        ] {
            redis.cmd(&["XGROUP", "DESTROY", stream, group]);
        }
    });
}

/// Made again at once it would not be missed by whoever has its hands full and reads nothing for a while;
/// and that one would go on with events that are delivered to others anew.
#[test]
fn a_group_that_is_destroyed_is_not_made_again_before_all_can_have_noticed() {
    let (redis, _daemon) = library(&Ledger::new());
    redis.outcome_of_request(&redis.request("user1", "geb"));
    let begin = Instant::now();
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    let is_back = || !redis.everything().stream(REQUESTS).groups.is_empty();
    assert!(eventually(DEADLINE, is_back));
    assert!(begin.elapsed() > Duration::from_millis(400), "it took {:?}", begin.elapsed());
    redis.outcome_of_request(&redis.request("user1", "momo"));
    redis.assert_at_rest();
}

/// The younger request had fetched a book when the group was lost. Delivered once more, a chunk behind
/// an older one for the same book, it was tried without asking shelving, did not know what it had, and
/// waited for the older one, which was told by shelving that the younger has the book.
///
/// Or in one chunk with it, where shelving is not asked first since all books before were lent.
#[test]
fn a_book_that_was_fetched_before_the_group_was_lost_is_put_back_while_its_request_waits() {
    const TAKEN: [&str; 4] = ["taken1", "taken2", "taken3", "taken4"];
    for (before, between, batch) in [(0, 200, "128"), (TAKEN.len(), 0, "2")] {
        let redis = Redis::new();
        Ledger::new()
            .lent("user8", &TAKEN, "1-0")
            .lent("user9", &["lent"], "1-0")
            .nowhere(&["geb"], "3-0")
            .lay_down(&redis);
        for (n, taken) in TAKEN[..before].iter().enumerate() {
            redis.request_at(&format!("1-{}", n + 1), "user3", taken);
        }
        let older = redis.request_at("2-0", "user1", "geb");
        for n in 1..=between {
            redis.request_at(&format!("2-{n}"), &format!("reader{n}"), &format!("book{n}"));
        }
        let younger = redis.request_at("3-0", "user2", "geb,lent");
        let _daemon = Daemon::start(&redis, &["--batch", batch, "worker1"]);
        assert_eq!(redis.outcome_of_request(&older)["outcome"], "accepted");
        assert_eq!(redis.outcome_of_request(&younger)["lent_to_another"], "geb,lent");
        redis.assert_at_rest();
    }
}

/// A request had fetched a book when its group was lost, and was gone when that was made again. Its
/// reservation is swept; without a word to shelving, the book would be nowhere for ever.
#[test]
fn a_book_that_was_fetched_for_a_request_that_is_gone_is_lent_to_the_next_who_asks() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "2-0").lay_down(&redis);
    redis.cmd(&["HSET", "lending_book_states", "geb", "?2-0"]);
    let id = redis.request("user1", "geb");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
}

#[test]
fn a_redis_that_is_killed_and_restarted_again_and_again_loses_no_event() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    assert_survives(&redis, 3, |redis| {
        redis.kill9();
        redis.restart();
    });
}

#[test]
fn a_redis_that_hangs_for_longer_than_the_lease_is_worked_on_when_it_goes_on() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1", "--lease", "1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.signal(Signal::STOP);
    // Long enough for the replies to be given up as well.
    assert!(stays(Duration::from_secs(6), || daemon.is_running()), "{}", daemon.log());
    redis.signal(Signal::CONT);
    let id = redis.request("user2", "momo");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    redis.assert_at_rest();
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_library_that_was_emptied_is_served_again() {
    let (redis, mut daemon) = library(&Ledger::new());
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["FLUSHALL"]);
    let id = redis.request("user2", "geb");
    assert_eq!(redis.outcome_of_request(&id)["book_ids"], "geb");
    redis.assert_at_rest();
    assert!(daemon.is_running());
    // The log told a link that had broken for an instant, and nothing else.
    let gone = "ERROR [libraryd] the library is gone from Redis at ";
    assert_eq!(daemon.log().matches(gone).count(), 1, "{}", daemon.log());
}

#[test]
fn a_daemon_that_is_there_before_its_redis_waits_and_says_so_once() {
    let redis = Redis::new();
    redis.kill9();
    let mut daemon = Daemon::spawn(&redis, &["worker1"]);
    assert!(eventually(DEADLINE, || daemon.log().contains("Redis")));
    assert!(stays(Duration::from_secs(1), || daemon.is_running()), "{}", daemon.log());
    // Nothing is wrong with it: systemd must not start it again and again.
    assert!(eventually(DEADLINE, || daemon.has_notified("WATCHDOG=1")));
    let is_complaint = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    let complaints = |log: &str| log.lines().filter(is_complaint).count();
    assert_eq!(complaints(&daemon.log()), 1, "{}", daemon.log());
    redis.restart();
    let mut daemon = daemon.ready();
    assert_eq!(redis.outcome_of_request(&redis.request("user1", "geb"))["outcome"], "accepted");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_daemon_that_is_told_not_to_wait_for_its_redis_ends() {
    let redis = Redis::new();
    redis.kill9();
    let mut daemon = Daemon::spawn(&redis, &["--exit-if-unavailable", "worker1"]);
    assert_eq!(daemon.exit_status(), 69);
    assert!(daemon.log().contains("redis.sock"), "{}", daemon.log());
    // Where it has been there, it is waited for.
    redis.restart();
    let daemon = Daemon::start(&redis, &["--exit-if-unavailable", "worker1"]);
    redis.kill9();
    assert!(eventually(DEADLINE, || daemon.log().contains("trying again until it works")));
    redis.restart();
    redis.outcome_of_request(&redis.request("user1", "geb"));
}

#[test]
fn an_outage_and_its_end_are_told_once_each() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    // What is told of the request comes after its outcome.
    assert!(eventually(DEADLINE, || daemon.log().contains("ACCEPTED")));
    let before = daemon.log().lines().count();
    redis.kill9();
    assert!(eventually(DEADLINE, || daemon.log().lines().count() > before));
    assert!(stays(Duration::from_secs(2), || daemon.is_running()));
    redis.restart();
    let told = || daemon.log().lines().count() - before;
    assert!(eventually(DEADLINE, || told() >= 2), "{}", daemon.log());
    assert!(stays(Duration::from_secs(1), || told() == 2), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

/// Whoever looked at the log saw why the outage had begun, hours ago, and not what kept it up.
#[test]
fn what_keeps_up_an_outage_is_told_once_if_it_is_something_else() {
    let redis = Redis::tcp(&[]);
    let daemon = Daemon::start(&redis, &["-a", &redis.url(), "worker1"]);
    redis.kill9();
    let told = |cause: &str, trying: &str| {
        let is = |line: &&str| line.contains(cause) && line.ends_with(trying);
        daemon.log().lines().filter(is).count()
    };
    assert!(eventually(DEADLINE, || told("", "; trying again until it works") == 1));
    // And where that Redis is: the line that said so may be weeks old.
    let refused = format!(" Redis at 127.0.0.1:{}: could not connect to Redis: ", redis.port());
    assert!(eventually(DEADLINE, || told(&refused, "; still trying") == 1), "{}", daemon.log());
    let loading = "LOADING Redis is loading the dataset in memory";
    let listener = std::net::TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    // Ends with the process of this test.
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            // What is another number each time is no other cause.
            let _ = stream.write_all(format!("-{loading}, {n} %\r\n").as_bytes());
        }
    });
    assert!(eventually(DEADLINE, || told(loading, "; still trying") == 1), "{}", daemon.log());
    assert!(stays(Duration::from_secs(6), || told("", "trying") == 2), "{}", daemon.log());
}

/// A proxy in the place of a Redis that was away, which knew no INFO, ended libraryd with 78 for good.
#[test]
fn what_stands_in_redis_place_during_an_outage_ends_nobody() {
    let redis = Redis::tcp(&[]);
    let mut daemon = Daemon::start(&redis, &["-a", &redis.url(), "worker1"]);
    redis.kill9();
    let listener = std::net::TcpListener::bind(("127.0.0.1", redis.port())).unwrap();
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                if gone.load(Ordering::SeqCst) {
                    break;
                }
                let mut stream = stream.unwrap();
                while stream.read(&mut [0; 512]).is_ok_and(|length| length > 0) {
                    let _ = stream.write_all(b"-ERR unknown command\r\n");
                }
            }
        });
        let told =
            || daemon.log().contains("could not ask Redis about itself: ERR unknown command");
        let is_told = eventually(2 * DEADLINE, told);
        let is_running = stays(Duration::from_secs(2), || daemon.is_running());
        // It has never been a Redis to whoever starts now.
        let mut another = Daemon::spawn(&redis, &["-a", &redis.url(), "worker2"]);
        let status = another.exit_status();
        gone.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", redis.port()));
        assert!(is_told && is_running, "{}", daemon.log());
        assert_eq!(status, 78, "{}", another.log());
    });
    drop(listener);
    redis.restart();
    TestCommand::library_req(&redis, &["request", "user1", "geb"]).exits(0);
    assert_eq!(daemon.stop(), 0);
}

/// "READONLY You can't write against a read only replica." with the digest of a script, and nothing about
/// what to do.
#[test]
fn a_redis_that_takes_nothing_is_told_with_what_may_be_done() {
    let redis = Redis::new();
    let daemon = Daemon::start(&redis, &["-a", &redis.address(), "worker1"]);
    for (begin, end, said) in [
        (
            &["REPLICAOF", "127.0.0.1", "1"][..],
            &["REPLICAOF", "NO", "ONE"][..],
            "READONLY You can't write against a read only replica (it is a replica: where is its primary?);",
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS Not enough good replicas to write (fewer replicas are there than its \
             min-replicas-to-write wants);",
        ),
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
            "OOM command not allowed when used memory > 'maxmemory' (its memory is full, see its maxmemory);",
        ),
    ] {
        redis.cmd(begin);
        let sent = TestCommand::library_req(&redis, &["request", "user1", "geb"]).exits(4);
        // Events that are queued are decided while its memory is full.
        let is_told =
            said.starts_with("OOM") || eventually(DEADLINE, || daemon.log().contains(said));
        redis.cmd(end);
        assert!(sent.stderr.contains(said), "{sent}");
        assert!(is_told, "{}", daemon.log());
        let decided =
            || TestCommand::library_req(&redis, &["request", "user1", "geb"]).status() != Some(4);
        assert!(eventually(DEADLINE, decided), "{}", daemon.log());
    }
}

/// The pauses between tries grow to a second while Redis is away. Where it has worked since, the first
/// one is short again.
#[test]
fn a_link_that_breaks_long_after_an_outage_is_made_again_at_once() {
    let redis = Redis::new();
    redis.kill9();
    let mut daemon = Daemon::spawn(&redis, &["--log-level", "debug", "worker1"]);
    assert!(!daemon.becomes_ready(Duration::from_millis(1_500)));
    let tries = daemon.log().matches("could not connect").count();
    assert!((1..15).contains(&tries), "the pauses do not grow: {}", daemon.log());
    redis.restart();
    let daemon = daemon.ready();
    // The shortest, because a busy machine may be late once.
    let took = (1..=3).map(|outages| {
        let ended = || daemon.log().matches("working again").count();
        assert!(eventually(DEADLINE, || ended() == outages), "{}", daemon.log());
        let start = Instant::now();
        redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        redis.outcome_of_request(&redis.request("user1", "geb"));
        start.elapsed()
    });
    let took = took.min().unwrap();
    assert!(took < Duration::from_millis(500), "it took {took:?}");
}

/// It was counted from when the last thread had given Redis up: ten seconds were told as none at all,
/// after what was decided when Redis went on.
#[test]
fn an_outage_is_told_while_redis_hangs_and_with_its_whole_length() {
    let redis = Redis::new();
    let daemon = Daemon::start(&redis, &["worker1", "--lease", "1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert!(eventually(DEADLINE, || daemon.log().contains("ACCEPTED")));
    // Longer than Redis says nothing where there is nothing to be said: it is not told since the start.
    assert!(stays(Duration::from_secs(3), || !daemon.log().contains("trying again")));
    let begin = Instant::now();
    redis.signal(Signal::STOP);
    let stopped = Instant::now();
    // A renewal, and as long as its reply may take.
    let soon = Duration::from_secs(8);
    let is_told = eventually(soon, || daemon.log().contains("trying again until it works"));
    let hung = stopped.elapsed().as_secs_f64();
    redis.signal(Signal::CONT);
    assert!(is_told, "{}", daemon.log());
    assert!(daemon.log().contains("no answer in time; trying again"), "{}", daemon.log());
    let length = || {
        let log = daemon.log();
        let (_, rest) = log.split_once("working again after ")?;
        rest.split_once(" s\n").and_then(|(length, _)| length.parse::<f64>().ok())
    };
    assert!(eventually(DEADLINE, || length().is_some()), "{}", daemon.log());
    let (length, most) = (length().unwrap(), begin.elapsed().as_secs_f64());
    // Told to a tenth of a second; of the time before it, two seconds may have passed without a word.
    assert!((hung - 0.1..most + 2.1).contains(&length), "{hung} to {most}: {length}");
}

/// A Redis that hangs was told as "Resource temporarily unavailable (os error 11) (is Redis running
/// there?)", and so was one that is spoken to in TLS and expects none.
#[test]
fn a_redis_that_does_not_answer_is_told_as_such_by_all() {
    let (redis, plain) = (Redis::new(), Redis::tcp(&[]));
    let tls = plain.url().replace("redis:", "rediss:");
    let daemon = Daemon::spawn(&plain, &["-a", &tls, "worker1"]);
    redis.signal(Signal::STOP);
    let (admin, req, tls) = std::thread::scope(|scope| {
        let admin = scope.spawn(|| TestCommand::library_admin(&redis, &["status"]));
        let req = scope.spawn(|| TestCommand::library_req(&redis, &["loans", "user1"]));
        let tls = TestCommand::library_admin(&plain, &["status", "-a", &tls]);
        (admin.join().unwrap(), req.join().unwrap(), tls)
    });
    redis.signal(Signal::CONT);
    for run in [admin, req] {
        let run = run.exits(4);
        assert!(run.stderr.contains("no answer in time"), "{run}");
        assert!(!run.stderr.contains('('), "{run}");
    }
    let tls = tls.exits(4);
    assert!(tls.stderr.ends_with(" (does that port speak TLS?)\n"), "{tls}");
    assert!(
        eventually(DEADLINE, || daemon.log().contains("(does that port speak TLS?); trying again")),
        "{}",
        daemon.log()
    );
}

/// The parser's complaint was told, over several lines, and "is Redis running there?" of what answers.
/// Redis' `timeout` closes connections that are idle, and four of the daemon's were: after a quiet time the
/// first event was taken for an outage, and no stop was graceful. (The readers' are not: they wait for a
/// reply.)
#[test]
fn no_connection_is_idle_for_long() {
    let redis = Redis::new();
    // The keeper asked nothing between two turns, which are as far apart as the lease is long.
    let mut daemon = Daemon::start(&redis, &["--lease", "60", "worker1"]);
    let connections = || {
        let list: String = redis.ask(&["CLIENT", "LIST"]);
        let number = |line: &str, name| {
            let value = line.split(' ').find_map(|field| field.strip_prefix(name)).unwrap();
            value.parse::<u64>().unwrap()
        };
        list.lines().map(|line| (number(line, "id="), number(line, "idle="))).collect::<Vec<_>>()
    };
    let ids = || connections().into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>();
    let at_first = ids();
    // Redis counts from the last time that something came, and a reader asks every two seconds.
    let busy = stays(Duration::from_secs(8), || connections().iter().all(|(_, idle)| *idle < 6));
    assert!(busy, "idle for longer than that: {:?}", connections());
    assert_eq!(at_first, ids(), "connections were made anew");
    assert_eq!(daemon.stop(), 0);
}

#[test]
fn a_server_that_is_no_redis_is_told_as_such_by_all() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    // Ends with the process of this test.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let redis = Redis::new();
    let plain = format!("redis://{host}");
    let said = "what answers there does not speak Redis' protocol";
    let daemon = Daemon::spawn(&redis, &["-a", &plain, "worker1"]);
    for run in [
        TestCommand::library_req(&redis, &["loans", "user1", "-a", &plain]),
        TestCommand::library_admin(&redis, &["status", "-a", &plain]),
        TestCommand::library_admin(&redis, &["status", "-a", &plain, "--password", "secret"]),
    ] {
        let run = run.exits(4);
        assert!(run.stderr.contains(said) && run.stderr.lines().count() == 1, "{run}");
    }
    let told = || daemon.log().contains(&format!("{said}; trying again until it works"));
    assert!(eventually(DEADLINE, told), "{}", daemon.log());
    let tls = format!("rediss://{host}");
    let run = TestCommand::library_admin(&redis, &["status", "-a", &tls]).exits(4);
    assert!(run.stderr.ends_with(" (does that port speak TLS?)\n"), "{run}");
}

/// The system ends a blocking read when a process goes on that was stopped, and the log told a loss of
/// Redis.
#[test]
fn a_pause_of_the_process_is_told_as_no_outage() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1", "--log-level", "debug"]);
    daemon.signal(Signal::STOP);
    assert!(eventually(DEADLINE, || state_of(daemon.pid()) == 'T'));
    daemon.signal(Signal::CONT);
    assert!(eventually(DEADLINE, || daemon.log().contains("Interrupted system call")));
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert!(!daemon.log().contains("trying again"), "{}", daemon.log());
}

/// What the system says a process does: `S` for sleeps, `T` for stopped.
fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

/// It failed with "Interrupted system call", and asked whether Redis is running there: with Ctrl-Z and fg,
/// or when the machine went on after a pause.
#[test]
fn a_pause_of_a_command_is_told_as_no_outage() {
    let redis = Redis::new();
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0", "MKSTREAM"]);
    for command in ["status", "check"] {
        redis.signal(Signal::STOP);
        let admin = env!("CARGO_BIN_EXE_library-admin");
        let mut run = Running::start(&redis, admin, &[command], |_| ());
        // It may sleep for something else at first.
        for _ in 0..20 {
            assert!(eventually(DEADLINE, || state_of(run.process.pid()) == 'S'));
            run.process.signal(Signal::STOP);
            assert!(eventually(DEADLINE, || state_of(run.process.pid()) == 'T'));
            run.process.signal(Signal::CONT);
        }
        redis.signal(Signal::CONT);
        assert_eq!(run.ends().exits(0).stderr, "");
    }
}

/// Redis 7.0 panics where a client is unblocked whose command it has put off: a libraryd that was stopped
/// while writes were paused, for a failover say, took Redis along.
#[test]
fn a_stop_while_writes_are_paused_does_not_end_redis() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["CLIENT", "PAUSE", "4000", "WRITE"]);
    // Both read again, and are put off: then they wait without a limit of their own.
    let is_put_off = || {
        let info: String = redis.ask(&["INFO", "clients"]);
        info.contains("clients_in_timeout_table:0\r")
    };
    assert!(eventually(DEADLINE, is_put_off));
    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
    assert_eq!(redis.ask::<String>(&["PING"]), "PONG");
    assert_eq!(redis.ask::<usize>(&["EXISTS", "instance_lock:worker1"]), 0, "{}", daemon.log());
}

/// It took twenty seconds and more, each question of the stop being put to the Redis that hung, and
/// systemd kills after twenty.
#[test]
fn a_stop_while_redis_hangs_is_over_before_systemd_kills() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.signal(Signal::STOP);
    let start = Instant::now();
    daemon.signal(Signal::TERM);
    // systemd knows from the beginning of it, and not from its end.
    assert!(eventually(Duration::from_secs(3), || daemon.has_notified("STOPPING=1")));
    assert!(!daemon.log().contains("worker1 stopped"));
    let ended = eventually(Duration::from_secs(30), || daemon.log().contains("worker1 stopped"));
    redis.signal(Signal::CONT);
    assert!(ended && start.elapsed() < Duration::from_secs(18), "{:?}", start.elapsed());
}

/// Where memory was full no instance could take its lease, and one that ran ended its session at the next
/// request: nobody took the returns that would have made room.
#[test]
fn a_redis_whose_memory_is_full_is_served_all_the_same() {
    let redis = Redis::with(&["--maxmemory-policy", "noeviction"]);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert_eq!(daemon.stop(), 0);
    let back = redis.give_back("user1", "geb");
    let request = redis.request("user2", "geb,momo");
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = redis.try_ask::<String>(&["XADD", REQUESTS, "*", "user_id", "u", "book_ids", "b"]);
    assert_eq!(full.unwrap_err().code(), Some("OOM"));
    let daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_return(&back)["outcome"], "returned");
    assert_eq!(redis.outcome_of_request(&request)["book_ids"], "geb,momo");
    // Those who ask are told; nobody else was, neither in the log nor by status.
    let says = |words: &str| eventually(DEADLINE, || daemon.log().contains(words));
    assert!(says("WARN  [libraryd] the memory of Redis is full"), "{}", daemon.log());
    let status = |options: &[&str]| {
        let args = [&["status"], options].concat();
        TestCommand::library_admin(&redis, &args).exits(0).stdout
    };
    assert!(status(&[]).contains(" of 0.0 MiB: full, new requests and returns are refused"));
    assert!(status(&["--json"]).contains(r#""limit_bytes":1,"full":true}"#));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(says("INFO  [libraryd] the memory of Redis has room again"), "{}", daemon.log());
    assert!(status(&[]).contains(" MiB, without a limit"));
    assert_eq!(daemon.log().matches("memory of Redis").count(), 2, "{}", daemon.log());
    redis.assert_at_rest();
}

/// Answers that were there could not be read: a patron whose book was lent was told that Redis had failed, one who
/// sent again what was answered long ago waited in vain, and nobody was told where a book is or what happens.
#[test]
fn a_redis_whose_memory_is_full_answers_those_who_ask() {
    let redis = Redis::with(&["--maxmemory-policy", "noeviction"]);
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    let req = |args: &[&str]| TestCommand::library_req(&redis, args).exits(0);
    let named = ["request", "user1", "geb", "--id", "mine"];
    let answered = req(&named).stdout;
    assert_eq!(daemon.stop(), 0);
    let program = env!("CARGO_BIN_EXE_library-req");
    let args = ["request", "user2", "momo", "--timeout", "60"];
    let waiting = Running::start(&redis, program, &args, |_| ());
    assert!(eventually(DEADLINE, || redis.length(REQUESTS) == 1));
    redis.cmd(&["CONFIG", "SET", "maxmemory", "1"]);
    // The wait that began before goes on for up to two seconds.
    assert!(eventually(DEADLINE, || redis.calls_of("lindex") > 1));
    let seen = redis.directory().join("seen");
    let mut watch = Running::start(&redis, program, &["watch"], |command| {
        command.stdout(File::create(&seen).unwrap());
    });
    assert!(eventually(DEADLINE, || redis.calls_of("xread") > 0));
    assert_eq!(req(&named).stdout, answered);
    assert!(req(&["where", "geb"]).stdout.starts_with("geb: lent"));
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let told = waiting.ends().exits(0);
    assert!(told.stdout.starts_with("lent to user2: momo"), "{told}");
    assert!(!told.stderr.contains("lost"), "{told}");
    let is_seen = || fs::read_to_string(&seen).unwrap().contains("momo");
    assert!(eventually(DEADLINE, is_seen));
    watch.process.signal(Signal::KILL);
    assert_eq!(watch.ends().stderr, "");
    TestCommand::library_admin(&redis, &["check"]).exits(0);
}

/// A libraryd that had noticed that its group was lost, and was about to make it again, was said not to run.
#[test]
fn who_sends_what_a_lost_group_is_for_is_not_told_that_nobody_runs() {
    let redis = Redis::new();
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    redis.cmd(&["XGROUP", "DESTROY", RETURNS, "lending_service"]);
    let told = TestCommand::library_req(&redis, &["return", "user1", "geb"]).exits(0);
    assert_eq!(told.stderr, "", "{told}");
}
