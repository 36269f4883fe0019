//! The fence of every script that writes (I7), and who gets a lease.

use super::*;

/// A session is over; what it had sent arrives after the next has begun.
fn fence(
    script: &'static str,
    prepare: impl Fn(&mut Library, &Instance),
    late: impl Fn(&mut Library, &Instance) -> String,
) {
    let check = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then";
    guard(script, &[(check, "if false then")], |library| {
        let old = library.instance("worker1");
        prepare(library, &old);
        library.next_session(&old);
        let before = library.dump();
        let word = late(library, &old);
        ensure!(word == "FENCED", "it came to {word}");
        let after = library.dump();
        ensure!(before == after, "it changed {}", before.difference(&after));
        Ok(())
    });
}

#[test]
fn a_late_decide_changes_nothing() {
    let geb = request(5, "user1", "geb");
    fence(
        "decide",
        |library, by| {
            store(library, &["geb"]);
            give(library, by, &request(5, "user1", "geb"));
        },
        |library, by| {
            let tries = [first_try(&geb)];
            word(&library.decide_raw(by, &Default::default(), &tries, None).unwrap())
        },
    );
}

/// Commands are tried in forms that do nothing to a string. A lock that had run out meanwhile became a
/// stream, and the name was of no use to anybody.
#[test]
fn permissions_are_tried_on_no_lock_but_ones_own() {
    guard("permits", &[("if held ~= ARGV[1] then", "if false then")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["DEL", by.session.lock()]);
        let before = library.dump();
        let word = late(library, &by, "permits", &["absent"], &[]);
        ensure!(word == "FENCED", "it came to {word}");
        let after = library.dump();
        ensure!(before == after, "it changed {}", before.difference(&after));
        Ok(())
    });
}

#[test]
fn a_late_fetch_changes_nothing() {
    let keys = Library::new().keys;
    fence(
        "fetch",
        |_, _| {},
        |library, by| {
            let touched = [keys.shelves.as_str(), &keys.fetch_answers];
            late(library, by, "fetch", &touched, &["1", "worker1", "geb", "5-0"])
        },
    );
}

#[test]
fn a_late_unfetch_changes_nothing() {
    fence(
        "unfetch",
        |library, _| {
            let shelves = library.keys.shelves.clone();
            library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0"]);
        },
        |library, by| word(&library.unfetch(by, &[("geb", id(5, 0))])),
    );
}

#[test]
fn a_late_shelve_changes_nothing() {
    fence(
        "shelve",
        |library, by| {
            add_handoff(library, "5-0", "geb");
            library.take_handoffs(by.name(), 1);
        },
        |library, by| library.shelve(by, &[handoff(id(5, 0), "geb")]).remove(0),
    );
}

#[test]
fn a_late_reject_changes_nothing() {
    let geb = request(5, "user1", "geb");
    fence(
        "reject",
        |library, by| give(library, by, &request(5, "user1", "geb")),
        |library, by| word(&library.reject(by, geb.key, "late", false).unwrap()),
    );
}

#[test]
fn a_late_discard_changes_nothing() {
    fence(
        "discard",
        |library, by| {
            add_handoff(library, "5-0", "a,,b");
            let handoffs = library.keys.handoffs.clone();
            library.read(by.name(), &handoffs, 1);
        },
        |library, by| word(&library.discard(by, id(5, 0), "late").unwrap()),
    );
}

#[test]
fn a_handoff_that_is_done_is_not_discarded_and_one_that_is_kept_stays() {
    let parts = [("if not fields then", "if false then"), ("~= 'keep' then", "~= '' then")];
    for (part, is_kept) in parts.into_iter().zip([false, true]) {
        guard("discard", &[part], |library| {
            library.keep_events(is_kept);
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            add_handoff(library, "5-0", "a,,b");
            library.read(by.name(), &keys.handoffs, 1);
            for (said, is_pending) in [("DISCARDED", true), ("STALE", false)] {
                let came = library.discard(&by, id(5, 0), "book_id_empty");
                let came = came.map(|reply| word(&reply)).map_err(|error| error.to_string())?;
                ensure!(came == said, "pending: {is_pending}, and {came}");
            }
            let left = library.redis.ask::<usize>(&["XLEN", &keys.handoffs]);
            ensure!(left == usize::from(is_kept), "there are {left}");
            let letters = library.redis.ask::<usize>(&["XLEN", &keys.dead_letters]);
            ensure!(letters == 1, "there are {letters} letters");
            Ok(())
        });
    }
}

#[test]
fn a_late_renewal_prolongs_nothing() {
    fence("renew", |_, _| {}, |library, by| late(library, by, "renew", &[], &["6000"]));
}

#[test]
fn a_late_resignation_gives_up_no_newer_lease() {
    fence(
        "resign",
        |_, _| {},
        |library, by| {
            let (answers, stream) =
                (library.keys.fetch_answers.clone(), library.keys.requests.clone());
            late(library, by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP])
        },
    );
}

#[test]
fn a_late_claim_changes_nothing() {
    fence(
        "claim",
        |library, _| {
            library.add(&request(5, "user1", "geb"));
            library.take("dead", Action::Request, 1);
        },
        |library, by| {
            let stream = library.keys.requests.clone();
            library.claim(by, &stream, "dead").remove(0)
        },
    );
}

