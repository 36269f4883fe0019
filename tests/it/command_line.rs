//! Command lines of the daemon, right and wrong. Those of `library-req` are tested with it.

use crate::common::*;

#[test]
fn a_wrong_command_line_is_told_in_one_line_and_the_usage_in_another() {
    let redis = Redis::new();
    for args in [
        &[][..],
        &["worker1", "worker2"],
        &["--no-such-option", "worker1"],
        &["-x", "worker1"],
        &["--db", "many", "worker1"],
        &["worker1", "--address"],
        &["--address", "localhost", "worker1"],
        &["--force=yes", "worker1"],
        &["--branch", "{x}", "worker1"],
        &["--log-level", "loud", "worker1"],
        &["--log-outcomes", "some", "worker1"],
        &["two\nlines"],
        &["a,b"],
        &[""],
    ] {
        let run = TestCommand::libraryd(&redis, args).exits(2);
        let lines: Vec<_> = run.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{run}");
        assert!(
            lines[1].to_lowercase().contains("usage") && lines[1].contains("libraryd"),
            "{run}"
        );
        assert_eq!(run.stdout, "", "{run}");
    }
    assert!(redis.everything().0.is_empty(), "a wrong command line touches nothing");
}

/// What was typed went to the terminal as it was, and into the log.
#[test]
fn what_is_typed_sends_no_codes_to_a_terminal_nor_into_the_log() {
    let redis = Redis::new();
    let address = "\u{1b}[31m/x\nforged";
    for (run, told) in [
        (TestCommand::libraryd(&redis, &["--\u{1b}[31m"]).exits(2), "--\\u{1b}[31m\n"),
        (TestCommand::library_admin(&redis, &["--\u{1b}[31m"]).exits(2), "--\\u{1b}[31m\n"),
        (
            TestCommand::libraryd(&redis, &["-a", address, "w", "--exit-if-unavailable"]).exits(69),
            "w starts, on Redis at \\u{1b}[31m/x\\u{a}forged\n",
        ),
        (
            TestCommand::library_admin(&redis, &["-a", address, "status"]).exits(4),
            "Redis at \\u{1b}[31m/x\\u{a}forged: ",
        ),
    ] {
        assert!(run.stderr.contains(told) && !run.stderr.contains('\u{1b}'), "{run}");
        assert!(!run.stderr.contains("\nforged"), "{run}");
    }
}

#[test]
fn help_and_version_need_no_redis() {
    let redis = Redis::new();
    redis.kill9();
    for (args, said) in [
        (&["-h"][..], "UNIQUE_NAME"),
        (&["--help"], "--address"),
        (&["worker1", "--help"], "--force"),
        (&["-V"], env!("CARGO_PKG_VERSION")),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let run = TestCommand::libraryd(&redis, args).exits(0);
        assert!(run.stdout.contains(said), "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
}

#[test]
fn options_and_the_name_may_be_mixed() {
    let redis = Redis::new();
    redis.cmd(&["SELECT", "3"]);
    let address = redis.address();
    for args in [
        &["worker1", "--db", "3", "-a", &address][..],
        &["--db=3", "worker1", "--address", &address],
        &["-a", &address, "-f", "--db", "3", "--", "worker1"],
    ] {
        let mut daemon = Daemon::start(&redis, args);
        let locked: bool = redis.ask(&["EXISTS", "instance_lock:worker1"]);
        assert!(locked, "{args:?}");
        assert_eq!(daemon.stop(), 0);
    }
}

#[test]
fn the_address_may_be_a_url_or_the_path_of_a_socket() {
    let redis = Redis::tcp(&[]);
    for address in [redis.address(), redis.url(), format!("unix://{}", redis.address())] {
        let mut daemon = Daemon::start(&redis, &["--address", &address, "worker1"]);
        let locked: bool = redis.ask(&["EXISTS", "instance_lock:worker1"]);
        assert!(locked, "{address}");
        assert_eq!(daemon.stop(), 0);
    }
}

/// `libraryd` could not take INFO apart, which RESP3 has another type for, and tried again until it worked.
#[test]
fn an_address_that_asks_for_resp3_serves_as_well() {
    let redis = Redis::tcp(&[]);
    let address = format!("{}/?protocol=resp3", redis.url());
    let at = ["--address", &address];
    let _daemon = Daemon::start(&redis, &[&at, &["worker1"][..]].concat());
    for args in [&["request", "user1", "geb"][..], &["loans", "user1"], &["history"]] {
        let said = TestCommand::library_req(&redis, &[args, &at].concat()).exits(0);
        assert!(said.stdout.contains("geb"), "{said}");
    }
    for args in [&["status"][..], &["check"], &["dead-letters", "list"]] {
        TestCommand::library_admin(&redis, &[args, &at].concat()).exits(0);
    }
}
