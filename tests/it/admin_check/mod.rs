//! `library-admin check`: every violation is found, nothing that is in motion is taken for one,
//! and mending makes nothing worse.

mod lost_groups;
mod motion;
mod repair;
mod steps;

use crate::common::*;

const WELL: &str = "nothing is wrong\n";

const GROUPS: [(&str, &str); 3] =
    [(REQUESTS, "lending_service"), (RETURNS, "lending_service"), (SHELVING, "shelving_service")];

fn check(redis: &Redis) -> TestCommand {
    TestCommand::library_admin(redis, &["check"])
}

fn repair(redis: &Redis) -> TestCommand {
    TestCommand::library_admin(redis, &["check", "--repair"])
}

/// Nothing was wrong with a branch that was mistyped, nor with a Redis that had come back without its data.
#[test]
fn where_no_library_is_something_is_wrong() {
    let redis = Redis::new();
    let branch = redis.branch("nowhere");
    let said = |branch: &str| {
        format!(
            "library-admin: there is no library on Redis at {}{branch}: no libraryd has ever run there, \
             or its data is gone\n",
            redis.address()
        )
    };
    assert_eq!(check(&redis).exits(1).stderr, said(""));
    let mut daemon = Daemon::start(&redis, &["worker1"]);
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    assert_eq!(check(&branch).exits(1).stderr, said(", branch nowhere"));
    assert_eq!(daemon.stop(), 0);
    assert_eq!(check(&redis).exits(0).stdout, WELL);
}

