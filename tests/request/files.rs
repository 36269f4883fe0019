//! The files of a batch: its input, its results and its bad lines.

use std::fs::{self, File};
use std::io::{Write as _, pipe};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use redis::Commands as _;

use crate::common::*;
use crate::harness::*;

#[test]
fn input_that_is_no_list_of_events_is_refused_whole() {
    let redis = Redis::new();
    let dir = redis.directory().display().to_string();
    let binary = redis.directory().join("binary").display().to_string();
    fs::write(&binary, b"request u b\n\x7fELF\x00\x00").unwrap();
    let long = redis.directory().join("long").display().to_string();
    fs::write(&long, [b"request u ".as_slice(), &vec![b'b'; 10_000_000]].concat()).unwrap();
    for (file, fault) in [
        ("/nonexistent/file", "cannot read /nonexistent/file: No such file"),
        (dir.as_str(), "Is a directory"),
        (binary.as_str(), "has a zero byte in line 2"),
        (long.as_str(), "line 1: is longer than"),
    ] {
        let ended = req(&redis, &["batch", file]);
        assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
        assert!(ended.stderr.contains(fault), "{ended}");
        assert!(ended.stderr.contains("nothing was sent"), "{ended}");
    }
    let keys: Vec<String> = redis.connect().unwrap().keys("*").unwrap();
    assert!(keys.is_empty());
}

#[test]
fn a_fifo_is_read_to_its_end_and_a_file_that_grows_meanwhile_is_refused() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let fifo = redis.directory().join("fifo").display().to_string();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut child = start(&redis, &["batch", &fifo, "--no-wait", "-q"]);
    // To open it waits for the reader.
    let mut writer = File::options().write(true).open(&fifo).unwrap();
    writer.write_all(b"request u geb\n").unwrap();
    assert_eq!(child.process.ended(), None, "it waits for the end");
    writer.write_all(b"return u geb\n").unwrap();
    drop(writer);
    child.ends().is(0, "", "");
    assert_eq!(sent_lines(&mut db), "request u geb\nreturn u geb\n");

    // Appended to, then cut, while it is read: long enough that reading takes a while.
    let file = redis.directory().join("file");
    let lines = "request u geb\n".repeat(400_000);
    for length in [lines.len() as u64 + 1_000, 1_000] {
        fs::write(&file, &lines).unwrap();
        let child = start(&redis, &["batch", file.to_str().unwrap(), "--no-wait", "-q"]);
        let at = format!("/proc/{}/fdinfo/", child.process.pid());
        // Not just opened: what is done to it before that is how it is.
        until("it reads the file", || {
            let mut open = fs::read_dir(&at).into_iter().flatten().flatten();
            open.any(|fd| {
                let link = format!("/proc/{}/fd/{}", child.process.pid(), fd.file_name().display());
                let info = fs::read_to_string(fd.path()).unwrap_or_default();
                fs::read_link(link).is_ok_and(|path| path == file) && !info.starts_with("pos:\t0\n")
            })
        });
        File::options().write(true).open(&file).unwrap().set_len(length).unwrap();
        let ended = child.ends();
        assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
        // And not that what was left of it has a bad line.
        let told = "was written to while it was read: nothing was sent";
        assert!(ended.stderr.contains(told), "{ended}");
    }
    assert_eq!(entries(&mut db, REQUESTS).len(), 1);
}

/// A file of two million bad lines took 205 MiB: those between two events were gathered until the outcomes
/// of these had come.
#[test]
fn bad_lines_by_the_hundred_thousand_take_no_memory() {
    const LINES: usize = 200_000;
    let redis = Redis::new();
    let file = |name: &str| redis.directory().join(name).display().to_string();
    let (batch, results) = (file("batch"), file("results"));
    let lines = format!("request user1 geb\n{}", "bogus\n".repeat(LINES));
    fs::write(&batch, lines).unwrap();
    let limited = ["-c", "ulimit -d 16384 && exec \"$0\" \"$@\"", LIBRARY_REQ];
    let args = ["batch", "--partial", "--timeout", "0", "--results", &results, &batch];
    let ended = Running::start(&redis, "sh", &[&limited[..], &args].concat(), |_| ()).ends();
    assert_eq!(ended.status(), Some(3), "{:?}", ended.stderr.lines().last());
    let results = fs::read_to_string(&results).unwrap();
    // With a header, and the good one's.
    assert_eq!(results.lines().count(), LINES + 2);
}

