//! Once and only once (I4), each book in one place (I1), and no more than may be (I2, I3).

use super::*;

// ---- Once, and only once (I4).

#[test]
fn an_event_that_is_decided_is_not_decided_again() {
    let xack = "if redis.call('XACK', e.stream, call.group, e.id) == 0 then";
    let without = "redis.call('XACK', e.stream, call.group, e.id)\n  if false then";
    guard("decide", &[(xack, without)], |library| {
        let by = library.instance("worker1");
        store(library, &["geb"]);
        let geb = request(5, "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let again = serve(library, &by, InHand::fresh(geb));
        ensure!(matches!(again, TryEnd::Stale), "{}", told(&again));
        is_sound(library)
    });
}

#[test]
fn a_handoff_that_is_done_is_not_done_again() {
    let xack = "if redis.call('XACK', KEYS[2], ARGV[2], id) == 1 then";
    let without = "if redis.call('XACK', KEYS[2], ARGV[2], id) >= 0 then";
    guard("shelve", &[(xack, without)], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "5-0", "geb");
        let handoffs = library.take_handoffs("worker1", 1);
        library.shelve(&by, &handoffs);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "geb")), "book_ids", "geb")?;
        library.shelve(&by, &handoffs);
        is_sound(library)
    });
}

#[test]
fn an_event_that_is_decided_is_not_rejected() {
    let pending = ("if #pending == 0 then", "if false then");
    let deliveries = ("pending[1][4]", "1");
    guard("reject", &[pending, deliveries], |library| {
        let by = library.instance("worker1");
        store(library, &["geb"]);
        let geb = request(5, "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let kim = request(6, "user1", "kim");
        give(library, &by, &kim);
        let both = [geb.key, kim.key].map(|key| (key, "late".to_owned()));
        let reply = library.reject_all(&by, &both).unwrap();
        let Rejected::Done(letters) = reject::read(reply).unwrap() else {
            return Err("nothing is done".into());
        };
        let rejected: Vec<bool> = letters.iter().map(Option::is_some).collect();
        ensure!(rejected == [false, true], "{letters:?}");
        is_sound(library)
    });
}

#[test]
fn rejecting_a_return_leaves_the_reservation_of_a_request_with_its_id() {
    guard(
        "reject",
        &[("if action == 'request' then\n    give_back", "if true then\n    give_back")],
        |library| {
            let by = library.instance("worker1");
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
            let back = give_back(5, "user1", "kim");
            give(library, &by, &back);
            library.reject(&by, back.key, "it cannot be worked on", false).unwrap();
            let left = library.redis.ask::<bool>(&["EXISTS", "request:5-0:temp"]);
            ensure!(left, "the reservation is gone");
            Ok(())
        },
    );
}

/// A request fetched a book, waited and put it into automated storage; the reference application lent
/// it from there, took it back and, storage being full, handed it to shelving, without a mark. When
/// the request was given up, shelving still had it on record as who fetched the book, and took it
/// back: it was on its shelf, free to be lent, when the hand-off put it there once more.
#[test]
fn a_book_in_a_handoff_without_a_mark_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "and not is_in_handoff(KEYS[5], ARGV[9], book) then";
    guard("reject", &[(check, "then")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        add_handoff(library, "6-0", "geb");
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        let given_up = request(5, "user1", "geb,kim");
        give(library, &by, &given_up);
        for delivered in [false, true] {
            let Ok(Value::Array(reply)) = library.reject(&by, given_up.key, "given up", true)
            else {
                return Err("it cannot be looked at".into());
            };
            let words: Vec<String> = reply.iter().map(show).collect();
            ensure!(words == ["MAY_HAVE", "kim"], "{words:?}, delivered: {delivered}");
            library.take_handoffs("worker1", 1);
        }
        Ok(())
    });
}

/// What an instance of the reference application had reserved went onto its shelf with a request that had
/// fetched it before: it was lent to two.
#[test]
fn a_book_that_the_reference_has_reserved_is_not_taken_back_from_a_request_that_is_given_up() {
    let check = "if reserved and not reserved[book] and";
    guard("reject", &[(check, "if")], |library| {
        let by = library.instance("worker1");
        let (shelves, theirs) = (library.keys.shelves.clone(), request(6, "user2", "geb"));
        library.redis.ask::<()>(&["HSET", &shelves, "geb", "5-0", "kim", "5-0"]);
        let given_up = request(5, "user1", "geb,kim");
        give(library, &by, &given_up);
        library.add(&theirs);
        library.take("reference1", Action::Request, 1);
        library.redis.ask::<()>(&["SADD", &library.keys.reservation(theirs.key.id), "geb"]);
        let without_ttl = vec![b"reference1".to_vec()];
        by.session.note_neighbours(Neighbours { without_ttl, ..Neighbours::default() });
        let Ok(Value::Array(reply)) = library.reject(&by, given_up.key, "given up", true) else {
            return Err("it cannot be looked at".into());
        };
        let words: Vec<String> = reply.iter().map(show).collect();
        ensure!(words == ["MAY_HAVE", "kim"], "{words:?}");
        Ok(())
    });
}

