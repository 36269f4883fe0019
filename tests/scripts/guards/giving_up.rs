//! Giving events up.

use super::*;

/// Two requests that are given up in one call, with one book in the reservations of both: it was
/// handed to shelving twice.
#[test]
fn a_book_that_two_requests_have_reserved_goes_back_once() {
    let once = "redis.call('SISMEMBER', KEYS[7], book) == 1\n      or in_transit(redis.call('HGET', KEYS[6], book) or '')";
    guard("reject", &[(once, "false")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        library.redis.ask::<()>(&["HSET", &library.keys.shelves.clone(), "geb", "5-0"]);
        let both = [request(5, "user1", "geb"), request(6, "user2", "geb")];
        for one in &both {
            give(library, &by, one);
            library.redis.ask::<()>(&["SADD", &library.keys.reservation(one.key.id), "geb"]);
        }
        let both = both.map(|one| (one.key, "given_up".to_owned()));
        library.reject_all(&by, &both).unwrap();
        is_sound(library)
    });
}

/// The same of a request that is given up. Besides, what fills the storage is counted.
#[test]
fn what_was_reserved_for_a_request_that_is_given_up_goes_back_unless_it_is_lent() {
    let is_free = "if redis.call('HEXISTS', KEYS[8], book) == 0 then";
    let counted = ("      room = room - 1\n", "");
    let mark = "      redis.call('SADD', KEYS[7], book)\n      redis.call('HDEL', KEYS[6], book)\n";
    let mark = (mark, "      redis.call('SADD', KEYS[7], book)\n");
    for part in [(is_free, "if true then"), counted, mark] {
        guard("reject", &[part], |library| {
            let by = library.instance("worker1");
            let (keys, event) = (library.keys.clone(), request(5, "user1", "geb,kim,momo"));
            fill_storage(library);
            library.redis.ask::<()>(&["SREM", &keys.storage, "filler0"]);
            lend(library, "user2", &["kim", "filler0"]);
            for book in ["geb", "momo"] {
                library.redis.ask::<()>(&["HSET", &keys.shelves, book, "5-0"]);
                library.redis.ask::<()>(&["HSET", &keys.book_states, book, "?5-0"]);
            }
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb", "kim", "momo"]);
            give(library, &by, &event);
            library.reject(&by, event.key, "given_up", false).unwrap();
            let dump = library.dump();
            let reserved = dump.hash(&keys.book_states).into_values().filter(|is| is == "?5-0");
            ensure!(reserved.count() == 0, "{:?}", dump.hash(&keys.book_states));
            let undone = dump.stream(&keys.handoffs).undone(SHELVING_GROUP).len();
            ensure!(dump.set(&keys.storage).len() == 20 && undone == 1, "one each: {undone}");
            is_sound(library)
        });
    }
}

/// What goes from the reservation into storage would have been put on its shelf as well.
#[test]
fn what_was_reserved_for_a_request_that_is_given_up_is_not_taken_back_by_shelving() {
    let check = "local elsewhere = is_reserved[book] or";
    guard("reject", &[(check, "local elsewhere =")], |library| {
        let by = library.instance("worker1");
        let (keys, event) = (library.keys.clone(), request(5, "user1", "geb,kim"));
        library.redis.ask::<()>(&["HSET", &keys.shelves, "geb", "5-0", "kim", "5-0"]);
        library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
        give(library, &by, &event);
        let Ok(Value::Array(reply)) = library.reject(&by, event.key, "given up", true) else {
            return Err("it cannot be looked at".into());
        };
        let words: Vec<String> = reply.iter().map(show).collect();
        ensure!(words == ["MAY_HAVE", "kim"], "{words:?}");
        Ok(())
    });
}

/// Shelving has it on record for a request that has put it into storage since.
#[test]
fn a_stored_book_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "\n        or redis.call('SISMEMBER', KEYS[7], book) == 1\n      -- What";
    guard("reject", &[(check, "\n      -- What")], |library| {
        let by = library.instance("worker1");
        let given_up = request(5, "user1", "geb,kim");
        store(library, &["geb"]);
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        give(library, &by, &given_up);
        let words = may_have(library, &by, &given_up)?;
        ensure!(words == ["kim"], "{words:?}");
        Ok(())
    });
}

/// The books that a request may have fetched, if it is given up.
fn may_have(library: &mut Library, by: &Instance, event: &Event) -> Result<Vec<String>, String> {
    let Ok(Value::Array(reply)) = library.reject(by, event.key, "given up", true) else {
        return Err("it cannot be looked at".into());
    };
    let words: Vec<String> = reply.iter().map(show).collect();
    ensure!(words[0] == "MAY_HAVE", "{words:?}");
    Ok(words[1..].to_vec())
}

