//! What needs no event: help, mistakes on the command line, and what is to be typed next.

use std::fs::File;
use std::io::pipe;
use std::path::Path;

use redis::Commands as _;

use crate::common::*;
use crate::harness::*;

#[test]
fn a_bad_command_line_ends_with_2_one_line_of_fault_and_one_of_usage() {
    let long = "x".repeat(300);
    let many: Vec<String> = (0..=1000).map(|n| format!("b{n}")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.splice(0..0, ["request", "u"]);
    for (args, fault) in [
        (&[][..], "a command is missing"),
        (&["lend", "u", "b"], "unknown command \"lend\"; there are request, return, batch"),
        (&["retrun", "u", "b"], "unknown command \"retrun\": did you mean return?"),
        (
            &["request", "u", "b", "--timout", "3"],
            "unknown option --timout: did you mean --timeout?",
        ),
        (&["request", "u", "b", "--results", "f"], "--results does not go with request"),
        (&["outcome", "17"], "outcome wants an event's id"),
        (&["where"], "the book is missing"),
        (&["where", "a", "b"], "unexpected argument \"b\""),
        (&["history", "--since", "yesterday"], "--since wants"),
        (&["history", "--last", "0"], "--last wants"),
        (&["batch", "a", "b"], "unexpected argument"),
        (&["request"], "the user and the books are missing"),
        (&["request", "u"], "the books are missing"),
        (&["request", "u,v", "b"], "user id \"u,v\" has a comma in it"),
        (&["request", "u", "b", "a\u{1b}[31m"], "book id \"a\\u{1b}[31m\" has a control char"),
        (&["request", "u", &long], "xxx...\" is longer than 256 bytes"),
        (&["request", "u", ""], "book id \"\" is empty"),
        (&["return", " u", "b"], "user id \" u\" begins or ends with white space"),
        (&many[..], "more than 1000 books"),
        (&["request", "u", "b", "--timeout", "soon"], "--timeout wants a number of seconds"),
        (&["request", "u", "b", "--timeout", "-1"], "--timeout wants a number of seconds"),
        (&["request", "u", "b", "--timeout", "inf"], "--timeout wants a number of seconds"),
        (&["request", "u", "b", "--timeout", "31536001"], "--timeout wants a number of seconds"),
        (&["request", "u", "b", "--frob"], "unknown option --frob"),
        (&["request", "u", "b", "--id", "x", "--remember", "31d"], "from 1s to 30d, not \"31d\""),
        (&["request", "u", "b", "--id", "x", "--remember", "0s"], "from 1s to 30d, not \"0s\""),
        (&["request", "u", "b", "--remember", "2h"], "--remember does not go without --id"),
        (&["request", "u", "b", "--id", ""], "--id \"\" is empty"),
        (&["request", "u", "b", "--json", "--quiet"], "--json and --quiet exclude each other"),
        (&["request", "u", "b", "-a", "localhost"], "write redis://localhost"),
        (&["request", "u", "b", "--db", "x"], "--db wants"),
    ] {
        let ended = bare(args);
        assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{ended}");
        assert!(lines[0].starts_with("library-req: ") && lines[0].contains(fault), "{ended}");
        assert!(lines[1].contains("usage: library-req "), "{ended}");
    }
}

#[test]
fn help_and_version_need_no_redis() {
    for args in [&["--help"][..], &["-h"], &["request", "--help"], &["-a", "redis://x:1", "-h"]] {
        let ended = bare(args);
        assert_eq!((ended.status(), &*ended.stderr), (Some(0), ""));
        assert!(ended.stdout.contains("usage:") && ended.stdout.contains("--address"), "{ended}");
    }
    for args in [["--version"], ["-V"]] {
        let ended = bare(&args);
        ended.is(0, concat!("library-req ", env!("CARGO_PKG_VERSION"), "\n"), "");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let help = bare_with(&["--help"], |command| {
        command.stdout(writer);
    });
    help.is(0, "", "");
}

#[test]
fn output_that_cannot_be_written_is_one() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = bare_with(&["--help"], |command| {
        command.stdout(full);
    });
    assert_eq!(ended.status(), Some(74), "{ended}");
}

/// Typed as shown, a hint asked the library without branches on the default Redis.
#[test]
fn what_is_to_be_typed_next_names_the_same_library() {
    let redis = Redis::new();
    let address = redis.address();
    let library = ["-a", &address, "--db", "2", "--branch", "it's north"];
    let run = |args: &[&str]| bare(&[args, &library].concat());
    let ended = run(&["request", "u", "geb", "--timeout", "1"]);
    let (running, unanswered) = ended.stderr.split_once('\n').unwrap();
    let nobody = format!(
        "library-req: no libraryd is running on {address}, database 2, branch it's north: "
    );
    assert!(running.starts_with(&nobody), "{ended}");
    let typed = format!("-a {address} --db 2 --branch 'it'\\''s north'");
    let (_, hint) = unanswered.split_once('(').unwrap();
    let (hint, _) = hint.split_once(" tells what became of it)").unwrap();
    assert!(hint.starts_with(&format!("library-req outcome {typed} request:")), "{ended}");
    let binaries = Path::new(LIBRARY_REQ).parent().unwrap();
    let shell = Running::start_alone(redis.directory(), "/bin/sh", &["-c", hint], |command| {
        command.env("PATH", binaries);
    });
    let asked = shell.ends();
    assert!(asked.stderr.contains("is still queued"), "{asked}");

    let mut db = redis.connect().unwrap();
    redis::cmd("SELECT").arg(2).exec(&mut db).unwrap();
    let _: () = db.set("{it's north}:user:u:count", 1).unwrap();
    let check = format!("library-admin check {typed}");
    let ended = run(&["loans", "u"]);
    assert!(ended.stderr.ends_with(&format!("or {check} tells why\n")), "{ended}");
    let _: () = db.hset("{it's north}:shelving_service_state", "lost", "20-0").unwrap();
    let ended = run(&["where", "lost"]);
    assert!(ended.stdout.ends_with(&format!("missing ({check})\n")), "{ended}");
}
