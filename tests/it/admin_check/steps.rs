//! The steps of a check, each for itself: what its scripts do, and that none takes long.

use std::process::Command;
use std::time::Instant;

use redis::Value;

use super::*;

/// Runs a script of the check as the check does, behind order.lua and groups.lua.
fn script(redis: &Redis, text: &str, keys: &[&str], args: &[&str]) -> Vec<String> {
    let text =
        [include_str!("../../../lua/order.lua"), include_str!("../../../lua/groups.lua"), text]
            .concat();
    let count = keys.len().to_string();
    let mut command = vec!["EVAL", &text, &count];
    command.extend(keys);
    command.extend(args);
    let reply: Vec<Value> = redis.ask(&command);
    let text = |value| match value {
        Value::Int(number) => number.to_string(),
        other => redis::from_redis_value(other).unwrap(),
    };
    reply.into_iter().map(text).collect()
}

#[test]
fn a_book_on_its_way_is_no_suspect_as_long_as_its_state_says_so() {
    let redis = Redis::new();
    let keys = [LENT_BOOKS, STORAGE, SHELVES, "lending_book_states", REQUESTS, SHELVING];
    let inspect = || {
        let args = ["lending_service", "shelving_service", "shelves", "geb"];
        script(&redis, include_str!("../../../lua/inspect.lua"), &keys, &args)
    };
    redis.cmd(&["HSET", SHELVES, "geb", "1-0"]);
    redis.cmd(&["HSET", "lending_book_states", "geb", ">17-0"]);
    assert_eq!(inspect(), ["INSPECTED", "geb", "nowhere", "", "1-0", ">17-0"]);
    redis.hand_off("17-0", "geb");
    assert_eq!(inspect(), ["INSPECTED"]);
}

#[test]
fn a_book_is_handed_over_only_if_it_is_as_the_check_has_seen_it() {
    let keys = [LENT_BOOKS, STORAGE, SHELVES, "lending_book_states", REQUESTS, SHELVING];
    let mend = |redis: &Redis, book: [&str; 3]| {
        let mut args = vec!["lending_service", "shelving_service", ""];
        args.extend(book);
        script(redis, include_str!("../../../lua/mend.lua"), &keys, &args)
    };
    for (meanwhile, word) in [
        ("PING", "handed_over"),
        ("HSET lending_book_states lost ?5-0", "changed"),
        ("HSET shelving_service_state lost 18-0", "changed"),
        ("HDEL shelving_service_state lost", "changed"),
        ("HSET lent_books lost user1", "changed"),
        ("SADD automated_book_storage lost", "changed"),
        // The request that fetched it is worked on again.
        ("XADD lending_requests_event_stream 17-0 user_id u book_ids lost", "changed"),
    ] {
        let redis = Redis::new();
        redis.cmd(&["HSET", SHELVES, "lost", "17-0"]);
        redis.cmd(&meanwhile.split(' ').collect::<Vec<_>>());
        let before = redis.everything();
        let reply = mend(&redis, ["lost", "17-0", ""]);
        assert_eq!([&*reply[0], &*reply[2]], ["MENDED", word], "{meanwhile}");
        assert_eq!(redis.everything() == before, word == "changed", "{meanwhile}");
    }
    // A state is let go, or the book handed over, only if the state's event is done.
    for (state, meanwhile, word) in [
        ("?17-0", "PING", "handed_over"),
        ("?17-0", "HSET lent_books lost user1", "let_go"),
        ("?17-0", "SADD automated_book_storage lost", "let_go"),
        ("?17-0", "XADD lending_requests_event_stream 17-0 user_id u book_ids lost", "changed"),
        (">17-0", "PING", "handed_over"),
        (">17-0", "XADD books_for_shelving_event_stream 17-0 book_ids lost", "changed"),
        ("=17-0", "HSET lent_books lost user1", "changed"),
    ] {
        let redis = Redis::new();
        redis.cmd(&["HSET", SHELVES, "lost", "16-0"]);
        redis.cmd(&["HSET", "lending_book_states", "lost", state]);
        redis.cmd(&meanwhile.split(' ').collect::<Vec<_>>());
        let reply = mend(&redis, ["lost", "16-0", state]);
        assert_eq!([&*reply[0], &*reply[2]], ["MENDED", word], "{state} {meanwhile}");
    }
    // On its shelf it could be fetched and lent before a hand-off is done, and then be shelved.
    let redis = Redis::new();
    redis.cmd(&["HSET", "lending_book_states", "lost", "?17-0"]);
    assert_eq!(mend(&redis, ["lost", "", "?17-0"])[1..], ["", "let_go"]);
    assert_eq!(redis.length(SHELVING), 0);
}

