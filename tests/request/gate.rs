//! How a batch's chunks get in: past the script where nothing disturbs, and by it otherwise.

use library_lending::event::{Action, AnswerWish};
use library_lending::keys::Keys;
use library_lending::request::submit::{Chunk, Fingerprint, Name};
use redis::{Commands as _, Connection, ConnectionLike as _};

use crate::common::*;
use crate::harness::*;

#[test]
fn undisturbed_a_batch_goes_past_the_script_and_where_it_may_not_it_goes_by_the_script() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let lines = many_lines(5_000);
    let args = ["batch", "--no-wait", "-q"];
    req_fed(&redis, &args, lines.as_bytes()).is(0, "", "");
    assert!(sent_lines(&mut db) == lines);
    // Each chunk once: nothing was shut out. All but the first in a transaction.
    assert_eq!((redis.calls_of("eval"), redis.calls_of("xsetid")), (10, 1));
    let forbidden = ["-client|reply", "-xsetid", "-xdel", "-multi", "-exec"];
    for (n, forbidden) in forbidden.into_iter().enumerate() {
        let user = format!("user{n}");
        let rights = ["SETUSER", &user, "on", ">pw", "~*", "+@all", forbidden];
        redis::cmd("ACL").arg(&rights).exec(&mut db).unwrap();
        let _: () = db.del(&[REQUESTS, RETURNS]).unwrap();
        let name = ["--username", &user, "--password", "pw", "--batch-id", &user];
        req_fed(&redis, &[&args[..], &name].concat(), lines.as_bytes()).is(0, "", "");
        assert!(sent_lines(&mut db) == lines, "{forbidden}");
        // No chunk goes past the script: only the question is there, of those who may ask it.
        let asked = (redis.calls_of("eval"), redis.calls_of("client|reply"));
        assert_eq!(asked, (10 * (n + 2), 19 + n), "{forbidden}");
    }
}

#[test]
fn where_replies_cannot_be_switched_off_a_batch_goes_by_the_script() {
    let redis = Redis::with(&["--rename-command", "CLIENT", ""]);
    let lines = many_lines(2_000);
    req_fed(&redis, &["batch", "--no-wait", "-q"], lines.as_bytes()).is(0, "", "");
    let mut db = redis.connect().unwrap();
    assert!(sent_lines(&mut db) == lines);
    assert_eq!(redis.calls_of("eval"), 4);
}

/// A chunk with one event of each of these.
fn chunk_of(actions: &[Action]) -> Chunk {
    let mut chunk = Chunk::new(AnswerWish::None);
    actions.iter().for_each(|action| chunk.push(*action, "u", "geb"));
    chunk
}

/// The name of a chunk that is kept under this key.
fn named(key: &str) -> Name {
    Name { key: key.into(), ttl_ms: 60_000, fingerprint: Fingerprint(0) }
}

#[test]
fn the_gate_lets_a_chunk_in_once_after_the_one_before_it_and_above_all_ids() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let keys = Keys::new(None);
    let chunk = chunk_of(&[Action::Request, Action::Return]);
    let mut send = |chunk_key: &str, before: Option<&str>, first: &str| {
        let name = named(chunk_key);
        let packed = chunk.plain_commands(&keys, &name, before, first.parse().unwrap());
        db.send_packed_command(&packed).unwrap();
        db.recv_response().unwrap();
        let kept: Option<String> = redis::from_redis_value(db.recv_response().unwrap()).unwrap();
        let lengths = [REQUESTS, RETURNS].map(|stream| entries(&mut db, stream).len());
        (kept.is_some_and(|kept| kept.contains(first)), lengths)
    };
    // Before there are any streams.
    assert_eq!(send("c:1", Some("c:0"), "1-1000000"), (false, [0, 0]), "not its turn");
    let _: () = redis.connect().unwrap().set("c:0", "").unwrap();
    assert_eq!(send("c:1", Some("c:0"), "1-9000000"), (false, [0, 0]), "it is on its way out");
    let _: () = redis.connect().unwrap().del("c:0").unwrap();
    // Whatever comes to the gate, the chunk is known as long as was said, and not for ever.
    let is_kept = |last: &str| {
        let left: i64 = redis.connect().unwrap().pttl("c:0").unwrap();
        assert!((1..=60_000).contains(&left), "{left} ms after {last}");
    };
    assert_eq!(send("c:0", None, "2-1000000"), (true, [1, 1]));
    is_kept("it was let in");
    assert_eq!(send("c:0", None, "3-1000000"), (false, [1, 1]), "it is there already");
    is_kept("another was shut out");
    assert_eq!(send("c:1", Some("c:0"), "2-1000000"), (false, [1, 1]), "below what is there");
    // Of the shut out chunks the ids are used up.
    assert_eq!(send("c:1", Some("c:0"), "3-2000000"), (false, [1, 1]));
    assert_eq!(send("c:1", Some("c:0"), "3-9000000"), (true, [2, 2]));
    // One stream alone cannot take it.
    redis::cmd("SET").arg(&[RETURNS, "x"]).exec(&mut redis.connect().unwrap()).unwrap();
    let mut db = redis.connect().unwrap();
    let name = named("c:2");
    let first = "4-1000000".parse().unwrap();
    db.send_packed_command(&chunk.plain_commands(&keys, &name, Some("c:1"), first)).unwrap();
    db.recv_response().unwrap();
    assert_eq!(db.recv_response().unwrap(), redis::Value::Nil);
    assert_eq!(entries(&mut db, REQUESTS).len(), 2);
}

