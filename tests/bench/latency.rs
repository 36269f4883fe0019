//! How long one event takes: alone, as a whole `library-req`, and among many.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Plan;
use crate::common::{OUTCOMES, REQUESTS, Redis};
use crate::drain;
use crate::report::{Report, Row, Wanted, percentile};
use crate::scenario::Scenario;
use crate::wire::{Link, Wire};

/// Long enough for every thread to have gone to sleep.
const PAUSE: Duration = Duration::from_millis(1);

/// Idle latency, over TCP and over the Unix socket, and whole processes.
pub fn idle(plan: &Plan, redis: &Redis, report: &mut Report) {
    report.part("One event alone");
    let samples = if plan.quick { 300 } else { 3_000 };
    for (link, name) in [(Link::Tcp, "TCP"), (Link::Unix, "Unix socket")] {
        let (pings, events) = alone(redis, link, samples);
        for (percent, wanted) in [(50, Wanted::AtMost(8.0, 5.0)), (99, Wanted::AtMost(20.0, 5.0))] {
            report.add(Row {
                figure: format!("XADD to outcome p{percent}"),
                of: format!("against PING, {name}"),
                value: percentile(events.iter().copied(), percent),
                unit: "us",
                against: Some(percentile(pings.iter().copied(), percent)),
                wanted,
            });
        }
    }
    let (pings, events) = floor_alone(redis, samples);
    report.add(Row {
        figure: "floor, XADD to outcome p50".into(),
        of: "against PING, TCP".into(),
        value: percentile(events, 50),
        unit: "us",
        against: Some(percentile(pings, 50)),
        wanted: Wanted::Nothing,
    });
    let (pings, requests) = processes(redis, if plan.quick { 40 } else { 400 });
    report.add(Row {
        figure: "library-req p50".into(),
        of: "against redis-cli PING".into(),
        value: percentile(requests, 50),
        unit: "us",
        against: Some(percentile(pings, 50)),
        wanted: Wanted::AtMost(2.5, 1.5),
    });
}

/// PINGs and events in turn on one connection, in microseconds, with `libraryd`.
fn alone(redis: &Redis, link: Link, samples: usize) -> (Vec<f64>, Vec<f64>) {
    drain::stock(redis, Scenario::NewBook, 0);
    let address = if link == Link::Tcp { redis.url() } else { redis.address() };
    let _daemon = crate::common::Daemon::start(redis, &["-a", &address, "worker0"]);
    let mut wire = Wire::connect(redis, link);
    let both = in_turn(&mut wire, samples);
    drain::check(&mut wire, &Scenario::NewBook, samples);
    both
}

/// The same with the floor, for what it takes without any decision.
fn floor_alone(redis: &Redis, samples: usize) -> (Vec<f64>, Vec<f64>) {
    drain::stock(redis, Scenario::NewBook, 0);
    let mut wire = Wire::connect(redis, Link::Tcp);
    drain::floor_meanwhile(redis, |_| in_turn(&mut wire, samples))
}

/// PINGs and events in turn, whoever decides these; in microseconds.
fn in_turn(wire: &mut Wire, samples: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut pings, mut events) = (Vec::new(), Vec::new());
    let mut last = "0".to_owned();
    for n in 0..samples {
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        wire.ask(&["PING"]);
        pings.push(micros(start));
        std::thread::sleep(PAUSE);
        let (user, book) = (format!("n{n}"), format!("book{n}"));
        let start = Instant::now();
        wire.push(&["XADD", REQUESTS, "*", "user_id", &user, "book_ids", &book]);
        wire.push(&["XREAD", "BLOCK", "0", "STREAMS", OUTCOMES, &last]);
        wire.send();
        wire.reply();
        let mut outcome = wire.reply();
        events.push(micros(start));
        for n in [0, 1, 0, 0] {
            outcome = outcome.list().swap_remove(n);
        }
        last = outcome.text();
    }
    (pings, events)
}

/// Whole processes in turn, in microseconds.
fn processes(redis: &Redis, samples: usize) -> (Vec<f64>, Vec<f64>) {
    let mut wire = drain::stock(redis, Scenario::NewBook, 0);
    let _daemon = drain::start(redis, "worker0");
    let run = |command: &mut Command| {
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}: {status}");
        micros(start)
    };
    let (port, url) = (redis.port().to_string(), redis.url());
    let turns = (0..samples).map(|n| {
        let ping = run(Command::new("redis-cli").args(["-p", &port, "PING"]));
        let (user, book) = (format!("n{n}"), format!("book{n}"));
        let request = run(Command::new(env!("CARGO_BIN_EXE_library-req"))
            .args(["-a", &url, "request", &user, &book]));
        (ping, request)
    });
    let both = turns.collect();
    drain::check(&mut wire, &Scenario::NewBook, samples);
    both
}

/// The latency of single events while others arrive at half of the top rate.
pub fn at_half_load(plan: &Plan, redis: &Redis, report: &mut Report) {
    report.part("Among others");
    let top = drain::libraryd(redis, Scenario::NewBook, plan.events, 1).events_per_s();
    let seconds = if plan.quick { 1.0 } else { 8.0 };
    let idle = among(redis, 0.0, seconds);
    let loaded = among(redis, top / 2.0, seconds);
    for percent in [50, 99] {
        report.add(Row {
            figure: format!("answered p{percent}"),
            of: format!("{:.0}/s against idle", top / 2.0),
            value: percentile(loaded.iter().copied(), percent),
            unit: "us",
            against: Some(percentile(idle.iter().copied(), percent)),
            wanted: Wanted::Nothing,
        });
    }
}

/// Latencies of single events, in microseconds, while `per_s` others arrive.
fn among(redis: &Redis, per_s: f64, seconds: f64) -> Vec<f64> {
    let mut wire = drain::stock(redis, Scenario::NewBook, 0);
    let _daemon = drain::start(redis, "worker0");
    let done = AtomicBool::new(false);
    let mut samples = Vec::new();
    let added = std::thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            let mut wire = Wire::connect(redis, Link::Tcp);
            let (start, mut added) = (Instant::now(), 0);
            while !done.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * per_s) as usize;
                Scenario::NewBook.fill_now(&mut wire, added, due);
                added = due;
                std::thread::sleep(PAUSE);
            }
            added
        });
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            std::thread::sleep(PAUSE);
            samples.push(ask_and_wait(&mut wire, samples.len()));
        }
        done.store(true, Ordering::Relaxed);
        crowd.join().unwrap()
    });
    let events = added + samples.len();
    drain::wait_for_outcomes(&mut wire, events);
    drain::check(&mut wire, &Scenario::NewBook, events);
    samples
}

/// One request with an answer of its own, as `library-req` sends it.
fn ask_and_wait(wire: &mut Wire, n: usize) -> f64 {
    let (user, book) = (format!("n-probe{n}"), format!("probe{n}"));
    let start = Instant::now();
    let id = wire
        .ask(&["XADD", REQUESTS, "*", "user_id", &user, "book_ids", &book, "answer", "wait"])
        .text();
    wire.ask(&["BLPOP", &format!("lending_answer:request:{id}"), "0"]);
    micros(start)
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
