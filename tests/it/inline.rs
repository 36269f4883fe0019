//! The reader decides a few events itself if nothing else is in hand.
//!
//! What no process can be made to do at will, such as a worker's thread that does not come round, is
//! tried with that part of the daemon in this process.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use library_lending::cli::Args;
use library_lending::daemon::{options, setup};
use library_lending::event::{Action, EventKey};
use library_lending::ids::EventId;
use library_lending::keys::Keys;
use library_lending::lending::intake::Intake;
use library_lending::lending::news::News;
use library_lending::lending::worker::Worker;
use library_lending::lending::worker_thread::{self, Channels};
use library_lending::lending::{Content, Delivered, reader};
use library_lending::link::Connection;
use library_lending::session::{Session, Thread};
use library_lending::settings::Settings;
use library_lending::shelving;
use library_lending::stream::{self, Entry, Pending};
use library_lending::workload::MOST_EVENTS;

use crate::common::*;

/// Shorter than a reader waits for room, or for events.
const SOON: Duration = Duration::from_millis(1_500);

/// The directory of a thread, when it has given itself its name.
fn thread(pid: u32, name: &str) -> Option<PathBuf> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let is_it = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    tasks.map(|task| task.unwrap().path()).find(is_it)
}

/// How often a thread has gone to sleep.
fn sleeps(thread: &Path) -> u64 {
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Waking the worker's thread took a good part of the time in which an event that came alone was decided.
#[test]
fn an_event_that_comes_alone_wakes_no_thread_but_its_reader() {
    const EVENTS: u64 = 3;
    let redis = Redis::new();
    let daemon = Daemon::start(&redis, &["worker1"]);
    let threads = ["lending-reader", "lending-worker"].map(|name| {
        assert!(eventually(DEADLINE, || thread(daemon.pid(), name).is_some()));
        thread(daemon.pid(), name).unwrap()
    });
    let sleeps = || [0, 1].map(|n| sleeps(&threads[n]));
    let mut numbers = 0..;
    // Where the machine is so busy that Redis is slow, the thread is woken for a while.
    assert!(eventually(DEADLINE, || {
        let before = sleeps();
        for n in numbers.by_ref().take(EVENTS as usize) {
            let (user, book) = (format!("user{n}"), format!("book{n}"));
            let request = ["XADD", REQUESTS, "*", "user_id", &user, "book_ids", &book];
            let id: String = redis.ask(&[&request[..], &["answer", "wait"]].concat());
            let answer = format!("lending_answer:request:{id}");
            let _: (String, String) = redis.ask(&["BLPOP", &answer, "0"]);
        }
        let after = sleeps();
        let [reader, worker] = [0, 1].map(|n| after[n] - before[n]);
        // It looks up once a second to show that it is alive.
        reader > 0 && worker <= 1
    }));
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
        let older = format!("{n}-0");
        other.takes_new(&older, "user2", "momo");
        let before = calls.load(Ordering::SeqCst);
        let id = redis.give_back_at(&format!("{n}1-0"), "user2", "geb");
        // It is tried again although nobody rings.
        assert!(eventually(DEADLINE, || calls.load(Ordering::SeqCst) >= before + 2));
        other.finishes(&older);
        assert_eq!(redis.outcome_of_return(&id)["outcome"], "unchanged");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(EVENTS.into()) / 2, "{EVENTS} took {took:?}");
}

/// Where Redis is slow the thread is woken in any case.
#[test]
fn the_thread_is_woken_for_what_has_to_wait() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["book0"], "1-0").lay_down(&redis);
    let session = session(&redis);
    Other::alive(&redis, "other").takes_new("2-0", "user8", "momo");
    let (mut intake, worker, channel) = intake(&redis, &session);
    // From then on Redis knows the scripts, and is quick.
    worker.lock().unwrap().take(read(&redis, &session, 1..2));
    while worker.lock().unwrap().turn().unwrap() {}
    assert_eq!((redis.length(OUTCOMES), session.workload.count()), (1, 0));
    intake.serve(read(&redis, &session, 0..1)).unwrap();
    assert_eq!(channel.try_iter().map(|batch| batch.len()).collect::<Vec<_>>(), [0]);
    while worker.lock().unwrap().turn().unwrap() {}
    assert!(worker.lock().unwrap().has_waiting());
    assert_eq!(redis.length(OUTCOMES), 1);
}