/// It made a file of that name, where everybody else takes it for standard output.
#[test]
fn a_dash_is_standard_output_for_results_and_no_place_for_bad_lines() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let input = b"request u geb\nnonsense\n";
    for options in [&["--results", "-"][..], &[]] {
        let args = [&["batch", "--partial", "--timeout", "0"], options].concat();
        let ended = req_fed(&redis, &args, input);
        assert_eq!(ended.status(), Some(3), "{ended}");
        assert!(ended.stdout.starts_with("line,action,"), "{ended}");
        assert_eq!(ended.stdout.lines().count(), 3, "{ended}");
    }
    let ended = req_fed(&redis, &["batch", "--partial", "--rejected", "-"], input);
    assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
    let fault = "library-req: --rejected wants the name of a file, not \"-\"\n";
    assert!(ended.stderr.starts_with(fault), "{ended}");
    assert_eq!(entries(&mut db, REQUESTS).len(), 1, "it is the same batch");
    assert!(!redis.directory().join("-").exists());
}

#[test]
fn results_are_json_where_the_name_of_their_file_says_so() {
    let redis = Redis::new();
    for (name, begin) in
        [("r.csv", "line,action,"), ("r.json", "{\"line\":1,"), ("r.jsonl", "{\"line\":1,")]
    {
        let args = ["batch", "--timeout", "0", "--results", name];
        assert_eq!(req_fed(&redis, &args, b"request u geb\n").status(), Some(3));
        let results = fs::read_to_string(redis.directory().join(name)).unwrap();
        assert!(results.starts_with(begin), "{name}: {results}");
    }
}

#[test]
fn results_that_nobody_reads_are_no_failure() {
    let redis = Redis::new();
    let file = redis.directory().join("events");
    // The results are more than is written at once.
    fs::write(&file, many_lines(3_000)).unwrap();
    for (how, status) in
        [(&["--timeout", "0"][..], 3), (&["--no-wait"], 0), (&["--no-wait", "--json"], 0)]
    {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let args = [&["batch", file.to_str().unwrap()], how].concat();
        let ended = start_with(&redis, &args, |command| {
            command.stdout(writer);
        })
        .ends();
        assert_eq!(ended.status(), Some(status), "{ended}");
        assert!(ended.stderr.contains("library-req: 3000 events queued"), "{ended}");
    }
}

#[test]
fn results_that_cannot_be_written_say_what_was_sent() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let args = ["batch", "--results", "/nonexistent/results"];
    let ended = req_fed(&redis, &args, b"request u b\n");
    assert_eq!(ended.status(), Some(74), "{ended}");
    assert!(ended.stderr.contains("nothing was sent"), "{ended}");
    assert!(entries(&mut db, REQUESTS).is_empty());
    let args = ["batch", "--results", "/dev/full", "--timeout", "0.1"];
    let ended = req_fed(&redis, &args, b"request u b\n");
    assert_eq!(ended.status(), Some(74), "{ended}");
    assert!(ended.stderr.contains("; 1 event is queued; run the same again"), "{ended}");
}

/// A limit of a file's size (`ulimit -f`) ended it with SIGXFSZ, without a word about what was sent.
#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    const LINES: usize = 12;
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let file = |name: &str| redis.directory().join(name).display().to_string();
    let (batch, results) = (file("batch"), file("results"));
    fs::write(&batch, "request u b\n".repeat(LINES)).unwrap();
    // 512 bytes: enough for the lines, and not for their results.
    let limited = ["-c", "ulimit -f 1 && exec \"$0\" \"$@\"", LIBRARY_REQ];
    let args = ["batch", "--timeout", "0", "--results", &results, &batch];
    let ended = Running::start(&redis, "sh", &[&limited[..], &args].concat(), |_| ()).ends();
    assert_eq!(ended.status(), Some(74), "{ended}");
    let said = format!("cannot write the results to {results}: File too large");
    assert!(ended.stderr.contains(&said), "{ended}");
    assert!(ended.stderr.contains("; 12 events are queued; run the same again"), "{ended}");
    assert_eq!(entries(&mut db, REQUESTS).len(), LINES);
    let left = fs::read_dir(redis.directory()).unwrap().map(|it| it.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("results")));
}

/// Neither the directory nor what chooses it was named.
#[test]
fn a_temporary_file_that_cannot_be_made_names_its_place() {
    let redis = Redis::new();
    let ended = start_with(&redis, &["batch", "-"], |command| {
        command.env("TMPDIR", "/nonexistent");
    });
    ended.ends().is(
        74,
        "",
        "library-req: cannot keep the lines in a temporary file in /nonexistent (TMPDIR says \
         where): No such file or directory (os error 2); nothing was sent\n",
    );
}

