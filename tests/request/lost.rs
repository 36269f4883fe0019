//! Redis that cannot be reached, is lost or slow, and commands that are stopped meanwhile.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use library_lending::keys::Keys;
use redis::Commands as _;
use tempfile::TempDir;

use crate::common::*;
use crate::harness::*;

#[test]
fn no_redis_a_wrong_password_and_a_missing_permission_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock").display().to_string();
    let begun = Instant::now();
    for id in [&[][..], &["--id", "mine"]] {
        let ended = bare(&[&["-a", &socket, "request", "u", "b", "--timeout", "30"], id].concat());
        ended.is(
            4,
            "",
            &format!(
                "library-req: Redis at {socket}: could not connect to Redis: No such file or \
                 directory (os error 2) (is Redis running there? -a ADDRESS or $LIBRARY_ADDRESS \
                 says where it is); nothing was sent\n"
            ),
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "it is told at once");
    let redis = Redis::new();
    redis.cmd(&["CONFIG", "SET", "requirepass", "secret"]);
    for (args, refusal) in [
        (&["request", "u", "b"][..], "a password is wanted"),
        (&["request", "u", "b", "--password", "wrong"], "the user or the password was refused"),
    ] {
        let ended = req(&redis, args);
        assert_eq!(ended.status(), Some(4), "{ended}");
        for words in [refusal, "--password-file", "nothing was sent"] {
            assert!(ended.stderr.contains(words), "{ended}");
        }
        assert_eq!(ended.stderr.lines().count(), 1);
    }
    let known = start_with(&redis, &["request", "u", "b", "--no-wait"], |command| {
        command.env("LIBRARY_PASSWORD", "secret");
    });
    known.ends().is(0, "OK\n", "");
}

#[test]
fn a_redis_that_restarts_while_somebody_waits_does_not_lose_the_answer() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let child = start(&redis, &["request", "u", "geb", "--timeout", "30", "--id", "x"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    // Before that it might not know yet that its event is queued, and would send it again.
    until_blocked(&mut db, "blmove");
    redis.kill9();
    redis.restart();
    let mut db = redis.connect().unwrap();
    let fields = ["user_id", "u", "outcome", "accepted", "book_ids", "geb", "in_hand", "1"];
    answer(&mut db, &format!("request:{id}"), &fields);
    let ended = child.ends();
    assert_eq!((ended.status(), &*ended.stdout), (Some(0), "lent to u: geb (1 in hand)\n"));
    assert!(ended.stderr.contains("lost Redis at"), "{ended}");
}

/// An event that Redis had lost in its restart was promised to be processed.
#[test]
fn nothing_is_promised_of_an_event_that_redis_may_have_lost() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let child = start(&redis, &["request", "u", "geb", "--timeout", "3", "--id", "x"]);
    wait_for_entry(&mut db, REQUESTS);
    until_blocked(&mut db, "blmove");
    redis.kill9();
    redis.restart();
    let ended = child.ends();
    assert_eq!(ended.status(), Some(3), "{ended}");
    let said = ended.stderr.contains(" and, if Redis has kept it, will be processed (");
    assert!(said, "{ended}");
}

#[test]
fn a_redis_that_is_gone_for_good_says_that_the_event_is_queued() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let child = start(&redis, &["request", "u", "geb", "--timeout", "1"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    until_blocked(&mut db, "blmove");
    redis.kill9();
    let ended = child.ends();
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains(&format!("queued as request {id}")), "{ended}");
    assert_eq!(ended.stderr.matches("lost Redis").count(), 1, "{ended}");
}

#[test]
fn a_redis_that_falls_silent_while_somebody_waits_is_not_waited_for_for_ever() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let child = start(&redis, &["request", "u", "geb", "--timeout", "1"]);
    let id = wait_for_entry(&mut db, REQUESTS);
    until_blocked(&mut db, "blmove");
    redis.signal(Signal::STOP);
    let ended = child.ends();
    redis.signal(Signal::CONT);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains(&format!("queued as request {id}")), "{ended}");
}

/// A Redis that takes every command and answers none: whether it has done it, nobody knows.
fn a_redis_that_hangs_up(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let _ = client.unwrap().read(&mut [0; 1 << 16]);
        }
    });
}