#[test]
fn a_chunk_is_in_once_whatever_permission_is_taken_away_before_its_transaction_runs() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let keys = Keys::new(None);
    let chunk = chunk_of(&[Action::Request, Action::Return]);
    let name = named("c:1");
    let script = chunk.command(&keys, Some(&name), None);
    let give = |db: &mut Connection, right: &str| {
        let rights = ["SETUSER", "half", "reset", "on", ">pw", "~*", "+@all", right];
        redis::cmd("ACL").arg(&rights).exec(db).unwrap();
    };
    let taken = "+@all -eval -@scripting -set -get -@read -type -xinfo -xsetid -xadd -xdel -@write";
    for taken in taken.split(' ') {
        // In its turn; out of it; below what is there; and there already.
        for (before, top, known) in [(1, 0, 0), (0, 0, 0), (1, 9, 0), (1, 0, 1), (1, 9, 1)] {
            if top + known > 0 && ["-eval", "-@scripting"].contains(&taken) {
                // Two mishaps in one instant, which nothing tells (see gate.lua).
                continue;
            }
            redis::cmd("FLUSHALL").exec(&mut db).unwrap();
            give(&mut db, "+@all");
            let mut half = redis.connect().unwrap();
            redis::cmd("AUTH").arg(&["half", "pw"]).exec(&mut half).unwrap();
            if before == 1 {
                let _: () = db.set("c:0", "is there").unwrap();
            }
            if known == 1 {
                db.req_packed_command(&script).unwrap();
                let _: () = db.del(&[REQUESTS, RETURNS]).unwrap();
            }
            if top > 0 {
                let event = [REQUESTS, "9-0", "f", "v"];
                redis::cmd("XADD").arg(&event).exec(&mut db).unwrap();
                redis::cmd("XDEL").arg(&event[..2]).exec(&mut db).unwrap();
            }
            let first = "5-1000000".parse().unwrap();
            let packed = chunk.plain_commands(&keys, &name, Some("c:0"), first);
            let exec = b"*1\r\n$4\r\nEXEC\r\n";
            let at = packed.windows(exec.len()).position(|it| it == exec).unwrap();
            half.send_packed_command(&packed[..at]).unwrap();
            until("all is queued", || {
                let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut db).unwrap();
                clients.contains(" multi=4 ")
            });
            give(&mut db, taken);
            half.send_packed_command(&packed[at..]).unwrap();
            let _ = half.recv_response();
            let _ = half.recv_response();
            give(&mut db, "+@all");
            let _: redis::Value = db.req_packed_command(&script).unwrap();
            let events = |stream: &str, db: &mut Connection| {
                let events = entries(db, stream).into_iter();
                events.filter(|(_, fields)| fields[0] == "user_id").count()
            };
            let there = [REQUESTS, RETURNS].map(|stream| events(stream, &mut db) + known);
            assert_eq!(there, [1, 1], "{taken}, {before} {top} {known}");
        }
    }
}

#[test]
fn a_chunk_is_not_added_before_the_one_that_comes_before_it() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let keys = Keys::new(None);
    let chunk = chunk_of(&[Action::Request]);
    let name = named("c:1");
    let mut send = |before: &str| {
        let command = chunk.command(&keys, Some(&name), Some(before));
        let words: Vec<String> =
            redis::from_redis_value(db.req_packed_command(&command).unwrap()).unwrap();
        (words[0].clone(), entries(&mut db, REQUESTS).len())
    };
    assert_eq!(send("c:0"), ("OUT_OF_TURN".into(), 0));
    // Empty ones are on their way out.
    let _: () = redis.connect().unwrap().mset(&[("c:0", ""), ("c:1", "")]).unwrap();
    assert_eq!(send("c:0"), ("OUT_OF_TURN".into(), 0));
    let _: () = redis.connect().unwrap().set("c:0", "is there").unwrap();
    assert_eq!(send("c:0"), ("ADDED".into(), 1));
    // It is there, and stays there when the one before is forgotten.
    assert_eq!(send("none").0, "KNOWN");
}
