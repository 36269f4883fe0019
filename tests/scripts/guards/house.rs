//! Taking over, and keeping house.

use super::*;

#[test]
fn nothing_is_claimed_from_an_instance_that_lives() {
    guard("claim", &[("if left >= 0 then", "if false then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        give(library, &other, &request(5, "user1", "geb"));
        let stream = library.keys.requests.clone();
        let word = library.claim(&by, &stream, "worker2").remove(0);
        ensure!(word == "ALIVE", "{word}");
        ensure!(library.pending("worker2", &stream).len() == 1, "it has lost its event");
        library.lose_lease(&other);
        library.claim(&by, &stream, "worker2");
        ensure!(library.pending("worker1", &stream).len() == 1, "it is not taken over");
        Ok(())
    });
}

#[test]
fn a_lock_without_a_ttl_counts_as_alive_for_long() {
    guard("claim", &[("min_idle = ARGV[8]", "min_idle = '0'")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["SET", "instance_lock:reference", "locked"]);
        library.add(&request(5, "user1", "geb"));
        library.take("reference", Action::Request, 1);
        let stream = library.keys.requests.clone();
        library.claim(&by, &stream, "reference");
        ensure!(library.pending("worker1", &stream).is_empty(), "it is taken over at once");
        Ok(())
    });
}

/// Both would work on it.
#[test]
fn what_is_not_taken_over_is_not_told_as_such() {
    guard("claim", &[("'JUSTID') > 0", "'JUSTID') >= 0")], |library| {
        let by = library.instance("worker1");
        library.redis.ask::<()>(&["SET", "instance_lock:reference", "locked"]);
        library.add(&request(5, "user1", "geb"));
        library.take("reference", Action::Request, 1);
        let stream = library.keys.requests.clone();
        let words = library.claim(&by, &stream, "reference");
        ensure!(words == ["CLAIMED", ""], "{words:?}");
        Ok(())
    });
}

/// XCLAIM of Redis 7 drops it, and it would end without an outcome.
#[test]
fn an_event_that_was_deleted_is_told_and_not_dropped() {
    guard("claim", &[("  if found then\n", "  if true then\n")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        library.take("dead", Action::Request, 1);
        let stream = library.keys.requests.clone();
        library.redis.ask::<()>(&["XDEL", &stream, "5-0"]);
        let words = library.claim(&by, &stream, "dead");
        ensure!(words.get(2).map(String::as_str) == Some("5-0"), "{words:?}");
        let dump = library.dump();
        let pending = &dump.stream(&stream).groups[LENDING_GROUP].pending;
        ensure!(pending.contains_key("5-0"), "nobody can reject it: {pending:?}");
        Ok(())
    });
}

fn consumers(library: &mut Library, stream: &str) -> Vec<String> {
    let list: Vec<std::collections::HashMap<String, Value>> =
        library.redis.ask(&["XINFO", "CONSUMERS", stream, LENDING_GROUP]);
    list.iter().map(|info| show(&info["name"])).collect()
}

#[test]
fn a_consumer_with_something_in_hand_is_not_forgotten() {
    let check = "or #redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then";
    guard("forget", &[(check, "then")], |library| {
        let by = library.instance("worker1");
        library.add(&request(5, "user1", "geb"));
        library.take("dead", Action::Request, 1);
        let word = forget(library, &by, "dead");
        ensure!(word == "KEPT", "{word}");
        Ok(())
    });
}

#[test]
fn an_instance_with_a_lock_is_not_forgotten() {
    guard("forget", &[("if redis.call('EXISTS', KEYS[3]) == 1", "if false")], |library| {
        let (by, _other) = (library.instance("worker1"), library.instance("reference"));
        acknowledged(library, 5);
        let word = forget(library, &by, "reference");
        ensure!(word == "KEPT", "{word}");
        let stream = library.keys.requests.clone();
        ensure!(consumers(library, &stream) == ["reference"], "it is gone");
        Ok(())
    });
}

#[test]
fn who_resigns_leaves_what_is_in_hand_to_others() {
    guard("resign", &[("if number == 0 then", "if true then")], |library| {
        let by = library.instance("worker1");
        give(library, &by, &request(5, "user1", "geb"));
        let stream = library.keys.requests.clone();
        let answers = library.keys.fetch_answers.clone();
        late(library, &by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP]);
        ensure!(library.pending("worker1", &stream).len() == 1, "it is lost");
        Ok(())
    });
}