/// Checks, and runs these commands before Redis has the check's `number`-th of a kind. (The first call of
/// a script that Redis does not know yet counts twice.)
fn check_while(
    redis: &Redis,
    args: &[&str],
    (kind, number): (&'static str, usize),
    meanwhile: &'static [&str],
) -> TestCommand {
    let of_proxy = redis.clone();
    let proxy = Proxy::new(redis, move |command| {
        if (command.kind, command.number) == (kind, number) {
            for command in meanwhile {
                of_proxy.cmd(&command.split(' ').collect::<Vec<_>>());
            }
        }
        None
    });
    let address = proxy.path().display().to_string();
    TestCommand::library_admin(redis, &[&["check", "-a", &address], args].concat())
}

/// A library in which all is well: loans, a full storage, counts, an outcome.
fn healthy(redis: &Redis) {
    let stored: Vec<_> = (0..20).map(|n| format!("stored{n}")).collect();
    Ledger::new()
        .lent("user1", &["geb", "momo"], "1-0")
        .lent("user2", &["a", "b", "c", "d", "e"], "2-0")
        .stored(&stored, "3-0")
        .lay_down(redis);
    redis.cmd(&["SET", &redis.key("user:user3:count"), "0"]);
    let fields: [(&str, &[u8]); 4] = [
        ("event_id", b"1-0"),
        ("action", b"request"),
        ("user_id", b"user1"),
        ("outcome", b"denied"),
    ];
    redis.add(OUTCOMES, "*", &fields);
    for (stream, group) in GROUPS {
        redis.cmd(&["XGROUP", "CREATE", &redis.key(stream), group, "0", "MKSTREAM"]);
    }
}

/// Commands that spoil a library, with what the check then says: at its end how many violations
/// there are, before that one of them.
const SPOILED: &[(&[&str], &str)] = &[
    (
        &["SREM automated_book_storage stored1", "SADD automated_book_storage geb"],
        "I1: stored1 is nowhere: out of main storage since request 3-0\n",
    ),
    (
        &[
            "SREM automated_book_storage stored1",
            "HDEL shelving_service_state stored1",
            "SADD automated_book_storage geb",
        ],
        "I1: geb is lent to user1 and in automated storage\n",
    ),
    (&["HDEL shelving_service_state geb"], "I1: geb is lent to user1 and on its shelf\n"),
    // A hand-off explains only where a book is that is nowhere.
    (
        &[
            "HDEL shelving_service_state stored7",
            "XADD books_for_shelving_event_stream 4-0 book_ids stored7",
        ],
        "I1: stored7 is in automated storage and on its shelf\n",
    ),
    (
        &["XADD books_for_shelving_event_stream 4-0 book_ids lost,geb"],
        "I1: geb is lent to user1 and on its way to its shelf in hand-off 4-0\n",
    ),
    (
        &[
            "XADD books_for_shelving_event_stream 4-0 book_ids stored1",
            "XREADGROUP GROUP shelving_service somebody STREAMS books_for_shelving_event_stream >",
        ],
        "I1: stored1 is in automated storage and on its way to its shelf in hand-off 4-0\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids geb",
            "HSET lending_book_states geb ?9-0",
        ],
        "I1: geb is lent to user1 and reserved: ?9-0\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids stored1",
            "HSET lending_book_states stored1 ?9-0",
        ],
        "I1: stored1 is in automated storage and reserved: ?9-0\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids geb",
            "SADD request:9-0:temp geb",
        ],
        "I1: geb is lent to user1 and reserved in request:9-0:temp\n1 violation\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids stored1",
            "SADD request:9-0:temp stored1",
        ],
        "I1: stored1 is in automated storage and reserved in request:9-0:temp\n1 violation\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids x",
            "XADD lending_requests_event_stream 10-0 user_id u book_ids x",
            "HSET shelving_service_state x 1-0",
            "SADD request:9-0:temp x",
            "HSET lending_book_states x ?10-0",
        ],
        "I1: x is reserved by a request of ours: ?10-0 and reserved in request:9-0:temp\n1 violation\n",
    ),
    (
        &["HSET shelving_service_state lost 17-0"],
        "I1: lost is nowhere: out of main storage since request 17-0\n",
    ),
    // Shelved long ago: a mark of a hand-off that is done explains nothing.
    (
        &["HSET shelving_service_state lost 17-0", "HSET lending_book_states lost >4-0"],
        "I1: lost is nowhere: out of main storage since request 17-0\n",
    ),
    (
        &["HSET lending_book_states lost ?17-0"],
        "I6: lost is reserved by a request that is decided: ?17-0\n",
    ),
    (
        &["HSET lending_book_states lost ?17-0", "HSET shelving_service_state lost 17-0"],
        "I6: lost is reserved by a request that is decided: ?17-0\n",
    ),
    (&["HSET lending_book_states lost !"], "I6: lost is in a state that means nothing: !\n"),
    (&["HSET lending_book_states lost =17"], "I6: lost is in a state that means nothing: =17\n"),
    (
        &["SADD request:17-0:temp geb lost"],
        "I6: request:17-0:temp reserves 2 books for a request that is decided\n",
    ),
    (
        &["SADD request:none:temp geb"],
        "I6: request:none:temp reserves 1 book for a request that is decided\n",
    ),
    (
        &["SET request:17-0:temp geb"],
        "type: the key request:17-0:temp is a string where a set is expected\n",
    ),
    (
        &["DEL user:user1:count", "SADD user:user1:count 2"],
        "type: the key user:user1:count is a set where a string is expected\n",
    ),
    (
        &["SADD user:nobody:count 2"],
        "type: the key user:nobody:count is a set where a string is expected\n",
    ),
    (
        &["DEL lending_ties", "SET lending_ties 1"],
        "type: the key lending_ties is a string where a hash is expected\n",
    ),
    (
        &["DEL lent_books", "SADD lent_books geb"],
        "type: the key lent_books is a set where a hash is expected\n",
    ),
    (&["SET user:user1:count 3"], "I2: the count of user1 is 3, with 2 books lent\n"),
    (&["SET user:user1:count 1"], "I2: the count of user1 is 1, with 2 books lent\n"),
    (&["SET user:user1:count -2"], "I2: the count of user1 is -2, with 2 books lent\n"),
    (&["SET user:user1:count two"], "I2: the count of user1 is two, with 2 books lent\n"),
    (&["DEL user:user1:count"], "I2: the count of user1 is missing, with 2 books lent\n"),
    (&["SET user:user3:count 1"], "I2: the count of user3 is 1, with 0 books lent\n"),
    (
        &["HSET lent_books f user2", "HSET shelving_service_state f 1-0", "INCR user:user2:count"],
        "I2: user2 has 6 books, and 5 are the most allowed\n",
    ),
    (
        &[
            "SREM automated_book_storage stored1",
            "HDEL shelving_service_state stored1",
            "SADD automated_book_storage a,b",
            "HSET shelving_service_state a,b 1-0",
        ],
        "I3: a,b is in automated storage and no book's id: nobody can ask for it\n1 violation\n",
    ),
    (
        &["LPUSH instance_lock:w1 x"],
        "type: the key instance_lock:w1 is a list where a string is expected\n1 violation\n",
    ),
    (
        &["SADD automated_book_storage more", "HSET shelving_service_state more 1-0"],
        "I3: 21 books in automated storage, which has room for 20\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids geb",
            "XGROUP SETID lending_requests_event_stream lending_service 99-0",
        ],
        "I4: the consumer group lending_service of lending_requests_event_stream is ahead of its stream: \
         it is at 99-0, the last event is 9-0, ",
    ),
    (
        &["XADD lending_outcomes_event_stream * event_id 1-0 action request outcome accepted"],
        "I4: event 1-0 of requests has two outcomes\n",
    ),
    (
        &[
            "XADD book_return_requests_event_stream 9-0 user_id u book_ids geb",
            "XADD lending_outcomes_event_stream * event_id 9-0 action return outcome returned",
        ],
        "I4: event 9-0 of returns has its outcome and is still worked on\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids geb",
            "XREADGROUP GROUP lending_service somebody STREAMS lending_requests_event_stream >",
            "XADD lending_outcomes_event_stream * event_id 9-0 action request outcome denied",
        ],
        "I4: event 9-0 of requests has its outcome and is still worked on\n",
    ),
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u",
            "XADD lending_dead_letter_event_stream * stream lending_requests_event_stream event_id 9-0",
        ],
        "I4: event 9-0 of requests is in the dead letters and is still worked on\n",
    ),
    // What is no reservation explains nothing.
    (
        &[
            "XADD lending_requests_event_stream 9-0 user_id u book_ids lost",
            "SET request:9-0:temp lost",
            "HSET shelving_service_state lost 8-0",
        ],
        "I1: lost is nowhere: out of main storage since request 8-0\n",
    ),
];

