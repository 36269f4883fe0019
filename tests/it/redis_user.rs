//! The Redis user that the manual describes: with its rights everything works, and no other key is
//! in reach.

use std::time::{Duration, Instant};

use crate::common::*;

/// The rights of a user, as library-lending(7) lists them.
fn rights(user: &str) -> Vec<String> {
    const PAGE: &str = include_str!("../../src/man/library-lending.7");
    let (_, behind) = PAGE.split_once(&format!("ACL SETUSER {user} on '>PASSWORD'")).unwrap();
    let (rights, _) = behind.split_once("\n.Ed").unwrap();
    let words = rights.split_whitespace().filter(|word| *word != "\\e");
    words.map(|word| word.trim_matches('\'').to_owned()).collect()
}

/// A Redis with one of the manual's users.
fn redis_with(user: &str) -> Redis {
    let redis = Redis::new();
    let rights = rights(user);
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    redis.cmd(&[&["ACL", "SETUSER", user, "on", ">right"], &rights[..]].concat());
    redis
}

const CLERK: [&str; 4] = ["--username", "library", "--password", "right"];
const MONITOR: [&str; 4] = ["--username", "monitor", "--password", "right"];

#[test]
fn the_user_of_the_manual_may_do_what_is_done_and_no_more() {
    let redis = redis_with("library");
    Ledger::new().lent("user1", &["lent"], "1-0").nowhere(&["emma"], "1-0").lay_down(&redis);
    // Something to take over, to put on its shelf, and to reject.
    redis.request("user2", "lent,momo");
    Other::gone(&redis, "dead").take(REQUESTS);
    redis.hand_off("*", "emma");
    redis.request("", "geb");
    let daemons = ["worker1", "worker2"].map(|name| {
        Daemon::start(&redis, &[&CLERK[..], &["--lease", "1", "--retain-days", "1", name]].concat())
    });
    let run = |args: &[&str]| TestCommand::library_req(&redis, &[&CLERK[..], args].concat());
    run(&["request", "user1", "geb", "--id", "one"]).exits(0);
    run(&["return", "user1", "lent"]).exits(0);
    run(&["loans", "user1"]).exits(0);
    run(&["where", "geb", "--show-user"]).exits(0);
    run(&["history", "--user", "user1"]).exits(0);
    let lines: String = (0..3_000).map(|n| format!("request user{n} book{n}\n")).collect();
    let file = redis.directory().join("batch");
    std::fs::write(&file, lines).unwrap();
    run(&["batch", &file.display().to_string()]).exits(0);
    let admin = |args: &[&str]| TestCommand::library_admin(&redis, &[&CLERK[..], args].concat());
    admin(&["status"]).exits(0);
    admin(&["check"]).exits(0);
    admin(&["dead-letters", "list"]).exits(0);
    for mut daemon in daemons {
        assert_eq!(daemon.stop(), 0);
        let log = daemon.log().to_lowercase();
        for word in ["permi", "noperm", "error"] {
            assert!(!log.contains(word), "{word}: {log}");
        }
    }
    redis.assert_at_rest();
    let mut connection = redis.connect().unwrap();
    redis::cmd("AUTH").arg(&["library", "right"]).exec(&mut connection).unwrap();
    // Without it a reader is not woken, and to stop takes as long as a read blocks.
    let woken: u64 =
        redis::cmd("CLIENT").arg(&["UNBLOCK", "999999"]).query(&mut connection).unwrap();
    assert_eq!(woken, 0);
    for command in [&["FLUSHALL"][..], &["KEYS", "*"], &["CONFIG", "GET", "*"], &["GET", "other"]] {
        let mut tried = redis::cmd(command[0]);
        let error = tried.arg(&command[1..]).exec(&mut connection).unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{command:?}");
    }
}