#[test]
fn no_temporary_file_is_left() {
    let redis = Redis::new();
    let directory = redis.directory().join("temporary");
    fs::create_dir(&directory).unwrap();
    let batch = start_with(&redis, &["batch", "/dev/null", "-q"], |command| {
        command.env("TMPDIR", &directory);
    });
    batch.ends().is(0, "", "");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn a_batch_without_events_needs_no_redis() {
    let told = "library-req: 0 events queued: 0 done, 0 refused\n";
    let ended = bare(&["batch", "/dev/null", "--json", "-a", "/nonexistent/redis.sock"]);
    ended.is(0, "", told);
}

#[test]
fn a_full_disk_for_the_bad_lines_sends_nothing() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let args = ["batch", "--partial", "--no-wait", "--rejected", "/dev/full"];
    let ended = req_fed(&redis, &args, b"nonsense\nrequest u geb\n");
    assert_eq!((ended.status(), &*ended.stdout), (Some(74), ""), "{ended}");
    assert!(ended.stderr.contains("cannot write /dev/full"), "{ended}");
    assert!(ended.stderr.contains("nothing was sent"), "{ended}");
    assert!(entries(&mut db, REQUESTS).is_empty());
}

/// Only the first fault was told, and the file stayed a riddle.
#[test]
fn all_faults_are_told_where_the_bad_lines_cannot_be_kept() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let faults = "library-req: line 1: begins with \"lend\", not with request or return\n\
                  library-req: line 3: the books are missing\n";
    let input = b"lend x y\nrequest u geb\nreturn u\n";
    let batch = ["batch", "--no-wait", "--rejected"];
    for (place, why) in [
        ("/nonexistent/rejected", "No such file or directory (os error 2)"),
        ("/dev/full", "No space left on device (os error 28)"),
    ] {
        let unkept =
            format!("library-req: cannot write {place}: {why}; the bad lines are not kept");
        req_fed(&redis, &[&batch[..], &[place]].concat(), input).is(
            2,
            "",
            &format!(
                "{faults}{unkept}\nlibrary-req: 2 bad lines, 1 good: nothing was sent (--partial \
                 sends the good ones)\n"
            ),
        );
        req_fed(&redis, &[&batch[..], &[place, "--partial"]].concat(), input).is(
            74,
            "",
            &format!("{faults}{unkept}; nothing was sent\n"),
        );
    }
    assert!(entries(&mut db, REQUESTS).is_empty());
}

#[test]
fn a_batch_that_is_no_regular_file_has_no_file_of_bad_lines_beside_it() {
    let redis = Redis::new();
    let fifo = redis.directory().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let bad = "lend x y\n";
    let write = |fifo: PathBuf| thread::spawn(move || fs::write(fifo, bad).unwrap());
    let writer = write(fifo.clone());
    let from_fifo = req(&redis, &["batch", fifo.to_str().unwrap()]);
    writer.join().unwrap();
    assert!(!redis.directory().join("fifo.rejected").exists());
    let from_shell = req_fed(&redis, &["batch", "/dev/fd/0"], bad.as_bytes());
    let told = "library-req: line 1: begins with \"lend\", not with request or return\n\
                library-req: 1 bad line, 0 good: nothing was sent (--partial sends the good ones)\n";
    from_fifo.is(2, "", told);
    from_shell.is(2, "", told);
    // Where it is named, it is written.
    let rejected = redis.directory().join("rejected");
    let args = ["batch", "/dev/fd/0", "--rejected", rejected.to_str().unwrap()];
    req_fed(&redis, &args, bad.as_bytes());
    assert_eq!(fs::read_to_string(rejected).unwrap(), bad);
}