#[test]
fn a_late_sweep_changes_nothing() {
    fence(
        "sweep",
        |library, _| {
            let states = library.keys.book_states.clone();
            library.redis.ask::<()>(&["HSET", &states, "geb", "=5-0"]);
        },
        |library, by| library.sweep(by, "look", &[("geb".into(), "=5-0".into())]).remove(0),
    );
}

#[test]
fn a_late_clear_changes_nothing() {
    fence(
        "clear",
        |library, _| acknowledged(library, 5),
        |library, by| {
            let stream = library.keys.requests.clone();
            library.clear_stream(by, &stream).remove(0)
        },
    );
}

#[test]
fn a_late_forget_changes_nothing() {
    fence(
        "forget",
        |library, _| acknowledged(library, 5),
        |library, by| forget(library, by, "reference"),
    );
}

#[test]
fn a_late_count_of_tries_changes_nothing() {
    let tries = Library::new().keys.lone_tries;
    fence(
        "lone_try",
        |_, _| {},
        |library, by| late(library, by, "lone_try", &[&tries], &["alone", "request:5-0"]),
    );
}

/// One was cut off in its try, and another took the event over. Back again, the first wiped out whose try
/// was under way, and that one counted though its process survived it.
#[test]
fn who_survived_a_try_leaves_the_note_of_who_tries_the_event_now() {
    guard(
        "lone_try",
        &[("if by == process then\n      note", "if true then\n      note")],
        |library| {
            let (first, second) = (library.instance("worker1"), library.instance("worker2"));
            let tries = library.keys.lone_tries.clone();
            for (by, step) in
                [(&first, "alone"), (&second, "alone"), (&first, "survived"), (&second, "survived")]
            {
                late(library, by, "lone_try", &[&tries], &[step, "request:5-0"]);
            }
            let note = library.dump().hash(&tries).remove("request:5-0");
            ensure!(note.as_deref() == Some("0 1"), "it is {note:?}");
            Ok(())
        },
    );
}

fn note_a_try(library: &mut Library) {
    let tries = library.keys.lone_tries.clone();
    library.redis.ask::<()>(&["HSET", &tries, "request:5-0", "1 1"]);
}

#[test]
fn the_note_of_a_try_stays_while_its_event_is_in_hand() {
    let check = "and #redis.call('XPENDING', stream, ARGV[2], id, id, 1) == 0";
    guard("old_tries", &[(check, "")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        give(library, &other, &request(5, "user1", "geb"));
        note_a_try(library);
        ensure!(old_tries(library, &by).is_some(), "it is gone");
        serve_fresh(library, &other, &request(5, "user1", "geb"));
        ensure!(old_tries(library, &by).is_none(), "it stays");
        Ok(())
    });
}

/// The group was destroyed and made again.
#[test]
fn the_note_of_a_try_stays_while_its_event_is_to_be_delivered_again() {
    let check = "not before(group['last-delivered-id'], id)";
    guard("old_tries", &[(check, "true")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        note_a_try(library);
        ensure!(old_tries(library, &by).is_some(), "it is gone");
        Ok(())
    });
}

#[test]
fn a_late_removal_of_notes_changes_nothing() {
    fence(
        "old_tries",
        |library, _| note_a_try(library),
        |library, by| {
            let keys = library.keys.clone();
            let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
            let args = [LENDING_GROUP, "request:5-0", "request", "5-0"];
            late(library, by, "old_tries", &touched, &args)
        },
    );
}

// ---- acquire.lua.

fn acquire(library: &mut Library, process: &str, number: &str, force: &str) -> String {
    library
        .words("acquire", &["instance_lock:worker1"], &[process, number, "6000", force])
        .remove(0)
}

#[test]
fn a_late_acquire_takes_no_lease_from_a_later_session() {
    let check = "free = number and number < tonumber(ARGV[2])";
    guard("acquire", &[(check, "free = number")], |library| {
        for number in ["1", "3"] {
            let word = acquire(library, "me", number, "");
            ensure!(word == "ACQUIRED", "{word}");
        }
        let word = acquire(library, "me", "2", "");
        ensure!(word == "HELD", "session 2 comes after 3: {word}");
        Ok(())
    });
}

#[test]
fn a_name_that_is_held_is_taken_by_force_alone() {
    let check = "if not free and ARGV[4] ~= 'force' then";
    guard("acquire", &[(check, "if false then")], |library| {
        acquire(library, "other", "1", "");
        let word = acquire(library, "me", "1", "");
        ensure!(word == "HELD", "{word}");
        ensure!(acquire(library, "me", "2", "force") == "ACQUIRED", "not even by force");
        Ok(())
    });
}

/// Tokens of two processes can be as long, and one has begun more sessions than the other.
#[test]
fn a_token_of_another_process_is_no_earlier_one_of_this() {
    let own = "string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':'";
    guard("acquire", &[(own, "true")], |library| {
        acquire(library, "one", "1", "");
        let word = acquire(library, "two", "2", "");
        ensure!(word == "HELD", "{word}");
        Ok(())
    });
}

/// A process may die before it renews it for the first time.
#[test]
fn a_lease_runs_out_from_the_beginning() {
    let set = "local set = redis.pcall('SET', KEYS[1], token, 'PX', ARGV[3])";
    let without = "local set = redis.pcall('SET', KEYS[1], token)";
    guard("acquire", &[(set, without)], |library| {
        acquire(library, "me", "1", "");
        let left: i64 = library.redis.ask(&["PTTL", "instance_lock:worker1"]);
        ensure!((1..=6_000).contains(&left), "{left} ms are left");
        Ok(())
    });
}
