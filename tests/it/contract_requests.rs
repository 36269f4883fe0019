//! What a request does: each branch of library-lending(7), Requests; outcomes compared field by
//! field, and the whole ledger afterwards.

use crate::common::*;

/// Twenty books for a full automated storage.
fn twenty() -> Vec<String> {
    (1..=20).map(|n| format!("stored-{n:02}")).collect()
}

/// Serves one request in this state, which it leaves as it was.
fn assert_request(state: &Ledger, user: &str, books: &str, verdict: &str, more: &[(&str, &str)]) {
    assert_request_leads_to(state, user, books, verdict, more, |_| state.clone());
}

/// Serves one request in this state. `gone` is the book that may be nowhere.
fn assert_request_leads_to(
    state: &Ledger,
    user: &str,
    books: &str,
    verdict: &str,
    more: &[(&str, &str)],
    afterwards: impl FnOnce(&str) -> Ledger,
) {
    let (redis, _daemon) = library(state);
    let id = redis.request(user, books);
    assert_eq!(redis.outcome_of_request(&id), outcome("request", &id, user, verdict, more));
    redis.wait_until_drained(DEADLINE);
    assert_eq!(redis.ledger(), afterwards(&id));
    let mut violations = redis.violations();
    violations.retain(|violation| violation != "I1: gone is nowhere");
    assert_eq!(violations, Vec::<String>::new());
    assert_eq!(redis.length(REQUESTS), 0, "a processed event is deleted");
}

#[test]
fn a_book_never_seen_before_is_on_its_shelf_and_is_lent() {
    let more = [("book_ids", "geb"), ("in_hand", "1")];
    assert_request_leads_to(&Ledger::new(), "user1", "geb", "accepted", &more, |id| {
        Ledger::new().lent("user1", &["geb"], id)
    });
}

#[test]
fn books_are_lent_from_storage_and_from_the_shelves_alike() {
    let state = Ledger::new().stored(&["geb", "faust"], "5-0");
    let more = [("book_ids", "momo,geb,emma"), ("in_hand", "3")];
    assert_request_leads_to(&state, "user1", "momo,geb,emma", "accepted", &more, |id| {
        Ledger::new().stored(&["faust"], "5-0").lent("user1", &["geb"], "5-0").lent(
            "user1",
            &["momo", "emma"],
            id,
        )
    });
}

#[test]
fn of_duplicate_books_the_first_counts() {
    let more = [("book_ids", "geb,momo"), ("in_hand", "2")];
    let books = "geb,momo,geb,geb,momo,geb";
    assert_request_leads_to(&Ledger::new(), "user1", books, "accepted", &more, |id| {
        Ledger::new().lent("user1", &["geb", "momo"], id)
    });
}

#[test]
fn a_request_is_accepted_in_part_with_a_reason_for_each_refused_book() {
    let state = Ledger::new()
        .lent("user1", &["mine", "mine-too"], "5-0")
        .lent("user2", &["theirs"], "5-0")
        .lent("user3", &["somebodys"], "6-0")
        .nowhere(&["gone"], "7-0");
    let more = [
        ("book_ids", "momo,geb"),
        ("already_yours", "mine-too,mine"),
        ("lent_to_another", "theirs,somebodys"),
        ("unavailable", "gone"),
        ("in_hand", "4"),
    ];
    let books = "mine-too,theirs,momo,gone,somebodys,geb,mine";
    assert_request_leads_to(&state, "user1", books, "accepted", &more, |id| {
        state.clone().lent("user1", &["momo", "geb"], id)
    });
}

#[test]
fn a_request_for_books_that_are_all_lent_is_denied() {
    let state = Ledger::new().lent("user1", &["mine"], "5-0").lent("user2", &["theirs"], "5-0");
    let more = [
        ("cause", "none_available"),
        ("already_yours", "mine"),
        ("lent_to_another", "theirs"),
        ("in_hand", "1"),
    ];
    assert_request(&state, "user1", "theirs,mine", "denied", &more);
}

#[test]
fn somebody_without_a_book_has_none_in_hand_after_a_denial() {
    let state = Ledger::new().lent("user2", &["theirs"], "5-0");
    let more = [("cause", "none_available"), ("lent_to_another", "theirs"), ("in_hand", "0")];
    assert_request(&state, "user1", "theirs", "denied", &more);
}

