//! What can be asked: outcomes, loans, places of books and the history.

use std::io::pipe;

use redis::Commands as _;

use crate::common::*;
use crate::harness::*;

#[test]
fn an_outcome_is_found_in_the_stream_too_and_an_unknown_event_is_said_to_be_unknown() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    record(&mut db, "5000-0", "return:4000-0", "u", &["outcome", "returned", "book_ids", "geb"]);
    req(&redis, &["outcome", "4000-0"]).is(0, "taken back from a user: geb\n", "");
    for (asked, named) in
        [("request:4000-0", "request 4000-0"), ("return:1-1", "return 1-1"), ("1-1", "event 1-1")]
    {
        let why = "there was none, or its outcome is not kept any more";
        let told = format!("library-req: nothing is known about {named}: {why}\n");
        req(&redis, &["outcome", asked]).is(1, "", &told);
    }
}

/// With a mistyped branch, or on a Redis that had lost its data, scripts and people were told that every book is on
/// its shelf and nobody has any.
#[test]
fn where_there_is_no_library_that_is_said_with_the_answer() {
    let redis = Redis::new();
    let address = redis.address();
    let said = |part: &str| {
        format!(
            "library-req: there is no library on Redis at {address}{part}: no libraryd has ever run there, or its \
             data is gone\n"
        )
    };
    req(&redis, &["where", "geb"]).is(0, "geb: on its shelf\n", &said(""));
    req(&redis, &["loans", "u", "--branch", "b"]).is(0, "u has no books\n", &said(", branch b"));
    let mut db = redis.connect().unwrap();
    record(&mut db, "5000-0", "return:4000-0", "u", &["outcome", "returned", "book_ids", "geb"]);
    req(&redis, &["where", "geb"]).is(0, "geb: on its shelf\n", "");
    req(&redis, &["loans", "u"]).is(0, "u has no books\n", "");
}

/// `outcome` named the user to everybody, which `history` does not.
#[test]
fn an_outcome_names_its_user_only_when_asked_who_it_was() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let fields = ["outcome", "denied", "cause", "too_many_books", "put_back", "geb"];
    record(
        &mut db,
        "5000-0",
        "request:4000-0",
        "jorge",
        &[&fields[..], &["in_hand", "5"]].concat(),
    );
    // By its answer too, not only by the stream of outcomes.
    answer(&mut db, "return:4001-0", &["user_id", "jorge", "outcome", "returned"]);
    let json = |event: &str, user: &str, fields: &str| {
        let (action, id) = event.split_once(':').unwrap();
        format!("{{\"event_id\":\"{id}\",\"action\":\"{action}\",{user}\"outcome\":{fields}}}\n")
    };
    let denied = r#""denied","cause":"too_many_books","put_back":["geb"],"in_hand":5"#;
    for (event, status, words, fields) in [
        ("request:4000-0", 1, "USER has 5 of 5, this asks for 1 more: nothing was lent\n", denied),
        ("return:4001-0", 0, "taken back from USER: \n", "\"returned\""),
    ] {
        let ask = |options: &[&str]| req(&redis, &[&["outcome", event], options].concat());
        ask(&[]).is(status, &words.replace("USER", "a user"), "");
        ask(&["--json"]).is(status, &json(event, "", fields), "");
        ask(&["--show-user"]).is(status, &words.replace("USER", "jorge"), "");
        let shown = json(event, "\"user_id\":\"jorge\",", fields);
        ask(&["--show-user", "--json"]).is(status, &shown, "");
    }
}

/// The event of a batch or a request has the sequence number 1000000 and the outcome of the same
/// millisecond 0: three in five requests that were decided in their millisecond were unknown once their
/// answer had run out. And while ids are ahead of the clock, which was put back, all were.
#[test]
fn an_outcome_is_found_that_has_a_smaller_id_than_its_event() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let fields = ["outcome", "returned", "book_ids", "geb"];
    record(&mut db, "3000-0", "return:9000-0", "ahead", &fields);
    record(&mut db, "5000-0", "return:5000-1000000", "quick", &fields);
    let ask = |id| req(&redis, &["outcome", id, "--show-user"]);
    ask("5000-1000000").is(0, "taken back from quick: geb\n", "");
    ask("9000-0").is(0, "taken back from ahead: geb\n", "");
}