/// It was told of a thousand at most, and of what others have as well.
#[test]
fn who_resigns_tells_how_much_is_left_to_others() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let stream = library.keys.requests.clone();
    for n in 1..=1_500 {
        library.add(&request(n, "user1", "geb"));
    }
    library.take("worker2", Action::Request, 100);
    library.take("worker1", Action::Request, 1_400);
    let keys = [by.session.lock(), &library.keys.fetch_answers.clone(), &stream];
    let reply = library.words("resign", &keys, &[&by.session.token, "worker1", LENDING_GROUP]);
    assert_eq!(reply, ["RESIGNED", "1400"]);
}

#[test]
fn a_state_that_has_changed_since_it_was_seen_is_not_swept() {
    let check = "if redis.call('HGET', KEYS[2], book) == state then";
    guard("sweep", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        let states = library.keys.book_states.clone();
        // It was seen before the book was handed off again.
        let seen = "=1-0";
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        sweep(library, &by, "look", ("geb", seen));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "the note of a book on its way is gone");
        Ok(())
    });
}

#[test]
fn the_note_of_a_book_on_its_way_is_not_swept() {
    let check = "over = lent or not is_undone(KEYS[4], ARGV[3], id)";
    guard("sweep", &[(check, "over = true")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        for delivered in [false, true] {
            let seen: String = library.redis.ask(&["HGET", &states, "geb"]);
            sweep(library, &by, "look", ("geb", &seen));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(kept, "it is gone, delivered: {delivered}");
            library.take_handoffs("worker1", 1);
        }
        Ok(())
    });
}

fn reserved_for_5(library: &mut Library) -> String {
    let keys = library.keys.clone();
    library.redis.ask::<()>(&["HSET", &keys.book_states, "geb", "?5-0"]);
    library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0"]);
    keys.book_states
}

#[test]
fn a_reservation_for_an_undecided_request_is_not_swept() {
    let check = "elseif kind == '?' and not is_undone(KEYS[5], ARGV[2], id) then";
    guard("sweep", &[(check, "elseif kind == '?' then")], |library| {
        let by = library.instance("worker1");
        let states = reserved_for_5(library);
        give(library, &by, &request(5, "user1", "geb"));
        sweep(library, &by, "unfetched", ("geb", "?5-0"));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "the reservation is gone");
        Ok(())
    });
}

#[test]
fn a_reservation_is_swept_only_after_shelving_has_taken_the_book_back() {
    guard(
        "sweep",
        &[("over = lent or stored or ARGV[4] == 'unfetched'", "over = true")],
        |library| {
            let by = library.instance("worker1");
            let states = reserved_for_5(library);
            sweep(library, &by, "look", ("geb", "?5-0"));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(kept, "nobody knows any more that the book is out");
            sweep(library, &by, "unfetched", ("geb", "?5-0"));
            let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
            ensure!(!kept, "it is not swept");
            Ok(())
        },
    );
}

/// Sweeps a book as the keeper does: what is told is taken back by shelving in between.
fn tidy(library: &mut Library, by: &Instance, book: &str) {
    let states = library.keys.book_states.clone();
    let seen: Option<String> = library.redis.ask(&["HGET", &states, book]);
    let Some(seen) = seen else { return };
    let told = library.sweep(by, "look", &[(book.to_owned(), seen.clone())]);
    if let [_, _, told, state] = &told[..] {
        library.unfetch(by, &[(told, state[1..].parse().unwrap())]);
        sweep(library, by, "unfetched", (book, &seen));
    }
}

/// A request had reserved a book when the group was lost, the reference application decided it, lent
/// the book and took it back into automated storage. The mark of the reservation, which it knows
/// nothing of, was left, and for its sake shelving took the book back: it was on its shelf and in
/// automated storage (I1), and could be lent to two.
#[test]
fn a_stored_book_is_not_taken_back_by_shelving_for_an_old_reservation() {
    guard("sweep", &[("over = lent or stored or", "over = lent or")], |library| {
        let by = library.instance("worker1");
        let states = reserved_for_5(library);
        let keys = library.keys.clone();
        library.redis.ask::<()>(&["SADD", &keys.storage, "geb"]);
        tidy(library, &by, "geb");
        let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
        ensure!(is_out, "it is on its shelf and in storage");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept");
        Ok(())
    });
}