/// Sent again without a name it would be a second event, which finds the books lent to its own user.
#[test]
fn whether_an_event_may_be_sent_again_after_a_lost_reply_depends_on_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    a_redis_that_hangs_up(&socket);
    let socket = socket.to_str().unwrap();
    let request = ["-a", socket, "request", "--timeout", "0.2"];
    for (user, id, advice) in [
        (
            "u",
            &[][..],
            "before sending it again, look with library-req loans -a SOCKET u or library-req \
             history -a SOCKET --user u (with --id from the first time on it can be run again \
             safely)\n",
        ),
        (
            "-d m",
            &[],
            "before sending it again, look with library-req loans -a SOCKET -- '-d m' or \
             library-req history -a SOCKET --user '-d m' (with --id from the first time on it can \
             be run again safely)\n",
        ),
        (
            "u",
            &["--id", "mine"],
            "the same command may be run again, under its --id it is queued once\n",
        ),
    ] {
        let args = [&request, id, &["--", user, "geb"]].concat();
        let ended = bare(&args);
        assert_eq!((ended.status(), &*ended.stdout), (Some(4), ""), "{ended}");
        let advice = advice.replace("SOCKET", socket);
        let unknown = format!("; it is not known whether it was queued: {advice}");
        assert!(ended.stderr.ends_with(&unknown), "{ended}");
        assert!(ended.stderr.contains(" (it closed the connection: has it too many "), "{ended}");
    }
}

#[test]
fn under_an_id_an_event_whose_reply_was_lost_is_sent_again_and_queued_once() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let socket = redis.directory().join("lossy.sock");
    let lossy = UnixListener::bind(&socket).unwrap();
    let address = redis.address();
    let link = thread::spawn(move || {
        pass_on_until("ADDED", lossy.accept().unwrap().0, &address);
        pass_on(lossy.accept().unwrap().0, &address);
    });
    let args = ["-a", socket.to_str().unwrap(), "return", "u", "geb", "--id", "mine", "--no-wait"];
    req(&redis, &args).is(0, "OK\n", "");
    link.join().unwrap();
    assert_eq!(entries(&mut db, RETURNS).len(), 1);
}

#[test]
fn an_event_is_not_sent_again_to_a_redis_that_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for reply in [&b""[..], b"-NOPERM no permission\r\n"] {
            let mut client = listener.accept().unwrap().0;
            let _ = client.read(&mut [0; 1 << 16]);
            let _ = client.write_all(reply);
        }
    });
    let address = socket.to_str().unwrap();
    let begun = Instant::now();
    let args = ["-a", address, "request", "u", "geb", "--id", "mine", "--timeout", "30"];
    let ended = bare(&args);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("it is not known whether it was queued"), "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it is told at once");
}

/// What a run had sent on a link that was lost, it took for that of an earlier run.
#[test]
fn only_what_an_earlier_run_has_sent_is_told_to_be_from_one() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let keys = Keys::new(None);
    let socket = redis.directory().join("lossy.sock");
    let lossy = UnixListener::bind(&socket).unwrap();
    let address = redis.address();
    let lines = many_lines(2_000);
    // Lost is the reply of the script to the first chunk; or one to the second, which goes past it.
    for lost in ["ADDED", "request:"] {
        redis::cmd("FLUSHALL").exec(&mut db).unwrap();
        let (lossy, address) = (lossy.try_clone().unwrap(), address.clone());
        let link = thread::spawn(move || {
            pass_on_until(lost, lossy.accept().unwrap().0, &address);
            pass_on(lossy.accept().unwrap().0, &address);
        });
        let args = ["-a", socket.to_str().unwrap(), "batch", "--no-wait", "--batch-id", "b"];
        let ended = req_fed(&redis, &args, lines.as_bytes());
        link.join().unwrap();
        ended.is(0, &"OK\n".repeat(2_000), "library-req: 2000 events queued\n");
        assert!(sent_lines(&mut db) == lines, "{lost}");
    }
    // Of four chunks the second is known: it shuts out one that goes past the script, and those that
    // were sent behind it are in.
    let names = [0, 2, 3].map(|number| keys.batch_chunk(&"b".parse().unwrap(), number));
    let _: () = db.del(&names[..]).unwrap();
    let ended = req_fed(&redis, &["batch", "--no-wait", "--batch-id", "b"], lines.as_bytes());
    let told = "library-req: 2000 events queued (500 of them by an earlier run)\n";
    ended.is(0, &"OK\n".repeat(2_000), told);
}