/// With `--keep-events` a decided event stays in its stream: it was "still queued" for ever, once its
/// outcome was not kept any more.
#[test]
fn an_event_is_still_queued_only_if_it_will_be_decided() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let mut ask = |words: &str| {
        let mut words = words.split(' ');
        redis::cmd(words.next().unwrap()).arg(words.collect::<Vec<_>>()).exec(&mut db).unwrap();
    };
    let status = |id: &str| req(&redis, &["outcome", &format!("return:{id}")]).status();
    for id in ["1-0", "2-0", "3-0"] {
        ask(&format!("XADD {RETURNS} {id} user_id u book_ids geb"));
    }
    assert_eq!(status("1-0"), Some(3), "nobody has ever read the stream");
    ask(&format!("XGROUP CREATE {RETURNS} lending_service 0"));
    ask(&format!("XREADGROUP GROUP lending_service worker1 COUNT 2 STREAMS {RETURNS} >"));
    ask(&format!("XACK {RETURNS} lending_service 1-0"));
    let statuses = ["1-0", "2-0", "3-0", "4-0"].map(status);
    assert_eq!(statuses, [Some(1), Some(3), Some(3), Some(1)], "decided, in work, waiting, none");
    ask(&format!("XDEL {RETURNS} 2-0 3-0"));
    assert_eq!(status("2-0"), Some(3), "it was deleted in work: it ends in the dead letters");
    assert_eq!(status("3-0"), Some(1), "it was deleted before");
}

#[test]
fn loans_tell_all_books_of_one_user_among_many() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    for n in 0..5_000 {
        let _: () = db.hset("lent_books", format!("b{n}"), format!("u{n}")).unwrap();
    }
    for book in ["geb", "momo"] {
        let _: () = db.hset("lent_books", book, "me").unwrap();
    }
    let _: () = db.set("user:me:count", 2).unwrap();
    req(&redis, &["loans", "me"]).is(0, "me has 2 of 5 books: geb, momo\n", "");
    req(&redis, &["loans", "me", "--json"]).is(
        0,
        "{\"user_id\":\"me\",\"in_hand\":2,\"limit\":5,\"book_ids\":[\"geb\",\"momo\"]}\n",
        "",
    );
    req(&redis, &["loans", "nobody"]).is(0, "nobody has no books\n", "");
    // A count that has gone astray contradicts no book that is there.
    let _: () = db.set("user:me:count", 0).unwrap();
    let _: () = db.hset("lending_books_of_users", "me", "geb,momo,b1").unwrap();
    req(&redis, &["loans", "me"]).is(
        0,
        "me has 2 of 5 books: geb, momo\n",
        "library-req: the count of me is 0: it changes right now, or library-admin check tells why\n",
    );
    let _: () = db.set("user:me:count", 3).unwrap();
    req(&redis, &["loans", "me"]).is(
        0,
        "me has 2 of 5 books: geb, momo\n",
        "library-req: the count of me is 3: it changes right now, or library-admin check tells why\n",
    );
    let json = req(&redis, &["loans", "me", "--json"]).stdout;
    assert!(json.contains("\"in_hand\":3,"), "a program is told the count: {json}");
    // It ended with an error of conversion, and the books were not told.
    let _: () = db.set("user:me:count", "two").unwrap();
    let said = "library-req: the count of me is two: library-admin check tells why\n";
    req(&redis, &["loans", "me"]).is(0, "me has 2 of 5 books: geb, momo\n", said);
    req(&redis, &["loans", "me", "--json"]).is(
        0,
        "{\"user_id\":\"me\",\"in_hand\":2,\"limit\":5,\"book_ids\":[\"geb\",\"momo\"]}\n",
        said,
    );
}