#[test]
fn a_reservation_is_dissolved_only_if_its_request_is_decided() {
    const LEFT: &str = "request:17-0:temp";
    let keys = [LENT_BOOKS, STORAGE, SHELVES, "lending_book_states", REQUESTS, SHELVING, LEFT];
    let dissolve = |redis: &Redis| {
        let args = ["lending_service", "shelving_service", "17-0", "lost", "", "", "geb", "", ""];
        script(redis, include_str!("../../../lua/mend.lua"), &keys, &args)
    };
    for (meanwhile, said) in [
        ("PING", &["handed_over", "let_go"][..]),
        ("XADD lending_requests_event_stream 17-0 user_id u book_ids lost", &[]),
        ("SREM request:17-0:temp lost", &["changed", "let_go"]),
        // It has its place, or somebody else is at it.
        ("HSET lent_books lost user1", &["let_go", "let_go"]),
        ("SADD automated_book_storage lost", &["let_go", "let_go"]),
        ("HSET lending_book_states lost ?18-0", &["let_go", "let_go"]),
        ("HSET lending_book_states lost ?1-0", &["let_go", "let_go"]),
        ("HSET lending_book_states lost >18-0", &["let_go", "let_go"]),
        ("HSET shelving_service_state lost 18-0", &["let_go", "let_go"]),
    ] {
        let redis = Redis::new();
        redis.cmd(&["HSET", SHELVES, "lost", "1-0"]);
        redis.cmd(&["SADD", LEFT, "lost", "geb"]);
        redis.request_at("18-0", "user2", "lost");
        redis.hand_off("18-0", "lost");
        redis.cmd(&["XGROUP", "CREATE", REQUESTS, "lending_service", "0"]);
        if meanwhile.contains(REQUESTS) {
            redis.cmd(&["DEL", REQUESTS]);
        }
        redis.cmd(&meanwhile.split(' ').collect::<Vec<_>>());
        let reply = dissolve(&redis);
        if said.is_empty() {
            assert_eq!(reply, ["CHANGED"], "{meanwhile}");
            continue;
        }
        assert_eq!(reply[2..], *said, "{meanwhile}");
        let left: u32 = redis.ask(&["EXISTS", LEFT]);
        assert_eq!(left, 0, "{meanwhile}");
    }
}

#[test]
fn a_recount_misses_no_loan_that_was_made_since_the_scan() {
    let redis = Redis::new();
    let keys = [LENT_BOOKS, OUTCOMES, "user:u:count"];
    let recount = |known: &str, what: &str| {
        let args = [known, "2", what, "u", "1", "a"];
        script(&redis, include_str!("../../../lua/recount.lua"), &keys, &args)
    };
    let lend = |id: &str, user: &str, book: &str| {
        redis.cmd(&["HSET", LENT_BOOKS, book, user]);
        let fields: [(&str, &[u8]); 3] =
            [("outcome", b"accepted"), ("user_id", user.as_bytes()), ("book_ids", book.as_bytes())];
        redis.add(OUTCOMES, id, &fields);
    };
    assert_eq!(recount("0-0", "look"), ["COUNTED", "0", "none", ""]);
    assert_eq!(recount("5-0", "look"), ["MISSED"], "what was known is gone");
    lend("1-0", "u", "a");
    assert_eq!(recount("0-0", "look"), ["MISSED"], "there may have been others before");
    assert_eq!(recount("1-0", "look"), ["COUNTED", "1", "none", ""]);
    redis.cmd(&["SET", "user:u:count", "1"]);
    lend("2-0", "u", "b");
    lend("3-0", "other", "c");
    assert_eq!(recount("1-0", "look"), ["COUNTED", "2", "string", "1"]);
    assert_eq!(redis.ledger().counts["u"], "1", "looking changes nothing");
    assert_eq!(recount("1-0", "mend"), ["COUNTED", "2", "string", "1"]);
    assert_eq!(redis.ledger().counts["u"], "2");
    lend("4-0", "u", "d");
    assert_eq!(recount("1-0", "mend"), ["BEHIND"]);
    redis.cmd(&["XTRIM", OUTCOMES, "MINID", "3-0"]);
    assert_eq!(recount("2-0", "mend"), ["MISSED"]);
    assert_eq!(redis.ledger().counts["u"], "2");
    // Of one that the scan has found too, it is lent once.
    lend("5-0", "u", "a");
    lend("6-0", "u", "d");
    assert_eq!(recount("4-0", "look"), ["COUNTED", "2", "string", "2"]);
    // What is no count is left to whoever has put it there.
    redis.cmd(&["DEL", "user:u:count"]);
    redis.cmd(&["RPUSH", "user:u:count", "2"]);
    assert_eq!(recount("4-0", "mend"), ["COUNTED", "2", "list", ""]);
    assert_eq!(redis.ask::<String>(&["TYPE", "user:u:count"]), "list");
}