/// What Redis refuses may be there since it was sent for the first time, on the link that was lost.
#[test]
fn a_batch_that_is_refused_after_its_first_reply_was_lost_does_not_know_whether_it_is_queued() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let socket = redis.directory().join("lossy.sock");
    let lossy = UnixListener::bind(&socket).unwrap();
    let (address, mut strict) = (redis.address(), redis.connect().unwrap());
    let link = thread::spawn(move || {
        pass_on_until("ADDED", lossy.accept().unwrap().0, &address);
        let rights = ["SETUSER", "default", "-eval", "-evalsha"];
        redis::cmd("ACL").arg(&rights).exec(&mut strict).unwrap();
        pass_on(lossy.accept().unwrap().0, &address);
    });
    let ended = req_fed(&redis, &["-a", socket.to_str().unwrap(), "batch"], b"request u b\n");
    link.join().unwrap();
    assert_eq!(ended.status(), Some(4), "{ended}");
    let told = "; it is not known whether any event is queued; run the same again to go on: none is queued \
                twice\n";
    assert!(ended.stderr.ends_with(told), "{ended}");
    assert_eq!(entries(&mut db, REQUESTS).len(), 1);
}

#[test]
fn a_batch_that_has_lost_redis_for_good_says_how_much_of_it_is_queued_at_least() {
    let redis = Redis::new();
    let socket = redis.directory().join("lossy.sock");
    let lossy = UnixListener::bind(&socket).unwrap();
    let address = redis.address();
    let link = thread::spawn(move || {
        pass_on_until("request:", lossy.accept().unwrap().0, &address);
    });
    let args = ["-a", socket.to_str().unwrap(), "batch", "--no-wait", "--timeout", "0.2"];
    let ended = req_fed(&redis, &args, many_lines(2_000).as_bytes());
    link.join().unwrap();
    let told =
        "; at least 500 events are queued; run the same again to go on: none is queued twice\n";
    assert!(ended.status() == Some(4) && ended.stderr.ends_with(told), "{ended}");
}

/// It said "at least 500 events are queued; run the same again: none is queued twice", where none was any
/// more, and where those whose names Redis had forgotten would be.
#[test]
fn a_batch_whose_beginning_redis_does_not_know_any_more_promises_nothing_about_it() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    let socket = redis.directory().join("lossy.sock");
    let lossy = UnixListener::bind(&socket).unwrap();
    let address = redis.address();
    let mut forgetful = redis.connect().unwrap();
    let link = thread::spawn(move || {
        // The reply to the second chunk is lost, and before the next link everything.
        pass_on_until("request:", lossy.accept().unwrap().0, &address);
        redis::cmd("FLUSHALL").exec(&mut forgetful).unwrap();
        pass_on(lossy.accept().unwrap().0, &address);
    });
    let args = ["-a", socket.to_str().unwrap(), "batch", "--no-wait", "--batch-id", "b"];
    let ended = req_fed(&redis, &args, many_lines(2_000).as_bytes());
    link.join().unwrap();
    assert_eq!(ended.status(), Some(4), "{ended}");
    let told = ": Redis does not know any more what was sent before; 500 events were queued then: if Redis \
                has lost data, run the same again, and none is queued twice; but if --remember was too \
                short, or Redis' clock was set, those would be\n";
    assert!(ended.stderr.ends_with(told), "{ended}");
    assert!(entries(&mut db, REQUESTS).is_empty());
}

#[test]
fn a_batch_goes_on_after_redis_was_restarted_under_it() {
    let redis = Redis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut db = redis.connect().unwrap();
    let args = ["batch", "--json", "--timeout", "30"];
    let child = start_fed(&redis, &args, b"request u a\nreturn u a\n");
    wait_for_entry(&mut db, RETURNS);
    until_blocked(&mut db, "blmove");
    redis.kill9();
    redis.restart();
    answer_all(&mut redis.connect().unwrap());
    let ended = child.ends();
    assert_eq!(ended.status(), Some(0), "{ended}");
    assert_eq!(ended.stdout.lines().count(), 2);
}