#[test]
fn where_tells_the_place_of_a_book_and_only_when_asked_who_has_it() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let _: () = redis::pipe()
        .hset("lent_books", "lent", "user1")
        .ignore()
        .sadd("automated_book_storage", "stored")
        .ignore()
        .hset("lending_book_states", "reserved", "?17-0")
        .ignore()
        .hset("lending_book_states", "returning", ">18-0")
        .ignore()
        .hset("shelving_service_state", "returning", "17-0")
        .ignore()
        .hset("lending_book_states", "back", ">18-0")
        .ignore()
        .hset("shelving_service_state", "theirs", "19-0")
        .ignore()
        .sadd("request:19-0:temp", "theirs")
        .ignore()
        .hset("shelving_service_state", "lost", "20-0")
        .ignore()
        .query(&mut db)
        .unwrap();
    for (book, words) in [
        ("lent", "lent"),
        ("stored", "in automated storage"),
        ("reserved", "reserved by a request that is being worked on"),
        ("returning", "on its way to its shelf"),
        ("back", "on its shelf"),
        ("theirs", "reserved by a request that is being worked on"),
        ("lost", "out of main storage, on its way or missing (library-admin check)"),
        ("never seen", "on its shelf"),
    ] {
        req(&redis, &["where", book]).is(0, &format!("{book}: {words}\n"), "");
    }
    req(&redis, &["where", "lent", "--show-user"]).is(0, "lent: lent to user1\n", "");
    let json = "{\"book_id\":\"lent\",\"where\":\"lent\"}\n";
    req(&redis, &["where", "lent", "--json"]).is(0, json, "");
}

/// The second book has a character in it that has no width, and the third its escape, spelt out: the
/// first two were printed alike, and so would be the last two.
#[test]
fn two_books_that_differ_are_never_printed_alike() {
    let redis = Redis::new();
    alive(&mut redis.connect().unwrap(), REQUESTS, "worker1");
    req(&redis, &["where", "geb"]).is(0, "geb: on its shelf\n", "");
    req(&redis, &["where", "ge\u{200b}b"]).is(0, "ge\\u{200b}b: on its shelf\n", "");
    req(&redis, &["where", r"ge\u{200b}b"]).is(0, "ge\\\\u{200b}b: on its shelf\n", "");
    let json = "{\"book_id\":\"ge\\u200bb\",\"where\":\"shelf\"}\n";
    req(&redis, &["where", "ge\u{200b}b", "--json"]).is(0, json, "");
}

#[test]
fn history_tells_the_latest_outcomes_and_how_far_back_it_reaches() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    req(&redis, &["history"]).is(0, "", "library-req: there are no outcomes yet\n");
    for n in 1..=2_500_u64 {
        let (id, event) = (format!("{}-0", n * 1_000), format!("request:{n}-0"));
        let book = format!("b{n}");
        let user = if n % 1_000 == 0 { "rare" } else { "u" };
        record(&mut db, &id, &event, user, &["outcome", "accepted", "book_ids", &book]);
    }
    let reach = "library-req: outcomes are kept from 1970-01-01T00:00:01.000Z on\n";
    req(&redis, &["history", "--last", "2"]).is(
        0,
        "1970-01-01T00:41:39.000Z request 2499-0: lent to a user: b2499\n\
         1970-01-01T00:41:40.000Z request 2500-0: lent to a user: b2500\n",
        "",
    );
    let ended = req(&redis, &["history"]);
    assert_eq!((ended.stdout.lines().count(), &*ended.stderr), (20, ""), "{ended}");
    let ended = req(&redis, &["history", "--last", "2500"]);
    assert_eq!((ended.stdout.lines().count(), &*ended.stderr), (2_500, ""), "{ended}");
    assert_eq!(req(&redis, &["history", "--last", "2501"]).stderr, reach);
    assert_eq!(req(&redis, &["history", "--since", "1970-01-01", "--last", "2"]).stderr, reach);
    req(&redis, &["history", "--user", "rare"]).is(
        0,
        "1970-01-01T00:16:40.000Z request 1000-0: lent to rare: b1000\n\
         1970-01-01T00:33:20.000Z request 2000-0: lent to rare: b2000\n",
        reach,
    );
    req(&redis, &["history", "--since", "1970-01-01T00:41:40Z", "--json"]).is(
        0,
        "{\"time\":\"1970-01-01T00:41:40.000Z\",\"event_id\":\"2500-0\",\"action\":\"request\",\
         \"outcome\":\"accepted\",\"book_ids\":[\"b2500\"]}\n",
        "",
    );
    assert_eq!(req(&redis, &["history", "--since", "1970-01-01"]).stdout.lines().count(), 2_500);
    let since = ["history", "--since", "1970-01-01T00:41:39Z", "--last", "3"];
    assert_eq!(req(&redis, &since).stdout.lines().count(), 2);
    assert_eq!(req(&redis, &["history", "--book", "b7"]).stdout.lines().count(), 1);
}

