//! What the tests of `library-req` have beyond the harness of `it`: a command's input and output in
//! hand, and the daemon's part.

use std::fs;
use std::io::{Write as _, pipe};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use redis::Connection;

use crate::common::*;

/// The command itself.
pub const LIBRARY_REQ: &str = env!("CARGO_BIN_EXE_library-req");

/// Runs `library-req` on this Redis, with nothing to read.
pub fn req(redis: &Redis, args: &[&str]) -> TestCommand {
    TestCommand::library_req(redis, args)
}

/// The same with this to read.
pub fn req_fed(redis: &Redis, args: &[&str], input: &[u8]) -> TestCommand {
    start_fed(redis, args, input).ends()
}

/// Runs `library-req` where no Redis is known.
pub fn bare(args: &[&str]) -> TestCommand {
    bare_with(args, |_| ())
}

/// The same, prepared as [`Running::start`] says.
pub fn bare_with(args: &[&str], prepare: impl FnOnce(&mut Command)) -> TestCommand {
    let directory = tempfile::tempdir().unwrap();
    Running::start_alone(directory.path(), LIBRARY_REQ, args, prepare).ends()
}

/// Starts `library-req` on this Redis, with nothing to read.
pub fn start(redis: &Redis, args: &[&str]) -> Running {
    start_with(redis, args, |_| ())
}

/// The same, prepared as [`Running::start`] says.
pub fn start_with(redis: &Redis, args: &[&str], prepare: impl FnOnce(&mut Command)) -> Running {
    Running::start(redis, LIBRARY_REQ, args, prepare)
}

/// The same with this to read, by a pipe.
pub fn start_fed(redis: &Redis, args: &[&str], input: &[u8]) -> Running {
    let (reader, mut writer) = pipe().unwrap();
    let command = start_with(redis, args, |command| {
        command.stdin(reader);
    });
    let input = input.to_vec();
    // It ends with the command at the latest, which need not read all.
    thread::spawn(move || {
        let _ = writer.write_all(&input);
    });
    command
}

impl TestCommand {
    /// Fails unless it ended with this status and printed this and no more.
    #[track_caller]
    pub fn is(&self, status: i32, stdout: &str, stderr: &str) {
        let found = (self.status(), &*self.stdout, &*self.stderr);
        assert_eq!(found, (Some(status), stdout, stderr), "{self}");
    }
}

/// Waits until this is so. It looks more often than `eventually` does: what is to be caught in
/// the middle of its work might be done by then.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The entries of a stream: ids, and names and values in turn.
pub fn entries(db: &mut Connection, stream: &str) -> Vec<(String, Vec<String>)> {
    redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query(db).unwrap()
}

/// Does what the daemon does when it commits an outcome.
pub fn answer(db: &mut Connection, event: &str, fields: &[&str]) {
    let (action, id) = event.split_once(':').unwrap();
    let mut text = vec!["event_id", id, "action", action];
    text.extend(fields);
    let key = format!("lending_answer:{event}");
    redis::pipe()
        .atomic()
        .del(&key)
        .rpush(&key, text.join("\n"))
        .pexpire(&key, 3_600_000)
        .exec(db)
        .unwrap();
}

/// The id of the first event in a stream, once there is one.
pub fn wait_for_entry(db: &mut Connection, stream: &str) -> String {
    let mut id = None;
    until("an event arrives", || {
        id = entries(db, stream).first().map(|(id, _)| id.clone());
        id.is_some()
    });
    id.unwrap()
}

/// Waits until a client blocks in this command.
#[track_caller]
pub fn until_blocked(db: &mut Connection, command: &str) {
    until("a client blocks", || {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(db).unwrap();
        clients
            .lines()
            .any(|client| client.contains(&format!("cmd={command} ")) && client.contains("flags=b"))
    });
}

/// An instance that seems to run: a consumer with a lock.
pub fn alive(db: &mut Connection, stream: &str, consumer: &str) {
    let _: () = redis::pipe()
        .cmd("XGROUP")
        .arg(&["CREATE", stream, "lending_service", "0", "MKSTREAM"])
        .ignore()
        .cmd("XGROUP")
        .arg(&["CREATECONSUMER", stream, "lending_service", consumer])
        .ignore()
        .set(format!("instance_lock:{consumer}"), "token")
        .ignore()
        .query(db)
        .unwrap();
}

/// Answers every event in the streams once: odd books are lent to somebody else.
pub fn answer_all(db: &mut Connection) {
    for (stream, action) in [(REQUESTS, "request"), (RETURNS, "return")] {
        for (id, fields) in entries(db, stream) {
            let (user, book) = (fields[1].as_str(), fields[3].as_str());
            let outcome: &[&str] = match (action, book.ends_with('1')) {
                ("request", false) => &["outcome", "accepted", "book_ids", book],
                ("request", true) => {
                    &["outcome", "denied", "cause", "none_available", "lent_to_another", book]
                }
                (_, false) => &["outcome", "returned", "book_ids", book],
                (_, true) => &["outcome", "unchanged", "not_lent", book],
            };
            let fields = [&["user_id", user], outcome].concat();
            answer(db, &format!("{action}:{id}"), &fields);
        }
    }
}

/// Every event in the streams, by their ids, as lines of a batch.
pub fn sent_lines(db: &mut Connection) -> String {
    let mut events: Vec<(library_lending::ids::EventId, String)> = Vec::new();
    for (stream, action) in [(REQUESTS, "request"), (RETURNS, "return")] {
        for (id, fields) in entries(db, stream) {
            events.push((id.parse().unwrap(), format!("{action} {} {}\n", fields[1], fields[3])));
        }
    }
    events.sort();
    events.into_iter().map(|(_, line)| line).collect()
}

/// Lines of a batch that both streams share.
pub fn many_lines(number: usize) -> String {
    (0..number / 2).map(|n| format!("request u{n} b{n}\nreturn u{n} b{n}\n")).collect()
}

/// Waits until a process sleeps (S) or is stopped (T).
#[track_caller]
pub fn until_state(running: &Running, state: char) {
    let stat = format!("/proc/{}/stat", running.process.pid());
    let state = format!(") {state} ");
    until("it is in that state", || fs::read_to_string(&stat).unwrap().contains(&state));
}

/// Adds an outcome to the stream of outcomes.
pub fn record(db: &mut Connection, id: &str, event: &str, user: &str, fields: &[&str]) {
    let (action, event_id) = event.split_once(':').unwrap();
    let common = ["event_id", event_id, "action", action, "user_id", user];
    redis::cmd("XADD").arg(OUTCOMES).arg(id).arg(&common).arg(fields).exec(db).unwrap();
}
