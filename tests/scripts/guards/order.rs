//! What a refusal waits for (I8), and which loans a return is about.

use super::*;

// ---- Order (I8).

#[test]
fn a_request_is_not_refused_before_an_older_return() {
    let check = "(blocked or in_doubt or not nothing_older(e))";
    guard("decide", &[(check, "(blocked or in_doubt)")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user1", &["geb"]);
        let older = give_back(1, "user1", "geb");
        give(library, &other, &older);
        let geb = request(2, "user2", "geb");
        waits(&give_and_serve(library, &by, &geb))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(geb)), "book_ids", "geb")
    });
}

#[test]
fn a_return_is_not_refused_before_an_older_request() {
    let check = "if not nothing_older(e) then";
    guard("decide", &[(check, "if false then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = request(1, "user1", "geb");
        give(library, &other, &older);
        let back = give_back(2, "user1", "geb");
        waits(&give_and_serve(library, &by, &back))?;
        is_done(&serve_fresh(library, &other, &older), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")
    });
}

/// What was sent but not read by anybody is older, too.
#[test]
fn what_is_not_delivered_yet_counts_as_undecided() {
    let check = "list[#list + 1] = entries[1] and entries[1][1]";
    guard("decide", &[(check, "")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.add(&give_back(1, "user1", "geb"));
        waits(&give_and_serve(library, &by, &request(2, "user2", "geb")))?;
        Ok(())
    });
}

#[test]
fn events_of_one_millisecond_wait_until_they_wait_only_for_each_other() {
    guard("decide", &[("return all_wait_for(e, ms)\n", "return true\n")], |library| {
        let by = library.instance("worker1");
        // The return has the smaller id, and came second.
        let back = event(Action::Return, id(5, 0), "user1", "geb");
        let geb = event(Action::Request, id(5, 7), "user1", "geb");
        give(library, &by, &geb);
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        is_done(&serve_fresh(library, &by, &geb), "book_ids", "geb")?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")
    });
}

#[test]
fn a_tie_is_broken_by_the_first_when_the_others_wait_for_it() {
    let check = "if own_first and precedes(e.id, e.action, other, action) then";
    guard("decide", &[(check, "if true then")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        let wanted = event(Action::Request, id(5, 0), "user2", "geb");
        let not_lent = event(Action::Return, id(5, 7), "user1", "kim");
        give(library, &by, &wanted);
        give(library, &by, &not_lent);
        waits(&serve_fresh(library, &by, &not_lent))?;
        is_done(&serve_fresh(library, &by, &wanted), "cause", "none_available")?;
        is_done(&serve(library, &by, InHand::fresh(not_lent)), "not_lent", "kim")
    });
}

#[test]
fn a_return_takes_back_only_loans_of_older_requests() {
    let check = "if is_old then";
    guard("decide", &[(check, "if true then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = give_back(5, "user1", "geb");
        give(library, &other, &older);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "geb")), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &other, &older), "outcome", "unchanged")
    });
}

/// A book on its way to its shelf, as LendingService has noted it, after a doubt about an earlier
/// hand-off is settled.
#[test]
fn a_book_on_its_way_to_its_shelf_is_waited_for() {
    let check = "elseif kind == '?' or (kind == '>' and in_transit(is))";
    guard("decide", &[(check, "elseif kind == '?'"), LOOK_THROUGH], |library| {
        let by = library.instance("worker1");
        fill_storage(library);
        add_handoff(library, "1-0", "geb");
        let geb = request(5, "user1", "geb");
        let doubt = waits(&give_and_serve(library, &by, &geb))?;
        shelve_all(library, &by);
        is_done(&give_and_serve(library, &by, &request(6, "user2", "geb")), "book_ids", "geb")?;
        is_done(&give_and_serve(library, &by, &give_back(7, "user2", "geb")), "book_ids", "geb")?;
        let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
        one.doubt = waits(&serve(library, &by, one.clone()))?;
        shelve_all(library, &by);
        is_done(&serve(library, &by, one), "book_ids", "geb")
    });
}

