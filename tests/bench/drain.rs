//! Emptying full streams: by the floor and by `libraryd`, what it cost, and whether everything is
//! as it must be afterwards.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    DEAD_LETTERS, Daemon, LENT_BOOKS, OUTCOMES, REQUESTS, RETURNS, Redis, SHELVES, SHELVING,
    STORAGE,
};
use crate::scenario::{BOOK_STATES, CAPACITY, Read, Scenario, plain};
use crate::wire::{Link, Reply, Wire};

/// What emptying the streams cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub events: usize,
    pub wall: Duration,
    pub redis_cpu: Duration,
    /// Of all instances together; zero for the floor.
    pub daemon_cpu: Duration,
}

impl Cost {
    pub fn events_per_s(&self) -> f64 {
        self.events as f64 / self.wall.as_secs_f64()
    }

    pub fn redis_us(&self) -> f64 {
        self.redis_cpu.as_secs_f64() * 1e6 / self.events as f64
    }

    pub fn daemon_us(&self) -> f64 {
        self.daemon_cpu.as_secs_f64() * 1e6 / self.events as f64
    }
}

/// A stock of streams to be emptied: `scenario` in an empty Redis.
pub fn stock(redis: &Redis, scenario: Scenario, events: usize) -> Wire {
    let mut wire = Wire::connect(redis, Link::Tcp);
    wire.ask(&["FLUSHALL", "SYNC"]);
    scenario.prepare(&mut wire);
    scenario.fill(&mut wire, 0, events);
    wire
}

/// The floor: reads in batches, then the plain commands in pipelines, over one or two connections.
pub fn floor(redis: &Redis, scenario: Scenario, events: usize, connections: usize) -> Cost {
    let mut wire = stock(redis, scenario, events);
    let room = AtomicI64::new(CAPACITY as i64);
    let left = AtomicUsize::new(connections);
    let before = wire.redis_cpu();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..connections {
            let (room, left) = (&room, &left);
            scope.spawn(move || {
                let mut wire = Wire::connect(redis, Link::Tcp);
                let name = format!("floor{n}");
                while plain_batch(&mut wire, &name, room, &[]) > 0 {}
                // Hand-offs come to an end when nobody adds any.
                left.fetch_sub(1, Ordering::SeqCst);
                while shelve_batch(&mut wire, &name, &[]) || left.load(Ordering::SeqCst) > 0 {}
            });
        }
    });
    let wall = start.elapsed();
    let redis_cpu = wire.redis_cpu() - before;
    assert_eq!(outcomes(&mut wire), events, "the floor has left something out");
    Cost { events, wall, redis_cpu, daemon_cpu: Duration::ZERO }
}