#[test]
fn every_kind_of_violation_is_found() {
    let redis = Redis::new();
    for (commands, said) in SPOILED {
        redis.cmd(&["FLUSHALL"]);
        healthy(&redis);
        for command in *commands {
            redis.cmd(&command.split(' ').collect::<Vec<_>>());
        }
        let run = check(&redis).exits(1);
        assert!(run.stdout.contains(said), "after {commands:?}: {run}");
    }
}

#[test]
fn a_library_in_which_all_is_well_raises_no_alarm() {
    let redis = Redis::new();
    healthy(&redis);
    // The two streams may give the same id.
    redis.add(OUTCOMES, "*", &[("event_id", b"1-0"), ("action", b"return")]);
    assert_eq!(check(&redis).exits(0).stdout, WELL);
    assert_eq!(TestCommand::library_admin(&redis, &["check", "--json"]).exits(0).stdout, "");
    let before = redis.everything();
    assert_eq!(repair(&redis).exits(0).stdout, WELL);
    assert_eq!(redis.everything(), before, "there was nothing to mend");
}

#[test]
fn each_violation_is_a_json_object_with_its_facts() {
    let redis = Redis::new();
    redis.cmd(&["HSET", LENT_BOOKS, "a\nb", "us\"er"]);
    redis.cmd(&["HSET", SHELVES, "a\nb", "17-0"]);
    redis.cmd(&["HSET", SHELVES, "lost", "18-0"]);
    redis.hand_off("4-0", "a\nb");
    let run = TestCommand::library_admin(&redis, &["check", "--json"]).exits(1);
    assert_eq!(
        run.stdout,
        concat!(
            r#"{"invariant":"I1","fault":"nowhere","book":"lost","fetched_by":"18-0"}"#,
            "\n",
            r#"{"invariant":"I1","fault":"lent_in_hand_off","book":"a\nb","hand_off":"4-0","user":"us\"er"}"#,
            "\n",
            r#"{"invariant":"I2","fault":"count_differs","user":"us\"er","lent":1,"count":""}"#,
            "\n",
        ),
        "{run}"
    );
    // For people too, nothing forges a line.
    redis.cmd(&["DEL", SHELVES]);
    let run = check(&redis).exits(1);
    assert!(run.stdout.starts_with("I1: a\\u{a}b is lent to us\"er and on its shelf\n"), "{run}");
}

#[test]
fn a_book_in_two_reservations_is_found_and_one_whose_request_is_decided_is_no_second() {
    let redis = Redis::new();
    healthy(&redis);
    redis.cmd(&["HSET", SHELVES, "x", "1-0", "y", "1-0"]);
    let requests = ["9-0", "10-0"].map(|id| redis.request_at(id, "user9", "x,y"));
    for request in &requests {
        redis.cmd(&["SADD", &format!("request:{request}:temp"), "x"]);
    }
    redis.cmd(&["SADD", "request:9-0:temp", "y"]);
    redis.cmd(&["HSET", "lending_book_states", "y", "?9-0"]);
    let run = check(&redis).exits(1);
    let said = |one, other| {
        run.stdout
            == format!(
                "I1: x is reserved in request:{one}:temp and reserved in request:{other}:temp\n\
                 1 violation\n"
            )
    };
    assert!(said("9-0", "10-0") || said("10-0", "9-0"), "{run}");
    redis.cmd(&["XDEL", REQUESTS, "10-0"]);
    let run = check(&redis).exits(1);
    let said = "I6: request:10-0:temp reserves 1 book for a request that is decided\n1 violation\n";
    assert_eq!(run.stdout, said);
}

/// Such a hash comes whole, in one page of the scan.
#[test]
fn all_books_are_looked_at_however_many_are_kept_in_a_small_hash() {
    let redis = Redis::with(&["--hash-max-ziplist-entries", "1000"]);
    for n in 0..300 {
        redis.cmd(&["HSET", SHELVES, &n.to_string(), "1-0"]);
    }
    let said = check(&redis).exits(1).stdout;
    assert!(said.ends_with("\n300 violations\n"), "{said}");
}
