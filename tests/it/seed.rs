//! The usage example of the reference application's description.

use crate::common::*;

/// What the example comes to. Its `invisible-citites` in the first line is not the
/// `invisible-cities` of the others, so user1 has no such book to give back.
fn assert_true_outcomes(redis: &Redis) {
    let outcomes = redis.assert_one_outcome_each(3);
    let id = |n: usize| outcomes[n]["event_id"].as_str();
    assert_eq!(
        outcomes,
        [
            outcome(
                "request",
                id(0),
                "user1",
                "accepted",
                &[("book_ids", "alice-in-wonderland,geb,invisible-citites"), ("in_hand", "3")],
            ),
            outcome(
                "return",
                id(1),
                "user1",
                "unchanged",
                &[("not_lent", "invisible-cities"), ("in_hand", "3")],
            ),
            outcome(
                "request",
                id(2),
                "user2",
                "accepted",
                &[
                    ("book_ids", "invisible-cities,selfish-gene"),
                    ("lent_to_another", "geb"),
                    ("in_hand", "2"),
                ],
            ),
        ]
    );
    redis.assert_at_rest();
    let expected = Ledger::new()
        .lent("user1", &["alice-in-wonderland", "geb", "invisible-citites"], id(0))
        .lent("user2", &["invisible-cities", "selfish-gene"], id(2));
    assert_eq!(redis.ledger(), expected);
}

#[test]
fn the_usage_example_works_as_typed() {
    let (redis, _daemon) = library(&Ledger::new());
    for line in [
        "request user1 alice-in-wonderland geb invisible-citites",
        "return user1 invisible-cities",
        "request user2 geb invisible-cities selfish-gene",
    ] {
        let args: Vec<_> = line.split(' ').collect();
        TestCommand::library_req(&redis, &args).exits(0);
    }
    assert_true_outcomes(&redis);
}

#[test]
fn the_usage_example_works_as_the_reference_client_sends_it() {
    let (redis, _daemon) = library(&Ledger::new());
    let first = redis.request("user1", "alice-in-wonderland,geb,invisible-citites");
    redis.outcome_of_request(&first);
    let second = redis.give_back("user1", "invisible-cities");
    redis.outcome_of_return(&second);
    redis.request("user2", "geb,invisible-cities,selfish-gene");
    assert_true_outcomes(&redis);
}

#[test]
fn the_usage_example_works_when_it_was_sent_before_the_first_start() {
    let redis = Redis::new();
    redis.request_at("1-0", "user1", "alice-in-wonderland,geb,invisible-citites");
    redis.give_back_at("2-0", "user1", "invisible-cities");
    redis.request_at("3-0", "user2", "geb,invisible-cities,selfish-gene");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    // The second and the third have nothing to do with each other.
    let outcomes = redis.assert_one_outcome_each(3);
    assert_eq!(outcomes[0]["event_id"], "1-0");
    assert_eq!(redis.outcome_of_return("2-0")["not_lent"], "invisible-cities");
    assert_eq!(redis.outcome_of_request("3-0")["lent_to_another"], "geb");
    redis.assert_at_rest();
}
