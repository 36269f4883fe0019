//! `library-req batch` against `redis-cli --pipe` with the same events as plain XADDs: what it costs
//! that a batch is checked first, sent once and in its order.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Plan;
use crate::common::{REQUESTS, RETURNS, Redis};
use crate::report::{Report, Row, Wanted, median};
use crate::wire::{Link, Wire};

/// Events in the file: a million, or enough to see something.
fn events(plan: &Plan) -> usize {
    if plan.quick { 200_000 } else { 1_000_000 }
}

pub fn against_redis_cli(plan: &Plan, redis: &Redis, report: &mut Report) {
    report.part("A batch, against redis-cli --pipe");
    let dir = tempfile::tempdir().unwrap();
    let (lines, commands) = (dir.path().join("lines"), dir.path().join("commands"));
    let (mut text, mut packed) = (String::new(), String::new());
    for n in 0..events(plan) {
        let (action, stream) = [("request", REQUESTS), ("return", RETURNS)][n % 2];
        let (user, book) = (format!("user{n}"), format!("book{n}"));
        writeln!(text, "{action} {user} {book}").unwrap();
        packed.push_str("*7\r\n");
        for part in ["XADD", stream, "*", "user_id", &user, "book_ids", &book] {
            write!(packed, "${}\r\n{part}\r\n", part.len()).unwrap();
        }
    }
    fs::write(&lines, text).unwrap();
    fs::write(&commands, packed).unwrap();
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs.max(3) {
        let mut pipe = Command::new("redis-cli");
        pipe.args(["-s", &redis.address(), "--pipe"]).stdin(File::open(&commands).unwrap());
        theirs.push(events_per_s(plan, redis, &mut pipe));
        let mut batch = Command::new(env!("CARGO_BIN_EXE_library-req"));
        batch.args(["-a", &redis.address(), "batch", "--no-wait", "-q"]).arg(&lines);
        ours.push(events_per_s(plan, redis, &mut batch));
    }
    report.add(Row {
        figure: "batch".into(),
        of: "checked and sent".into(),
        value: median(ours),
        unit: "/s",
        against: Some(median(theirs)),
        wanted: Wanted::AtLeast(0.5, 0.8),
    });
}

fn events_per_s(plan: &Plan, redis: &Redis, command: &mut Command) -> f64 {
    let mut wire = Wire::connect(redis, Link::Unix);
    wire.ask(&["FLUSHALL", "SYNC"]);
    let start = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}");
    let sent: i64 = [REQUESTS, RETURNS].map(|key| wire.ask(&["XLEN", key]).int()).iter().sum();
    assert_eq!(sent as usize, events(plan), "all are sent, once");
    events(plan) as f64 / seconds
}