/// The reference application hands books off without a note.
fn a_handoff_that_lending_has_not_noted(library: &mut Library) -> Result<(), String> {
    let by = library.instance("worker1");
    add_handoff(library, "1-0", "geb");
    let geb = request(5, "user1", "geb");
    let doubt = waits(&give_and_serve(library, &by, &geb))?;
    let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
    one.doubt = waits(&serve(library, &by, one.clone()))?;
    shelve_all(library, &by);
    is_done(&serve(library, &by, one), "book_ids", "geb")
}

#[test]
fn a_no_is_in_doubt_while_handoffs_are_not_done() {
    let doubt =
        "call.doubt = handoff == '-' and request == '-' and '' or handoff .. ' ' .. request";
    let parts = [(doubt, "call.doubt = ''"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
    let sure = "elseif e.said == 'certain' then";
    let parts = [(sure, "elseif true then"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
    let settled = "sorted.certain = settled(e.doubt)";
    let parts = [(settled, "sorted.certain = true"), LOOK_THROUGH];
    guard("decide", &parts, a_handoff_that_lending_has_not_noted);
}

#[test]
fn a_book_that_another_request_has_is_waited_for() {
    // Either of the two is enough.
    let first = ("and answer ~= 'again' and is_undecided(answer)) then", "and false) then");
    let second = ("elseif is_undecided(answer) or", "elseif");
    guard("decide", &[first, second], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let (older, newer) = (request(1, "user1", "geb"), request(2, "user2", "geb"));
        give(library, &by, &older);
        give(library, &other, &newer);
        // The newer one has got it from shelving, and is not decided yet.
        library.fetch(&other, &[(book("geb"), newer.key.id)]).unwrap();
        waits(&serve_fresh(library, &by, &older))?;
        Ok(())
    });
}

/// Nobody else gets what may be out for it, and that was waited for by an older request for ever.
#[test]
fn who_may_have_a_book_still_is_to_ask_for_it_again() {
    guard("decide", &[("sorted.ask_again and 'again' or ", "")], |library| {
        let by = library.instance("worker1");
        // More than are looked through: the book may have been put back in any.
        for n in 0..1_000 {
            add_handoff(library, &format!("1-{n}"), "kim");
        }
        let mine = request(5, "user1", "geb");
        give(library, &by, &mine);
        library.fetch(&by, &[(book("geb"), mine.key.id)]).unwrap();
        let verdict = serve_fresh(library, &by, &mine);
        ensure!(matches!(verdict, TryEnd::Wait { ask_again: true, .. }), "{}", told(&verdict));
        shelve_all(library, &by);
        is_done(&serve_fresh(library, &by, &mine), "book_ids", "geb")
    });
}

#[test]
fn a_book_that_another_request_is_asking_for_is_waited_for() {
    let check = "elseif kind == '?' or (kind == '>' and in_transit(is))";
    guard("decide", &[(check, "elseif (kind == '>' and in_transit(is))")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let (older, newer) = (request(1, "user1", "lost"), request(2, "user2", "lost"));
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        give(library, &by, &older);
        give(library, &other, &newer);
        let reserved = library.decide(&other, &[first_try(&newer)]).unwrap().remove(0);
        ensure!(matches!(reserved, TryEnd::Fetch { .. }), "{}", told(&reserved));
        waits(&serve_fresh(library, &by, &older))?;
        Ok(())
    });
}

/// See the stories: it reserves and releases its books in every round else.
#[test]
fn after_a_final_no_nothing_is_reserved_while_something_older_is_undecided() {
    guard("decide", &[("\n    or sorted.told_no and #free > 0", "")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let shelves = library.keys.shelves.clone();
        library.redis.ask::<()>(&["HSET", &shelves, "lost", "0-1"]);
        give(library, &other, &give_back(1, "user1", "kim"));
        let lost = request(2, "user2", "lost");
        let doubt = waits(&give_and_serve(library, &by, &lost))?;
        let again = InHand { doubt, ..InHand::fresh(lost) }.next_try();
        waits(&library.decide(&by, &[again]).unwrap()[0])?;
        Ok(())
    });
}

// ---- Which loans a return is about.

/// submit.lua gives ids that can be compared across both streams, also within a millisecond.
#[test]
fn a_return_takes_back_no_loan_of_a_request_behind_it_in_its_millisecond() {
    let check = "return not is_tie(request, e.id) and before(e.id, request)";
    guard("decide", &[(check, "return false")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        let older = event(Action::Return, id(5, 1_000_000), "user1", "geb");
        let younger = event(Action::Request, id(5, 2_000_000), "user1", "geb");
        give(library, &other, &older);
        is_done(&give_and_serve(library, &by, &younger), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &other, &older), "outcome", "unchanged")
    });
}

/// Whether a loan is old is not found out for each book anew where one follows another of the same request.
#[test]
fn a_return_of_old_and_new_loans_tells_each_from_the_other() {
    guard("decide", &[("known_state = is\n", "known_state = known_state or is\n")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        is_done(&give_and_serve(library, &by, &request(1, "user1", "geb,momo")), "in_hand", "2")?;
        let back = give_back(5, "user1", "geb,kim,momo");
        give(library, &other, &back);
        is_done(&give_and_serve(library, &by, &request(6, "user1", "kim")), "book_ids", "kim")?;
        let verdict = serve_fresh(library, &other, &back);
        is_done(&verdict, "book_ids", "geb,momo")?;
        is_done(&verdict, "not_lent", "kim")
    });
}

/// Somebody has put something else there. The return was given up: the book stayed lent for ever.
#[test]
fn a_loan_whose_state_names_no_request_can_be_returned() {
    let check = "not request or not split(request) or";
    guard("decide", &[(check, "not request or")], |library| {
        let by = library.instance("worker1");
        lend(library, "user1", &["geb"]);
        library.redis.ask::<()>(&["HSET", &library.keys.book_states.clone(), "geb", "=nothing"]);
        is_done(&give_and_serve(library, &by, &give_back(5, "user1", "geb")), "book_ids", "geb")
    });
}

// ---- What is older than a refusal, and what ties with it.

/// The verdicts on a chunk of tries beside an instance that is silent.
fn beside_silent(library: &mut Library, by: &Instance, tries: &[Try]) -> Vec<TryEnd> {
    let neighbours = Neighbours { silent: vec![b"silent".to_vec()], ..Neighbours::default() };
    let reply = library.decide_raw(by, &neighbours, tries, None).unwrap();
    decide::ends(reply, tries).unwrap().unwrap()
}

/// The oldest event is decided in the call that looked it up: behind it there are others.
#[test]
fn what_is_behind_an_event_that_is_decided_in_the_same_call_is_older_too() {
    let next_page = "list.from = last and last ~= LAST_OF_ALL and '(' .. last";
    guard("decide", &[(next_page, "list.from = false")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user9", &["geb"]);
        let (first, last) = (request(1, "user1", "geb"), request(3, "user3", "geb"));
        give(library, &by, &first);
        give(library, &other, &request(2, "user2", "kim"));
        give(library, &by, &last);
        let verdicts = library.decide(&by, &[first_try(&first), first_try(&last)]).unwrap();
        is_done(&verdicts[0], "lent_to_another", "geb")?;
        waits(&verdicts[1])?;
        Ok(())
    });
}

/// Of the other stream's events in one millisecond, nobody has read that one yet.
#[test]
fn an_event_of_its_millisecond_that_is_not_delivered_keeps_one_from_being_refused() {
    for (seq, part) in [
        // Both are older clients', or only the one that is not delivered.
        (0, ("if not others or others.undelivered then", "if not others then")),
        (1_000_000, ("or not (only_plain and is_ordered(entry[1]))\n", "or not only_plain\n")),
    ] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            lend(library, "user1", &["geb"]);
            let geb = event(Action::Request, id(5, seq), "user2", "geb");
            give(library, &by, &geb);
            library.add(&event(Action::Return, id(5, seq + 7), "user1", "geb"));
            waits(&serve_fresh(library, &by, &geb))?;
            Ok(())
        });
    }
}

