//! What the daemon says.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use library_lending::clock::{Since, since};
use redis::Value;

use crate::common::*;

/// The lines that have all of these words.
fn lines_with(daemon: &Daemon, words: &[&str]) -> Vec<String> {
    let has_all = |line: &&str| {
        let line = line.to_lowercase();
        words.iter().all(|word| line.contains(word))
    };
    daemon.log().lines().filter(has_all).map(str::to_owned).collect()
}

fn assert_one_line_with(daemon: &Daemon, words: &[&str]) {
    let one = eventually(DEADLINE, || lines_with(daemon, words).len() == 1);
    assert!(one, "no one line with {words:?}:\n{}", daemon.log());
}

#[test]
fn each_outcome_is_one_line_that_says_who_what_and_why_not() {
    let (redis, daemon) =
        library(&Ledger::new().lent("user2", &["theirs"], "5-0").lent("user3", &["a", "b"], "5-0"));
    for (request, user, books) in [
        (true, "user1", "geb,theirs"),
        (true, "user4", "theirs"),
        (true, "user3", "w,x,y,z"),
        (false, "user2", "theirs"),
        (false, "user5", "unheard-of"),
    ] {
        if request {
            redis.outcome_of_request(&redis.request(user, books));
        } else {
            redis.outcome_of_return(&redis.give_back(user, books));
        }
    }
    assert_one_line_with(&daemon, &["user1", "accepted", "geb", "theirs"]);
    assert_one_line_with(&daemon, &["user4", "denied", "theirs"]);
    assert_one_line_with(&daemon, &["user3", "denied", "w", "x", "y", "z"]);
    assert_one_line_with(&daemon, &["user2", "returned", "theirs"]);
    assert_one_line_with(&daemon, &["user5", "unchanged", "unheard-of"]);
    let log = daemon.log();
    assert!(!log.contains('\u{1b}'), "colours: {log}");
}

/// A chunk had one request decided and one that shelving was to be asked for once more; that could not be
/// sent, and the line of the decided one, collected until all of the chunk is done, went with the session.
#[test]
fn what_is_decided_is_told_though_the_link_breaks_before_what_follows() {
    let redis = Redis::new();
    Ledger::new().nowhere(&["lost"], "5-0").lay_down(&redis);
    let decided = redis.request("user1", "geb");
    redis.request("user2", "lost");
    // To the first, Redis says that it does not know the script.
    let proxy = Proxy::at(&redis, "decide", 2, Fault::CutBehind);
    let daemon = proxy.spawn(&redis, &["worker1"]).ready();
    redis.wait_until_drained(DEADLINE);
    assert!(proxy.has_struck());
    assert_one_line_with(&daemon, &[&decided, "user1", "accepted", "geb"]);
    assert_one_line_with(&daemon, &["user2", "denied", "lost"]);
}

/// Of a malformed event the line names the user as far as it can.
#[test]
fn who_sent_a_malformed_event_is_named_where_he_can_be() {
    let (redis, daemon) = library(&Ledger::new());
    let long = [b'u'; 257];
    for (user, named, cause) in [
        (Some(&b"user1"[..]), " by user1", "no_book_ids"),
        (Some(b"0"), " by 0", "no_book_ids"),
        (Some(b"1"), " by 1", "no_book_ids"),
        (Some(b"STALE"), " by STALE", "no_book_ids"),
        (Some(b"us\ner"), " by us\\u{a}er", "user_id_with_control_character"),
        (Some(b""), "", "user_id_empty"),
        (Some(b"\xff"), "", "user_id_not_utf8"),
        (Some(&long), "", "user_id_too_long"),
        (None, "", "no_user_id"),
    ] {
        let mut fields = vec![("book_ids", &b""[..])];
        fields.extend(user.map(|user| ("user_id", user)));
        let id = redis.add(REQUESTS, "*", &fields);
        let line = format!("INFO  [lending] request {id}{named} REJECTED: {cause}\n");
        assert!(eventually(DEADLINE, || daemon.log().contains(&line)), "{line}{}", daemon.log());
    }
}

