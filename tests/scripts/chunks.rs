//! What is done for many events in one call of decide.lua, and must come out as if each was alone.

use library_lending::event::{Action, Event};
use library_lending::keys::LENDING_GROUP;
use library_lending::lending::decide::TryEnd;

use crate::guards::{give, give_and_serve, give_back, guard, is_done, lend, request, store, waits};
use crate::library::{Instance, Library};
use crate::world::*;

/// Enough of them for the stream to be trimmed.
fn many(from: u64) -> Vec<Event> {
    (from..from + 20).map(|ms| give_back(ms, &format!("user{ms}"), &format!("book{ms}"))).collect()
}

fn decide_all(library: &mut Library, by: &Instance, events: &[Event]) -> Vec<TryEnd> {
    for event in events {
        give(library, by, event);
    }
    let tries: Vec<_> = events.iter().map(first_try).collect();
    library.decide(by, &tries).unwrap()
}

fn left(library: &mut Library) -> Vec<String> {
    let stream = library.keys.returns.clone();
    library.dump().stream(&stream).entries.into_iter().map(|(id, _)| id).collect()
}

fn lend_all(library: &mut Library, events: &[Event]) {
    for event in events {
        lend(library, event.user.as_str(), &[event.books[0].as_str()]);
    }
}

#[test]
fn an_event_in_other_hands_is_not_trimmed_away_with_those_after_it() {
    let check = "not pending.err and #pending == 0";
    guard("decide", &[(check, "not pending.err")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        give(library, &other, &give_back(5, "user5", "book5"));
        lend_all(library, &many(10));
        decide_all(library, &by, &many(10));
        ensure!(left(library) == ["5-0"], "there is {:?}", left(library));
        Ok(())
    });
}

#[test]
fn a_stream_that_somebody_else_reads_is_not_trimmed() {
    guard("decide", &[("return number_of_groups == 1 and not", "return not")], |library| {
        let by = library.instance("worker1");
        let stream = library.keys.returns.clone();
        library.redis.ask::<()>(&["XGROUP", "CREATE", &stream, "statistics", "0"]);
        library.add(&give_back(5, "user5", "book5"));
        library.take("reference", give_back(5, "user5", "book5").key.action, 1);
        library.redis.ask::<()>(&["XACK", &stream, LENDING_GROUP, "5-0"]);
        lend_all(library, &many(10));
        decide_all(library, &by, &many(10));
        ensure!(left(library) == ["5-0"], "there is {:?}", left(library));
        Ok(())
    });
}

/// Whoever moved the group's mark back wants events again that lie before the last of the call.
#[test]
fn what_is_not_delivered_is_not_trimmed_away() {
    let check = "and not before(group['last-delivered-id'], last)";
    guard("decide", &[(check, "")], |library| {
        let by = library.instance("worker1");
        let stream = library.keys.returns.clone();
        lend_all(library, &many(10));
        library.add(&give_back(5, "user5", "book5"));
        library.take("reference", give_back(5, "user5", "book5").key.action, 1);
        library.redis.ask::<()>(&["XACK", &stream, LENDING_GROUP, "5-0"]);
        let events = many(10);
        events.iter().for_each(|event| give(library, &by, event));
        library.redis.ask::<()>(&["XGROUP", "SETID", &stream, LENDING_GROUP, "0"]);
        let tries: Vec<_> = events.iter().map(first_try).collect();
        library.decide(&by, &tries).unwrap();
        ensure!(left(library) == ["5-0"], "there is {:?}", left(library));
        Ok(())
    });
}

/// A return of the same call brings the book that an older request waits for: a newer one does not
/// get it before that one was tried again.
#[test]
fn a_newer_request_does_not_overtake_one_that_waits_in_the_same_call() {
    guard(
        "decide",
        &[("if not decided[requests][id] and before(id, e.id) then", "if false then")],
        |library| {
            let (by, other) = (library.instance("worker1"), library.instance("worker2"));
            lend(library, "user9", &["geb", "momo"]);
            give(library, &other, &request(1, "user1", "alice"));
            let events = [
                request(2, "user2", "geb,momo"),
                give_back(3, "user9", "geb"),
                request(4, "user4", "geb"),
            ];
            let verdicts = decide_all(library, &by, &events);
            waits(&verdicts[0])?;
            is_done(&verdicts[1], "book_ids", "geb")?;
            waits(&verdicts[2])?;
            Ok(())
        },
    );
}