#[test]
fn history_since_some_time_ago_goes_by_the_servers_clock() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let (now, _): (u64, u64) = redis::cmd("TIME").query(&mut db).unwrap();
    let id = format!("{}-0", (now - 600) * 1_000);
    record(&mut db, &id, "request:1-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    for (since, lines) in [("630s", 1), ("590s", 0)] {
        let ended = req(&redis, &["history", "--since", since]);
        assert_eq!(ended.stdout.lines().count(), lines, "{ended}");
    }
}

#[test]
fn who_reads_no_further_than_this_has_seen_enough_of_history() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    record(&mut db, "5000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let history = start_with(&redis, &["history"], |command| {
        command.stdout(writer);
    });
    history.ends().is(0, "", "");
}

/// Lines about rejected events left their user out, also where he was asked for.
#[test]
fn history_tells_whose_event_was_rejected() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let fields = ["outcome", "rejected", "cause", "no_book_ids"];
    record(&mut db, "5000-0", "request:1-0", "jorge", &fields);
    for (options, user) in [(&["--show-user"][..], "jorge"), (&[], "a user")] {
        let told = format!(
            "1970-01-01T00:00:05.000Z request 1-0: rejected, for {user}: no book ids; the event \
             went to the dead letters\n"
        );
        assert_eq!(req(&redis, &[&["history"], options].concat()).stdout, told);
    }
}

#[test]
fn history_since_before_it_reaches_says_so() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    record(&mut db, "5000-0", "request:1-0", "u", &["outcome", "accepted", "book_ids", "geb"]);
    let ended = req(&redis, &["history", "--since", "1970-01-01"]);
    ended.is(
        0,
        "1970-01-01T00:00:05.000Z request 1-0: lent to a user: geb\n",
        "library-req: outcomes are kept from 1970-01-01T00:00:05.000Z on\n",
    );
    req(&redis, &["history", "--since", "1970-01-01T00:00:05Z"]).is(0, &ended.stdout, "");
}

#[test]
fn hostile_bytes_in_an_outcome_or_a_file_name_send_no_codes_to_a_terminal_and_stay_valid_json() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let fields = [
        ("event_id", &b"1-0\x1b[31m\nforged"[..]),
        ("action", b"request\x1b]0;t\x07"),
        ("user_id", b"u\x9b\xff"),
        ("outcome", b"accepted"),
        ("book_ids", b"a\x1b[2J,\xe2\x80\xaeb"),
    ];
    let mut add = redis::cmd("XADD");
    add.arg(OUTCOMES).arg("5000-0");
    for (name, value) in fields {
        add.arg(name).arg(value);
    }
    add.exec(&mut db).unwrap();
    let quiet = "library-req: outcomes are kept from 1970-01-01T00:00:05.000Z on\n";
    req(&redis, &["history", "--show-user"]).is(
        0,
        "1970-01-01T00:00:05.000Z request\\u{1b}]0;t\\u{7} 1-0\\u{1b}[31m\\u{a}forged: \
         lent to u\u{fffd}\u{fffd}: a\\u{1b}[2J, \\u{202e}b\n",
        quiet,
    );
    req(&redis, &["history", "--json"]).is(
        0,
        "{\"time\":\"1970-01-01T00:00:05.000Z\",\"event_id\":\"1-0\\u001b[31m\\nforged\",\
         \"action\":\"request\\u001b]0;t\\u0007\",\"outcome\":\"accepted\",\
         \"book_ids\":[\"a\\u001b[2J\",\"\\u202eb\"]}\n",
        quiet,
    );
    // What others chose is in messages too.
    for args in [&["batch", "no\u{1b}[31m\nfile"][..], &["--no\u{1b}[31m"]] {
        let ended = req(&redis, args);
        assert_eq!(ended.status(), Some(2), "{ended}");
        assert!(
            ended.stderr.contains("no\\u{1b}[31m") && !ended.stderr.contains('\u{1b}'),
            "{ended}"
        );
    }
}

/// Only library-admin said what to do about it.
#[test]
fn a_key_of_the_wrong_type_is_told_with_who_says_which() {
    let redis = Redis::new();
    redis.cmd(&["SET", "lent_books", "spoilt"]);
    let ended = req(&redis, &["where", "geb"]);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains(" (library-admin check says which key it is); "), "{ended}");
}
