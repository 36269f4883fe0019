//! Each script's header against its text, and against how the daemon calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use library_lending::admin::dead_letters::MOST_VALUES;
use library_lending::event::{Action, MAX_BOOKS, MAX_KEEP_MS};
use library_lending::ids::{MAX_ID_BYTES, SEQ_STEP};
use library_lending::request::submit::MAX_SEQ;
use library_lending::script::bare;
use redis::Value;

use crate::library::{Library, PARTS, SCRIPTS, text, whole_text};
use crate::redis::show;
use crate::world::{event, id};

/// A part of a header: what stands behind a word that begins a line, up to the next such word.
fn part(script: &str, word: &str) -> String {
    const WORDS: [&str; 3] = ["KEYS", "ARGV", "Returns"];
    let header = text(script).lines().map_while(|line| line.strip_prefix("--"));
    let mut found = String::new();
    let mut inside = false;
    for line in header {
        let line = line.trim();
        let first = line.split_whitespace().next().unwrap_or("");
        if WORDS.contains(&first) {
            inside = first == word;
        } else if line.is_empty() {
            inside = false;
        }
        if inside {
            found.push_str(line.strip_prefix(word).unwrap_or(line));
            found.push(' ');
        }
    }
    found
}

/// How many are numbered in a part of a header: 1, 2, 3 and so on, and whether more may follow.
fn numbered(part: &str) -> (usize, bool) {
    let mut last = 0;
    let mut more = part.contains("then ");
    for token in part.split_whitespace() {
        let number = token.trim_end_matches('.');
        if number.parse() == Ok(last + 1) {
            last += 1;
            more |= token.ends_with("..");
        }
    }
    (last, more)
}

/// The highest number in `name[...]` in a script.
fn highest(script: &str, name: &str) -> usize {
    let opening = format!("{name}[");
    let places = text(script).split(&opening).skip(1);
    places.filter_map(|place| place.split(']').next()?.parse().ok()).max().unwrap_or(0)
}

/// The words behind an opening, such as `{"`, that are all capitals.
fn words(text: &str, opening: &str) -> BTreeSet<String> {
    let quote = opening.chars().next_back().expect("an opening");
    let found = text.split(opening).skip(1).filter_map(|rest| rest.split(quote).next());
    let capitals =
        |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    found.filter(capitals).map(str::to_owned).collect()
}

/// Those that library-admin calls, and those that library-req does.
const COMMANDS: [&str; 10] = [
    "backlog", "gate", "inspect", "mend", "recount", "regroup", "reserved", "retry", "submit",
    "undone",
];

fn scripts() -> impl Iterator<Item = &'static str> {
    SCRIPTS.iter().map(|(name, _)| *name).filter(|name| !PARTS.contains(name))
}

/// One that is forgotten here is held against nothing.
#[test]
fn all_scripts_are_known_here() {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/lua")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let known = SCRIPTS.iter().map(|(name, _)| format!("{name}.lua"));
    assert_eq!(files.collect::<BTreeSet<_>>(), known.collect::<BTreeSet<_>>());
}

#[test]
fn every_script_names_its_keys_and_arguments() {
    for script in scripts() {
        let (keys, more) = numbered(&part(script, "KEYS"));
        let used = highest(script, "KEYS");
        assert!(keys == used || more && keys > used, "{script}.lua names {keys} keys, uses {used}");
        let (args, _) = numbered(&part(script, "ARGV"));
        let used = highest(script, "ARGV");
        assert!(args >= used, "{script}.lua names {args} arguments, uses {used}");
    }
}

#[test]
fn every_script_returns_the_words_that_its_header_names() {
    for script in scripts() {
        let named = words(&part(script, "Returns"), "{\"");
        let body: String =
            whole_text(script).lines().filter(|line| !line.trim().starts_with("--")).collect();
        // What is tried there stands behind the same opening.
        let said = if script == "permits" { "return {'" } else { "{'" };
        assert_eq!(named, words(&body, said), "{script}.lua");
        let fenced = body.contains("~= ARGV[1] then  return {'FENCED'}");
        assert_eq!(named.contains("FENCED"), fenced, "{script}.lua is fenced or not");
    }
}

/// What stands in a script and in the code behind it is nowhere else held against each other.
#[test]
fn scripts_and_code_go_by_the_same_numbers() {
    let digits = MAX_SEQ.to_string().len();
    let zeros = SEQ_STEP.to_string().replacen('1', "", 1);
    let longest_list = MAX_BOOKS * (MAX_ID_BYTES + 1);
    for (script, said) in [
        ("submit", format!("local STEP = {SEQ_STEP}\n")),
        ("submit", format!("if #last_seq > {digits} then\n")),
        ("order", format!("'%-%d+{zeros}$'")),
        ("reject", format!("local LONGEST_LIST, MOST_BOOKS = {longest_list}, {MAX_BOOKS}\n")),
        ("reject", format!("local LONGEST_USER = {MAX_ID_BYTES}\n")),
        ("reject", format!("local MOST_KEPT_MS = {MAX_KEEP_MS}\n")),
        ("letters", format!("local MOST_VALUES = {MOST_VALUES}\n")),
    ] {
        assert!(text(script).contains(&said), "{script}.lua: {said}");
    }
    assert_eq!(MAX_SEQ, 10_u64.pow(digits as u32) - 1);
    assert!(SEQ_STEP.to_string() == format!("1{zeros}") && !zeros.contains('1'));
}