/// The same where storage was full, so that the reference application handed the book over, without
/// a mark: it was put on its shelf twice, and the second time, when the hand-off was done, it had
/// been lent in between.
#[test]
fn a_book_in_a_handoff_without_a_mark_is_not_taken_back_for_an_old_reservation() {
    let check = "if not over and is_in_handoff(KEYS[4], ARGV[3], book) == false then";
    guard("sweep", &[(check, "if not over then")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "6-0", "x,geb");
        let states = reserved_for_5(library);
        for delivered in [false, true] {
            tidy(library, &by, "geb");
            let is_out =
                library.redis.ask::<bool>(&["HEXISTS", &library.keys.shelves.clone(), "geb"]);
            ensure!(
                is_out,
                "it is on its shelf before the hand-off is done, delivered: {delivered}"
            );
            if !delivered {
                let taken = library.take_handoffs("worker1", 1);
                assert_eq!(taken.len(), 1);
            }
        }
        let shelving = library.pending("worker1", &library.keys.handoffs.clone());
        let handoffs: Vec<HandOff> = shelving
            .iter()
            .map(|entry| library_lending::shelving::reader::delivered(entry).unwrap())
            .collect();
        library.shelve(&by, &handoffs);
        tidy(library, &by, "geb");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept when the hand-off is done");
        Ok(())
    });
}

/// Asserts what is left when requests are cleared.
fn assert_left(library: &mut Library, by: &Instance, expected: &[&str]) -> Result<(), String> {
    let stream = library.keys.requests.clone();
    library.clear_stream(by, &stream);
    let left: Vec<_> =
        library.dump().stream(&stream).entries.into_iter().map(|(id, _)| id).collect();
    ensure!(left == expected, "{left:?}");
    Ok(())
}

#[test]
fn nothing_is_cleared_that_is_not_decided() {
    let checks = [
        ("if oldest and before(oldest[1], delivered) then", "if false then"),
        ("entry[1] ~= oldest[1]", "true"),
    ];
    for check in checks {
        guard("clear", &[check], |library| {
            let by = library.instance("worker1");
            acknowledged(library, 5);
            give(library, &by, &request(6, "user1", "geb"));
            give(library, &by, &request(7, "user1", "geb"));
            assert_left(library, &by, &["6-0", "7-0"])
        });
    }
}

#[test]
fn nothing_is_cleared_that_was_not_delivered() {
    guard("clear", &[("local last = delivered", "local last = '+'")], |library| {
        let by = library.instance("worker1");
        acknowledged(library, 5);
        library.add(&request(6, "user1", "geb"));
        assert_left(library, &by, &["6-0"])
    });
}

#[test]
fn what_is_in_front_of_the_oldest_is_not_cleared_where_somebody_has_set_the_group_back() {
    guard("clear", &[("oldest and before(oldest[1], delivered)", "oldest")], |library| {
        let by = library.instance("worker1");
        acknowledged(library, 5);
        acknowledged(library, 6);
        give(library, &by, &request(7, "user1", "geb"));
        let stream = library.keys.requests.clone();
        library.redis.ask::<()>(&["XGROUP", "SETID", &stream, LENDING_GROUP, "5-0"]);
        // It is delivered again.
        assert_left(library, &by, &["6-0", "7-0"])
    });
}

/// An instance that deletes takes the note away of one that keeps: the group was made anew at 0 over all
/// that was kept after that.
#[test]
fn a_note_stays_while_an_instance_keeps_events() {
    guard("clear", &[("or ARGV[4] == 'keep' then\n    note", "then\n    note")], |library| {
        library.keep_events(true);
        let by = library.instance("worker1");
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.clear_stream(&by, &stream);
        ensure!(library.redis.ask::<bool>(&["HEXISTS", &notes, &stream]), "there is no note");
        Ok(())
    });
}