/// Lays a library of this many loans, three to a user, with an outcome for every tenth.
fn large_library(redis: &Redis, loans: usize) {
    let fill = r"
        for n = ARGV[1], ARGV[2] do
          local user = 'user' .. math.floor(n / 3)
          redis.call('HSET', 'lent_books', 'book' .. n, user)
          redis.call('HSET', 'shelving_service_state', 'book' .. n, '1-0')
          redis.call('HSET', 'lending_book_states', 'book' .. n, '=1-0')
          redis.call('INCR', 'user:' .. user .. ':count')
        end";
    for first in (0..loans).step_by(2_000) {
        let last = (first + 2_000).min(loans) - 1;
        redis.cmd(&["EVAL", fill, "0", &first.to_string(), &last.to_string()]);
    }
    let outcome = r"
        for n = ARGV[1], ARGV[2] do
          redis.call('XADD', 'lending_outcomes_event_stream', '*', 'event_id', n .. '-0',
            'action', 'request', 'user_id', 'user' .. n, 'outcome', 'accepted', 'book_ids',
            'book' .. n, 'in_hand', '1')
        end";
    for first in (1..=loans / 10).step_by(2_000) {
        let last = (first + 1_999).min(loans / 10);
        redis.cmd(&["EVAL", outcome, "0", &first.to_string(), &last.to_string()]);
    }
}

/// The commands that a check makes Redis work on for longer than this, the longest first, with the
/// number of microseconds that each took.
fn long_steps(redis: &Redis, micros: u64) -> Vec<(u64, String)> {
    redis.cmd(&["CONFIG", "SET", "slowlog-max-len", "1000000"]);
    redis.cmd(&["SLOWLOG", "RESET"]);
    redis.cmd(&["CONFIG", "SET", "slowlog-log-slower-than", &micros.to_string()]);
    let start = Instant::now();
    // As long as it takes.
    let run = Command::new(env!("CARGO_BIN_EXE_library-admin"))
        .args(["check", "-a", &redis.address()])
        .env_clear()
        .output()
        .unwrap();
    println!("the check took {:?}", start.elapsed());
    redis.cmd(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"]);
    assert_eq!(String::from_utf8_lossy(&run.stdout), WELL, "{run:?}");
    type Logged = (u64, u64, u64, Vec<Vec<u8>>, String, String);
    let log: Vec<Logged> = redis.ask(&["SLOWLOG", "GET", "-1"]);
    let what =
        |args: Vec<Vec<u8>>| args.into_iter().take(2).map(text).collect::<Vec<_>>().join(" ");
    let mut steps: Vec<_> = log.into_iter().map(|step| (step.2, what(step.3))).collect();
    steps.sort_unstable_by_key(|(micros, _)| std::cmp::Reverse(*micros));
    steps
}

#[test]
fn no_step_of_a_check_grows_with_the_library() {
    let redis = Redis::new();
    large_library(&redis, 20_000);
    // Far above what a step takes, below what it would take over all 20,000 books. On a busy machine
    // any step may be held up once; one that is too large is so every time.
    let mut tries = (0..4).map(|_| long_steps(&redis, 20_000));
    let well = tries.by_ref().any(|steps| steps.is_empty());
    assert!(well, "{:?}", long_steps(&redis, 20_000));
}

/// `cargo test --test it -- --ignored --nocapture a_million` tells the longest steps.
#[test]
#[ignore = "takes a minute and 400 MB"]
fn at_a_million_loans_no_step_of_a_check_blocks_for_more_than_a_few_milliseconds() {
    let redis = Redis::new();
    large_library(&redis, 1_000_000);
    redis.cmd(&["CONFIG", "RESETSTAT"]);
    let steps = long_steps(&redis, 5_000);
    let stats: String = redis.ask(&["INFO", "commandstats"]);
    println!("{stats}");
    println!("{} steps of more than 5 ms: {:?}", steps.len(), &steps[..steps.len().min(10)]);
    // The clock runs on while the server waits for its processor; that is no step's fault, and
    // rare. A step that takes long by itself comes thousands of times.
    assert!(steps.len() < 400);
}
