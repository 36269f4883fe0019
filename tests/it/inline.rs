//! The reader works itself on a few events if nothing else is in hand.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use library_lending::cli::Args;
use library_lending::daemon::options::{self, Command};
use library_lending::event::Action;
use library_lending::keys::Keys;
use library_lending::lending::Delivered;
use library_lending::lending::worker::Worker;
use library_lending::lending::worker_thread::Intake;
use library_lending::session::Session;
use library_lending::stream::{self, Entry};

use crate::common::*;

/// How often a thread of a process has gone to sleep.
fn sleeps(pid: u32, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |task: &std::path::Path, file| std::fs::read_to_string(task.join(file)).unwrap();
    let task = tasks
        .map(|task| task.unwrap().path())
        // The system cuts a thread's name.
        .find(|task| thread.starts_with(read(task, "comm").trim_end()))
        .expect("there is such a thread");
    let status = read(&task, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Waking the worker's thread took a fifth of the time in which an event that came alone was decided.
#[test]
fn an_event_that_comes_alone_wakes_no_thread_but_its_reader() {
    const EVENTS: u64 = 100;
    let redis = Redis::new();
    let daemon = Daemon::start(&redis, &["worker1"]);
    let start = Instant::now();
    let before = ["lending-reader", "lending-worker"].map(|name| sleeps(daemon.pid(), name));
    for n in 0..EVENTS {
        let id = redis.request(&format!("user{n}"), &format!("book{n}"));
        assert_eq!(redis.outcome_of_request(&id)["outcome"], "accepted");
    }
    let after = ["lending-reader", "lending-worker"].map(|name| sleeps(daemon.pid(), name));
    let [reader, worker] = [0, 1].map(|n| after[n] - before[n]);
    assert!(reader >= EVENTS, "the reader slept {reader} times");
    // It looks up once a second to show that it is alive.
    let most = start.elapsed().as_secs() + 2;
    assert!(worker <= most, "the worker slept {worker} times, {most} at most");
    redis.assert_at_rest();
}

/// The worker's thread sleeps for a second where nothing waits.
#[test]
fn what_has_to_wait_is_left_to_the_thread_of_the_worker() {
    const EVENTS: u32 = 8;
    let redis = Redis::new();
    Ledger::new().lent("user1", &["geb"], "1-0").lay_down(&redis);
    let (proxy, calls) = Proxy::counting(&redis, "decide");
    let _daemon = proxy.spawn(&redis, &["worker1"]).ready();
    let other = Other::alive(&redis, "other");
    let start = Instant::now();
    for n in 2..2 + EVENTS {
        let older = other.takes_at_once(&format!("{n}-0"), "user2", "momo");
        let before = calls.load(Ordering::SeqCst);
        let id = redis.give_back_at(&format!("{n}1-0"), "user2", "geb");
        // It is tried again although nobody rings.
        assert!(eventually(DEADLINE, || calls.load(Ordering::SeqCst) >= before + 2));
        other.acknowledge(REQUESTS, &older);
        redis.cmd(&["XDEL", REQUESTS, &older]);
        assert_eq!(redis.outcome_of_return(&id)["outcome"], "unchanged");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(EVENTS.into()) / 2, "{EVENTS} took {took:?}");
}

/// What lies in the channel is older: a newcomer queues behind it, even while the worker's thread has
/// not come round to it.
#[test]
fn what_comes_while_something_is_in_hand_queues_behind_it() {
    let redis = Redis::new();
    let session = session(&redis);
    let worker = Worker::new(&session, session.target.connect(Duration::ZERO).unwrap());
    let (to_thread, channel) = crossbeam_channel::bounded(3);
    let intake = Intake { session: &session, worker: Arc::new(Mutex::new(worker)), to_thread };

    for (stream, group) in [
        (REQUESTS, "lending_service"),
        (RETURNS, "lending_service"),
        (SHELVING, "shelving_service"),
    ] {
        redis.cmd(&["XGROUP", "CREATE", stream, group, "0", "MKSTREAM"]);
    }
    intake.pass_on(read_one(&redis, &session, "user1"));
    intake.work_on(read_one(&redis, &session, "user2")).unwrap();
    assert_eq!((channel.len(), redis.length(OUTCOMES)), (2, 0));

    // As if the worker's thread were done with both.
    session.in_hand.drop(channel.try_iter().flatten().map(|one| one.key));
    intake.work_on(read_one(&redis, &session, "user3")).unwrap();
    assert_eq!((channel.len(), redis.length(OUTCOMES)), (0, 1));
    assert_eq!(session.in_hand.count(), 0);
}

/// A session of `worker1` under a lease that does not end.
fn session(redis: &Redis) -> Session {
    redis.cmd(&["SET", "instance_lock:worker1", "token"]);
    let args = Args::from_list(["-a", &redis.address(), "worker1"]);
    let Ok(Command::Run(options)) = options::parse(args) else { panic!("this is a command line") };
    let target = options.connect.resolve(&|_| None).unwrap();
    Session::new(Keys::new(None), *options, target, "token".into(), Arc::default(), true)
}

/// A request that `worker1` has read and taken in hand.
fn read_one(redis: &Redis, session: &Session, user: &str) -> Vec<Delivered> {
    redis.request(user, "geb");
    let mut connection = session.target.connect(Duration::ZERO).unwrap();
    let (group, consumer) = ("lending_service", session.consumer());
    let reads =
        stream::read_new(&mut connection, group, consumer, &[REQUESTS], 1, &[None]).unwrap();
    let deliver = |(_, entry): &(usize, Entry)| Delivered::read(Action::Request, entry, true);
    let mut batch = reads.iter().flatten().map(deliver).collect();
    session.in_hand.take(&mut batch, |one| one.key);
    assert_eq!(batch.len(), 1);
    batch
}