#[test]
fn a_book_that_is_nowhere_is_refused_as_unavailable() {
    let state = Ledger::new().nowhere(&["gone"], "5-0");
    let more = [("cause", "none_available"), ("unavailable", "gone"), ("in_hand", "0")];
    assert_request(&state, "user1", "gone", "denied", &more);
}

/// It was an INFO among thousands, where the patron was sent to the staff.
#[test]
fn a_book_that_is_nowhere_is_a_warning_in_the_log_however_much_is_logged() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["gone", "lost"], "5-0").lay_down(&redis);
    let daemon = Daemon::start(&redis, &["worker1", "--log-outcomes", "none"]);
    let id = redis.request("user1", "gone,geb,lost");
    assert_eq!(redis.outcome_of_request(&id)["book_ids"], "geb");
    let said = format!(
        "WARN  [lending] request:{id} asks for books that are nowhere (library-admin check tells more): \
         gone,lost\n"
    );
    assert!(eventually(DEADLINE, || daemon.log().contains(&said)), "{}", daemon.log());
}

#[test]
fn five_books_are_allowed() {
    let state = Ledger::new().lent("user1", &["a", "b"], "5-0");
    let more = [("book_ids", "c,d,e"), ("in_hand", "5")];
    assert_request_leads_to(&state, "user1", "c,d,e", "accepted", &more, |id| {
        state.clone().lent("user1", &["c", "d", "e"], id)
    });
}

#[test]
fn only_available_books_count_towards_the_limit() {
    let state = Ledger::new()
        .lent("user1", &["a", "b", "c", "d"], "5-0")
        .lent("user2", &["x", "y"], "5-0")
        .nowhere(&["gone"], "6-0");
    let more = [
        ("book_ids", "e"),
        ("already_yours", "a"),
        ("lent_to_another", "x,y"),
        ("unavailable", "gone"),
        ("in_hand", "5"),
    ];
    assert_request_leads_to(&state, "user1", "x,y,gone,a,e,e", "accepted", &more, |id| {
        state.clone().lent("user1", &["e"], id)
    });
}

#[test]
fn at_the_limit_a_request_without_an_available_book_is_none_available() {
    let state = Ledger::new().lent("user1", &["a", "b", "c", "d", "e"], "5-0");
    let more = [("cause", "none_available"), ("already_yours", "a,e"), ("in_hand", "5")];
    assert_request(&state, "user1", "a,e", "denied", &more);
}

#[test]
fn a_sixth_book_denies_the_request_whole_and_the_books_go_to_storage() {
    let state = Ledger::new().lent("user1", &["a", "b", "c"], "5-0");
    let more = [("cause", "too_many_books"), ("put_back", "f,d,e"), ("in_hand", "3")];
    assert_request_leads_to(&state, "user1", "f,d,e", "denied", &more, |id| {
        state.clone().stored(&["d", "e", "f"], id)
    });
}

#[test]
fn six_books_at_once_are_too_many_for_somebody_who_has_none() {
    let more = [("cause", "too_many_books"), ("put_back", "a,b,c,d,e,f"), ("in_hand", "0")];
    assert_request_leads_to(&Ledger::new(), "user1", "a,b,c,d,e,f", "denied", &more, |id| {
        Ledger::new().stored(&["a", "b", "c", "d", "e", "f"], id)
    });
}

#[test]
fn a_denial_for_too_many_books_tells_the_refused_ones_as_well() {
    let state = Ledger::new()
        .lent("user1", &["a", "b", "c", "d"], "5-0")
        .lent("user2", &["x"], "5-0")
        .nowhere(&["gone"], "6-0");
    let more = [
        ("cause", "too_many_books"),
        ("put_back", "e,f"),
        ("already_yours", "b"),
        ("lent_to_another", "x"),
        ("unavailable", "gone"),
        ("in_hand", "4"),
    ];
    assert_request_leads_to(&state, "user1", "x,e,b,gone,f", "denied", &more, |id| {
        state.clone().stored(&["e", "f"], id)
    });
}

#[test]
fn what_does_not_fit_into_storage_goes_back_to_the_shelves() {
    let state = Ledger::new().stored(&twenty()[..18], "4-0").lent("user1", &["a", "b", "c"], "5-0");
    let more = [("cause", "too_many_books"), ("put_back", "z,y,x,w"), ("in_hand", "3")];
    assert_request_leads_to(&state, "user1", "z,y,x,w", "denied", &more, |id| {
        // In the order of the event: the first two fill the storage.
        state.clone().stored(&["z", "y"], id)
    });
}