/// Right behind the older one's call it would be lent the book if that arrives between the two.
#[test]
fn a_newcomer_does_not_go_out_behind_one_for_the_same_book_that_is_tried_again() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["book0"], "1-0").lay_down(&redis);
    let session = session(&redis);
    Other::alive(&redis, "other").takes_new("2-0", "user8", "momo");
    let (_intake, worker, _channel) = intake(&redis, &session);
    let mut worker = worker.lock().unwrap();
    worker.take(read(&redis, &session, 0..1));
    while worker.turn().unwrap() {}
    assert!(worker.has_waiting());
    worker.take(read(&redis, &session, 0..1));
    worker.heard(News::default());
    let before = redis.calls_of_scripts();
    assert!(worker.turn().unwrap(), "there is one to come");
    assert_eq!(redis.calls_of_scripts() - before, 1);
}

/// What was waited for is decided: whoever waited is tried at once, and not in the next round.
#[test]
fn a_worker_is_not_done_while_somebody_is_due() {
    let redis = Redis::new();
    Ledger::new().lent("user9", &["book1"], "1-0").lay_down(&redis);
    let session = session(&redis);
    let (_intake, worker, _channel) = intake(&redis, &session);
    let mut older = read(&redis, &session, 0..2);
    let younger = older.split_off(1);
    let mut worker = worker.lock().unwrap();
    worker.take(younger);
    while worker.turn().unwrap() {}
    assert!(worker.has_waiting());
    worker.take(older);
    while worker.turn().unwrap() {}
    assert_eq!((redis.length(OUTCOMES), worker.has_waiting()), (2, false));
}

/// What lies in the channel is older: a newcomer queues behind it, even while the worker's thread has
/// not come round to it.
#[test]
fn what_comes_while_something_is_in_hand_queues_behind_it() {
    let redis = Redis::new();
    let session = session(&redis);
    let (mut intake, worker, channel) = intake(&redis, &session);
    intake.queue(read(&redis, &session, 0..1));
    intake.serve(read(&redis, &session, 1..2)).unwrap();
    assert_eq!((channel.len(), redis.length(OUTCOMES)), (2, 0));

    // As if the worker's thread were done with both.
    session.workload.release(channel.try_iter().flatten().map(|one| one.key));
    intake.serve(read(&redis, &session, 2..3)).unwrap();
    // Where Redis was slow to read the script, the thread is woken to read the reply.
    assert_eq!(channel.try_iter().flatten().count(), 0);
    while worker.lock().unwrap().turn().unwrap() {}
    assert_eq!((redis.length(OUTCOMES), session.workload.count()), (1, 0));
}

#[test]
fn what_comes_in_numbers_or_while_the_thread_works_is_queued() {
    let redis = Redis::new();
    let session = session(&redis);
    let (mut intake, worker, channel) = intake(&redis, &session);
    intake.serve(read(&redis, &session, 0..100)).unwrap();
    assert_eq!((channel.len(), redis.length(OUTCOMES)), (1, 0));
    session.workload.release(channel.try_iter().flatten().map(|one| one.key));
    let at_work = worker.lock().unwrap();
    intake.serve(read(&redis, &session, 100..101)).unwrap();
    assert_eq!((channel.len(), redis.length(OUTCOMES)), (1, 0));
    drop(at_work);
}

/// A reader that decides does not read, and events that came meanwhile took another way to Redis and
/// back; and sixteen calls that took a second each held the reader for so long.
#[test]
fn where_redis_is_slow_the_thread_goes_on_and_is_woken_for_what_comes_next() {
    let redis = Redis::new();
    let session = session_with_batch(&redis, 1);
    let (mut intake, worker, channel) = intake(&redis, &session);
    let batch = read(&redis, &session, 0..5);
    redis.signal(Signal::STOP);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(eventually(DEADLINE, || worker.try_lock().is_err()));
            // So slow is Redis.
            std::thread::sleep(Duration::from_millis(50));
            redis.signal(Signal::CONT);
        });
        intake.serve(batch).unwrap();
    });
    // One reply was waited for, and another call was under way. An empty batch wakes the thread.
    assert!(redis.length(OUTCOMES) <= 2);
    assert_eq!(channel.try_iter().map(|batch| batch.len()).collect::<Vec<_>>(), [0]);
    while worker.lock().unwrap().turn().unwrap() {}
    assert_eq!((redis.length(OUTCOMES), session.workload.count()), (5, 0));

    let mut queued = 0;
    for n in 5.. {
        intake.serve(read(&redis, &session, n..n + 1)).unwrap();
        if channel.is_empty() {
            break;
        }
        queued += 1;
        session.workload.release(channel.try_iter().flatten().map(|one| one.key));
    }
    assert_eq!(queued, 16);
}