/// It ended with "Interrupted system call", as if Redis were lost.
#[test]
fn who_is_stopped_for_longer_than_the_timeout_looks_for_the_outcome_once_more() {
    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    for args in [&["request", "u", "geb", "--timeout", "0.5"][..], &["batch", "--timeout", "0.5"]] {
        for is_decided in [false, true] {
            redis::cmd("FLUSHALL").exec(&mut db).unwrap();
            let mut child = start_fed(&redis, args, b"request u geb\n");
            let id = wait_for_entry(&mut db, REQUESTS);
            until_blocked(&mut db, "blmove");
            child.process.signal(Signal::STOP);
            // Redis ends the read that is under way; the timeout is over too by then.
            until("nobody waits any more", || {
                let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut db).unwrap();
                !clients.contains("flags=b")
            });
            if is_decided {
                answer(&mut db, &format!("request:{id}"), &["outcome", "accepted"]);
            }
            child.process.signal(Signal::CONT);
            let ended = child.ends();
            assert_eq!(ended.status(), Some(if is_decided { 0 } else { 3 }), "{ended}");
            assert!(!ended.stderr.contains("Interrupted"), "{ended}");
        }
    }
}

/// It ended with 4, and said that Redis could not be reached.
#[test]
fn a_batch_that_is_stopped_while_it_connects_goes_on() {
    let redis = Redis::new();
    redis.cmd(&["CONFIG", "SET", "requirepass", "secret"]);
    let socket = redis.directory().join("slow.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let accept = || {
        let mut client = None;
        until("it connects", || {
            client = listener.accept().ok();
            client.is_some()
        });
        client.unwrap().0
    };
    let file = redis.directory().join("events");
    fs::write(&file, "request u geb\n").unwrap();
    let args = ["-a", socket.to_str().unwrap(), "--password", "secret", "batch", "--no-wait"];
    let mut child = start(&redis, &[&args[..], &[file.to_str().unwrap()]].concat());
    // While it waits for the reply to AUTH, and then to its first question.
    for has_authenticated in [false, true] {
        let mut link = accept();
        let mut words = [0; 1 << 12];
        assert_ne!(link.read(&mut words).unwrap(), 0);
        if has_authenticated {
            link.write_all(b"+OK\r\n").unwrap();
            assert_ne!(link.read(&mut words).unwrap(), 0);
        }
        until_state(&child, 'S');
        child.process.signal(Signal::STOP);
        until_state(&child, 'T');
        child.process.signal(Signal::CONT);
    }
    pass_on(accept(), &redis.address());
    child.ends().is(0, "OK\n", "library-req: 1 event queued\n");
}

/// The time for which it was stopped counted as that of an outage.
#[test]
fn a_batch_that_is_stopped_for_longer_than_the_timeout_while_it_is_sent_goes_on() {
    let redis = Redis::new();
    let socket = redis.directory().join("slow.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let address = redis.address();
    let (tell, told) = mpsc::channel();
    let link = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = UnixStream::connect(&address).unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut from, &mut to));
        // The events are taken, and nothing comes of it on this link.
        let mut words = vec![0; 1 << 16];
        loop {
            let length = client.read(&mut words).unwrap();
            if String::from_utf8_lossy(&words[..length]).contains("EVAL") {
                break;
            }
            server.write_all(&words[..length]).unwrap();
        }
        tell.send(()).unwrap();
        pass_on(listener.accept().unwrap().0, &address);
    });
    let args = ["-a", socket.to_str().unwrap(), "batch", "--no-wait", "--timeout", "0.2"];
    let mut child = start_fed(&redis, &args, b"request u geb\n");
    told.recv().unwrap();
    until_state(&child, 'S');
    child.process.signal(Signal::STOP);
    until_state(&child, 'T');
    // Until the timeout is over.
    thread::sleep(Duration::from_millis(300));
    child.process.signal(Signal::CONT);
    child.ends().is(0, "OK\n", "library-req: 1 event queued\n");
    link.join().unwrap();
}

/// Lets a client speak with the Redis at this address.
fn pass_on(client: UnixStream, address: &str) {
    pass_on_until("\0", client, address);
}