/// Who looks for what an instance does looks in that database and under that branch.
#[test]
fn the_first_line_says_which_database_and_which_branch_it_works_on() {
    let redis = Redis::new();
    let address = redis.address();
    let url = format!("unix://{address}?db=2");
    for (args, part) in [
        (&["worker1"][..], ""),
        (&["worker2", "--db", "3"], ", database 3"),
        (&["worker3", "--branch", "north"], ", branch north"),
        (&["worker4", "-a", &url, "--branch", "north"], ", database 2, branch north"),
    ] {
        let daemon = Daemon::start(&redis, args);
        let log = daemon.log();
        let first = format!("{} starts, on Redis at {address}{part}", args[0]);
        assert!(log.lines().next().is_some_and(|line| line.ends_with(&first)), "{log}");
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// `journalctl -p warning` found nothing, whatever went wrong: what stderr says is information, unless
/// a line begins with its priority. Everywhere else nothing said when it happened: a file with the log of a
/// night told of an outage, and of its length, and not of the hour.
#[test]
fn lines_begin_with_their_priority_in_the_journal_and_with_their_time_elsewhere() {
    for to_journal in [true, false] {
        let redis = Redis::new();
        redis.request("", "geb");
        let path = redis.directory().join("journal");
        let file = File::create(&path).unwrap();
        let about = file.metadata().unwrap();
        // Of systemd's variable for a service that passed it on to one with a stderr of its own.
        let inode = about.ino() + u64::from(!to_journal);
        let mut command = Command::new(env!("CARGO_BIN_EXE_libraryd"));
        command
            .args(["-a", &redis.address(), "worker1"])
            .env_clear()
            .env("JOURNAL_STREAM", format!("{}:{inode}", about.dev()))
            .stdin(Stdio::null())
            .stderr(file);
        let mut daemon = Process::spawn(&mut command);
        redis.outcome_of_request(&redis.request("user1", "geb"));
        let last = redis.request("user1", "momo");
        redis.outcome_of_request(&last);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(DEADLINE).and_then(|status| status.code()), Some(0));
        let log = fs::read_to_string(&path).unwrap();
        let mut levels = BTreeSet::new();
        for line in log.lines() {
            let (head, rest) =
                if to_journal { line.split_at(3) } else { line.split_once(' ').unwrap() };
            let level = rest.split(' ').next().unwrap();
            if to_journal {
                let priorities = HashMap::from([("INFO", "<6>"), ("WARN", "<4>")]);
                assert_eq!(priorities.get(level), Some(&head), "{line}");
            } else {
                let Some(Since::At(time)) = since(head) else { panic!("{line}") };
                let seconds = Duration::from_millis(time).abs_diff(since_1970()).as_secs();
                assert!(head.len() == "2026-01-31T12:00:00.000Z".len() && seconds < 60, "{line}");
                assert!(!rest.contains(&last) || time >= numbers(&last).0, "{line}");
            }
            levels.insert(level);
        }
        assert_eq!(levels.len(), 2, "{log}");
    }
}

/// A full disk under the log, or a collector that died, ended each instance with SIGABRT as soon as it
/// had a word to say, at the next hiccup of Redis at the latest; and a restart did not help. A limit of a
/// file's size ended it with SIGXFSZ.
#[test]
fn a_log_that_cannot_be_written_stops_no_lending() {
    let nobody_reads = || Stdio::from(std::io::pipe().unwrap().1);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let limited = || {
        let log = File::options().append(true).create(true).open(dir.path().join("log")).unwrap();
        log.set_len(512).unwrap();
        Stdio::from(log)
    };
    for stderr in [&nobody_reads as &dyn Fn() -> Stdio, &full, &limited] {
        let redis = Redis::new();
        let libraryd = |args: &[&str]| {
            let mut command = Command::new("/bin/sh");
            // Of 512 bytes.
            command.args(["-c", "ulimit -f 1; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_libraryd")]);
            command.args(args).env_clear().stdin(Stdio::null()).stderr(stderr());
            Process::spawn(&mut command)
        };
        let ends_with = |mut process: Process, status| {
            assert_eq!(process.wait(DEADLINE).and_then(|it| it.code()), Some(status));
        };
        let address = redis.address();
        let mut daemon = libraryd(&["-a", &address, "worker1"]);
        redis.outcome_of_request(&redis.request("user1", "geb"));
        // It warns of that.
        let _: Value = redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        redis.outcome_of_request(&redis.request("user1", "momo"));
        daemon.signal(Signal::TERM);
        ends_with(daemon, 0);
        ends_with(libraryd(&["--no-such-option"]), 2);
    }
    assert_eq!(dir.path().join("log").metadata().unwrap().len(), 512);
}