// ---- A book is in one place (I1).

/// Sent once more behind a later fetch, a call must not take that one's answer for its own.
#[test]
fn the_answer_to_another_fetch_is_not_decided_by() {
    let check = "if not answer or string.sub(answer, 1, #head) ~= head then";
    guard("decide", &[(check, "if not answer then")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "kim", "0-1"]);
        let kim = request(5, "user1", "kim");
        give(library, &by, &kim);
        library.fetch(&by, &[(book("kim"), kim.key.id)]).unwrap();
        let first = library.fetches();
        library.fetch(&by, &[(book("geb"), id(6, 0))]).unwrap();
        let answers = vec![Some(Answer::Left)];
        let fetched = Some(Fetched { finality: Finality::First, answers });
        let tries = [Try { fetched, ..first_try(&kim) }];
        let before = library.dump();
        let reply = library.decide_raw(&by, &Default::default(), &tries, Some(first)).unwrap();
        ensure!(before == library.dump(), "it changed something: {reply:?}");
        ensure!(decide::ends(reply, &tries).unwrap().is_none(), "it found an answer");
        Ok(())
    });
}

#[test]
fn the_main_storage_hands_a_book_out_once() {
    let has = "out[book] or requests[k - first + 1]";
    for without in ["out[book]", "requests[k - first + 1]"] {
        guard("fetch", &[(has, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            let mut ask = |args: &[&str]| {
                let args = [&[by.session.token.as_str(), "1", "worker1"], args].concat();
                let touched = [by.session.lock(), &keys.shelves, &keys.fetch_answers];
                library.words("fetch", &touched, &args)
            };
            // In one call, and in two.
            let words = ask(&["geb", "geb", "5-0", "6-0"]);
            ensure!(words[1..] == ["yes", "5-0"], "{words:?}");
            let words = ask(&["geb", "7-0"]);
            ensure!(words[1..] == ["5-0"], "{words:?}");
            Ok(())
        });
    }
}

#[test]
fn only_what_this_request_has_fetched_goes_back() {
    let check = "if redis.call('HGET', KEYS[2], ARGV[at]) == ARGV[at + 1] then";
    guard("unfetch", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.unfetch(&by, &[("geb", id(5, 0))]);
        is_sound(library)
    });
}

/// Without the reservation there is no telling whether shelving's "no" is still true: the request
/// would have to ask for ever (I5).
#[test]
fn a_book_is_reserved_before_a_no_of_shelving_counts() {
    let hold = "state[book], call.changed[book] = '?' .. e.id, true";
    guard("decide", &[(hold, "")], |library| {
        let by = library.instance("worker1");
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        let lost = request(5, "user1", "lost");
        is_done(&give_and_serve(library, &by, &lost), "unavailable", "lost")
    });
}

/// A request puts off what it had; that goes through storage to a reader and is now on its way to
/// its shelf, while shelving goes on noting it for the request. A new session tries that again.
fn a_yes_that_is_old(library: &mut Library) -> Result<(), String> {
    let by = library.instance("worker1");
    fill_storage(library);
    library.redis.ask::<()>(&["SREM", "automated_book_storage", "filler0"]);
    lend(library, "user9", &["kim", "filler0"]);
    let other = library.instance("worker2");
    give(library, &other, &give_back(1, "user8", "kim"));
    let mine = request(2, "user1", "geb,kim");
    waits(&give_and_serve(library, &by, &mine))?;
    is_done(&give_and_serve(library, &by, &request(3, "user2", "geb")), "book_ids", "geb")?;
    let filled = give_and_serve(library, &by, &give_back(4, "user9", "filler0"));
    is_done(&filled, "book_ids", "filler0")?;
    is_done(&give_and_serve(library, &by, &give_back(5, "user2", "geb")), "book_ids", "geb")?;
    let by = library.next_session(&by);
    let verdict = serve(library, &by, InHand::fresh(mine.clone()));
    is_sound(library)?;
    waits(&verdict)?;
    Ok(())
}