#[test]
fn books_that_are_all_lent_are_not_refused_before_an_older_return() {
    let check = "if all_lent(e) and nothing_older(e) then";
    guard("decide", &[(check, "if all_lent(e) then")], |library| {
        let (by, other) = (library.instance("worker1"), library.instance("worker2"));
        lend(library, "user1", &["geb"]);
        give(library, &other, &give_back(1, "user1", "geb"));
        let verdicts = decide_all(library, &by, &[request(2, "user2", "geb")]);
        waits(&verdicts[0])?;
        Ok(())
    });
}

/// It was lent by others since, and reserved for this request before that.
#[test]
fn a_request_that_has_something_reserved_is_not_denied_the_short_way() {
    guard(
        "decide",
        &[("  if e.reserved then\n    return false", "  if false then\n    return false")],
        |library| {
            let by = library.instance("worker1");
            let keys = library.keys.clone();
            lend(library, "user1", &["geb"]);
            let event = request(2, "user2", "geb");
            library.redis.ask::<()>(&["HSET", &keys.shelves, "momo", "2-0"]);
            library.redis.ask::<()>(&["SADD", "request:2-0:temp", "momo"]);
            let verdicts = decide_all(library, &by, &[event]);
            is_done(&verdicts[0], "cause", "none_available")?;
            ensure!(library.dump().set("request:2-0:temp").is_empty(), "it is reserved still");
            Ok(())
        },
    );
}

/// Where hundreds of events tie, the one in front waited for some that nobody tried until all others
/// had been.
#[test]
fn who_is_in_front_names_those_that_have_to_be_tried() {
    let naming = "if front and waits_for_older(replies[front]) then";
    guard("decide", &[(naming, "if false then")], |library| {
        let by = library.instance("worker1");
        lend(library, "user9", &["geb"]);
        // All of one millisecond: it is not known in which order the two streams got them.
        let front = request(10, "user1", "geb");
        let back = |seq| event(Action::Return, id(10, seq), "user2", "momo");
        give(library, &by, &back(0));
        let verdicts = decide_all(library, &by, &[front.clone(), back(1)]);
        let TryEnd::Wait { untried, .. } = &verdicts[0] else { return Err(told(&verdicts[0])) };
        ensure!(*untried == [back(0).key], "it names {untried:?}");
        let both = [&back(0), &front].map(first_try);
        is_done(&library.decide(&by, &both).unwrap()[1], "lent_to_another", "geb")
    });
}

/// Of a thousand at a time Redis is asked.
#[test]
fn more_books_than_redis_is_asked_for_at_once_are_told_from_each_other() {
    let read = "values[fields[first + n - 1]] = value";
    guard("decide", &[(read, "values[fields[n]] = value")], |library| {
        let by = library.instance("worker1");
        let events = ["a", "b"].map(|name| {
            let books: Vec<String> = (0..600).map(|n| format!("{name}{n}")).collect();
            let ms = if name == "a" { 5 } else { 6 };
            lend(library, name, &books.iter().map(String::as_str).collect::<Vec<_>>());
            give_back(ms, name, &books.join(","))
        });
        for (event, verdict) in events.iter().zip(decide_all(library, &by, &events)) {
            is_done(&verdict, "outcome", "returned")?;
            is_done(&verdict, "in_hand", "0")
                .map_err(|fault| format!("{}: {fault}", event.user))?;
        }
        let loans = library.dump().hash(&library.keys.loans.clone()).len();
        ensure!(loans == 0, "{loans} are lent still");
        Ok(())
    });
}

/// Where many are asked for, all that is stored is read instead.
#[test]
fn a_book_in_storage_is_found_among_very_many_that_are_asked_for() {
    guard("decide", &[("    stored[book] = true\n  end\nelse", "  end\nelse")], |library| {
        let by = library.instance("worker1");
        let lent: Vec<String> = (0..30).map(|n| format!("lent{n}")).collect();
        lend(library, "user9", &lent.iter().map(String::as_str).collect::<Vec<_>>());
        store(library, &["geb"]);
        let wanted = request(5, "user1", &format!("{},geb", lent.join(",")));
        is_done(&give_and_serve(library, &by, &wanted), "book_ids", "geb")
    });
}
