//! Whether cost and memory stay flat: with more instances, more loans, a longer backlog, and after
//! millions of events.

use std::io::{BufRead, BufReader};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::common::{DEADLINE, Daemon, Redis};
use crate::drain::{self, resident_mib};
use crate::report::{Report, Row, Wanted, median};
use crate::scenario::{Scenario, lend};
use crate::wire::Wire;

/// 1, 2 and 4 instances on one Redis, every event of another user and all of one.
pub fn instances(plan: &Plan, redis: &Redis, report: &mut Report) {
    report.part("Several instances");
    for (scenario, wanted) in
        [(Scenario::NewBook, Wanted::AtLeast(0.9, 1.0)), (Scenario::HotUser, Wanted::Nothing)]
    {
        let numbers = [1, 2, 4];
        let mut costs = [const { Vec::new() }; 3];
        for _ in 0..plan.runs {
            for (n, costs) in numbers.into_iter().zip(&mut costs) {
                costs.push(drain::libraryd(redis, scenario, plan.events, n));
            }
        }
        let [one, ..] =
            costs.each_ref().map(|costs| median(costs.iter().map(|c| c.events_per_s())));
        for (n, costs) in numbers.into_iter().zip(&costs) {
            let of = format!("{}, {n}", scenario.name());
            report.add(Row {
                figure: "events".into(),
                of: of.clone(),
                value: median(costs.iter().map(|cost| cost.events_per_s())),
                unit: "/s",
                against: (n > 1).then_some(one),
                wanted: if n > 1 { wanted } else { Wanted::Nothing },
            });
            report.add(Row {
                figure: "Redis CPU".into(),
                of,
                value: median(costs.iter().map(|cost| cost.redis_us())),
                unit: "us",
                against: None,
                wanted: Wanted::Nothing,
            });
        }
    }
}