/// submit.lua's ids tell which is older. The other would never have noted that it waits.
#[test]
fn a_younger_event_of_its_millisecond_is_not_waited_for_where_ids_tell_the_order() {
    for part in [
        ("tying(stream, ms, is_ordered(e.id))", "tying(stream, ms, false)"),
        (
            "if not silent[entry[2]] and not (only_plain and is_ordered(entry[1])) then",
            "if not silent[entry[2]] then",
        ),
    ] {
        guard("decide", &[part], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            lend(library, "user1", &["geb"]);
            let geb = event(Action::Request, id(5, 1_000_000), "user2", "geb");
            give(library, &by, &geb);
            give(library, &other, &event(Action::Return, id(5, 2_000_000), "user1", "geb"));
            is_done(&serve_fresh(library, &by, &geb), "lent_to_another", "geb")
        });
    }
}

#[test]
fn what_a_silent_instance_has_in_hand_in_the_same_millisecond_holds_up_no_refusal() {
    let check = "if not silent[entry[2]] and not (only_plain";
    guard("decide", &[(check, "if not (only_plain")], |library| {
        let (by, silent) = (library.instance("worker1"), library.instance("silent"));
        lend(library, "user9", &["geb"]);
        let geb = event(Action::Request, id(5, 0), "user1", "geb");
        let back = |seq| event(Action::Return, id(5, seq), "user2", "momo");
        give(library, &by, &geb);
        give(library, &silent, &back(7));
        give(library, &by, &back(9));
        let tries = [&geb, &back(9)].map(first_try);
        waits(&library.decide(&by, &tries).unwrap()[0])?;
        let verdict = beside_silent(library, &by, &tries).remove(0);
        ensure!(matches!(verdict, TryEnd::Done(_)), "{}", told(&verdict));
        Ok(())
    });
}