#[test]
fn an_old_yes_of_shelving_is_asked_for_again() {
    let check =
        "elseif answer == 'yes' or (own and answer == 'again' and not has_moved_on(book, e)) then";
    let all = "elseif answer == 'yes' or answer == 'again' then";
    guard("decide", &[(check, all)], a_yes_that_is_old);
}

#[test]
fn a_book_on_its_way_to_its_shelf_is_nobodys_whatever_shelving_says() {
    let check = "and not own and not (kind == '>' and in_transit(is))) then";
    let again = ("and not has_moved_on(book, e)) then", ") then");
    guard("decide", &[(check, "and not own) then"), again], a_yes_that_is_old);
}

#[test]
fn what_a_waiting_request_had_is_there_for_others() {
    guard("decide", &[("  call.taking_back().put_back(sorted.have)\n", "\n")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user9", &["kim"]);
        // The older one is in the hands of another instance.
        let older = request(1, "user2", "geb");
        give(library, &other, &older);
        waits(&give_and_serve(library, &by, &request(2, "user1", "geb,kim")))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")
    });
}

// ---- The limits (I2, I3).

#[test]
fn nobody_has_more_than_five_books() {
    let all = (
        "if e.reserved or call.in_hand[e.count] + #e.books > call.limit then",
        "if e.reserved then",
    );
    let some = ("too_many = in_hand[e.count] + #available > call.limit,", "too_many = false,");
    for (part, books) in [(all, "geb"), (some, "geb,kim")] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            lend(library, "user1", &["a", "b", "c", "d", "e"]);
            lend(library, "user2", &["kim"]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", books));
            is_sound(library)?;
            is_done(&verdict, "put_back", "geb")
        });
    }
}

#[test]
fn storage_is_not_filled_beyond_its_capacity() {
    let room = "elseif number_stored + call.stored_more < capacity then";
    guard("decide", &[(room, "elseif true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        is_sound(library)
    });
    guard("reject", &[("if room > 0 then", "if true then")], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        library.redis.ask::<()>(&["HSET", &library.keys.shelves.clone(), "geb", "5-0"]);
        library.redis.ask::<()>(&["SADD", "request:5-0:temp", "geb"]);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        library.reject(&by, geb.key, "given_up", false).unwrap();
        is_sound(library)
    });
}

// ---- What is noted of users.

/// The reference application takes books back and leaves them in the note: it grew without end. What is
/// lent to the user has to stay there all the same.
#[test]
fn where_more_is_noted_of_a_user_than_may_be_what_is_not_true_any_more_goes() {
    for (part, without) in [
        ("local outdated = #list + #available > call.limit", "local outdated = false"),
        ("if not is_new[book] and (not", "if (not"),
        ("return redis.call('HGET', call.loans, book) == user", "return true"),
        ("return redis.call('HGET', call.loans, book) == user", "return false"),
        ("  return call.loan[book] == user\n", "  return true\n"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let notes = library.keys.books_of_users.clone();
            store(library, &["geb", "momo"]);
            lend(library, "user1", &["kim"]);
            lend(library, "user2", &["emma"]);
            library.redis.ask::<()>(&["HSET", &notes, "user1", "faust,momo,emma,kim,ulysses"]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", "geb,momo,emma"));
            is_done(&verdict, "book_ids", "geb,momo")?;
            let note = library.dump().hash(&notes).remove("user1").unwrap_or_default();
            ensure!(note == "geb,momo,kim", "it is {note:?}");
            Ok(())
        });
    }
}

/// Somebody has set it to less than the user has.
#[test]
fn a_return_makes_no_count_less_than_nothing() {
    let least = ("math.max(0, call.in_hand[e.count] - #mine)", "call.in_hand[e.count] - #mine");
    guard("decide", &[least], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["SET", &library.keys.count(&user("user1")), "0"]);
        let verdict = give_and_serve(library, &by, &give_back(5, "user1", "geb"));
        is_done(&verdict, "in_hand", "0")
    });
}

