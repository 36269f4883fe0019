//! What a return does: each branch of library-lending(7), Returns; outcomes compared field by
//! field, and the whole ledger afterwards.

use crate::common::*;

/// Nineteen books: a storage with one place left.
fn nineteen() -> Vec<String> {
    (1..=19).map(|n| format!("stored-{n:02}")).collect()
}

fn assert_return_leads_to(
    state: &Ledger,
    user: &str,
    books: &str,
    verdict: &str,
    more: &[(&str, &str)],
    afterwards: &Ledger,
) {
    let (redis, _daemon) = library(state);
    let id = redis.give_back(user, books);
    assert_eq!(redis.outcome_of_return(&id), outcome("return", &id, user, verdict, more));
    redis.assert_at_rest();
    assert_eq!(&redis.ledger(), afterwards);
    assert_eq!(redis.length(RETURNS), 0, "a processed event is deleted");
}

#[test]
fn books_given_back_fill_automated_storage() {
    let state = Ledger::new().lent("user1", &["geb", "momo", "emma"], "5-0");
    let afterwards = Ledger::new().lent("user1", &["emma"], "5-0").stored(&["geb", "momo"], "5-0");
    let more = [("book_ids", "momo,geb"), ("in_hand", "1")];
    assert_return_leads_to(&state, "user1", "momo,geb", "returned", &more, &afterwards);
}

#[test]
fn the_last_book_given_back_leaves_nothing_in_hand() {
    let state = Ledger::new().lent("user1", &["geb"], "5-0");
    let afterwards = Ledger::new().stored(&["geb"], "5-0");
    let more = [("book_ids", "geb"), ("in_hand", "0")];
    assert_return_leads_to(&state, "user1", "geb,geb", "returned", &more, &afterwards);
}

#[test]
fn what_does_not_fit_into_storage_goes_to_its_shelf() {
    let stored = Ledger::new().stored(&nineteen(), "4-0");
    let state = stored.clone().lent("user1", &["a", "b", "c"], "5-0");
    // In the order of the event: the first one fills the storage.
    let afterwards = stored.stored(&["c"], "5-0");
    let more = [("book_ids", "c,a,b"), ("in_hand", "0")];
    assert_return_leads_to(&state, "user1", "c,a,b", "returned", &more, &afterwards);
}

#[test]
fn what_does_not_fit_into_storage_is_handed_over_in_one_event() {
    let redis = Redis::new();
    Ledger::new()
        .stored(&nineteen(), "4-0")
        .lent("user1", &["a", "b", "c", "d"], "5-0")
        .lay_down(&redis);
    let _daemon = Daemon::start(&redis, &["worker1", "--keep-events"]);
    let id = redis.give_back("user1", "d,c,b,a");
    assert_eq!(redis.outcome_of_return(&id)["book_ids"], "d,c,b,a");
    redis.assert_at_rest();
    let hand_offs: Vec<_> = redis.entries(SHELVING).into_iter().map(|(_, f)| f).collect();
    assert_eq!(hand_offs, [fields(&[("book_ids", "c,b,a")])]);
}

#[test]
fn a_return_tells_which_books_were_not_theirs_and_takes_back_the_others() {
    let state = Ledger::new()
        .lent("user1", &["mine", "mine-too"], "5-0")
        .lent("user2", &["theirs"], "5-0")
        .stored(&["stored"], "6-0");
    let afterwards = Ledger::new()
        .lent("user1", &["mine-too"], "5-0")
        .lent("user2", &["theirs"], "5-0")
        .stored(&["stored"], "6-0")
        .stored(&["mine"], "5-0");
    let more = [
        ("book_ids", "mine"),
        ("lent_to_another", "theirs"),
        ("not_lent", "unheard-of,stored"),
        ("in_hand", "1"),
    ];
    let books = "unheard-of,theirs,mine,stored";
    assert_return_leads_to(&state, "user1", books, "returned", &more, &afterwards);
}

#[test]
fn a_return_of_nothing_that_is_theirs_changes_nothing() {
    let state = Ledger::new()
        .lent("user1", &["mine"], "5-0")
        .lent("user2", &["theirs"], "5-0")
        .stored(&["stored"], "6-0");
    let more = [("lent_to_another", "theirs"), ("not_lent", "geb,stored"), ("in_hand", "1")];
    assert_return_leads_to(&state, "user1", "geb,theirs,stored", "unchanged", &more, &state);
    let more = [("not_lent", "geb"), ("in_hand", "0")];
    assert_return_leads_to(&state, "user9", "geb", "unchanged", &more, &state);
}

#[test]
fn a_book_given_back_twice_is_not_lent_the_second_time() {
    let (redis, _daemon) = library(&Ledger::new().lent("user1", &["geb"], "5-0"));
    let first = redis.give_back("user1", "geb");
    let second = redis.give_back("user1", "geb");
    assert_eq!(redis.outcome_of_return(&first)["outcome"], "returned");
    let more = [("not_lent", "geb"), ("in_hand", "0")];
    let second_outcome = redis.outcome_of_return(&second);
    assert_eq!(second_outcome, outcome("return", &second, "user1", "unchanged", &more));
    redis.assert_at_rest();
}

#[test]
fn a_book_given_back_can_be_lent_again_from_storage() {
    let (redis, _daemon) = library(&Ledger::new().lent("user1", &["geb"], "5-0"));
    let back = redis.give_back("user1", "geb");
    redis.outcome_of_return(&back);
    let id = redis.request("user2", "geb");
    let more = [("book_ids", "geb"), ("in_hand", "1")];
    assert_eq!(redis.outcome_of_request(&id), outcome("request", &id, "user2", "accepted", &more));
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user2", &["geb"], "5-0"));
}

#[test]
fn a_return_does_not_take_back_what_a_younger_request_was_lent() {
    let redis = Redis::new();
    redis.give_back_at("10-0", "user1", "geb");
    redis.request_at("20-0", "user1", "geb");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(redis.outcome_of_request("20-0")["book_ids"], "geb");
    let back = redis.outcome_of_return("10-0");
    assert_eq!(back["outcome"], "unchanged");
    assert_eq!(back["not_lent"], "geb");
    assert!(!back.contains_key("book_ids"));
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user1", &["geb"], "20-0"));
}

#[test]
fn shelving_puts_every_book_of_a_hand_off_on_its_shelf() {
    let (redis, _daemon) = library(&Ledger::new().nowhere(&["geb", "momo", "emma"], "5-0"));
    redis.hand_off("*", "geb,emma,never-heard-of,geb");
    redis.hand_off("*", "momo");
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new());
    assert_eq!(redis.length(SHELVING), 0, "a processed event is deleted");
    assert_eq!(redis.length(OUTCOMES), 0, "shelving is no request and no return");
}
