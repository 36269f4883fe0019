//! A consumer group that is lost, and what is none.

use super::*;

/// Where decided events are kept and a group is lost, each of them was told as being worked on again, and
/// that the group is lost was not.
#[test]
fn a_lost_group_is_told_as_such_and_none_of_its_events() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["--keep-events", "worker1"]);
    let books: Vec<_> = (0..21).map(|n| format!("book{n}")).collect();
    for (n, books) in books.chunks(5).enumerate() {
        let user = format!("user{n}");
        redis.outcome_of_request(&redis.request(&user, &books.join(",")));
        redis.outcome_of_return(&redis.give_back(&user, &books.join(",")));
    }
    // Automated storage has no room for the last one: it was on its shelf in between, for a user.
    assert!(eventually(DEADLINE, || !redis.everything().hash(SHELVES).contains_key("book20")));
    redis.outcome_of_request(&redis.request("user9", "book20"));
    assert_eq!(daemon.stop(), 0);
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    for (stream, group) in GROUPS {
        redis.cmd(&["XGROUP", "DESTROY", stream, group]);
        if stream == SHELVING {
            // Whether any outcome is kept does not matter.
            redis.cmd(&["DEL", OUTCOMES]);
        }
        let before = redis.everything();
        let lost = format!(
            "I4: the consumer group {group} of {stream} is lost, and events that were decided are still in \
             that stream: libraryd does not make it anew, for they would be decided again. library-admin \
             regroup tells which event is the first that is not decided, and how to go on"
        );
        assert_eq!(check(&redis).exits(1).stdout, format!("{lost}\n1 violation\n"));
        let run = repair(&redis).exits(1);
        let left = "; not mended: that cannot be done without guessing\n1 violation\n";
        assert_eq!(run.stdout, format!("{lost}{left}"));
        assert_eq!(redis.everything(), before);
        redis.cmd(&["XGROUP", "CREATE", stream, group, "$"]);
    }
}

#[test]
fn a_group_that_is_lost_while_its_events_are_looked_at_is_told_as_such() {
    let redis = Redis::new();
    for (step, meanwhile, lost) in [
        (
            ("undone", 1),
            &["XGROUP DESTROY lending_requests_event_stream lending_service"],
            "I4: the consumer group lending_service of lending_requests_event_stream is lost, ",
        ),
        (
            ("inspect", 3),
            &["XGROUP DESTROY books_for_shelving_event_stream shelving_service"],
            "I4: the consumer group shelving_service of books_for_shelving_event_stream is lost, ",
        ),
    ] {
        redis.cmd(&["FLUSHALL"]);
        healthy(&redis);
        redis.request_at("1-0", "user1", "geb");
        redis.hand_off("1-0", "geb");
        for (stream, group) in GROUPS {
            redis.cmd(&["HSET", "lending_kept_events", stream, "decided events are kept"]);
            redis.cmd(&["XGROUP", "SETID", stream, group, "$"]);
        }
        assert_eq!(check(&redis).exits(0).stdout, WELL);
        let run = check_while(&redis, &[], step, meanwhile).exits(1);
        assert!(run.stdout.starts_with(lost) && run.stdout.ends_with("\n1 violation\n"), "{run}");
    }
}

/// Instances take up to half a minute to agree on it.
#[test]
fn a_group_that_instances_are_about_to_make_anew_is_waited_for() {
    let redis = Redis::new();
    redis.request_at("1-0", "user1", "geb");
    redis.cmd(&["HSET", "lending_kept_events", REQUESTS, "decided events are kept"]);
    redis.cmd(&["HSET", "lending_lost_groups", "worker1", REQUESTS]);
    let meanwhile = &["XGROUP CREATE lending_requests_event_stream lending_service $"];
    assert_eq!(check_while(&redis, &[], ("groups", 12), meanwhile).exits(0).stdout, WELL);
}

#[test]
fn only_a_group_that_was_there_and_stays_away_is_lost() {
    let redis = Redis::new();
    // libraryd was never started.
    redis.request("user9", "geb");
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    redis.cmd(&["FLUSHALL"]);
    healthy(&redis);
    // Nothing is left to be decided twice, or passed over.
    redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    let waiting = redis.request("user9", "geb,nancy");
    assert_eq!(
        TestCommand::library_admin(&redis, &["check", "--json"]).exits(1).stdout,
        "{\"invariant\":\"I4\",\"fault\":\"group_lost\",\"stream\":\"requests\",\"group\":\"lending_service\"}\n"
    );
    let run = repair(&redis).exits(1);
    assert!(
        run.stdout.starts_with(
            "I4: the consumer group lending_service of lending_requests_event_stream is lost: libraryd \
             makes it anew when it starts; not mended: libraryd does that\n"
        ),
        "{run}"
    );
    let _daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&waiting);
    // A running one is at it.
    for _ in 0..3 {
        redis.pipeline(&[
            ["XGROUP", "DESTROY", REQUESTS, "lending_service"].map(str::to_owned).to_vec(),
            xadd(REQUESTS, "*", "u", "x"),
        ]);
        assert_eq!(check(&redis).exits(0).stdout, WELL);
    }
}