/// The floor while events arrive: it waits for them as `libraryd` does, a connection a service.
/// `work` adds them, and is given the number of those that are done; this returns what `work` does.
pub fn floor_meanwhile<T>(redis: &Redis, work: impl FnOnce(&AtomicUsize) -> T) -> T {
    const WAIT: [&str; 2] = ["BLOCK", "100"];
    let (room, over) = (AtomicI64::new(CAPACITY as i64), AtomicBool::new(false));
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut wire = Wire::connect(redis, Link::Tcp);
            while !over.load(Ordering::SeqCst) {
                let events = plain_batch(&mut wire, "floor", &room, &WAIT);
                done.fetch_add(events, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut wire = Wire::connect(redis, Link::Tcp);
            loop {
                let some = shelve_batch(&mut wire, "floor", &WAIT);
                if !some && over.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        // Also if it panics: else the others are waited for without end.
        let _over = SetWhenDropped(&over);
        work(&done)
    })
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const BATCH: &str = "512";

/// Returns how many events it has done.
fn plain_batch(wire: &mut Wire, name: &str, room: &AtomicI64, wait: &[&str]) -> usize {
    let read = ["XREADGROUP", "GROUP", "lending_service", name, "COUNT", BATCH];
    let streams = wire.ask(&[&read[..], wait, &["STREAMS", REQUESTS, RETURNS, ">", ">"]].concat());
    let mut events = Vec::new();
    for stream in streams.list() {
        let [of, entries] = <[Reply; 2]>::try_from(stream.list()).unwrap();
        let is_return = of == Reply::Text(RETURNS.into());
        for entry in entries.list() {
            let [id, fields] = <[Reply; 2]>::try_from(entry.list()).unwrap();
            let mut fields = fields.list().into_iter();
            let (user, books) = (fields.nth(1).unwrap().text(), fields.nth(1).unwrap().text());
            events.push(Read { is_return, id: id.text(), user, books });
        }
    }
    // A return after its request: ids of one length are ordered as numbers.
    events.sort_by(|a, b| (a.id.len(), &a.id).cmp(&(b.id.len(), &b.id)));
    for event in &events {
        plain(wire, event, room);
    }
    wire.exchange();
    events.len()
}

fn shelve_batch(wire: &mut Wire, name: &str, wait: &[&str]) -> bool {
    let read = ["XREADGROUP", "GROUP", "shelving_service", name, "COUNT", BATCH];
    let streams = wire.ask(&[&read[..], wait, &["STREAMS", SHELVING, ">"]].concat());
    let Some(stream) = streams.list().pop() else { return false };
    for entry in stream.list().pop().unwrap().list() {
        let [id, fields] = <[Reply; 2]>::try_from(entry.list()).unwrap();
        let (id, books) = (id.text(), fields.list().pop().unwrap().text());
        wire.push(&["XACK", SHELVING, "shelving_service", &id]);
        wire.push(&["XDEL", SHELVING, &id]);
        wire.push(&[&["HDEL", SHELVES], &books.split(',').collect::<Vec<_>>()[..]].concat());
    }
    wire.exchange();
    true
}

/// `libraryd` with its default settings, `instances` of it, on streams that are full when it
/// starts. Everything is checked at the end.
pub fn libraryd(redis: &Redis, scenario: Scenario, events: usize, instances: usize) -> Cost {
    let mut wire = stock(redis, scenario, events);
    let before = wire.redis_cpu();
    let spawned: Vec<Daemon> = (0..instances)
        .map(|n| Daemon::spawn(redis, &["-a", &redis.url(), &format!("worker{n}")]))
        .collect();
    let start = Instant::now();
    let daemons: Vec<Daemon> = spawned.into_iter().map(Daemon::ready).collect();
    let cpu = || daemons.iter().map(|daemon| cpu_of(daemon.pid())).sum::<Duration>();
    wait_for_outcomes(&mut wire, events);
    let wall = start.elapsed();
    let cost = Cost { events, wall, redis_cpu: wire.redis_cpu() - before, daemon_cpu: cpu() };
    check(&mut wire, &scenario, events);
    cost
}

/// One instance, over TCP as by default.
pub fn start(redis: &Redis, name: &str) -> Daemon {
    Daemon::start(redis, &["-a", &redis.url(), name])
}

/// Waits until so many outcomes were ever written and nothing is left to put on the shelves.
pub fn wait_for_outcomes(wire: &mut Wire, events: usize) {
    const LOOK_EVERY: Duration = Duration::from_millis(3);
    const STANDSTILL: Duration = Duration::from_secs(30);
    let mut last = (0, Instant::now());
    loop {
        let outcomes = outcomes(wire);
        if outcomes >= events && wire.ask(&["XLEN", SHELVING]).int() == 0 {
            return;
        }
        if outcomes != last.0 {
            last = (outcomes, Instant::now());
        }
        assert!(last.1.elapsed() < STANDSTILL, "{outcomes} outcomes of {events}, and no more");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// How many outcomes were ever written.
pub fn outcomes(wire: &mut Wire) -> usize {
    if wire.ask(&["EXISTS", OUTCOMES]).int() == 0 {
        return 0;
    }
    wire.ask(&["XINFO", "STREAM", OUTCOMES]).named("entries-added").int() as usize
}

/// The invariants at rest (see ARCHITECTURE.md), and that every event had its effect and one
/// outcome. Quicker than the tests' own, since there are many keys.
pub fn check(wire: &mut Wire, scenario: &Scenario, events: usize) {
    let expected = scenario.expected(events);
    assert_eq!(outcomes(wire), events, "I4: outcomes");
    assert_eq!(wire.ask(&["XLEN", DEAD_LETTERS]).int() as usize, expected.dead_letters);
    for (stream, group) in [
        (REQUESTS, "lending_service"),
        (RETURNS, "lending_service"),
        (SHELVING, "shelving_service"),
    ] {
        assert_eq!(wire.ask(&["XLEN", stream]), Reply::Int(0), "I4: left in {stream}");
        let pending = wire.ask(&["XPENDING", stream, group]).list();
        assert_eq!(pending[0], Reply::Int(0), "I4: pending in {stream}");
    }
    let loans = hash(wire, LENT_BOOKS);
    let shelves = hash(wire, SHELVES);
    let states = hash(wire, BOOK_STATES);
    let stored: Vec<String> =
        wire.ask(&["SMEMBERS", STORAGE]).list().into_iter().map(Reply::text).collect();
    assert_eq!(loans.len(), expected.loans, "I4: loans");
    assert!(stored.len() <= CAPACITY, "I3: {} books in storage", stored.len());
    assert_eq!(shelves.len(), loans.len() + stored.len(), "I1: books out of main storage");
    for book in loans.keys().chain(&stored) {
        assert!(shelves.contains_key(book), "I1: {book} is in two places");
    }
    assert!(stored.iter().all(|book| !loans.contains_key(book)), "I1: lent from storage");
    assert!(states.values().all(|state| !state.starts_with('?')), "I6: a reservation is left");
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for user in loans.values() {
        *counts.entry(user).or_default() += 1;
    }
    let users: Vec<(&str, usize)> = counts.into_iter().collect();
    for slice in users.chunks(1_000) {
        for (user, _) in slice {
            wire.push(&["GET", &format!("user:{user}:count")]);
        }
        wire.send();
        for (user, count) in slice {
            assert_eq!(wire.reply().int() as usize, *count, "I2: the count of {user}");
            assert!(*count <= 5, "I2: {user} has {count} books");
        }
    }
    // Whoever has no book has no count above 0: else there were more counts than loans.
    let total: i64 = count_of_everybody(wire);
    assert_eq!(total as usize, loans.len(), "I2: the sum of all counts");
}

fn count_of_everybody(wire: &mut Wire) -> i64 {
    let mut total = 0;
    let mut cursor = "0".to_owned();
    loop {
        let scan = wire.ask(&["SCAN", &cursor, "MATCH", "user:*:count", "COUNT", "1000"]);
        let [next, keys] = <[Reply; 2]>::try_from(scan.list()).unwrap();
        let keys: Vec<String> = keys.list().into_iter().map(Reply::text).collect();
        for key in &keys {
            wire.push(&["GET", key]);
        }
        wire.send();
        total += keys.iter().map(|_| wire.reply().int()).sum::<i64>();
        cursor = next.text();
        if cursor == "0" {
            return total;
        }
    }
}

fn hash(wire: &mut Wire, key: &str) -> HashMap<String, String> {
    let mut list = wire.ask(&["HGETALL", key]).list().into_iter();
    std::iter::from_fn(|| Some((list.next()?.text(), list.next()?.text()))).collect()
}

/// CPU time of all threads of a process. Where the system does not tell, none.
pub fn cpu_of(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN);
    kib / 1024.0
}