/// What was never delivered was deleted as decided.
#[test]
fn nothing_is_cleared_while_a_group_is_ahead_of_its_stream() {
    let check = "before(last_given(redis.call('XINFO', 'STREAM', stream)), delivered)";
    guard("clear", &[(check, "false")], |library| {
        let by = library.instance("worker1");
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.redis.ask::<()>(&["XGROUP", "SETID", &stream, LENDING_GROUP, "99-0"]);
        library.add(&request(5, "user1", "geb"));
        for decided in ["keep", "delete"] {
            let args = [&by.session.token, LENDING_GROUP, "3", decided];
            let reply = library.eval("clear", &[by.session.lock(), &stream, &notes], &args);
            let left = library.redis.ask::<usize>(&["XLEN", &stream]);
            ensure!(left == 1, "it is gone");
            let Err(error) = reply else { return Err(format!("the session goes on: {decided}")) };
            ensure!(error.code() == Some("AHEAD"), "{error}");
        }
        Ok(())
    });
}

#[test]
fn a_stream_that_others_read_is_not_cleared() {
    let check = "if ARGV[4] == 'keep' or number_of_groups > 1 then";
    guard("clear", &[(check, "if ARGV[4] == 'keep' then")], |library| {
        let by = library.instance("worker1");
        let stream = library.keys.requests.clone();
        library.redis.ask::<()>(&["XGROUP", "CREATE", &stream, "auditors", "0"]);
        acknowledged(library, 5);
        library.clear_stream(&by, &stream);
        ensure!(library.dump().stream(&stream).entries.len() == 1, "it is gone");
        Ok(())
    });
}

#[test]
fn a_stream_whose_events_are_kept_is_not_cleared() {
    let check = "if ARGV[4] == 'keep' or number_of_groups > 1 then";
    guard("clear", &[(check, "if number_of_groups > 1 then")], |library| {
        library.keep_events(true);
        let by = library.instance("worker1");
        acknowledged(library, 5);
        let stream = library.keys.requests.clone();
        library.clear_stream(&by, &stream);
        ensure!(library.dump().stream(&stream).entries.len() == 1, "it is gone");
        Ok(())
    });
}

/// Should its consumer group be lost, what is decided must not be decided again; and it must be created
/// anew where nothing decided is left.
#[test]
fn a_note_tells_of_decided_events_as_long_as_there_are_any() {
    let clears = |library: &mut Library, by: &Instance, left: usize| {
        let (stream, notes) = (library.keys.requests.clone(), library.keys.kept_events.clone());
        library.clear_stream(by, &stream);
        let length = library.redis.ask::<usize>(&["XLEN", &stream]);
        ensure!(length == left, "there are {length}, not {left}");
        let noted = library.redis.ask::<bool>(&["HEXISTS", &notes, &stream]);
        ensure!(noted == (left > 0), "there are {left}, and a note: {noted}");
        Ok(())
    };
    for (note, without) in [
        ("note('decided events are being cleared')", ""),
        ("  redis.call('HDEL', KEYS[3], stream)\nend\nreturn", "end\nreturn"),
        ("note('decided events are kept')", ""),
    ] {
        guard("clear", &[(note, without)], |library| {
            let by = library.instance("worker1");
            (5..9).for_each(|ms| acknowledged(library, ms));
            clears(library, &by, 1)?;
            clears(library, &by, 0)?;
            let stream = library.keys.requests.clone();
            library.redis.ask::<()>(&["XGROUP", "CREATE", &stream, "auditors", "0"]);
            acknowledged(library, 9);
            clears(library, &by, 1)
        });
    }
}