/// On a connection that has failed replies can be those to something else, and the worker's thread hears
/// of the failure a moment later than the reader.
#[test]
fn a_connection_that_failed_in_the_hands_of_the_reader_is_not_used_again() {
    let redis = Redis::new();
    let session = session(&redis);
    let (mut intake, worker, _channel) = intake(&redis, &session);
    redis.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    intake.serve(read(&redis, &session, 0..1)).unwrap_err();
    let mut worker = worker.lock().unwrap();
    worker.take(read(&redis, &session, 1..2));
    assert_eq!(worker.turn().ok(), Some(false));
    assert_eq!(redis.length(OUTCOMES), 0);
}

/// Suspects were tried only when nothing was under way, which while more and more came was never.
#[test]
fn a_suspect_has_its_turn_while_others_keep_coming() {
    const EVENTS: usize = 20;
    let redis = Redis::new();
    let session = session_with_batch(&redis, 1);
    let (_intake, worker, _channel) = intake(&redis, &session);
    let mut batch = read(&redis, &session, 0..EVENTS);
    let suspect = batch[1].key;
    batch[1] = Delivered::suspect(suspect);
    let mut worker = worker.lock().unwrap();
    worker.take(batch);
    while worker.turn().unwrap() {}
    let outcomes = redis.assert_one_outcome_each(EVENTS);
    let place = outcomes.iter().position(|one| one["event_id"] == suspect.id.to_string()).unwrap();
    assert!(place < EVENTS / 2, "it came as number {place}");
}

/// As many events of both streams are in hand as may be. A request that is kept until the returns are read
/// as far is not kept until there is room for them; that is what the reader waits for.
#[test]
fn a_reader_without_room_gives_away_what_it_holds_back_and_sleeps() {
    let redis = Redis::new();
    let session = session(&redis);
    let (intake, _worker, channel) = intake(&redis, &session);
    fill(&session, Action::Request, MOST_EVENTS - 1);
    fill(&session, Action::Return, MOST_EVENTS - 2);
    for id in ["9000-0", "9000-1", "9000-2"] {
        redis.give_back_at(id, "user1", "geb");
    }
    redis.request_at("9001-0", "user2", "geb");
    let connection = link(&redis, Duration::from_secs(2));
    let (read, slept, read_next) = std::thread::scope(|scope| {
        let read_on = || reader::run(&session, connection, intake, || ());
        std::thread::Builder::new()
            .name("without room".into())
            .spawn_scoped(scope, read_on)
            .unwrap();
        let next = || channel.recv_timeout(SOON).unwrap_or_default();
        let read: Vec<_> = (0..3).flat_map(|_| next()).collect();
        let reader = thread(std::process::id(), "without room").unwrap();
        let is_asleep = || std::fs::read_to_string(reader.join("stat")).unwrap().contains(") S ");
        let slept = eventually(DEADLINE, is_asleep) && stays(Duration::from_millis(200), is_asleep);
        session.workload.release([key(Action::Return, 0)]);
        let read_next = next();
        session.stop();
        session.workload.release([key(Action::Return, 1)]);
        (read, slept, read_next)
    });
    let ids =
        |batch: Vec<Delivered>| batch.iter().map(|one| one.key.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(read), ["return:9000-0", "return:9000-1", "request:9001-0"]);
    assert!(slept, "it does not wait");
    assert_eq!(ids(read_next), ["return:9000-2"]);
}

/// The requests in hand may wait for a return that is kept until requests are read as far, for which there is
/// no room. And as soon as there is, they are read: not after a read of returns has waited for its time.
#[test]
fn no_return_is_kept_for_requests_there_is_no_room_for() {
    let redis = Redis::new();
    let session = session(&redis);
    let (intake, _worker, channel) = intake(&redis, &session);
    fill(&session, Action::Request, MOST_EVENTS - 1);
    redis.request_at("9000-0", "user1", "geb");
    redis.request_at("9002-0", "user1", "momo");
    redis.give_back_at("9001-0", "user2", "emma");
    let connection = link(&redis, Duration::from_secs(2));
    let read = std::thread::scope(|scope| {
        scope.spawn(|| reader::run(&session, connection, intake, || ()));
        let next = || channel.recv_timeout(SOON).unwrap_or_default();
        let full: Vec<_> = (0..2).flat_map(|_| next()).collect();
        session.workload.release([key(Action::Request, 0)]);
        let read = [full, next()];
        session.stop();
        read
    });
    let ids = read.map(|batch| batch.iter().map(|one| one.key.to_string()).collect::<Vec<_>>());
    assert_eq!(ids, [&["request:9000-0", "return:9001-0"][..], &["request:9002-0"]]);
}