#[test]
fn the_user_that_only_looks_may_do_that_and_changes_nothing() {
    let redis = redis_with("monitor");
    let _daemon = Daemon::start(&redis, &["worker1"]);
    let id = redis.request("user1", "geb");
    redis.outcome_of_request(&id);
    redis.request("", "momo");
    redis.wait_until_drained(DEADLINE);
    redis.cmd(&["INCR", "user:user1:count"]);
    redis.cmd(&["SCRIPT", "FLUSH"]);
    // Nobody else writes any more.
    let before = redis.everything();
    let req = |args: &[&str]| TestCommand::library_req(&redis, &[&MONITOR[..], args].concat());
    let admin = |args: &[&str]| TestCommand::library_admin(&redis, &[&MONITOR[..], args].concat());
    req(&["outcome", &id]).exits(0);
    req(&["loans", "user1"]).exits(0);
    req(&["where", "geb", "--show-user"]).exits(0);
    req(&["history", "--user", "user1"]).exits(0);
    let args = [&MONITOR[..], &["watch"]].concat();
    let mut watch = Running::start(&redis, env!("CARGO_BIN_EXE_library-req"), &args, |_| {});
    let watches = |client: &str| client.contains("user=monitor") && client.contains("cmd=xread");
    let clients = || redis.ask::<String>(&["CLIENT", "LIST"]);
    assert!(eventually(DEADLINE, || clients().lines().any(watches)), "{}", clients());
    watch.process.signal(Signal::INT);
    assert_eq!(watch.ends().stderr, "");
    admin(&["status"]).exits(0);
    assert!(admin(&["check"]).exits(1).stdout.contains("count of user1"));
    admin(&["dead-letters", "list"]).exits(0);
    let letter = redis.entries(DEAD_LETTERS)[0].0.clone();
    for run in [
        req(&["request", "user1", "emma"]),
        req(&["return", "user1", "geb"]),
        admin(&["check", "--repair"]),
        admin(&["dead-letters", "retry", &letter]),
        admin(&["dead-letters", "drop", &letter]),
    ] {
        let run = run.exits(4);
        assert!(run.stderr.contains("see Redis users in library-lending(7)"), "{run}");
    }
    assert_eq!(redis.everything(), before);
}

/// A database that the server has not was asked for again and again; and so was one that it did not give
/// to this user, since redis-rs keeps only the words of what is said to SELECT, and not its code.
#[test]
fn a_database_that_cannot_be_had_ends_the_daemon_and_the_commands() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all", "-select"]);
    let clerk = ["--username", "clerk", "--password", "secret"];
    let wants_password = Redis::new();
    wants_password.cmd(&["CONFIG", "SET", "requirepass", "secret"]);
    for (redis, user, db, status, said) in [
        (&redis, &[][..], "99", 78, "this Redis has no database 99: DB index is out of range"),
        (&redis, &[], "99999999999", 78, "this Redis has no database 99999999999: "),
        (&redis, &clerk, "1", 77, "no permissions to run the 'select' command"),
        (&wants_password, &[], "1", 77, "a password is wanted"),
    ] {
        let with = |args: &[&'static str]| [user, &["--db", db], args].concat();
        let mut daemon = Daemon::spawn(redis, &with(&["worker1"]));
        assert_eq!(daemon.exit_status(), status, "{}", daemon.log());
        assert!(daemon.log().contains(said), "{}", daemon.log());
        for run in [
            TestCommand::library_req(redis, &with(&["request", "user1", "geb"])),
            TestCommand::library_admin(redis, &with(&["status"])),
        ] {
            let run = run.exits(4);
            assert!(run.stderr.contains(said), "{run}");
        }
    }
}

/// The lock stayed watched on the connection that wakes readers, and the transaction that does so came to
/// nothing: a lost group was made again when their reads were over.
#[test]
fn who_may_not_list_clients_still_wakes_its_readers() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all", "-client|list"]);
    let clerk = ["--username", "clerk", "--password", "secret"];
    let mut daemon = Daemon::start(&redis, &[&clerk[..], &["worker1"]].concat());
    // From now on the reader of hand-offs blocks for two seconds.
    redis.hand_off("*", "emma");
    redis.wait_until_drained(DEADLINE);
    // The machine may be busy for some of them.
    let took = [(); 3].map(|()| {
        let start = Instant::now();
        redis.cmd(&["XGROUP", "DESTROY", REQUESTS, "lending_service"]);
        redis.outcome_of_request(&redis.request("user1", "geb"));
        start.elapsed()
    });
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?} {}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

/// A server without AUTH (renamed away, or no Redis at all) repeats what it was sent: the password was
/// in the log.
#[test]
fn what_a_server_says_of_a_password_is_not_told() {
    use std::io::{BufRead as _, BufReader, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("redis://{}", listener.local_addr().unwrap());
    // Ends with the process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            // One answer for each command.
            for _ in lines.map_while(Result::ok).filter(|line| line.starts_with('*')) {
                let said = "-ERR unknown command 'AUTH', with args beginning with: 'geheim' \r\n";
                let _ = stream.write_all(said.as_bytes());
            }
        }
    });
    let redis = Redis::new();
    let options = ["-a", &address, "--password", "geheim"];
    let mut daemon = Daemon::spawn(&redis, &[&options[..], &["worker1"]].concat());
    assert_eq!(daemon.exit_status(), 77);
    let run = TestCommand::library_req(&redis, &[&["loans", "user1"], &options[..]].concat());
    let said = run.exits(4).stderr + &daemon.log();
    assert_eq!(said.matches("the user or the password was refused").count(), 2, "{said}");
    assert!(!said.contains("geheim"), "{said}");
}

