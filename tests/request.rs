//! `library-req` on a real Redis. Where an answer is wanted, the tests play the daemon by hand.

// A test that fails may panic where it stands.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Commands as _, Connection, Value};

const REQUESTS: &str = "lending_requests_event_stream";
const RETURNS: &str = "book_return_requests_event_stream";

/// A redis-server of this test's own, on a socket in a directory of its own.
struct Server {
    dir: tempfile::TempDir,
    process: Child,
    options: Vec<String>,
}

impl Server {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let process = Self::spawn(&dir, &options);
        let server = Self { dir, process, options };
        server.ready();
        server
    }

    fn spawn(dir: &tempfile::TempDir, options: &[String]) -> Child {
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(dir.path().join("redis.sock"))
            .arg("--dir")
            .arg(dir.path())
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    fn ready(&self) {
        until("redis-server answers", || {
            let client = redis::Client::open(format!("redis+unix://{}", self.address())).unwrap();
            match client.get_connection().and_then(|mut c| redis::cmd("PING").exec(&mut c)) {
                Ok(()) => true,
                Err(error) => error.code() == Some("NOAUTH"),
            }
        });
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn restart(&mut self) {
        self.stop();
        self.process = Self::spawn(&self.dir, &self.options);
        self.ready();
    }

    fn address(&self) -> String {
        self.dir.path().join("redis.sock").display().to_string()
    }

    fn connect(&self) -> Connection {
        redis::Client::open(format!("redis+unix://{}", self.address()))
            .and_then(|client| client.get_connection())
            .unwrap()
    }

    /// `library-req` with these arguments, on this server.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(args);
        command.env("LIBRARY_ADDRESS", self.address());
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args).output().unwrap())
    }

    fn start_run(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut child = self.start_run(args);
        let mut stdin: ChildStdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let ended = Ended::of(child.wait_with_output().unwrap());
        writer.join().unwrap();
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `library-req` that knows no server.
fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_library-req"));
    command.args(args);
    for name in ["LIBRARY_ADDRESS", "LIBRARY_PASSWORD", "CREDENTIALS_DIRECTORY", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

/// How a command ended; a failing test shows all of it.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    status: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            status: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn is(&self, status: i32, out: &str, err: &str) {
        assert_eq!((self.status, &*self.out, &*self.err), (Some(status), out, err));
    }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The entries of a stream: ids, and names and values in turn.
fn entries(db: &mut Connection, stream: &str) -> Vec<(String, Vec<String>)> {
    redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query(db).unwrap()
}

/// What the daemon does when it commits an outcome.
fn answer(db: &mut Connection, event: &str, fields: &[&str]) {
    let (action, id) = event.split_once(':').unwrap();
    let mut text = vec!["event_id", id, "action", action];
    text.extend(fields);
    let key = format!("lending_answer:{event}");
    redis::pipe()
        .atomic()
        .del(&key)
        .rpush(&key, text.join("\n"))
        .pexpire(&key, 3_600_000)
        .exec(db)
        .unwrap();
}

fn wait_for_entry(db: &mut Connection, stream: &str) -> String {
    let mut id = None;
    until("an event arrives", || {
        id = entries(db, stream).first().map(|(id, _)| id.clone());
        id.is_some()
    });
    id.unwrap()
}

fn alive(db: &mut Connection, stream: &str, consumer: &str) {
    let _: () = redis::pipe()
        .cmd("XGROUP")
        .arg(&["CREATE", stream, "lending_service", "0", "MKSTREAM"])
        .ignore()
        .cmd("XGROUP")
        .arg(&["CREATECONSUMER", stream, "lending_service", consumer])
        .ignore()
        .set(format!("instance_lock:{consumer}"), "token")
        .ignore()
        .query(db)
        .unwrap();
}

#[test]
fn an_event_has_the_fields_of_the_reference_client_and_a_wish_for_an_answer() {
    let server = Server::start();
    let mut db = server.connect();
    server.run(&["request", "user1", "geb", "momo", "geb", "--no-wait"]).is(0, "OK\n", "");
    server.run(&["--no-wait", "return", "--", "user1", "--geb"]).is(0, "OK\n", "");
    let requests = entries(&mut db, REQUESTS);
    assert_eq!(requests[0].1, ["user_id", "user1", "book_ids", "geb,momo"]);
    assert_eq!(entries(&mut db, RETURNS)[0].1, ["user_id", "user1", "book_ids", "--geb"]);
    server.run(&["request", "user1", "geb", "--timeout", "0.01"]);
    assert_eq!(entries(&mut db, REQUESTS)[1].1[4..], ["answer", "wait"]);
    server.run(&["request", "user1", "geb", "--no-wait", "--id", "x"]);
    assert_eq!(entries(&mut db, REQUESTS)[2].1[4..], ["answer", "keep"]);
}

#[test]
fn the_outcome_is_printed_in_words_or_as_json_and_stays_for_later_readers() {
    let server = Server::start();
    let mut db = server.connect();
    alive(&mut db, REQUESTS, "worker1");
    let fields = ["user_id", "user1", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    for (form, out) in [
        ("--timeout=30", "lent to user1: geb (1 in hand)\n"),
        (
            "--json",
            "{\"event_id\":\"ID\",\"action\":\"request\",\"user_id\":\"user1\",\
             \"outcome\":\"accepted\",\"book_ids\":[\"geb\"],\"in_hand\":1}\n",
        ),
        ("--quiet", ""),
    ] {
        let _: () = db.del(REQUESTS).unwrap();
        alive(&mut db, REQUESTS, "worker1");
        let child = server.start_run(&["request", "user1", "geb", form]);
        let id = wait_for_entry(&mut db, REQUESTS);
        answer(&mut db, &format!("request:{id}"), &fields);
        let out = out.replace("ID", &id);
        Ended::of(child.wait_with_output().unwrap()).is(0, &out, "");
        let key = format!("lending_answer:request:{id}");
        let (kept, ttl): (u64, i64) = redis::pipe().llen(&key).pttl(&key).query(&mut db).unwrap();
        assert!(kept == 1 && ttl > 3_000_000, "{kept} {ttl}");
    }
}

#[test]
fn a_refusal_is_told_by_the_exit_status() {
    let server = Server::start();
    let mut db = server.connect();
    alive(&mut db, RETURNS, "worker1");
    for (fields, status, out) in [
        (
            &["outcome", "unchanged", "not_lent", "geb"],
            0,
            "nothing to take back from user1; geb: already back\n",
        ),
        (
            &["outcome", "unchanged", "lent_to_another", "geb"],
            1,
            "nothing to take back from user1; geb: lent to someone else\n",
        ),
        (
            &["outcome", "rejected", "cause", "wrong_type"],
            1,
            "rejected: wrong type; the event is kept in the dead letters\n",
        ),
    ] {
        let _: () = db.del(RETURNS).unwrap();
        alive(&mut db, RETURNS, "worker1");
        let child = server.start_run(&["return", "user1", "geb"]);
        let id = wait_for_entry(&mut db, RETURNS);
        let fields = [&["user_id", "user1"], &fields[..]].concat();
        answer(&mut db, &format!("return:{id}"), &fields);
        Ended::of(child.wait_with_output().unwrap()).is(status, out, "");
    }
}

#[test]
fn with_no_instance_running_it_says_so_at_once_and_waits_on() {
    let server = Server::start();
    let mut db = server.connect();
    // A consumer of a dead instance, and no group at all on the other stream.
    alive(&mut db, REQUESTS, "worker1");
    let _: () = db.del("instance_lock:worker1").unwrap();
    for (action, stream) in [("request", REQUESTS), ("return", RETURNS)] {
        let child = server.start_run(&[action, "user1", "geb", "--timeout", "1"]);
        let id = wait_for_entry(&mut db, stream);
        let begun = Instant::now();
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(2));
        let address = server.address();
        ended.is(
            3,
            "",
            &format!(
                "library-req: no libraryd is running on {address}: \
                 it is queued as {action} {id} and waits for one\n\
                 library-req: no outcome within 1 s: \
                 it is queued as {action} {id} and will be processed\n"
            ),
        );
    }
}

#[test]
fn ids_grow_across_both_streams_whatever_they_hold_already() {
    let server = Server::start();
    let mut db = server.connect();
    let send = |action: &str| server.run(&["--no-wait", action, "u", "b"]).is(0, "OK\n", "");
    let last = |db: &mut Connection, stream: &str| entries(db, stream).pop().unwrap().0;
    let id = |text: &str| text.parse::<library_lending::ids::EventId>().unwrap();
    send("request");
    send("return");
    assert!(id(&last(&mut db, RETURNS)) > id(&last(&mut db, REQUESTS)));
    // Ids from the future, sequence numbers that doubles cannot count, and nines to carry over.
    for (stream, far, action, next) in [
        (REQUESTS, "9000000000000-7", "return", "9000000000000-8"),
        (RETURNS, "9000000000999-18446744073709551615", "request", "9000000001000-0"),
        (REQUESTS, "9007199254740993-9007199254740993", "return", "9007199254740994-0"),
        (REQUESTS, "9999999999999999999-1000000000000000", "return", "10000000000000000000-0"),
        (RETURNS, "18446744073709551615-99", "request", "18446744073709551615-100"),
    ] {
        let _: String = redis::cmd("XADD").arg(&[stream, far, "f", "v"]).query(&mut db).unwrap();
        send(action);
        let other = if stream == REQUESTS { RETURNS } else { REQUESTS };
        assert_eq!(last(&mut db, other), next);
    }
    let end = format!("18446744073709551615-{}", u64::MAX);
    let _: String = redis::cmd("XADD").arg(&[RETURNS, &end, "f", "v"]).query(&mut db).unwrap();
    let ended = server.run(&["--no-wait", "request", "u", "b"]);
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(ended.err.contains("used up all ids") && ended.err.contains("nothing was sent"));
}

#[test]
fn a_stream_of_the_wrong_type_is_named_and_nothing_is_sent() {
    let server = Server::start();
    let mut db = server.connect();
    let _: () = db.set(RETURNS, "x").unwrap();
    let ended = server.run(&["request", "u", "b", "--id", "x"]);
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(ended.err.contains(RETURNS) && ended.err.contains("nothing was sent"), "{ended:?}");
    let keys: Vec<String> = db.keys("*").unwrap();
    assert_eq!(keys, [RETURNS]);
}

#[test]
fn under_an_id_an_event_is_queued_once_and_answered_with_the_first_outcome() {
    let server = Server::start();
    let mut db = server.connect();
    server.run(&["request", "u", "geb", "--id", "mine", "--no-wait"]).is(0, "OK\n", "");
    let id = wait_for_entry(&mut db, REQUESTS);
    let fields = ["user_id", "u", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    answer(&mut db, &format!("request:{id}"), &fields);
    for _ in 0..2 {
        server.run(&["request", "u", "geb", "--id", "mine"]).is(
            0,
            "lent to u: geb (1 in hand)\n",
            "",
        );
    }
    // The same id with other content is a mistake.
    for other in [["request", "u", "momo"], ["request", "v", "geb"], ["return", "u", "geb"]] {
        let ended = server.run(&[&other[..], &["--id", "mine"]].concat());
        assert_eq!(ended.status, Some(2), "{ended:?}");
        assert!(ended.err.contains(&id) && ended.err.contains("nothing was sent"), "{ended:?}");
    }
    assert_eq!(entries(&mut db, REQUESTS).len(), 1);
    assert!(entries(&mut db, RETURNS).is_empty());
    let ttl: i64 = db.pttl("lending_submission:mine").unwrap();
    assert!(ttl > 86_000_000, "{ttl}");
}

#[test]
fn a_failed_xadd_leaves_no_submission_behind() {
    let server = Server::start();
    let mut db = server.connect();
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "half", "on", ">pw", "~*", "+@all", "-xadd"])
        .query(&mut db)
        .unwrap();
    let args = ["--username=half", "--password=pw", "request", "u", "geb", "--id", "mine"];
    let ended = server.run(&args);
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(ended.err.contains("nothing was sent"), "{ended:?}");
    until("the submission is gone", || !db.exists::<_, bool>("lending_submission:mine").unwrap());
}