/// A return of what its user has not got yet waits, and the user is lent just that. It is tried again before
/// the one in front is refused: it may bring what that one asks for.
#[test]
fn who_waited_is_tried_again_after_a_loan_before_the_one_in_front_is_refused() {
    for (part, without) in [
        (
            "  if call.are_ties then\n    call.refusals().after_telling",
            "  if false then\n    call.refusals().after_telling",
        ),
        ("tied_by_name[accepted and 'return' or 'request']", "tied_by_name.request"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            store(library, &["geb"]);
            lend(library, "user9", &["kim"]);
            let front = event(Action::Request, id(5, 0), "user1", "geb,kim");
            let loan = event(Action::Request, id(5, 3), "user2", "geb");
            let back = event(Action::Return, id(5, 7), "user2", "geb");
            give(library, &by, &front);
            give(library, &other, &loan);
            give(library, &by, &back);
            waits(&serve_fresh(library, &by, &back))?;
            is_done(&serve_fresh(library, &other, &loan), "book_ids", "geb")?;
            waits(&library.decide(&by, &[first_try(&front)]).unwrap()[0])?;
            is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")?;
            is_done(&serve_fresh(library, &by, &front), "book_ids", "geb")
        });
    }
}

/// The same of a request, whose book comes back: it may be lent to the user who wants to return it.
#[test]
fn who_waited_is_tried_again_after_a_return_before_the_one_in_front_is_refused() {
    for (part, without) in [
        ("ipairs({e.user, unpack(accepted and {} or e.books)})", "ipairs({e.user})"),
        ("tied[event] = e.user .. '\\n' .. table.concat(e.books, '\\n')", "tied[event] = e.user"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            lend(library, "user9", &["geb"]);
            let front = event(Action::Return, id(5, 0), "user1", "geb");
            let brings = event(Action::Return, id(5, 3), "user9", "geb");
            let wanted = event(Action::Request, id(5, 7), "user1", "geb");
            give(library, &by, &front);
            give(library, &other, &brings);
            give(library, &by, &wanted);
            waits(&serve_fresh(library, &by, &wanted))?;
            is_done(&serve_fresh(library, &other, &brings), "book_ids", "geb")?;
            waits(&serve_fresh(library, &by, &front))?;
            is_done(&serve_fresh(library, &by, &wanted), "book_ids", "geb")?;
            is_done(&serve_fresh(library, &by, &front), "book_ids", "geb")
        });
    }
}

