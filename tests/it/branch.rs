//! `--branch`: several libraries on one Redis.

use crate::common::*;

#[test]
fn with_a_branch_every_key_begins_with_it() {
    let redis = Redis::new().branch("north");
    redis.cmd(&["DEL", "x"]);
    let stored: Vec<_> = (0..20).map(|n| format!("stored-{n}")).collect();
    Ledger::new().stored(&stored, "1-0").lay_down(&redis);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    // A grant, both denials, a return with a hand-off, a malformed event, and answers.
    for (args, status) in [
        (&["request", "user1", "geb"][..], 0),
        (&["request", "user2", "geb"], 1),
        (&["request", "user2", "a", "b", "c", "d", "e", "f"], 1),
        (&["return", "user1", "geb"], 0),
    ] {
        TestCommand::library_req(&redis, args).exits(status);
    }
    let id = redis.request("", "geb");
    assert_eq!(redis.outcome_of_request(&id)["outcome"], "rejected");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().stored(&stored, "1-0"));
    for key in redis.everything().0.keys() {
        assert!(key.starts_with("{north}:"), "{key}");
    }
    let lock: bool = redis.ask(&["EXISTS", "{north}:instance_lock:worker1"]);
    assert!(lock);
}

#[test]
fn branches_on_one_redis_know_nothing_of_each_other() {
    let main = Redis::new();
    let (north, south) = (main.branch("north"), main.branch("south"));
    // The same name and the same book in each of the three libraries.
    let _daemons = [&main, &north, &south].map(|redis| Daemon::start(redis, &["worker1"]));
    for redis in [&main, &north, &south] {
        let id = redis.request("user1", "geb");
        let more = [("book_ids", "geb"), ("in_hand", "1")];
        assert_eq!(
            redis.outcome_of_request(&id),
            outcome("request", &id, "user1", "accepted", &more)
        );
    }
    for redis in [&main, &north, &south] {
        redis.assert_one_outcome_each(1);
        redis.assert_at_rest();
    }
}