#[test]
fn a_redis_that_restarts_while_somebody_waits_does_not_lose_the_answer() {
    let mut server = Server::start();
    let mut db = server.connect();
    let child = server.start_run(&["request", "u", "geb", "--timeout", "30", "--id", "x"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    server.restart();
    let mut db = server.connect();
    let fields = ["user_id", "u", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    answer(&mut db, &format!("request:{id}"), &fields);
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!((ended.status, &*ended.out), (Some(0), "lent to u: geb (1 in hand)\n"));
    assert!(ended.err.contains("lost Redis at"), "{ended:?}");
}

#[test]
fn a_redis_that_is_gone_for_good_says_that_the_event_is_queued() {
    let mut server = Server::start();
    let mut db = server.connect();
    let child = server.start_run(&["request", "u", "geb", "--timeout", "1"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    server.stop();
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!(ended.status, Some(4), "{ended:?}");
    assert!(ended.err.contains(&format!("queued as request {id}")), "{ended:?}");
}

#[test]
fn no_redis_a_wrong_password_and_a_missing_permission_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock").display().to_string();
    let ended = Ended::of(bare(&["-a", &socket, "request", "u", "b"]).output().unwrap());
    ended.is(
        4,
        "",
        &format!(
            "library-req: Redis at {socket}: could not connect to Redis: No such file or \
             directory (os error 2) (is Redis running there? -a ADDRESS or $LIBRARY_ADDRESS says \
             where it is); nothing was sent\n"
        ),
    );
    let server = Server::with(&["--requirepass", "secret"]);
    for args in [&["request", "u", "b"][..], &["request", "u", "b", "--password", "wrong"]] {
        let ended = server.run(args);
        assert_eq!(ended.status, Some(4), "{ended:?}");
        for words in ["--password-file", "nothing was sent"] {
            assert!(ended.err.contains(words), "{ended:?}");
        }
        assert_eq!(ended.err.lines().count(), 1);
    }
    let mut command = server.command(&["request", "u", "b", "--no-wait"]);
    Ended::of(command.env("LIBRARY_PASSWORD", "secret").output().unwrap()).is(0, "OK\n", "");
}

#[test]
fn a_bad_command_line_ends_with_2_one_line_of_fault_and_one_of_usage() {
    let long = "x".repeat(300);
    let many: Vec<String> = (0..=1000).map(|n| format!("b{n}")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.splice(0..0, ["request", "u"]);
    for (args, fault) in [
        (&[][..], "a command is missing"),
        (&["lend", "u", "b"], "unknown command \"lend\""),
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
        (&["request", "u", "b", "--frob"], "unknown option --frob"),
        (&["request", "u", "b", "--id", ""], "--id \"\" is empty"),
        (&["request", "u", "b", "--json", "--quiet"], "--json and --quiet exclude each other"),
        (&["request", "u", "b", "-a", "localhost"], "write redis://localhost"),
        (&["request", "u", "b", "--db", "x"], "--db wants"),
    ] {
        let ended = Ended::of(bare(args).output().unwrap());
        assert_eq!((ended.status, &*ended.out), (Some(2), ""), "{ended:?}");
        let lines: Vec<&str> = ended.err.lines().collect();
        assert_eq!(lines.len(), 2, "{ended:?}");
        assert!(lines[0].starts_with("library-req: ") && lines[0].contains(fault), "{ended:?}");
        assert!(lines[1].contains("usage: library-req "), "{ended:?}");
    }
}

#[test]
fn help_and_version_need_no_redis() {
    for args in [&["--help"][..], &["-h"], &["request", "--help"], &["-a", "redis://x:1", "-h"]] {
        let ended = Ended::of(bare(args).output().unwrap());
        assert_eq!((ended.status, &*ended.err), (Some(0), ""));
        assert!(ended.out.contains("usage:") && ended.out.contains("--timeout"), "{ended:?}");
    }
    for args in [["--version"], ["-V"]] {
        let ended = Ended::of(bare(&args).output().unwrap());
        ended.is(0, concat!("library-req ", env!("CARGO_PKG_VERSION"), "\n"), "");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = bare(&["--help"]).stdout(writer).output().unwrap();
    Ended::of(output).is(0, "", "");
}

#[test]
fn output_that_cannot_be_written_is_one() {
    let full = std::fs::OpenOptions::new().write(true).open(PathBuf::from("/dev/full")).unwrap();
    let ended = Ended::of(bare(&["--help"]).stdout(full).output().unwrap());
    assert_eq!(ended.status, Some(74), "{ended:?}");
}

#[test]
fn a_batch_queues_its_good_lines_in_order_and_tells_the_bad_ones() {
    let server = Server::start();
    let mut db = server.connect();
    let input = b"request user1 geb momo\n# a comment\n\nlend x y\nreturn 'Jorge Luis' \"a b\"\n\
                  request u a,b\nrequest u last";
    server.run_with_input(&["batch"], input).is(
        2,
        "OK\nline 4: begins with \"lend\", not with request or return\nOK\n\
         line 6: book id \"a,b\" has a comma in it\nOK\n",
        "",
    );
    let requests = entries(&mut db, REQUESTS);
    assert_eq!(requests[0].1, ["user_id", "user1", "book_ids", "geb,momo"]);
    assert_eq!(requests[1].1, ["user_id", "u", "book_ids", "last"]);
    assert_eq!(entries(&mut db, RETURNS)[0].1, ["user_id", "Jorge Luis", "book_ids", "a b"]);
}

#[test]
fn a_long_batch_keeps_the_order_of_its_lines_across_both_streams() {
    let server = Server::start();
    let mut db = server.connect();
    let file = server.dir.path().join("events");
    const PAIRS: usize = 5_000;
    let lines: Vec<String> =
        (0..PAIRS).map(|n| format!("request u{n} b{n}\nreturn u{n} b{n}\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    let ended = server.run(&["batch", file.to_str().unwrap()]);
    assert_eq!((ended.status, &*ended.err), (Some(0), ""));
    assert_eq!(ended.out, "OK\n".repeat(2 * PAIRS));
    let mut events: Vec<(library_lending::ids::EventId, &str, String)> = Vec::new();
    for (stream, action) in [(REQUESTS, "request"), (RETURNS, "return")] {
        for (id, fields) in entries(&mut db, stream) {
            events.push((id.parse().unwrap(), action, format!("{} {}", fields[1], fields[3])));
        }
    }
    events.sort();
    let sent: Vec<String> =
        events.iter().map(|(_, action, text)| format!("{action} {text}\n")).collect();
    assert!(sent.concat() == lines.concat(), "the order of the ids is that of the lines");
}

#[test]
fn a_batch_that_redis_refuses_says_which_lines_are_queued() {
    let server = Server::start();
    let mut db = server.connect();
    let _: () = db.set(RETURNS, "x").unwrap();
    let ended = server.run_with_input(&["batch"], b"request u b\nrequest u c\n");
    assert_eq!((ended.status, &*ended.out), (Some(4), ""));
    assert!(ended.err.contains("0 events are queued, lines 1-2 are not"), "{ended:?}");
    let none: Value = db.get("lending_submission:x").unwrap();
    assert_eq!(none, Value::Nil);
}