/// The one in front was decided by the reference application, which takes no notice of who waits for it.
#[test]
fn who_waited_for_another_is_not_known_to_wait_for_the_next_in_front() {
    let check = "if front_noted ~= name_of(e) or not tied[event] then";
    guard("decide", &[(check, "if not tied[event] then")], |library| {
        let by = library.instance("worker1");
        let keys = library.keys.clone();
        let first = event(Action::Request, id(5, 0), "user2", "geb");
        let next = event(Action::Request, id(5, 3), "user1", "geb");
        let back = event(Action::Return, id(5, 7), "user2", "geb");
        library.add(&first);
        library.take("reference", Action::Request, 1);
        give(library, &by, &next);
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        lend(library, "user2", &["geb"]);
        library.redis.ask::<()>(&["XACK", &keys.requests, LENDING_GROUP, "5-0"]);
        waits(&serve_fresh(library, &by, &next))?;
        is_done(&serve(library, &by, InHand::fresh(back)), "book_ids", "geb")?;
        is_done(&serve_fresh(library, &by, &next), "book_ids", "geb")
    });
}

/// Nobody else takes them away, should all instances end.
#[test]
fn notes_of_who_waits_for_whom_do_not_stay_for_ever() {
    guard("decide", &[("    redis.call('EXPIRE', ties, TIES_TTL_S)\n", "\n")], |library| {
        let by = library.instance("worker1");
        give(library, &by, &event(Action::Request, id(5, 0), "user1", "geb"));
        let back = event(Action::Return, id(5, 7), "user2", "geb");
        give(library, &by, &back);
        waits(&serve_fresh(library, &by, &back))?;
        let left: i64 = library.redis.ask(&["TTL", &library.keys.ties.clone()]);
        ensure!((1..=60).contains(&left), "{left} s are left");
        Ok(())
    });
}

// ---- Hand-offs that are in somebody's hands, or not there any more.

#[test]
fn a_handoff_in_the_hands_of_a_silent_instance_holds_up_no_refusal() {
    let check = "      if not silent[entry[2]] then\n        return entry[1]";
    guard("decide", &[(check, "      if true then\n        return entry[1]")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "1-0", "geb");
        library.take_handoffs("silent", 1);
        let states = library.keys.book_states.clone();
        library.redis.ask::<()>(&["HSET", &states, "geb", ">1-0"]);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        let tries = [first_try(&geb)];
        waits(&library.decide(&by, &tries).unwrap()[0])?;
        let verdict = beside_silent(library, &by, &tries).remove(0);
        ensure!(matches!(verdict, TryEnd::Fetch { .. }), "{}", told(&verdict));
        Ok(())
    });
}