/// An instance of the reference application works on one at a time: with a thousand in hand it is not known
/// what it has reserved. What is left out for it will be lent.
#[test]
fn nothing_is_taken_back_from_a_request_where_reservations_are_too_many_to_look_through() {
    for (part, without) in [
        ("if reserved and not reserved[book] and", "if not (reserved and reserved[book]) and"),
        ("if pending.err or #pending == MOST_RESERVATIONS then", "if pending.err then"),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (shelves, given_up) = (library.keys.shelves.clone(), request(5, "user1", "geb"));
            library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0"]);
            give(library, &by, &given_up);
            (6..1_006).for_each(|ms| library.add(&request(ms, "user2", "kim")));
            library.take("reference1", Action::Request, 1_000);
            let without_ttl = vec![b"reference1".to_vec()];
            by.session.note_neighbours(Neighbours { without_ttl, ..Neighbours::default() });
            let words = may_have(library, &by, &given_up)?;
            ensure!(words.is_empty(), "{words:?}");
            Ok(())
        });
    }
}

/// As for events that are decided: an answer that is waited for, and none that would be kept for ever.
#[test]
fn the_answer_to_an_event_that_is_given_up_is_kept_as_was_wished() {
    for (part, without) in [
        ("wish == 'wait' or wish == 'keep'", "wish == 'keep'"),
        ("and ms >= 1 and ms <= MOST_KEPT_MS and", "and ms >= 1 and"),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let stream = library.keys.requests.clone();
            for (n, (wish, at_most)) in
                [("wait", 86_400_000), ("keep:5000", 5_000), ("keep:2592000001", -2)]
                    .iter()
                    .enumerate()
            {
                let key = request(n as u64 + 1, "user1", "geb").key;
                let id = key.id.to_string();
                library.redis.ask::<()>(&["XADD", &stream, &id, "answer", wish]);
                library.read(by.name(), &stream, 1);
                library.reject(&by, key, "no user", false).unwrap();
                let left: i64 = library.redis.ask(&["PTTL", &library.keys.answer(key)]);
                let right = if *at_most < 0 { left == -2 } else { left > 0 && left <= *at_most };
                ensure!(right, "{wish}: {left} ms");
            }
            Ok(())
        });
    }
}

/// Somebody may have put anything there: megabytes, or lines that would be taken for other fields of the
/// answer.
#[test]
fn the_outcome_of_an_event_that_is_given_up_names_no_user_that_could_not_be_one() {
    let long = "u".repeat(257);
    for (part, without, who, named, answered) in [
        ("user and #user <= LONGEST_USER", "user", long.as_str(), false, true),
        (
            "if ms and not (user and string.find(user, '\\n', 1, true)) then",
            "if ms then",
            "u\nx",
            true,
            false,
        ),
    ] {
        guard("reject", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, key) = (library.keys.clone(), request(5, "user1", "geb").key);
            let stream = &keys.requests;
            library.redis.ask::<()>(&["XADD", stream, "5-0", "user_id", who, "answer", "keep"]);
            library.read(by.name(), stream, 1);
            library.reject(&by, key, "no such user", false).unwrap();
            let outcome = library.dump().stream(&keys.outcomes).entries.remove(0).1;
            let has = outcome.iter().any(|(name, _)| name == "user_id");
            ensure!(has == named, "a user is named: {has}");
            let kept = library.redis.ask::<bool>(&["EXISTS", &keys.answer(key)]);
            ensure!(kept == answered, "there is an answer: {kept}");
            Ok(())
        });
    }
}

#[test]
fn where_events_are_kept_those_that_are_given_up_and_handoffs_that_are_done_are_too() {
    let shelved = ("if #done > 0 and ARGV[3] ~= 'keep' then", "if #done > 0 then");
    for (script, part) in
        [("reject", ("  if ARGV[4] ~= 'keep' then", "  if true then")), ("shelve", shelved)]
    {
        guard(script, &[part], |library| {
            library.keep_events(true);
            let by = library.instance("worker1");
            let (keys, given_up) = (library.keys.clone(), request(5, "user1", "geb"));
            give(library, &by, &given_up);
            library.reject(&by, given_up.key, "given up", false).unwrap();
            add_handoff(library, "6-0", "kim");
            shelve_all(library, &by);
            for stream in [&keys.requests, &keys.handoffs] {
                let left = library.redis.ask::<usize>(&["XLEN", stream]);
                ensure!(left == 1, "in {stream} there are {left}");
            }
            Ok(())
        });
    }
}
