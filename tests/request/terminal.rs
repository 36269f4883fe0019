//! What is written to a terminal.

use std::fs;

use crate::common::*;
use crate::harness::*;

/// What `library-req` writes to a terminal.
fn on_a_terminal(redis: &Redis, command: &str, variables: &[(&str, &str)]) -> String {
    typed(redis, &format!("{LIBRARY_REQ} {command}"), variables)
}

/// What a terminal shows once this line is typed. `script` is one, and part of every Debian.
fn typed(redis: &Redis, line: &str, variables: &[(&str, &str)]) -> String {
    let script = Running::start(redis, "script", &["-qec", line, "/dev/null"], |command| {
        command.env("TERM", "xterm").envs(variables.iter().copied());
    });
    script.ends().stdout
}

#[test]
fn a_terminal_gets_colours_unless_it_is_told_not_to() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    record(&mut db, "5000-0", "return:4000-0", "u", &["outcome", "returned", "book_ids", "geb"]);
    for variables in [&[][..], &[("NO_COLOR", "")]] {
        let coloured = on_a_terminal(&redis, "outcome 4000-0", variables);
        let line = "\u{1b}[32mtaken back from a user: geb\u{1b}[0m";
        assert!(coloured.contains(line), "{coloured:?}");
    }
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_a_terminal(&redis, "outcome 4000-0", &[variable]);
        assert!(plain.contains("taken back") && !plain.contains('\u{1b}'), "{plain:?}");
    }
}

#[test]
fn a_batch_shows_a_bar_on_a_terminal_and_takes_it_away() {
    let redis = Redis::new();
    let file = redis.directory().join("events");
    fs::write(&file, "request u a\nreturn u a\n").unwrap();
    let command = format!("batch {} --json --timeout 1", file.display());
    let shown = on_a_terminal(&redis, &command, &[]);
    assert!(shown.contains("[####################] 2 of 2 sent, 0 answered"), "{shown:?}");
    assert!(shown.ends_with("2 unanswered so far (run the same again to ask)\r\n"), "{shown:?}");
    assert!(shown.contains("\r\u{1b}[K"), "it is taken away: {shown:?}");
    assert_eq!(on_a_terminal(&redis, &format!("{command} -q").replace("--json", ""), &[]), "");
    let dumb = on_a_terminal(&redis, &command, &[("TERM", "dumb")]);
    assert!(dumb.contains("unanswered so far") && !dumb.contains('\u{1b}'), "{dumb:?}");
}

#[test]
fn results_and_words_on_the_same_terminal_begin_where_the_bar_was() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = redis.directory().join("events");
    fs::write(&file, many_lines(3_000)).unwrap();
    let command = format!("batch {} --timeout 1", file.display());
    // More than is written at once: the first of it while the bar is there.
    let shown = on_a_terminal(&redis, &command, &[]);
    assert!(shown.contains("answered") && shown.contains("\r\u{1b}[Kline,action,"), "{shown:.300}");
    let line = format!("timeout --foreground -s INT 3 {LIBRARY_REQ} {command}0");
    let shown = typed(&redis, &line, &[]);
    assert!(shown.contains("answered"), "{shown:?}");
    assert!(shown.contains("\r\u{1b}[Klibrary-req: interrupted; "), "{shown:?}");
    assert!(!entries(&mut db, REQUESTS).is_empty());
}