/// Pending entries are looked through by the hundred.
#[test]
fn a_handoff_behind_a_hundred_of_a_silent_instance_is_waited_for() {
    let on = "until #page < count or page[#page][1] == LAST_OF_ALL";
    guard("decide", &[(on, "until true"), LOOK_THROUGH], |library| {
        let by = library.instance("worker1");
        for n in 1..=100 {
            add_handoff(library, &format!("{n}-0"), &format!("book{n}"));
        }
        library.take_handoffs("silent", 100);
        add_handoff(library, "101-0", "geb");
        library.take_handoffs("worker2", 1);
        let geb = request(500, "user1", "geb");
        give(library, &by, &geb);
        let one = Try { doubt: Doubt::About("101-0 -".into()), ..first_try(&geb) };
        waits(&beside_silent(library, &by, &[one])[0])?;
        Ok(())
    });
}

/// As long as it is in somebody's hands, a hand-off without a note is as good a reason for doubt as before
/// anybody had it.
#[test]
fn a_no_is_in_doubt_while_handoffs_are_in_somebodys_hands() {
    for (part, without, begun) in [
        ("elseif shelving().pending > 0 then", "elseif false then", true),
        (
            "if first_pending(handoffs, shelving_group, '-', handoff) ~= '' then",
            "if false then",
            true,
        ),
        ("    if before(shelving().delivered, handoff) then", "    if false then", false),
    ] {
        guard("decide", &[(part, without), LOOK_THROUGH], |library| {
            let by = library.instance("worker1");
            add_handoff(library, "1-0", "geb");
            let begin = |library: &mut Library| library.take_handoffs("worker1", 1);
            let mut handoffs = if begun { begin(library) } else { Vec::new() };
            let geb = request(5, "user1", "geb");
            let doubt = waits(&give_and_serve(library, &by, &geb))?;
            let mut one = InHand { fresh: false, doubt, ..InHand::fresh(geb) };
            one.doubt = waits(&serve(library, &by, one.clone()))?;
            if !begun {
                handoffs = begin(library);
            }
            library.shelve(&by, &handoffs);
            is_done(&serve(library, &by, one), "book_ids", "geb")
        });
    }
}

/// While what it was about is under way, nothing is reserved; and a "no" that is only told is no settled
/// doubt.
#[test]
fn a_request_in_doubt_asks_again_when_that_is_settled_and_is_in_doubt_about_what_came_since() {
    let waits_on = ("      sorted.in_doubt = not sorted.certain\n", "\n");
    for part in [waits_on, ("if e.doubt and e.doubt ~= 'no' then", "if e.doubt then")] {
        guard("decide", &[part], |library| {
            let by = library.instance("worker1");
            add_handoff(library, "1-0", "geb");
            let geb = request(5, "user1", "geb");
            give(library, &by, &geb);
            let one = Try { doubt: Doubt::About("1-0 -".into()), ..first_try(&geb) };
            waits(&library.decide(&by, &[one]).unwrap()[0])?;
            let one = Try { doubt: Doubt::ToldNo, ..first_try(&geb) };
            let verdict = library.decide(&by, &[one]).unwrap().remove(0);
            let TryEnd::Fetch { finality, .. } = verdict else { return Err(told(&verdict)) };
            ensure!(finality == Finality::InDoubt("1-0 -".into()), "it is {finality:?}");
            Ok(())
        });
    }
}

/// In the stream they lie between others, which may have been handed out since.
#[test]
fn a_book_in_a_handoff_that_was_begun_before_others_is_not_taken_for_lost() {
    let from =
        "local from = first and first ~= '' and before(first, delivered) and first or delivered";
    guard("decide", &[(from, "local from = delivered")], |library| {
        let by = library.instance("worker1");
        add_handoff(library, "1-0", "geb");
        add_handoff(library, "2-0", "momo");
        library.take_handoffs("worker2", 2);
        let geb = request(5, "user1", "geb");
        give(library, &by, &geb);
        // A doubt that was about something else, and is settled.
        let one = InHand { doubt: Doubt::About("0-1 -".into()), fresh: false, event: geb };
        waits(&serve(library, &by, one))?;
        Ok(())
    });
}