/// Whoever gave a user but no password worked as the default user, without a word.
#[test]
fn a_user_that_needs_no_password_is_that_user() {
    let redis = Redis::new();
    for (user, right) in [("clerk", "+@all"), ("guest", "+ping")] {
        redis.cmd(&["ACL", "SETUSER", user, "on", "nopass", "~*", "&*", right]);
    }
    let _daemon = Daemon::start(&redis, &["--username", "clerk", "worker1"]);
    let may_not = "this Redis user needs more permissions";
    for (user, status, said) in [("clerk", 0, ""), ("guest", 4, may_not)] {
        for run in [
            TestCommand::library_req(&redis, &["request", "user1", "geb", "--username", user]),
            TestCommand::library_admin(&redis, &["status", "--username", user]),
        ] {
            let run = run.exits(status);
            assert!(run.stderr.contains(said), "{run}");
        }
    }
    let mut daemon = Daemon::spawn(&redis, &["--username", "guest", "worker2"]);
    assert_eq!(daemon.exit_status(), 77, "{}", daemon.log());
}

/// A wrong password and a server that has none at all were told in the same words, and both with the advice
/// to give one; and an empty file in which a password was looked for was told as a wrong password.
#[test]
fn why_user_and_password_are_refused_is_said() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all"]);
    for (user, said) in [
        (&["--password", "secret"][..], "refused: this Redis has no password (leave it out"),
        (
            &["--username", "clerk", "--password", "wrong"],
            "the user or the password was refused (give user",
        ),
        (
            &["--username", "clerk"],
            "the user or the password was refused: no password was given (give user",
        ),
    ] {
        let with = |args: &[&'static str]| [user, args].concat();
        let mut daemon = Daemon::spawn(&redis, &with(&["worker1"]));
        assert_eq!(daemon.exit_status(), 77);
        assert!(daemon.log().contains(said), "{}", daemon.log());
        for run in [
            TestCommand::library_req(&redis, &with(&["request", "user1", "geb"])),
            TestCommand::library_admin(&redis, &with(&["status"])),
        ] {
            let run = run.exits(4);
            assert!(run.stderr.contains(said), "{run}");
        }
    }
    for text in ["", "\nsecret\n"] {
        std::fs::write(redis.directory().join("password"), text).unwrap();
        let args = ["--password-file", "password"];
        let run = TestCommand::libraryd(&redis, &[&args[..], &["worker1"]].concat()).exits(2);
        assert!(run.stderr.contains("the first line of password is empty"), "{run}");
        TestCommand::library_admin(&redis, &[&args[..], &["status"]].concat()).exits(2);
    }
}

/// It hung up before it was asked why, and libraryd ended as after a wrong password.
#[test]
fn a_redis_with_too_many_clients_has_not_refused_a_password() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">secret", "~*", "&*", "+@all"]);
    let mut db = redis.connect().unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "1"]).exec(&mut db).unwrap();
    let clerk = ["--username", "clerk", "--password", "secret"];
    let told = |said: &str| {
        let is_it = said.contains("max number of clients") || said.contains("too many clients");
        is_it && !said.contains("give user")
    };
    for _ in 0..20 {
        let run = TestCommand::library_admin(&redis, &[&clerk[..], &["status"]].concat()).exits(4);
        assert!(told(&run.stderr), "{run}");
    }
    let daemon = Daemon::spawn(&redis, &[&clerk[..], &["worker1"]].concat());
    assert!(eventually(DEADLINE, || told(&daemon.log())), "{}", daemon.log());
    redis::cmd("CONFIG").arg(&["SET", "maxclients", "100"]).exec(&mut db).unwrap();
    let _daemon = daemon.ready();
}

/// Some disable commands by rename-command. A script that met one had acknowledged its event already: the
/// outcome was there and no loan, or the book in two places.
#[test]
fn a_redis_without_a_command_of_the_scripts_is_refused_before_anything_is_decided() {
    for command in ["DEL", "PEXPIRE", "SREM", "RPUSH", "XTRIM", "EVALSHA"] {
        let redis = Redis::with(&["--rename-command", command, ""]);
        let id = redis.request("user1", "geb");
        let mut daemon = Daemon::spawn(&redis, &["worker1"]);
        assert_eq!(daemon.exit_status(), 78, "{command}: {}", daemon.log());
        assert!(daemon.log().contains(command) || command == "EVALSHA", "{}", daemon.log());
        assert_eq!(redis.entries(REQUESTS)[0].0, id, "{command}");
        assert_eq!(redis.length(OUTCOMES), 0, "{command}");
    }
}
