//! Where an outcome can be found: in the stream of outcomes, and where the sender asked for it
//! under a key of its own, which expires.

use crate::common::*;

const HOUR_MS: i64 = 3_600_000;

/// Sends an event with a wish for an answer; its id and the key of the answer.
fn send(redis: &Redis, stream: &str, user: &str, books: &str, wish: &str) -> (String, String) {
    let fields =
        [("user_id", user.as_bytes()), ("book_ids", books.as_bytes()), ("answer", wish.as_bytes())];
    let id = redis.add(stream, "*", &fields);
    let action = if stream == REQUESTS { "request" } else { "return" };
    let key = redis.key(&format!("lending_answer:{action}:{id}"));
    (id, key)
}

/// The fields that the answer under this key holds, and how long it is kept.
fn answer(redis: &Redis, key: &str) -> (Fields, i64) {
    let elements: Vec<String> = redis.ask(&["LRANGE", key, "0", "-1"]);
    assert_eq!(elements.len(), 1, "{key}: {elements:?}");
    let lines: Vec<_> = elements[0].split('\n').collect();
    let pairs: Vec<_> = lines.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    assert_eq!(pairs.len() * 2, lines.len(), "{lines:?}");
    (fields(&pairs), redis.ask(&["PTTL", key]))
}

#[test]
fn an_answer_holds_the_outcome_and_is_kept_as_long_as_was_wished() {
    let (redis, _daemon) = library(&Ledger::new().lent("user2", &["theirs"], "5-0"));
    let half = format!("keep:{}", HOUR_MS / 2);
    for (wish, longest) in [("wait", HOUR_MS), ("keep", 24 * HOUR_MS), (&half, HOUR_MS / 2)] {
        for (stream, books) in [
            (REQUESTS, "geb,theirs"),
            (REQUESTS, "theirs"),
            (REQUESTS, "a,b,c,d,e,f"),
            (RETURNS, "geb"),
            (RETURNS, "geb,theirs"),
        ] {
            let (id, key) = send(&redis, stream, "user1", books, wish);
            let outcome = if stream == REQUESTS {
                redis.outcome_of_request(&id)
            } else {
                redis.outcome_of_return(&id)
            };
            let (answer, left) = answer(&redis, &key);
            assert_eq!(answer, outcome);
            assert!((longest - 60_000..=longest).contains(&left), "{wish}: {left}");
        }
    }
    redis.assert_at_rest();
}

#[test]
fn somebody_who_waits_for_the_answer_is_woken_by_it() {
    let (redis, _daemon) = library(&Ledger::new());
    let (id, key) = send(&redis, REQUESTS, "user1", "geb", "wait");
    let popped: Option<(String, String)> = redis.ask(&["BLPOP", &key, "10"]);
    let (_, answer) = popped.expect("the answer came within 10 seconds");
    assert!(answer.contains(&id) && answer.contains("accepted"), "{answer}");
}

#[test]
fn a_malformed_event_is_answered_as_well() {
    let (redis, _daemon) = library(&Ledger::new());
    let (id, key) = send(&redis, REQUESTS, "user1", "", "wait");
    let rejected = redis.outcome_of_request(&id);
    assert_eq!(rejected["cause"], "no_book_ids");
    assert_eq!(answer(&redis, &key).0, rejected);
    // It was kept for a day, whatever was wished: under the same --id somebody was told that it waits yet.
    let (month, half) = (30 * 24 * HOUR_MS, HOUR_MS / 2);
    for longest in [month, half] {
        let (id, key) = send(&redis, REQUESTS, "user1", "", &format!("keep:{longest}"));
        redis.outcome_of_request(&id);
        let (_, left) = answer(&redis, &key);
        assert!((longest - 60_000..=longest).contains(&left), "{longest}: {left}");
    }
    let (id, key) = send(&redis, REQUESTS, "user1", "", &format!("keep:{}", month + 1));
    redis.outcome_of_request(&id);
    assert!(!redis.ask::<bool>(&["EXISTS", &key]), "no wish of ours");
}

#[test]
fn no_answer_is_kept_for_who_does_not_ask_for_one() {
    let (redis, _daemon) = library(&Ledger::new());
    let id = redis.request("user1", "geb");
    redis.outcome_of_request(&id);
    let (id, _) = send(&redis, RETURNS, "user1", "geb", "user:user1:count");
    redis.outcome_of_return(&id);
    let state = redis.everything();
    let answers: Vec<_> = state.0.keys().filter(|key| key.contains("answer:")).collect();
    assert!(answers.is_empty(), "{answers:?}");
}

#[test]
fn the_stream_of_outcomes_keeps_about_as_many_as_was_said() {
    let redis = Redis::new();
    let _daemon = Daemon::start(&redis, &["worker1", "--outcomes-kept", "200"]);
    let ids: Vec<_> = (0..1000).map(|n| redis.request(&format!("user{n}"), "geb")).collect();
    assert_eq!(redis.outcome_of_request(&ids[999])["lent_to_another"], "geb");
    redis.assert_at_rest();
    let kept = redis.length(OUTCOMES);
    assert!((200..=500).contains(&kept), "{kept}");
}

#[test]
fn outcomes_older_than_wanted_are_dropped_and_younger_ones_stay() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let redis = Redis::new();
    let (seconds, _): (u64, u64) = redis.ask(&["TIME"]);
    let aged = |days: u64, n: u64| format!("{}-{n}", seconds * 1_000 - days * DAY_MS);
    // More than go in one step, and not as many as make whole pieces of the stream.
    for (days, number) in [(9, 20_050), (3, 7), (1, 30)] {
        let add: Vec<_> = (0..number)
            .map(|n| {
                ["XADD", OUTCOMES, &aged(days, n), "event_id", "1-0", "action", "request"]
                    .map(str::to_owned)
                    .to_vec()
            })
            .collect();
        redis.pipeline(&add);
    }
    let length = || redis.length(OUTCOMES);
    // Unless it is wished, none goes because of its age.
    let mut daemon = Daemon::start(&redis, &["worker1", "--lease", "1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    daemon.stop();
    assert_eq!(length(), 20_050 + 7 + 30 + 1);
    let _daemon = Daemon::start(&redis, &["worker1", "--lease", "1", "--retain-days", "2"]);
    assert!(eventually(DEADLINE, || length() <= 31), "{} are left", length());
    assert_eq!(length(), 31);
}
