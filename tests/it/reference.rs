//! A Redis that the reference application has worked on, or works on still.

use std::time::Duration;

use crate::common::*;

/// Many rounds in which what waits is tried again.
const UNDECIDED: Duration = Duration::from_millis(1_500);

fn twenty() -> Vec<String> {
    (1..=20).map(|n| format!("stored-{n:02}")).collect()
}

/// What a day of the reference application leaves: events acknowledged and still there, counts
/// of 0, a full storage, loans.
fn a_day_of_the_reference(redis: &Redis) -> Ledger {
    let ledger = Ledger::new()
        .stored(&twenty(), "101-0")
        .lent("user1", &["geb", "momo", "emma", "faust", "nana"], "102-0")
        .lent("user2", &["ulysses"], "103-0");
    ledger.lay_down(redis);
    redis.cmd(&["SET", "user:user3:count", "0"]);
    let reference = Other::gone(redis, "reference1");
    for (stream, id) in [
        (REQUESTS, redis.request_at("102-0", "user1", "geb,momo,emma,faust,nana")),
        (REQUESTS, redis.request_at("103-0", "user2", "ulysses,geb")),
        (REQUESTS, redis.request_at("104-0", "user3", "kim")),
        (RETURNS, redis.give_back_at("105-0", "user3", "kim")),
        (SHELVING, redis.hand_off("105-1", "kim")),
    ] {
        assert_eq!(reference.take(stream), id);
        reference.acknowledge(stream, &id);
    }
    ledger
}

#[test]
fn a_library_that_the_reference_served_is_continued() {
    let redis = Redis::new();
    a_day_of_the_reference(&redis);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let request = redis.request("user3", "stored-07,kim,geb");
    let more = [("book_ids", "stored-07,kim"), ("lent_to_another", "geb"), ("in_hand", "2")];
    assert_eq!(
        redis.outcome_of_request(&request),
        outcome("request", &request, "user3", "accepted", &more)
    );
    let back = redis.give_back("user1", "geb,nana,ulysses");
    let more = [("book_ids", "geb,nana"), ("lent_to_another", "ulysses"), ("in_hand", "3")];
    assert_eq!(
        redis.outcome_of_return(&back),
        outcome("return", &back, "user1", "returned", &more)
    );
    let denied = redis.request("user1", "x,y,z");
    let more = [("cause", "too_many_books"), ("put_back", "x,y,z"), ("in_hand", "3")];
    assert_eq!(
        redis.outcome_of_request(&denied),
        outcome("request", &denied, "user1", "denied", &more)
    );
    redis.assert_at_rest();
    // geb took the place of stored-07; there was none for nana, x, y and z.
    let mut stored = twenty();
    stored.remove(6);
    let expected = Ledger::new()
        .stored(&stored, "101-0")
        .stored(&["geb"], "102-0")
        .lent("user1", &["momo", "emma", "faust"], "102-0")
        .lent("user2", &["ulysses"], "103-0")
        .lent("user3", &["stored-07"], "101-0")
        .lent("user3", &["kim"], &request);
    assert_eq!(redis.ledger(), expected);
    assert_eq!(redis.outcomes().len(), 3, "what the reference has done is not done again");
}

#[test]
fn what_the_reference_acknowledged_and_left_is_cleared_away_and_never_replayed() {
    let redis = Redis::new();
    let ledger = a_day_of_the_reference(&redis);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    for stream in [REQUESTS, RETURNS, SHELVING] {
        let cleared = eventually(DEADLINE, || redis.length(stream) == 0);
        assert!(cleared, "{stream} was not cleared: {:?}", redis.entries(stream));
    }
    assert_eq!(redis.outcomes(), Vec::<Fields>::new());
    assert_eq!(redis.ledger(), ledger);
}