/// It was taken for that of the night's run, which had none.
#[test]
fn a_run_without_bad_lines_removes_those_of_an_earlier_run_and_nothing_else() {
    let redis = Redis::new();
    let file = redis.directory().join("events");
    let rejected = redis.directory().join("events.rejected");
    let named = redis.directory().join("named");
    let removed = |path: &PathBuf| {
        format!("library-req: no bad lines: removed {}, those of an earlier run\n", path.display())
    };
    let run = |lines: &str, more: &[&str]| {
        fs::write(&file, lines).unwrap();
        req(&redis, &[&["batch", file.to_str().unwrap(), "--no-wait"], more].concat())
    };
    let (good, bad) = ("request u geb\n", "lend x y\n");
    let name = ["--rejected", named.to_str().unwrap()];
    for (place, more) in [(&rejected, &[][..]), (&named, &name)] {
        run(bad, more);
        assert_eq!(fs::read_to_string(place).unwrap(), bad);
        let ended = run(good, more);
        assert!(!place.exists());
        assert!(ended.stderr.starts_with(&removed(place)), "{ended}");
        assert!(!run(good, more).stderr.contains("removed"));
    }
    run(bad, &[]);
    // Nothing is sent in their place.
    let unsent = run(good, &["-a", "redis://127.0.0.1:1"]);
    assert!(unsent.status() == Some(4) && rejected.exists(), "{unsent}");
    run(good, &["-q"]).is(0, "", "");
    assert!(!rejected.exists());
    // Those of a run that sends the good lines are its own.
    run(&[bad, good].concat(), &["--partial"]);
    assert_eq!(fs::read_to_string(&rejected).unwrap(), bad);
    // No run of ours makes such.
    fs::remove_file(&rejected).unwrap();
    fs::write(&rejected, "open to others").unwrap();
    run(good, &["-q"]).is(0, "", "");
    assert!(rejected.exists());
    fs::remove_file(&rejected).unwrap();
    run(bad, &name);
    symlink(&named, &rejected).unwrap();
    run(good, &["-q"]).is(0, "", "");
    assert!(rejected.is_symlink() && named.exists());
}

/// Input that had the name of unfinished results, or came by `<`, was gone or was the results afterwards.
#[test]
fn a_batch_that_would_write_over_its_own_input_or_results_is_refused() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let path = |name: &str| redis.directory().join(name).display().to_string();
    let [same, new, new_unfinished] = ["./events", "new", "new.library-req-part"].map(path);
    let lines = "nonsense\nrequest u geb\n";
    let refused = |ended: &TestCommand, fault: &str| {
        assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
        assert!(
            ended.stderr.contains(fault) && ended.stderr.contains("nothing was sent"),
            "{ended}"
        );
    };
    let over_itself = |option: &str| format!("{option} would write over the batch itself");
    for (file, options, fault) in [
        ("events", &["--results", &*same][..], &*over_itself("--results")),
        ("events", &["--rejected", &same], &over_itself("--rejected")),
        ("new.library-req-part", &["--results", &new], &over_itself("--results")),
        ("new.library-req-part", &["--rejected", &new], &over_itself("--rejected")),
    ] {
        let file = path(file);
        fs::write(&file, lines).unwrap();
        let options = [&["batch", "--partial", "--timeout", "0"], options].concat();
        refused(&req(&redis, &[&options[..], &[&file]].concat()), fault);
        for name in [&[][..], &["-"], &["/dev/stdin"]] {
            let child = start_with(&redis, &[&options[..], name].concat(), |command| {
                command.stdin(File::open(&file).unwrap());
            });
            refused(&child.ends(), fault);
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), lines, "{options:?}");
    }
    for (results, rejected) in [(&new, &new), (&new, &new_unfinished), (&new_unfinished, &new)] {
        let options = ["batch", &same, "--results", results, "--rejected", rejected];
        refused(&req(&redis, &options), "--results and --rejected name the same file");
    }
    assert!(entries(&mut db, REQUESTS).is_empty());
}

/// A batch was sent, and its results were nowhere.
#[test]
fn results_or_bad_lines_that_have_no_name_are_a_fault_of_the_command_line() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    for option in ["--results", "--rejected"] {
        for name in ["", "directory/"] {
            let args = ["batch", "--timeout", "0", option, name];
            let ended = req_fed(&redis, &args, b"request u geb\n");
            assert_eq!(ended.status(), Some(2), "{ended}");
            let fault = format!("{option} wants the name of a file, not \"{name}\"");
            assert!(ended.stderr.contains(&fault), "{ended}");
        }
    }
    assert!(entries(&mut db, REQUESTS).is_empty());
}

/// `x` and `x.part` are names that a person gives: one of them was gone.
#[test]
fn files_whose_names_end_with_part_are_as_good_as_others() {
    let redis = Redis::new();
    let path = |name: &str| redis.directory().join(name).display().to_string();
    let (file, bad, results) = (path("out.part"), path("out.csv.part"), path("out.csv"));
    let lines = "nonsense\nrequest u geb\n";
    fs::write(&file, lines).unwrap();
    let args = ["batch", "--partial", "--timeout", "0", "--rejected", &bad, "--results", &results];
    assert_eq!(req(&redis, &[&args[..], &[&file]].concat()).status(), Some(3));
    assert_eq!(fs::read_to_string(&bad).unwrap(), "nonsense\n");
    assert!(fs::read_to_string(&results).unwrap().starts_with("line,"));
    req(&redis, &["batch", "--rejected", &path("out"), &file]);
    assert_eq!(fs::read_to_string(&file).unwrap(), lines);
}