/// A script that may not go on in the middle leaves half of its work.
#[test]
fn every_command_of_the_daemons_scripts_is_tried_before_they_are() {
    let tried = text("permits");
    let is_the_daemons = |name: &&str| *name != "permits" && !COMMANDS.contains(name);
    for script in SCRIPTS.iter().map(|(name, _)| *name).filter(is_the_daemons) {
        for call in text(script).split("call('").skip(1) {
            let command = call.split('\'').next().unwrap();
            if ["PUBLISH", "PUBSUB"].contains(&command) {
                // Who may not ring, or ask who listens, works on without: nothing depends on it, and it raises no error.
                continue;
            }
            assert!(tried.contains(&format!("{{'{command}'")), "{script}.lua calls {command}");
        }
    }
}

/// What happens here makes the daemon call every script of its own but forget.lua, whose time comes
/// after an hour.
#[test]
fn the_daemon_calls_every_script_with_the_keys_that_its_header_names() {
    let mut library = Library::new();
    let keys = library.keys.clone();
    let setup = ["slowlog-log-slower-than", "slowlog-max-len"];
    library.redis.ask::<()>(&["CONFIG", "SET", setup[1], "100000"]);
    library.redis.ask::<()>(&["CONFIG", "SET", setup[0], "0"]);
    // An event that was in hand when instances died, one that is malformed, one whose user has a
    // broken count, a good one, a hand-off, one that is malformed, a note of a try of one that is decided.
    library.add(&event(Action::Request, id(5, 0), "user1", "geb"));
    library.take("worker1", Action::Request, 1);
    let claim = ["XCLAIM", &keys.requests, "lending_service", "worker1", "0", "5-0"];
    library.redis.ask::<Value>(&[&claim[..], &["RETRYCOUNT", "5"]].concat());
    library.redis.ask::<()>(&["XADD", &keys.requests, "6-0", "user_id", "user1"]);
    library.redis.ask::<()>(&["SET", "user:user2:count", "many"]);
    library.add(&event(Action::Request, id(7, 0), "user2", "kim"));
    library.add(&event(Action::Request, id(8, 0), "user3", "momo"));
    library.redis.ask::<()>(&["XADD", &keys.handoffs, "9-0", "book_ids", "emma"]);
    library.redis.ask::<()>(&["XADD", &keys.handoffs, "9-1", "book_ids", "a,,b"]);
    library.redis.ask::<()>(&["HSET", &keys.lone_tries, "request:4-0", "1 0"]);

    let mut log = tempfile::tempfile().unwrap();
    let daemon = Command::new(env!("CARGO_BIN_EXE_libraryd"))
        .args(["-a", &library.redis.address(), "--lease", "1", "--retain-days", "1", "worker1"])
        .stderr(log.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut daemon = Killed(daemon);
    let start = Instant::now();
    let mut called = BTreeMap::new();
    let comes_later = ["forget", "resign"];
    let is_wanted = |name: &&str| !comes_later.contains(name) && !COMMANDS.contains(name);
    let wanted: BTreeSet<&str> = scripts().filter(is_wanted).collect();
    while !wanted.iter().all(|name| called.contains_key(name)) {
        if start.elapsed() > Duration::from_secs(20) {
            let mut said = String::new();
            log.rewind().and_then(|()| log.read_to_string(&mut said)).unwrap();
            panic!("only these were called: {called:?}\n{said}");
        }
        std::thread::sleep(Duration::from_millis(50));
        called = calls(&mut library);
    }
    let pid = daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    daemon.0.wait().unwrap();
    called = calls(&mut library);
    assert!(called.contains_key("resign"));
    for (script, numbers) in called {
        let (named, more) = numbered(&part(script, "KEYS"));
        for number in numbers {
            assert!(
                number == named || more && number > named,
                "{script}.lua names {named} keys, was called with {number}"
            );
        }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With how many keys each script was called so far.
fn calls(library: &mut Library) -> BTreeMap<&'static str, BTreeSet<usize>> {
    let digests: BTreeMap<String, &str> = scripts()
        .map(|name| (redis::Script::new(&bare(&whole_text(name))).get_hash().to_owned(), name))
        .collect();
    let mut called: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let Value::Array(log) = library.redis.ask(&["SLOWLOG", "GET", "100000"]) else {
        panic!("a log")
    };
    for entry in log {
        let Value::Array(parts) = entry else { panic!("an entry") };
        let Value::Array(command) = &parts[3] else { panic!("a command") };
        if command.len() > 2
            && show(&command[0]).eq_ignore_ascii_case("evalsha")
            && let Some(script) = digests.get(&show(&command[1]))
        {
            called.entry(script).or_default().insert(show(&command[2]).parse().unwrap());
        }
    }
    called
}