#[test]
fn what_does_not_fit_into_storage_is_handed_over_in_one_event() {
    let redis = Redis::new();
    Ledger::new().stored(&twenty()[..19], "4-0").lay_down(&redis);
    let _daemon = Daemon::start(&redis, &["worker1", "--keep-events"]);
    let id = redis.request("user1", "f,e,d,c,b,a");
    assert_eq!(redis.outcome_of_request(&id)["put_back"], "f,e,d,c,b,a");
    redis.assert_at_rest();
    let hand_offs: Vec<_> = redis.entries(SHELVING).into_iter().map(|(_, f)| f).collect();
    assert_eq!(hand_offs, [fields(&[("book_ids", "e,d,c,b,a")])]);
    assert_eq!(redis.ledger(), Ledger::new().stored(&twenty()[..19], "4-0").stored(&["f"], &id));
    assert_eq!(redis.length(REQUESTS), 1, "--keep-events leaves what was processed");
}

#[test]
fn books_from_a_full_storage_are_put_back_in_the_order_of_the_event() {
    let state = Ledger::new().stored(&twenty(), "4-0");
    // stored-01 and stored-02 leave two places, which the first two of the event take.
    let books = "a,stored-02,b,stored-01,c,d";
    let more = [("cause", "too_many_books"), ("put_back", books), ("in_hand", "0")];
    assert_request_leads_to(&state, "user1", books, "denied", &more, |id| {
        Ledger::new().stored(&twenty()[1..], "4-0").stored(&["a"], id)
    });
}

#[test]
fn a_thousand_books_are_denied_and_put_back() {
    let books: Vec<_> = (0..1000).map(|n| format!("book-{n:03}")).collect();
    let joined = books.join(",");
    let more = [("cause", "too_many_books"), ("put_back", &joined), ("in_hand", "0")];
    assert_request_leads_to(&Ledger::new(), "user1", &joined, "denied", &more, |id| {
        Ledger::new().stored(&books[..20], id)
    });
}

#[test]
fn a_book_that_shelving_gave_to_this_very_request_is_available_to_it() {
    let redis = Redis::new();
    // Fetched, and then the instance died.
    Ledger::new().nowhere(&["geb"], "17-0").lay_down(&redis);
    redis.request_at("17-0", "user1", "geb");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let more = [("book_ids", "geb"), ("in_hand", "1")];
    assert_eq!(
        redis.outcome_of_request("17-0"),
        outcome("request", "17-0", "user1", "accepted", &more)
    );
    redis.assert_at_rest();
    assert_eq!(redis.ledger(), Ledger::new().lent("user1", &["geb"], "17-0"));
}

#[test]
fn a_book_on_its_shelf_may_be_lent_again_by_a_later_request() {
    let (redis, _daemon) = library(&Ledger::new().stored(&twenty(), "4-0"));
    let first = redis.request("user1", "geb");
    redis.outcome_of_request(&first);
    let back = redis.give_back("user1", "geb");
    redis.outcome_of_return(&back);
    let second = redis.request("user2", "geb");
    assert_eq!(redis.outcome_of_request(&second)["book_ids"], "geb");
    redis.assert_at_rest();
    let expected = Ledger::new().stored(&twenty(), "4-0").lent("user2", &["geb"], &second);
    assert_eq!(redis.ledger(), expected);
}

#[test]
fn ids_may_be_in_any_script_and_look_like_anything() {
    let longest = "é".repeat(128);
    for (user, book) in [
        ("Zoë Müller", "Die unendliche Geschichte"),
        ("user:1:count", "request:17-0:temp"),
        ("{user}", "{book}"),
        ("*", "?17-0"),
        ("-1", "$-1\u{2028}x"),
        (&longest, &longest),
        ("利用者", "📚 — «%s%n»"),
        ("a\u{a0}b", "'; FLUSHALL; \"\\"),
    ] {
        let more = [("book_ids", book), ("in_hand", "1")];
        assert_request_leads_to(&Ledger::new(), user, book, "accepted", &more, |id| {
            Ledger::new().lent(user, &[book], id)
        });
    }
}