/// 8,192 of them would have been all that is ever read.
#[test]
fn what_somebody_else_has_decided_is_in_hand_no_more() {
    let redis = Redis::new();
    let session = session(&redis);
    let (_intake, worker, _channel) = intake(&redis, &session);
    let batch = read(&redis, &session, 0..1);
    Other::gone(&redis, "worker1").finishes(&batch[0].key.id.to_string());
    let mut worker = worker.lock().unwrap();
    worker.take(batch);
    while worker.turn().unwrap() {}
    assert_eq!((redis.length(OUTCOMES), session.workload.count()), (0, 0));
}

/// It may have books: shelving is asked before anything is decided, whatever it lately said to others.
#[test]
fn what_was_delivered_before_is_not_fresh_and_may_be_a_suspect() {
    let redis = Redis::new();
    let session = session(&redis);
    let ids = read(&redis, &session, 0..3).iter().map(|one| one.key.id).collect::<Vec<_>>();
    let pending = [2, 3, 4].iter().zip(&ids);
    let pending: Vec<_> = pending
        .map(|(deliveries, id)| Pending { id: *id, idle_ms: 0, deliveries: *deliveries })
        .collect();
    let mut connection = link(&redis, Duration::ZERO);
    let read = reader::read_pending(&session, &mut connection, Action::Request, &pending).unwrap();
    assert!(read.iter().all(|one| !one.fresh), "{read:?}");
    let suspects = read.iter().map(|one| matches!(one.content, Content::Suspect));
    assert_eq!(suspects.collect::<Vec<_>>(), [false, true, true]);
}

/// Who waits for a book would wait for the next round otherwise, every 200 ms in the end.
#[test]
fn books_that_arrive_wake_the_thread_of_the_worker() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["book0"], "2-0").lay_down(&redis);
    let session = session(&redis);
    Other::alive(&redis, "other").takes_new("2-0", "user8", "book0");
    let (_intake, worker, events) = intake(&redis, &session);
    let ((arrive, shelved), (_ring, rung)) = (bounded(1), bounded(1));
    let (to_listener, _wanted) = bounded(1);
    worker.lock().unwrap().take(read(&redis, &session, 0..1));
    let (rounds_are_rare, woken) = std::thread::scope(|scope| {
        let channels = Channels { events, shelved, rung, to_listener };
        scope.spawn(|| worker_thread::run(&session, &worker, channels));
        let is_tried_within = |patience| {
            let before = redis.calls_of_scripts();
            eventually(patience, || redis.calls_of_scripts() > before)
        };
        let rounds_are_rare = eventually(DEADLINE, || !is_tried_within(Duration::from_millis(150)));
        // The machine may be busy for some of them.
        let woken = (0..10).any(|_| {
            let is_round = is_tried_within(DEADLINE);
            arrive.send(()).unwrap();
            is_round && is_tried_within(Duration::from_millis(50))
        });
        session.break_off();
        (rounds_are_rare, woken)
    });
    assert!(rounds_are_rare && woken, "rare: {rounds_are_rare}, woken: {woken}");
}

#[test]
fn shelving_tells_when_books_are_on_their_shelves() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "2-0").lay_down(&redis);
    let session = session(&redis);
    redis.hand_off("3-0", "geb");
    let mut connection = link(&redis, Duration::ZERO);
    let (group, consumer) = ("shelving_service", session.consumer());
    let reads =
        stream::read_new(&mut connection, group, consumer, &[SHELVING], 1, &[None]).unwrap();
    let ((to_worker, work), (arrived, shelved)) = (bounded(1), bounded(1));
    let deliver = |(_, entry): &(usize, Entry)| shelving::reader::delivered(entry);
    to_worker.send(reads.iter().flatten().map(deliver).collect()).unwrap();
    drop(to_worker);
    shelving::worker::run(&session, connection, &work, &arrived).unwrap();
    assert_eq!((redis.ledger(), shelved.len()), (Ledger::new(), 1));
}