/// What an event costs Redis beside so many loans.
pub fn loans(plan: &Plan, report: &mut Report) {
    report.part("Beside many loans");
    let sizes = if plan.quick { vec![1_000, 100_000] } else { vec![1_000, 100_000, 1_000_000] };
    let libraries: Vec<(Redis, Wire, _)> = sizes
        .iter()
        .map(|loans| {
            let redis = Redis::tcp(&[]);
            let mut wire = drain::stock(&redis, Scenario::OneAndBack, 0);
            lend(&mut wire, *loans);
            let daemon = drain::start(&redis, "worker0");
            (redis, wire, daemon)
        })
        .collect();
    let mut libraries: Vec<_> = libraries.into_iter().map(|one| (one, Vec::new())).collect();
    // One round more than counts: the first one warms up.
    for round in 0..=plan.runs {
        for ((_, wire, _), costs) in &mut libraries {
            let (from, to) = (round * plan.events, (round + 1) * plan.events);
            let cost = filling(wire, from, to);
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    let costs: Vec<_> = libraries.into_iter().map(|(_, costs)| median(costs)).collect();
    for (size, cost) in sizes.iter().zip(&costs) {
        report.add(Row {
            figure: "Redis CPU".into(),
            of: format!("{size} loans"),
            value: *cost,
            unit: "us",
            against: (*cost != costs[0]).then_some(costs[0]),
            wanted: if *cost == costs[0] { Wanted::Nothing } else { Wanted::AtMost(1.5, 1.1) },
        });
    }
}

/// Microseconds of Redis for each of these events, with their XADD, while `libraryd` runs.
fn filling(wire: &mut Wire, from: usize, to: usize) -> f64 {
    let before = wire.redis_cpu();
    Scenario::OneAndBack.fill(wire, from, to);
    drain::wait_for_outcomes(wire, to);
    (wire.redis_cpu() - before).as_secs_f64() * 1e6 / (to - from) as f64
}

/// What an event costs Redis that has so many others behind it; and the memory of `libraryd`.
pub fn backlog_and_memory(plan: &Plan, redis: &Redis, report: &mut Report) {
    report.part("Backlog and memory");
    let scenario = Scenario::OneAndBack;
    let each_by = |by| median((0..plan.runs).map(|_| by_tens(redis, plan.events / 5, by)));
    let (by_ten, floor_by_ten) = (each_by(By::Libraryd), each_by(By::Floor));
    let hundred_thousand = 100_000;
    let by_hundred_thousand = median(
        (0..plan.runs).map(|_| drain::libraryd(redis, scenario, hundred_thousand, 1).redis_us()),
    );
    let floor = median(
        (0..plan.runs).map(|_| drain::floor(redis, scenario, hundred_thousand, 1).redis_us()),
    );
    let million = if plan.quick { 100_000 } else { 1_000_000 };

    let mut wire = drain::stock(redis, scenario, 0);
    let daemon = drain::start(redis, "worker0");
    std::thread::sleep(Duration::from_millis(300));
    let at_start = resident_mib(daemon.pid());
    drop(daemon);
    scenario.fill(&mut wire, 0, million);
    let before = wire.redis_cpu();
    let daemon = start_over(redis);
    let with_backlog = watch(&mut wire, daemon.pid(), million);
    let by_million = (wire.redis_cpu() - before).as_secs_f64() * 1e6 / million as f64;
    scenario.fill(&mut wire, million, 2 * million);
    watch(&mut wire, daemon.pid(), 2 * million);
    let in_the_end = resident_mib(daemon.pid());
    drain::check(&mut wire, &scenario, 2 * million);

    let flat = Wanted::AtMost(1.5, 1.1);
    for (of, value, against, wanted) in [
        ("by tens".to_owned(), by_ten, Some(by_hundred_thousand), flat),
        ("floor, by tens".to_owned(), floor_by_ten, Some(floor), Wanted::Nothing),
        (format!("backlog of {hundred_thousand}"), by_hundred_thousand, None, Wanted::Nothing),
        (format!("backlog of {million}"), by_million, Some(by_hundred_thousand), flat),
    ] {
        report.add(Row { figure: "Redis CPU".into(), of, value, unit: "us", against, wanted });
    }
    for (of, value) in [
        ("at start".to_owned(), at_start),
        (format!("backlog of {million}"), with_backlog),
        (format!("after {} events", 2 * million), in_the_end),
    ] {
        let wanted = Wanted::AtMost(12.0, 8.0);
        report.add(Row { figure: "memory".into(), of, value, unit: "MiB", against: None, wanted });
    }
}

/// Takes the name over from an instance that was killed.
fn start_over(redis: &Redis) -> Daemon {
    Daemon::start(redis, &["-f", "-a", &redis.url(), "worker0"])
}

/// Waits for so many outcomes; the most memory that the process had meanwhile.
fn watch(wire: &mut Wire, pid: u32, outcomes: usize) -> f64 {
    let mut most: f64 = 0.0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(600) {
        most = most.max(resident_mib(pid));
        if drain::outcomes(wire) >= outcomes {
            drain::wait_for_outcomes(wire, outcomes);
            return most;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{outcomes} outcomes did not come in time");
}

/// Who works on what arrives.
#[derive(Clone, Copy)]
enum By {
    Libraryd,
    Floor,
}

/// Microseconds of Redis for each event where ten at a time arrive, without their XADD. Whoever adds
/// them does not ask Redis either whether they are done.
fn by_tens(redis: &Redis, events: usize, by: By) -> f64 {
    let scenario = Scenario::OneAndBack;
    let mut wire = drain::stock(redis, scenario, 0);
    let before = wire.redis_cpu();
    tens(&mut wire, scenario, events, |_| {});
    let adding = wire.redis_cpu() - before;
    let mut wire = drain::stock(redis, scenario, 0);
    let mut measure = |wait: &mut dyn FnMut(usize)| {
        let before = wire.redis_cpu();
        tens(&mut wire, scenario, events, wait);
        wire.redis_cpu() - before
    };
    let both = match by {
        By::Floor => drain::floor_meanwhile(redis, |done| {
            measure(&mut |events| poll(|| done.load(Ordering::SeqCst) >= events))
        }),
        By::Libraryd => {
            let daemon = drain::start(redis, "worker0");
            let mut log = BufReader::new(daemon.log_file());
            let (mut line, mut done) = (String::new(), 0);
            let both = measure(&mut |events| {
                poll(|| {
                    done += decided(&mut log, &mut line);
                    done >= events
                });
            });
            drain::wait_for_outcomes(&mut wire, events);
            drain::check(&mut wire, &scenario, events);
            both
        }
    };
    both.saturating_sub(adding).as_secs_f64() * 1e6 / events as f64
}

/// How many outcomes have come into the log since it was read last. `line` has the beginning of one
/// that was not whole then.
fn decided(log: &mut impl BufRead, line: &mut String) -> usize {
    let mut number = 0;
    while log.read_line(line).unwrap() > 0 && line.ends_with('\n') {
        number += usize::from(line.contains(" INFO  [lending] re"));
        line.clear();
    }
    number
}

/// Looks far more often than `eventually`: ten events take less than its first pause.
fn poll(mut is_done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < DEADLINE, "ten events were not done in time");
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// Adds ten events at a time, each ten in one go, and then waits until so many are done.
fn tens(wire: &mut Wire, scenario: Scenario, events: usize, mut wait: impl FnMut(usize)) {
    for from in (0..events).step_by(10) {
        wire.push(&["MULTI"]);
        scenario.pack(wire, from, from + 10);
        wire.push(&["EXEC"]);
        wire.exchange();
        wait(from + 10);
    }
}