#[test]
fn outcomes_are_logged_as_far_as_was_asked_for() {
    for (options, accepted, denied, warned) in [
        (&["--log-outcomes", "all"][..], 1, 1, 1),
        (&["--log-outcomes", "refused"], 0, 1, 1),
        (&["--log-outcomes=none"], 0, 0, 1),
        (&["--log-level", "warn"], 0, 0, 1),
        (&["--log-level", "error"], 0, 0, 0),
    ] {
        let redis = Redis::new();
        let mut args = vec!["worker1"];
        args.extend(options);
        let mut daemon = Daemon::start(&redis, &args);
        redis.outcome_of_request(&redis.request("fortunate", "geb"));
        redis.outcome_of_request(&redis.request("luckless", "geb"));
        redis.outcome_of_request(&redis.request("", "geb"));
        // What it has to say is said when it has ended.
        assert_eq!(daemon.stop(), 0);
        let log = daemon.log();
        assert_eq!(log.matches("fortunate").count(), accepted, "{options:?}: {log}");
        assert_eq!(log.matches("luckless").count(), denied, "{options:?}: {log}");
        let of_the_malformed = log.lines().filter(|line| line.contains("user_id_empty"));
        let levels: Vec<_> = of_the_malformed.map(|line| line.split(" ").nth(1).unwrap()).collect();
        // First what needs somebody, then how it ended.
        assert_eq!(
            levels,
            [vec!["WARN"; warned], vec!["INFO"; denied]].concat(),
            "{options:?}: {log}"
        );
    }
}

#[test]
fn no_text_from_outside_forges_a_line_or_reaches_a_terminal() {
    let (redis, mut daemon) = library(&Ledger::new());
    let forged = "\n\r\u{85}\u{2028}\u{2029}FORGED \u{1b}[31m\u{9b}31m\u{7}\u{202e}";
    let well_formed = "turned\u{2028}FORGED\u{202e}";
    let ids = [
        redis.request(forged, "geb"),
        redis.request("user1", forged),
        redis.request(well_formed, well_formed),
        redis.add(REQUESTS, "*", &[(forged, forged.as_bytes())]),
        redis.add(REQUESTS, "*", &[("user_id", b"\xff\n\x1b[31mFORGED"), ("book_ids", b"geb")]),
    ];
    for id in &ids {
        redis.outcome_of_request(id);
    }
    redis.hand_off("*", forged);
    redis.assert_at_rest();
    assert_eq!(daemon.stop(), 0);
    let log = daemon.log();
    for line in log.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
        assert!(!line.starts_with("FORGED"), "{log:?}");
    }
    let codes = ['\u{1b}', '\u{9b}', '\u{7}', '\u{202e}', '\r', '\u{fffe}'];
    assert!(!log.contains(codes), "{log:?}");
    assert!(log.contains("FORGED"), "escaped, it is there: {log}");
}

#[test]
fn a_password_is_in_no_message() {
    let redis = Redis::new();
    redis.cmd(&["ACL", "SETUSER", "clerk", "on", ">secret1", "~*", "&*", "+@all"]);
    let args = ["--username", "clerk", "--password", "secret1", "--log-level", "debug", "worker1"];
    let mut daemon = Daemon::start(&redis, &args);
    redis.outcome_of_request(&redis.request("user1", "geb"));
    assert_eq!(daemon.stop(), 0);
    let mut refused =
        Daemon::spawn(&redis, &["--username", "clerk", "--password", "secret2", "worker1"]);
    assert_eq!(refused.exit_status(), 77);
    let said = daemon.log() + &refused.log();
    assert!(!said.contains("secret"), "{said}");
}