/// A book that is lent and in automated storage as well was handed to shelving when it was returned
/// and storage full: it was in storage and on its way to its shelf.
#[test]
fn a_book_that_is_lent_and_in_storage_too_is_not_handed_over_when_it_comes_back() {
    let here = ("    if stored[book] then\n      -- Lent", "    if false then\n      -- Lent");
    guard("decide", &[here], |library| {
        let by = library.instance("worker1");
        let fillers: Vec<String> = (0..19).map(|n| format!("filler{n}")).collect();
        store(library, &fillers.iter().map(String::as_str).collect::<Vec<_>>());
        store(library, &["geb"]);
        lend(library, "user1", &["geb"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")?;
        is_sound(library)
    });
}

/// Somebody has left a book in automated storage that is lent. It was lent a second time.
#[test]
fn a_book_that_is_lent_and_in_storage_too_is_not_lent_again() {
    guard(
        "decide",
        &[("if call.loan[book] or (not call.stored", "if (not call.stored")],
        |library| {
            let by = library.instance("worker1");
            store(library, &["geb"]);
            lend(library, "user1", &["geb"]);
            let verdict = give_and_serve(library, &by, &request(5, "user2", "geb"));
            is_done(&verdict, "lent_to_another", "geb")?;
            let loans = library.dump().hash(&library.keys.loans.clone());
            ensure!(loans["geb"] == "user1", "{loans:?}");
            Ok(())
        },
    );
}

/// What the reference application had reserved for a request, and the request does not ask for, goes
/// back with its outcome; but not what somebody has lent from there since. The one was nowhere then, the
/// other lent and in storage.
#[test]
fn what_was_reserved_and_not_asked_for_goes_back_unless_it_is_lent() {
    let is_free = "elseif not redis.call('HGET', call.loans, book) then";
    let keep = "e.extra[#e.extra + 1] = book";
    let at_once = "if e.reserved or call.in_hand[e.count]";
    for (part, without) in [(is_free, "else"), (keep, ""), (at_once, "if call.in_hand[e.count]")] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, event) = (library.keys.clone(), request(5, "user1", "geb"));
            // The third guard is for a request whose books are all there without any question.
            store(library, &["geb"]);
            lend(library, "user2", &["kim"]);
            library.redis.ask::<()>(&["HSET", &keys.shelves, "momo", "5-0"]);
            library.redis.ask::<()>(&["SADD", "request:5-0:temp", "momo", "kim"]);
            is_done(&give_and_serve(library, &by, &event), "book_ids", "geb")?;
            let dump = library.dump();
            let stored = dump.set(&keys.storage);
            ensure!(stored == ["momo".to_owned()].into(), "in storage: {stored:?}");
            ensure!(dump.set("request:5-0:temp").is_empty(), "it is reserved still");
            is_sound(library)
        });
    }
}

/// A request had asked for a book under a reservation, and somebody who takes no notice of those has lent
/// it. Its mark would have outlived the request (I6).
#[test]
fn a_reservation_of_a_book_that_is_lent_meanwhile_ends_with_the_request() {
    for (part, without) in [
        ("if own and (loan[book] or stored[book]) then", "if own and stored[book] then"),
        (
            "local needs_state = not is_request or e.said ~= ''",
            "local needs_state = not is_request",
        ),
        (
            "if not loan[book] or (is and string.sub(is, 1, 1) == '?') then",
            "if not loan[book] then",
        ),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let (keys, lost) = (library.keys.clone(), request(5, "user1", "lost"));
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            give(library, &by, &lost);
            let verdict = library.decide(&by, &[first_try(&lost)]).unwrap().remove(0);
            let TryEnd::Fetch { finality, books } = verdict else { return Err(told(&verdict)) };
            library.redis.ask::<()>(&["HSET", &keys.loans, "lost", "user2"]);
            let asking = vec![first_try(&lost).after_reserving(finality, &books)];
            let answers = library.fetch(&by, &asked(&asking)).unwrap();
            let tries = with_answers(asking, answers);
            is_done(&library.decide(&by, &tries).unwrap()[0], "lent_to_another", "lost")?;
            let states = library.dump().hash(&keys.book_states);
            ensure!(states.is_empty(), "it is reserved still: {states:?}");
            Ok(())
        });
    }
}

/// Of two thousand at a time Redis is asked, and of a thousand it is told.
#[test]
fn the_main_storage_knows_each_of_very_many_books_that_are_asked_for_at_once() {
    for (part, without) in [
        (
            "local has = out[book] or requests[k - first + 1]",
            "local has = out[book] or requests[k]",
        ),
        ("for first = 1, #taken, SLICE do", "for first = 1, #taken, SLICE + 2 do"),
    ] {
        guard("fetch", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let shelves = library.keys.shelves.clone();
            library.redis.ask::<()>(&["HSET", &shelves, "book2400", "1-0"]);
            let asked: Vec<_> = (0..2_500).map(|n| (book(&format!("book{n}")), id(5, 0))).collect();
            let answers = library.fetch(&by, &asked).unwrap();
            let had = answers.iter().position(|answer| *answer == Answer::TakenBy("1-0".into()));
            ensure!(had == Some(2_400), "another has {had:?}");
            let out = library.redis.ask::<usize>(&["HLEN", &shelves]);
            ensure!(out == 2_500, "{out} are out");
            Ok(())
        });
    }
}