#[test]
fn a_stream_that_somebody_else_reads_is_not_cleared_of_what_the_reference_left() {
    let redis = Redis::new();
    a_day_of_the_reference(&redis);
    redis.cmd(&["XGROUP", "CREATE", REQUESTS, "auditors", "0"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    // The others are cleared, so there was time for this one.
    for stream in [RETURNS, SHELVING] {
        assert!(eventually(DEADLINE, || redis.length(stream) == 0), "{stream} was not cleared");
    }
    assert_eq!(redis.length(REQUESTS), 3);
}

#[test]
fn what_the_reference_client_queued_before_the_swap_is_served() {
    let redis = Redis::new();
    a_day_of_the_reference(&redis);
    redis.request_at("201-0", "user3", "stored-01");
    redis.give_back_at("202-0", "user2", "ulysses");
    redis.cmd(&["HSET", SHELVES, "kim", "104-0"]);
    redis.hand_off("203-0", "kim");
    redis.request_at("204-0", "user2", "kim");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request("201-0")["book_ids"], "stored-01");
    assert_eq!(redis.outcome_of_return("202-0")["book_ids"], "ulysses");
    assert_eq!(redis.outcome_of_request("204-0")["book_ids"], "kim");
    redis.assert_at_rest();
}

/// The reference instance `reference1` dies in the middle of request 17-0 for geb, momo and
/// emma: geb is reserved from storage, momo is fetched and reserved, emma is fetched and no more.
fn half_a_request(redis: &Redis) {
    Ledger::new().nowhere(&["geb"], "5-0").nowhere(&["momo", "emma"], "17-0").lay_down(redis);
    redis.cmd(&["SADD", "request:17-0:temp", "geb", "momo"]);
    redis.request_at("17-0", "user1", "geb,momo,emma");
}

fn assert_half_a_request_is_finished(redis: &Redis) {
    let more = [("book_ids", "geb,momo,emma"), ("in_hand", "3")];
    assert_eq!(
        redis.outcome_of_request("17-0"),
        outcome("request", "17-0", "user1", "accepted", &more)
    );
    redis.assert_at_rest();
    let expected =
        Ledger::new().lent("user1", &["geb"], "5-0").lent("user1", &["momo", "emma"], "17-0");
    assert_eq!(redis.ledger(), expected);
}

#[test]
fn libraryd_takes_the_place_of_a_reference_instance_and_finishes_its_request() {
    let redis = Redis::new();
    half_a_request(&redis);
    assert_eq!(Other::of_the_reference(&redis, "reference1").take(REQUESTS), "17-0");
    let _daemon = Daemon::start(&redis, &["--force", "reference1"]);
    assert_half_a_request_is_finished(&redis);
}

#[test]
fn the_half_done_request_of_a_reference_instance_without_a_lock_is_taken_over() {
    let redis = Redis::new();
    half_a_request(&redis);
    assert_eq!(Other::gone(&redis, "reference1").take(REQUESTS), "17-0");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_half_a_request_is_finished(&redis);
}

#[test]
fn a_half_done_request_for_too_many_books_is_denied_and_all_is_put_back() {
    let redis = Redis::new();
    half_a_request(&redis);
    Ledger::new().lent("user1", &["a", "b", "c"], "4-0").lay_down(&redis);
    assert_eq!(Other::gone(&redis, "reference1").take(REQUESTS), "17-0");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let more = [("cause", "too_many_books"), ("put_back", "geb,momo,emma"), ("in_hand", "3")];
    assert_eq!(
        redis.outcome_of_request("17-0"),
        outcome("request", "17-0", "user1", "denied", &more)
    );
    redis.assert_at_rest();
    let expected = Ledger::new()
        .lent("user1", &["a", "b", "c"], "4-0")
        .stored(&["geb"], "5-0")
        .stored(&["momo", "emma"], "17-0");
    assert_eq!(redis.ledger(), expected);
}

#[test]
fn the_reservation_of_a_request_long_decided_makes_a_book_unavailable_and_nobody_waits() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["geb"], "5-0").lay_down(&redis);
    redis.cmd(&["SADD", "request:5-0:temp", "geb"]);
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "geb");
    let more = [("cause", "none_available"), ("unavailable", "geb"), ("in_hand", "0")];
    assert_eq!(redis.outcome_of_request(&id), outcome("request", &id, "user1", "denied", &more));
}

#[test]
fn library_req_sends_what_a_reference_service_understands() {
    let redis = Redis::new();
    TestCommand::library_req(&redis, &["request", "--no-wait", "user1", "geb", "momo"]).exits(0);
    TestCommand::library_req(&redis, &["return", "--no-wait", "user1", "geb"]).exits(0);
    for (stream, books) in [(REQUESTS, "geb,momo"), (RETURNS, "geb")] {
        let entries = redis.entries(stream);
        assert_eq!(entries.len(), 1, "{stream}");
        assert_eq!(entries[0].1["user_id"], "user1");
        assert_eq!(entries[0].1["book_ids"], books);
    }
}

#[test]
fn what_a_reference_instance_left_in_hand_is_taken_over_after_a_long_time() {
    let redis = Redis::new();
    half_a_request(&redis);
    assert_eq!(Other::of_the_reference(&redis, "reference1").take(REQUESTS), "17-0");
    let args = ["worker1", "--silent-after", "1", "--abandoned-after", "3"];
    let _daemon = Daemon::start(&redis, &args);
    assert_half_a_request_is_finished(&redis);
}

/// An instance of the reference application with a request for geb in hand, which it has taken out of
/// automated storage, while a request of ours waits that had the book before. `id` is later than
/// whatever was sent.
fn reserves_geb(redis: &Redis, reference: &Other<'_>, id: &str, user: &str) {
    reference.takes_new(id, user, "geb");
    let moved: bool = redis.ask(&["SMOVE", STORAGE, &format!("request:{id}:temp"), "geb"]);
    assert!(moved, "geb is not in automated storage");
}