/// A client can put a hundred thousand books into each of a page of malformed requests. What one
/// call looks at is bounded: 64 such requests once took Redis twelve seconds.
#[test]
fn one_call_of_reject_does_not_take_long_however_large_the_events_are() {
    let shortest = "a,".repeat(128_499) + "a";
    let few = (0..1_000).map(|n| format!("book{n}")).collect::<Vec<_>>().join(",");
    let many_fields = vec!["a"; 40_000];
    let large: [Vec<&str>; 3] = [
        vec!["user_id", "u", "book_ids", &shortest],
        vec!["no_user", "u", "book_ids", &few],
        [&["book_ids", "a"][..], &many_fields].concat(),
    ];
    for fields in large {
        let mut library = Library::new();
        let by = library.instance("worker1");
        let (stream, outcomes) = (library.keys.requests.clone(), library.keys.outcomes.clone());
        let mut events = Vec::new();
        for ms in 1..=64 {
            let id = id(ms, 0).to_string();
            let add = [&["XADD", &stream, &id][..], &fields].concat();
            library.redis.ask::<()>(&add);
            events.push((request(ms, "u", "a").key, "too large".to_owned()));
        }
        library.redis.ask::<redis::Value>(&[
            "XREADGROUP",
            "GROUP",
            LENDING_GROUP,
            by.name(),
            "COUNT",
            "64",
            "STREAMS",
            &stream,
            ">",
        ]);
        let mut longest = std::time::Duration::ZERO;
        let mut calls = 0;
        while !events.is_empty() {
            let begin = std::time::Instant::now();
            let reply = library.reject_all(&by, &events).unwrap();
            longest = longest.max(begin.elapsed());
            let Rejected::Done(done) = reject::read(reply).unwrap() else { panic!("not done") };
            assert!(!done.is_empty() && done.iter().all(Option::is_some));
            events.drain(..done.len());
            calls += 1;
        }
        println!("{} fields: {calls} calls, the longest {longest:?}", fields.len());
        assert!(longest.as_millis() < 1_000, "{longest:?}");
        assert_eq!(library.redis.ask::<usize>(&["XLEN", &outcomes]), 64);
        assert_eq!(library.redis.ask::<usize>(&["XLEN", &stream]), 0);
    }
}

/// A return takes back only loans of older requests, and knows them by these marks.
#[test]
fn the_mark_of_a_loan_is_not_swept() {
    guard("sweep", &[("      over = not lent\n", "      over = true\n")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["HSET", &states, "geb", "=5-0"]);
        sweep(library, &by, "look", ("geb", "=5-0"));
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(kept, "nobody knows any more whose loan it is");
        Ok(())
    });
}

/// The reference application has lent it since: it was put on its shelf, and could be lent to two.
#[test]
fn a_lent_book_is_not_taken_back_by_shelving_for_an_old_reservation() {
    guard("sweep", &[("over = lent or stored or", "over = stored or")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        let states = reserved_for_5(library);
        library.redis.ask::<()>(&["HSET", &keys.loans, "geb", "user1"]);
        tidy(library, &by, "geb");
        let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
        ensure!(is_out, "it is lent and on its shelf");
        let kept = library.redis.ask::<bool>(&["HEXISTS", &states, "geb"]);
        ensure!(!kept, "it is not swept");
        Ok(())
    });
}

/// Hand-offs without a mark, some begun before others, or too many of them; and one that is done and kept,
/// which says nothing any more.
#[test]
fn what_is_known_of_handoffs_without_a_mark_holds_for_all_of_them() {
    let from = "local from = oldest and oldest[1] or info";
    let check = "if is_undone(stream, group, id) then\n      return true\n    end\n";
    let unsure = "book) == false then";
    let many = "  if too_many_handoffs then\n    return nil\n  end\n";
    for (part, without, number, stays_out) in [
        (from, "local from = info", 2, true),
        (check, "return true\n", 0, false),
        (unsure, "book) ~= true then", 1_000, true),
        (many, "", 1_000, true),
    ] {
        guard("sweep", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            reserved_for_5(library);
            match number {
                2 => {
                    add_handoff(library, "6-0", "geb");
                    add_handoff(library, "7-0", "momo");
                    library.take_handoffs("worker2", 2);
                }
                0 => {
                    library.redis.ask::<()>(&["XADD", &keys.handoffs, "6-0", "book_ids", "geb"]);
                    library.take_handoffs("worker2", 1);
                    library.redis.ask::<()>(&["XACK", &keys.handoffs, SHELVING_GROUP, "6-0"]);
                }
                // And perhaps a next one, with this book.
                _ => (0..number).for_each(|n| {
                    add_handoff(library, &format!("6-{n}"), &format!("book{n}"));
                }),
            }
            library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0"]);
            tidy(library, &by, "geb");
            let is_out = library.redis.ask::<bool>(&["HEXISTS", &keys.shelves, "geb"]);
            ensure!(is_out == stays_out, "it is out: {is_out}");
            Ok(())
        });
    }
}

