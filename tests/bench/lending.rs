//! The benchmark of lending: how near it comes to what the same Redis needs for the same writes
//! without any decision, how long one event takes, and whether cost and memory stay flat.
//!
//! ```text
//! cargo bench --bench lending [-- [--json FILE] [--only SCENARIO] [PART ...]]
//! ```
//!
//! QUICK=1 in the environment makes it a matter of a minute, with figures to match. It starts its
//! own redis-server; `libraryd` runs with its default settings, over TCP, with its log of all
//! outcomes going to a file. Machines are noisy, so what is compared runs in turn, and medians are
//! told; CPU time is noisy less than wall time. At the end of every run the invariants are
//! checked: a figure that breaks one does not count, the benchmark fails.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../it/common/mod.rs"]
#[allow(dead_code, unused_imports)] // The tests' harness; not all of it is needed here.
mod common;

mod wire;
mod scenario;
mod drain;
mod batch;
mod latency;
mod scale;
mod report;

use std::process::ExitCode;

use common::Redis;
use drain::Cost;
use report::{Report, Row, Wanted, median};
use scenario::Scenario;

/// How much is measured.
pub struct Plan {
    pub quick: bool,
    /// Medians are of so many runs.
    pub runs: usize,
    /// Events in a run.
    pub events: usize,
}

const PARTS: [&str; 8] =
    ["throughput", "everysec", "alone", "among", "instances", "loans", "backlog", "batch"];

fn main() -> ExitCode {
    let (mut json, mut only, mut parts) = (None, None, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // Cargo says so.
            "--bench" => {}
            "--json" => json = args.next(),
            "--only" => only = args.next(),
            part if PARTS.contains(&part) => parts.push(arg),
            _ => {
                eprintln!("--json FILE, --only SCENARIO, or parts: {}", PARTS.join(", "));
                return ExitCode::from(2);
            }
        }
    }
    let quick = std::env::var("QUICK").is_ok_and(|quick| !matches!(&*quick, "" | "0"));
    let plan = if quick {
        Plan { quick, runs: 1, events: 10_000 }
    } else {
        Plan { quick, runs: 5, events: 50_000 }
    };
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let of_interest = |scenario: &Scenario| {
        only.as_deref().is_none_or(|only: &str| scenario.name().contains(only))
    };
    let redis = Redis::tcp(&[]);
    let mut report = Report::new(&redis, quick, plan.runs);
    if wanted("throughput") {
        report.part("Full streams, nothing on disk");
        for scenario in SCENARIOS.into_iter().filter(of_interest) {
            throughput(&plan, &redis, scenario, &mut report);
        }
    }
    if wanted("everysec") {
        // Rewriting the file would fall into some runs and not into others.
        let options = ["--appendonly", "yes", "--appendfsync", "everysec"];
        let disk = Redis::tcp(&[&options[..], &["--auto-aof-rewrite-percentage", "0"]].concat());
        report.part("Full streams, appendfsync everysec");
        let number = if quick { 1 } else { SCENARIOS.len() };
        for scenario in SCENARIOS.into_iter().take(number).filter(of_interest) {
            throughput(&plan, &disk, scenario, &mut report);
        }
    }
    if wanted("alone") {
        latency::idle(&plan, &redis, &mut report);
    }
    if wanted("among") {
        latency::at_half_load(&plan, &redis, &mut report);
    }
    if wanted("instances") {
        scale::instances(&plan, &redis, &mut report);
    }
    if wanted("loans") {
        scale::loans(&plan, &mut report);
    }
    if wanted("backlog") {
        scale::backlog_and_memory(&plan, &redis, &mut report);
    }
    if wanted("batch") {
        batch::against_redis_cli(&plan, &redis, &mut report);
    }
    if let Some(file) = json.or_else(|| std::env::var("JSON").ok()) {
        std::fs::write(&file, report.to_json()).unwrap();
    }
    println!("\n{} figures miss what is wanted", report.missed());
    ExitCode::SUCCESS
}

const SCENARIOS: [Scenario; 5] = [
    Scenario::NewBook,
    Scenario::AllLent,
    Scenario::FromStorage,
    Scenario::ThreeAndBack,
    Scenario::Mix,
];

/// One scenario, in turn with its floor.
fn throughput(plan: &Plan, redis: &Redis, scenario: Scenario, report: &mut Report) {
    let mut floors = [const { Vec::<Cost>::new() }; 2];
    let mut ours = Vec::new();
    for _ in 0..plan.runs {
        for (n, floors) in floors.iter_mut().enumerate() {
            floors.push(drain::floor(redis, scenario, plan.events, n + 1));
        }
        ours.push(drain::libraryd(redis, scenario, plan.events, 1));
    }
    // Of one and two connections the better, for each figure by itself.
    let of_floors = |figure: fn(&Cost) -> f64, better: fn(f64, f64) -> f64| {
        let medians = floors.each_ref().map(|floor| median(floor.iter().map(figure)));
        better(medians[0], medians[1])
    };
    let mut add = |figure: &str, unit, of: fn(&Cost) -> f64, against, wanted| {
        report.add(Row {
            figure: figure.into(),
            of: scenario.name().into(),
            value: median(ours.iter().map(of)),
            unit,
            against,
            wanted,
        });
    };
    let rate = of_floors(Cost::events_per_s, f64::max);
    add("events", "/s", Cost::events_per_s, Some(rate), Wanted::AtLeast(0.5, 0.8));
    let cpu = of_floors(Cost::redis_us, f64::min);
    add("Redis CPU", "us", Cost::redis_us, Some(cpu), Wanted::AtMost(2.0, 1.3));
    add("libraryd CPU", "us", Cost::daemon_us, None, Wanted::AtMost(6.0, 3.0));
}