/// Our request waited, and put its book into storage, while the main storage went on naming it; a
/// reference instance reserved the book from there. Asked again, shelving says that our request has it:
/// it was lent to both.
#[test]
fn a_book_that_the_reference_has_reserved_is_not_lent_to_a_request_that_once_had_it() {
    let redis = Redis::new();
    Ledger::new().lent("user1", &["kim"], "5-0").lay_down(&redis);
    let reference = Other::of_the_reference(&redis, "reference1");
    let older = redis.request_at("1000-0", "user5", "momo");
    assert_eq!(reference.take(REQUESTS), older);
    let daemon = Daemon::start(&redis, &["worker1"]);
    let ours = redis.request_at("2000-0", "user3", "geb,kim");
    let is_back = || redis.everything().set(STORAGE).contains("geb");
    assert!(eventually(DEADLINE, is_back), "{}", daemon.log());
    reserves_geb(&redis, &reference, "3000-0", "user4");
    reference.finishes(&older);
    // What is sent now is decided after the next try of ours.
    redis.outcome_of_request(&redis.request("user6", "ulysses"));
    assert!(stays(UNDECIDED, || redis.outcomes_of("request", &ours).is_empty()));
    reference.lend("user4", "geb");
    redis.cmd(&["DEL", "request:3000-0:temp"]);
    reference.finishes("3000-0");
    let more = [("cause", "none_available"), ("lent_to_another", "geb,kim"), ("in_hand", "0")];
    assert_eq!(
        redis.outcome_of_request(&ours),
        outcome("request", &ours, "user3", "denied", &more)
    );
    assert_eq!(redis.everything().hash(LENT_BOOKS)["geb"], "user4");
}

/// Our request waited in doubt until those requests were decided that the reference application had in hand
/// then. The book had gone from the reservation of one of them into that of the next: it was told as being
/// nowhere.
#[test]
fn a_book_that_goes_from_one_reservation_of_the_reference_to_the_next_is_waited_for() {
    let redis = Redis::new();
    Ledger::new().stored(&["geb"], "5-0").lay_down(&redis);
    let reference = Other::of_the_reference(&redis, "reference1");
    assert_eq!(redis.request_at("900-0", "user1", "momo"), reference.take(REQUESTS));
    reference.finishes("900-0");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    reserves_geb(&redis, &reference, "1000-0", "user2");
    let ours = redis.request_at("2000-0", "user3", "geb");
    assert!(stays(UNDECIDED, || redis.outcomes_of("request", &ours).is_empty()));
    reference.takes_new("3000-0", "user4", "geb");
    // At once, as for the daemon it might be.
    redis.pipeline(
        &[
            &["MULTI"][..],
            &["SMOVE", "request:1000-0:temp", "request:3000-0:temp", "geb"],
            &["XACK", REQUESTS, "lending_service", "1000-0"],
            &["EXEC"],
        ]
        .map(|command| command.iter().map(|word| (*word).to_owned()).collect()),
    );
    assert!(stays(UNDECIDED, || redis.outcomes_of("request", &ours).is_empty()));
    redis.cmd(&["SMOVE", "request:3000-0:temp", STORAGE, "geb"]);
    reference.finishes("3000-0");
    assert_eq!(redis.outcome_of_request(&ours)["outcome"], "accepted");
}

/// Between two looks of the keeper nothing was noted of what the reference application leaves. The group was
/// made anew at 0, and lent a book once more that had been lent and taken back.
#[test]
fn a_group_that_is_lost_beside_the_reference_is_not_made_anew_over_what_that_has_left() {
    let redis = Redis::new();
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    let _reference = Other::of_the_reference(&redis, "reference1");
    let is_noted = || redis.ask::<bool>(&["HEXISTS", "lending_kept_events", REQUESTS]);
    redis.cmd(&["XGROUP", "CREATECONSUMER", REQUESTS, "lending_service", "reference1"]);
    assert!(eventually(DEADLINE, is_noted), "{}", daemon.log());
    // It does all this between two looks.
    let commands = [
        "MULTI",
        "XADD REQUESTS 9000000000000-0 user_id user2 book_ids momo",
        "XREADGROUP GROUP lending_service reference1 STREAMS REQUESTS >",
        "XACK REQUESTS lending_service 9000000000000-0",
        "XGROUP DESTROY REQUESTS lending_service",
        "EXEC",
    ];
    let words = |line: &str| line.split(' ').map(|w| w.replace("REQUESTS", REQUESTS)).collect();
    redis.pipeline(&commands.map(words));
    assert_eq!(daemon.exit_status(), 78, "{}", daemon.log());
    assert_eq!(redis.length(OUTCOMES), 1);
}