/// Each malformed one is a call of its own, and a reply may take seconds: a batch of them was longer than a thread
/// may go without a sign of life, and the keeper let the lease run out.
#[test]
fn shelving_shows_that_it_is_alive_at_each_hand_off() {
    let redis = Redis::new();
    let session = session(&redis);
    for id in ["3-0", "4-0"] {
        redis.add(SHELVING, id, &[("no_books", b"")]);
    }
    let mut connection = link(&redis, Duration::ZERO);
    let (group, consumer) = ("shelving_service", session.consumer());
    let reads =
        stream::read_new(&mut connection, group, consumer, &[SHELVING], 2, &[None]).unwrap();
    // To the first, Redis says that it does not know the script.
    let proxy = Proxy::new(&redis, |command| match (command.kind, command.number) {
        ("discard", 2) => Some(Fault::LateReply),
        ("discard", 3) => Some(Fault::CutBefore),
        _ => None,
    });
    let connection = link_at(proxy.path().to_str().unwrap(), Duration::ZERO);
    let ((to_worker, work), (arrived, _shelved)) = (bounded(1), bounded(1));
    let deliver = |(_, entry): &(usize, Entry)| shelving::reader::delivered(entry);
    to_worker.send(reads.iter().flatten().map(deliver).collect()).unwrap();
    std::thread::scope(|scope| {
        let worker =
            scope.spawn(|| shelving::worker::run(&session, connection, &work, &arrived).is_err());
        assert!(eventually(DEADLINE, || proxy.has_struck()));
        assert!(stays(SOON, || !worker.is_finished()));
        proxy.release();
        assert!(worker.join().unwrap(), "the link broke at the second");
    });
    Thread::ALL
        .into_iter()
        .filter(|it| *it != Thread::ShelvingWorker)
        .for_each(|it| session.beat(it));
    let (_, since) = session.slowest();
    assert!(since < SOON, "no sign of life for {since:?}");
}

fn key(action: Action, ms: u64) -> EventKey {
    EventKey { id: EventId { ms, seq: 0 }, action }
}

/// Takes so many events in hand that are in no stream.
fn fill(session: &Session, action: Action, count: usize) {
    let mut keys = (0..count as u64).map(|ms| key(action, ms)).collect();
    session.workload.take(&mut keys, |key| (*key, 1));
}

/// A connection as the daemon makes it.
pub fn link(redis: &Redis, block: Duration) -> Connection {
    link_at(&redis.address(), block)
}

fn link_at(address: &str, block: Duration) -> Connection {
    let args = Args::from_list(["-a", address, "worker1"]);
    let Ok(options::Command::Run(options)) = options::parse(args) else {
        panic!("this is a command line")
    };
    options.connect.resolve(&|_| None).unwrap().connect(block).unwrap()
}

/// A session of `worker1` under a lease that does not end.
pub fn session(redis: &Redis) -> Session {
    session_with_batch(redis, Settings::of("worker1".parse().unwrap()).batch)
}

fn session_with_batch(redis: &Redis, batch: usize) -> Session {
    redis.cmd(&["SET", "instance_lock:worker1", "process:1"]);
    let keys = Keys::new(None);
    setup::ensure_groups(&mut link(redis, Duration::ZERO), &keys).unwrap();
    let settings = Settings { batch, ..Settings::of("worker1".parse().unwrap()) };
    Session::new(keys, settings, "process:1".into(), Arc::default(), true)
}

/// The reader's way to a worker whose thread does not come round, that worker, and the thread's channel.
fn intake<'s>(
    redis: &Redis,
    session: &'s Session,
) -> (Intake<'s>, Arc<Mutex<Worker<'s>>>, Receiver<Vec<Delivered>>) {
    let connection = link(redis, Duration::ZERO);
    let worker = Arc::new(Mutex::new(Worker::new(session, connection)));
    let (to_thread, channel) = bounded(3);
    (Intake::new(&session.workload, Arc::clone(&worker), to_thread), worker, channel)
}

/// Requests of a user and for a book each, which `worker1` has read and taken in hand.
fn read(redis: &Redis, session: &Session, numbers: std::ops::Range<usize>) -> Vec<Delivered> {
    let requested: Vec<_> =
        numbers.map(|n| redis.request(&format!("user{n}"), &format!("book{n}"))).collect();
    let mut connection = link(redis, Duration::ZERO);
    let (group, consumer) = ("lending_service", session.consumer());
    let count = requested.len();
    let reads =
        stream::read_new(&mut connection, group, consumer, &[REQUESTS], count, &[None]).unwrap();
    let deliver = |(_, entry): &(usize, Entry)| Delivered::read(Action::Request, entry, true);
    let mut batch = reads.iter().flatten().map(deliver).collect();
    session.workload.take(&mut batch, Delivered::key_and_books);
    assert_eq!(batch.len(), count);
    batch
}