/// The same until Redis says these words, which are lost then, and the link with them.
fn pass_on_until(lost: &str, mut client: UnixStream, address: &str) {
    let mut redis = UnixStream::connect(address).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), redis.try_clone().unwrap());
    let there = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut said = [0; 1 << 16];
    while let Ok(length @ 1..) = redis.read(&mut said) {
        if String::from_utf8_lossy(&said[..length]).contains(lost) {
            break;
        }
        // It may have heard enough.
        if client.write_all(&said[..length]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    there.join().unwrap();
}

/// Somebody whose Redis takes what is sent and says nothing; the link, and where they are at work.
fn who_waits_in_vain(options: &[&str]) -> (Running, UnixStream, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silent.sock");
    let silent = UnixListener::bind(&socket).unwrap();
    let args = [&["request", "u", "b", "-a", socket.to_str().unwrap()], options].concat();
    let child = Running::start_alone(dir.path(), LIBRARY_REQ, &args, |_| ());
    let (mut link, _) = silent.accept().unwrap();
    link.read_exact(&mut [0]).unwrap();
    until_state(&child, 'S');
    (child, link, dir)
}

/// Before anything had left, Ctrl-C said that it was not known whether the event was queued; and a terminal
/// that was closed later ended the command without a word about what was. While the reply was waited for, it
/// could say that Redis was lost, and end with 4.
#[test]
fn who_is_interrupted_says_what_is_known_to_be_sent() {
    for (password, told) in [
        // That is asked about first, in vain.
        (&["--password", "secret"][..], "nothing was sent\n"),
        (&[], "it is not known whether it was queued: before sending it again, look with "),
    ] {
        let (mut child, _link, _dir) = who_waits_in_vain(password);
        child.process.signal(Signal::INT);
        let ended = child.ends();
        assert_eq!(ended.exit.and_then(|exit| exit.signal()), Some(2), "{ended}");
        let told = format!("library-req: interrupted; {told}");
        assert!(ended.stderr.starts_with(&told), "{ended}");
    }

    let redis = Redis::new();
    let mut db = redis.connect().unwrap();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        redis.cmd(&["FLUSHALL"]);
        let mut child = start(&redis, &["request", "u", "geb"]);
        let id = wait_for_entry(&mut db, REQUESTS);
        until_blocked(&mut db, "blmove");
        child.process.signal(signal);
        let ended = child.ends();
        let told = format!("library-req: interrupted; request {id} stays queued");
        assert!(ended.stderr.contains(&told), "{ended}");
        assert_eq!(ended.exit.and_then(|exit| exit.signal()), Some(signal.as_raw()), "{ended}");
    }
}

/// It asked whether Redis was running there, which had said nothing yet.
#[test]
fn who_is_stopped_while_an_event_is_queued_is_not_sent_after_redis() {
    let (mut child, _link, _dir) = who_waits_in_vain(&[]);
    child.process.signal(Signal::STOP);
    until_state(&child, 'T');
    child.process.signal(Signal::CONT);
    let ended = child.ends();
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("; it is not known whether it was queued: "), "{ended}");
    assert!(!ended.stderr.contains("is Redis running"), "{ended}");
}

/// Whoever gave `--timeout 1` waited 5 s for a Redis that hangs.
#[test]
fn who_has_little_time_does_not_wait_longer_for_a_redis_that_hangs() {
    let redis = Redis::new();
    redis.signal(Signal::STOP);
    let took = ["0", "1", "3"].map(|seconds| {
        let begin = Instant::now();
        let ended = req(&redis, &["request", "u", "geb", "--timeout", seconds]);
        assert_eq!(ended.status(), Some(4), "{ended}");
        assert!(ended.stderr.contains("no answer in time; it is not known "), "{ended}");
        begin.elapsed().as_secs_f64()
    });
    redis.signal(Signal::CONT);
    // Less than a second may be a Redis that has much to do.
    let [none, one, three] = took;
    assert!((1.0..3.0).contains(&none) && (1.0..3.0).contains(&one), "{took:?}");
    assert!((3.0..5.0).contains(&three), "{took:?}");
}

/// Each reply of a pipeline was waited for, though none had come to the one before: this took 43 s, and
/// libraryd, which reads what it has in hand in one, took 5 s for each event of it to leave a link that had
/// fallen silent.
#[test]
fn a_redis_that_is_silent_is_waited_for_once_however_many_replies_are_due() {
    let redis = Redis::new();
    redis.signal(Signal::STOP);
    let begin = Instant::now();
    let ended = req(&redis, &["where", "geb"]);
    let took = begin.elapsed();
    redis.signal(Signal::CONT);
    assert_eq!(ended.status(), Some(4), "{ended}");
    assert!(ended.stderr.contains("no answer in time"), "{ended}");
    assert!(!ended.stderr.contains("is Redis running"), "the link stands: {ended}");
    assert!(took < Duration::from_secs(15), "it took {took:?}");
}