/// A request and a hand-off can have one id.
#[test]
fn a_handoff_is_not_taken_for_the_request_with_its_id() {
    let name = "local at = stream .. ' ' .. id\n";
    guard("sweep", &[(name, "local at = id\n")], |library| {
        let by = library.instance("worker1");
        let states = library.keys.book_states.clone();
        give(library, &by, &request(5, "user1", "geb"));
        let seen = [("geb", "?5-0"), ("kim", ">5-0")]
            .map(|(book, is): (&str, &str)| (book.to_owned(), is.to_owned()));
        for (book, is) in &seen {
            library.redis.ask::<()>(&["HSET", &states, book, is]);
        }
        library.sweep(&by, "look", &seen);
        let left: Vec<_> = library.dump().hash(&states).into_keys().collect();
        ensure!(left == ["geb"], "there is {left:?}");
        Ok(())
    });
}

/// Processes that died with it are counted, whoever survives a try of it.
#[test]
fn who_survives_a_try_leaves_what_others_died_of_and_takes_the_note_away_at_the_end() {
    for (part, without) in [
        ("tries.group + tries.alone == 0", "tries.alone == 0"),
        ("    redis.call('HDEL', tries_key, event)\n  elseif step", "  elseif step"),
    ] {
        guard("lone_try", &[(part, without)], |library| {
            let (died, by) = (library.instance("worker1"), library.instance("worker2"));
            let tries = library.keys.lone_tries.clone();
            let mut after = |by: &Instance, step: &str| {
                late(library, by, "lone_try", &[&tries], &[step, "request:5-0"]);
                library.dump().hash(&tries).remove("request:5-0")
            };
            after(&died, "group");
            after(&by, "group");
            let note = after(&by, "survived");
            ensure!(note.as_deref() == Some("1 0"), "it is {note:?}");
            let note = after(&by, "ended");
            ensure!(note.is_none(), "it stays: {note:?}");
            Ok(())
        });
    }
}

#[test]
fn the_note_of_a_try_of_a_return_stays_while_that_is_in_hand() {
    let of = "ARGV[at + 1] == 'request' and requests or returns";
    guard("old_tries", &[(of, "requests")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        // The group has been behind that id among the requests.
        give(library, &by, &request(9, "user1", "geb"));
        give(library, &by, &give_back(5, "user1", "geb"));
        library.redis.ask::<()>(&["HSET", &keys.lone_tries, "return:5-0", "1 1"]);
        let touched = [&keys.lone_tries, &keys.requests, &keys.returns].map(String::as_str);
        let args = [LENDING_GROUP, "return:5-0", "return", "5-0"];
        late(library, &by, "old_tries", &touched, &args);
        ensure!(!library.dump().hash(&keys.lone_tries).is_empty(), "it is gone");
        Ok(())
    });
}

#[test]
fn what_shelving_has_answered_an_instance_last_goes_with_its_consumer() {
    guard("forget", &[("redis.call('HDEL', KEYS[4], ARGV[3])\n", "\n")], |library| {
        let by = library.instance("worker1");
        let answers = library.keys.fetch_answers.clone();
        acknowledged(library, 5);
        library.redis.ask::<()>(&["HSET", &answers, "reference", "token 1 "]);
        let word = forget(library, &by, "reference");
        ensure!(word == "FORGOTTEN", "{word}");
        ensure!(library.dump().hash(&answers).is_empty(), "the answer is left");
        Ok(())
    });
}

#[test]
fn what_shelving_has_answered_last_goes_with_who_resigns() {
    guard("resign", &[("redis.pcall('HDEL', KEYS[2], ARGV[2])\n", "\n")], |library| {
        let by = library.instance("worker1");
        let (answers, stream) = (library.keys.fetch_answers.clone(), library.keys.requests.clone());
        library.fetch(&by, &[(book("geb"), id(5, 0))]).unwrap();
        let word = late(library, &by, "resign", &[&answers, &stream], &["worker1", LENDING_GROUP]);
        ensure!(word == "RESIGNED", "{word}");
        ensure!(library.dump().hash(&answers).is_empty(), "the answer is left");
        Ok(())
    });
}