#[test]
fn bad_lines_are_kept_whole_however_long_and_for_nobody_elses_eyes() {
    let redis = Redis::new();
    let file = redis.directory().join("events");
    // Cut, it would ask for another book than the one that was meant.
    let long = format!("request u{}the-selfish-gene", " ".repeat(10_000_000));
    let other = "x".repeat(1_000_000);
    fs::write(&file, format!("{long}\nrequest u geb\nnonsense\n{other}")).unwrap();
    let rejected = redis.directory().join("events.rejected");
    // Of an older run, open to all.
    fs::write(&rejected, "old").unwrap();
    let ended = req(&redis, &["batch", file.to_str().unwrap()]);
    assert_eq!((ended.status(), &*ended.stdout), (Some(2), ""), "{ended}");
    let kept = fs::read_to_string(&rejected).unwrap();
    assert!(kept == format!("{long}\nnonsense\n{other}\n"), "{} bytes", kept.len());
    let mode = |path| fs::metadata(path).unwrap().mode();
    assert_eq!(mode(&rejected) & 0o777, 0o600);
    // It has a zero byte far behind: it is no list of events at all, and the bad lines of before stay.
    fs::write(&file, format!("{long}\0\n")).unwrap();
    let ended = req(&redis, &["batch", file.to_str().unwrap()]);
    assert!(ended.status() == Some(2) && ended.stderr.contains("zero byte in line 1"), "{ended}");
    assert!(fs::read_to_string(&rejected).unwrap() == kept);
    assert!(!redis.directory().join("events.rejected.library-req-part").exists());
}

#[test]
fn results_follow_a_link_and_never_take_the_place_of_the_systems_own() {
    let redis = Redis::new();
    let path = |name: &str| redis.directory().join(name);
    let link = path("link");
    symlink(path("real"), &link).unwrap();
    fs::write(path("real"), "old").unwrap();
    let args = ["batch", "--timeout", "0", "--results"];
    let input = b"request u geb\n";
    let ended = req_fed(&redis, &[&args[..], &[link.to_str().unwrap()]].concat(), input);
    assert_eq!(ended.status(), Some(3), "{ended}");
    let results = fs::read_to_string(path("real")).unwrap();
    assert!(results.starts_with("line,") && results.lines().count() == 2, "{results}");
    assert!(link.is_symlink());
    // Nothing is there yet, behind two links.
    fs::remove_file(path("real")).unwrap();
    symlink("link", path("linked")).unwrap();
    let linked = path("linked");
    let ended = req_fed(&redis, &[&args[..], &[linked.to_str().unwrap()]].concat(), input);
    assert_eq!(ended.status(), Some(3), "{ended}");
    assert_eq!(fs::read_to_string(path("real")).unwrap(), results);
    assert!(linked.is_symlink() && link.is_symlink());
    // From another directory than the one at work in.
    fs::create_dir(path("other")).unwrap();
    symlink("new", path("other/linked")).unwrap();
    let ended = req_fed(&redis, &[&args[..], &["other/linked"]].concat(), input);
    assert_eq!(ended.status(), Some(3), "{ended}");
    assert_eq!(fs::read_to_string(path("other/new")).unwrap(), results);
    // A link that leads nowhere stays one.
    for (target, why) in [("lost", "Too many levels"), ("none/x", "No such file or directory")] {
        symlink(target, path("lost")).unwrap();
        let lost = path("lost");
        let ended = req_fed(&redis, &[&args[..], &[lost.to_str().unwrap()]].concat(), input);
        assert_eq!(ended.status(), Some(74), "{ended}");
        assert!(ended.stderr.contains(why) && ended.stderr.contains("nothing was sent"), "{ended}");
        assert_eq!(fs::read_link(&lost).unwrap(), PathBuf::from(target));
        fs::remove_file(&lost).unwrap();
    }
    // What the shell has redirected to a file.
    let log = File::options().append(true).create(true).open(path("log")).unwrap();
    (&log).write_all(b"before\n").unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let child = start_with(&redis, &[&args[..], &["/proc/self/fd/1"]].concat(), |command| {
        command.stdin(reader).stdout(log);
    });
    writer.write_all(input).unwrap();
    drop(writer);
    child.ends().exits(3);
    assert_eq!(fs::read_to_string(path("log")).unwrap(), format!("before\n{results}"));
}