/// Where decided events are kept, the last hand-off lies there for ever.
#[test]
fn a_book_in_a_handoff_that_is_done_and_kept_is_not_waited_for() {
    let check = "    if in_transit('>' .. id) then\n      return true\n    end\n";
    guard("decide", &[(check, "    return true\n")], |library| {
        let by = library.instance("worker1");
        let handoffs = library.keys.handoffs.clone();
        add_handoff(library, "1-0", "lost");
        library.take_handoffs("worker1", 1);
        library.redis.ask::<()>(&["XACK", &handoffs, SHELVING_GROUP, "1-0"]);
        is_done(&give_and_serve(library, &by, &request(5, "user1", "lost")), "unavailable", "lost")
    });
}

/// Somebody has deleted it, or put something else there.
#[test]
fn a_book_whose_state_names_no_handoff_that_there_is_is_not_waited_for() {
    for (part, without, state) in [
        ("return entry.err ~= nil or #entry > 0", "return true", ">9-0"),
        ("call.undone[id] = is_id(id) and", "call.undone[id] =", ">nothing"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            library.redis.ask::<()>(&["HSET", &keys.book_states, "lost", state]);
            let verdict = give_and_serve(library, &by, &request(5, "user1", "lost"));
            is_done(&verdict, "unavailable", "lost")
        });
    }
}

// ---- A group that was lost and made anew (I4).

/// It was delivered to another instance then, and what it has is that one's.
#[test]
fn what_an_event_has_is_left_alone_where_another_instance_got_it() {
    for (part, without) in [
        ("    if not is_mine(e) then\n      return {'STALE'}\n    end\n    let_go", "    let_go"),
        (
            "local function fetch(e, sorted)\n  if not is_mine(e) then",
            "local function fetch(e, sorted)\n  if false then",
        ),
        ("return not pending.err and #pending == 1", "return not pending.err"),
    ] {
        guard("decide", &[(part, without)], |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            let keys = library.keys.clone();
            lend(library, "user9", &["kim"]);
            library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
            // One would have to put geb back, the other to reserve a book.
            let events = [request(2, "user1", "geb,kim"), request(3, "user2", "lost")];
            events.iter().for_each(|event| give(library, &by, event));
            let asking: Vec<_> =
                events.iter().map(|one| InHand::fresh(one.clone()).first_asking()).collect();
            let answers = library.fetch(&by, &asked(&asking)).unwrap();
            library.redis.ask::<()>(&["XGROUP", "DESTROY", &keys.requests, LENDING_GROUP]);
            library.redis.ask::<()>(&["XGROUP", "CREATE", &keys.requests, LENDING_GROUP, "0"]);
            library.take(other.name(), Action::Request, 2);
            give(library, &other, &give_back(1, "user9", "kim"));
            let before = library.dump();
            let verdicts = library.decide(&by, &with_answers(asking, answers)).unwrap();
            let stale = verdicts.iter().all(|verdict| matches!(verdict, TryEnd::Stale));
            ensure!(stale, "{}, {}", told(&verdicts[0]), told(&verdicts[1]));
            let after = library.dump();
            ensure!(before == after, "it changed {}", before.difference(&after));
            Ok(())
        });
    }
}

/// One of the two ids is of a client that knows nothing of submit.lua's: then nothing tells which is older,
/// and what the request was lent goes back.
#[test]
fn a_return_takes_back_a_loan_of_its_millisecond_where_one_id_tells_no_order() {
    let tie = "return not (is_ordered(a_id) and is_ordered(b_id))";
    guard("decide", &[(tie, "return not (is_ordered(a_id) or is_ordered(b_id))")], |library| {
        let by = library.instance("worker1");
        let geb = event(Action::Request, id(5, 1_000_007), "user1", "geb");
        is_done(&give_and_serve(library, &by, &geb), "book_ids", "geb")?;
        let back = event(Action::Return, id(5, 1_000_000), "user1", "geb");
        is_done(&give_and_serve(library, &by, &back), "book_ids", "geb")
    });
}
