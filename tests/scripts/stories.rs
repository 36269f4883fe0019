//! Faults that the random histories found, each with its story.

use library_lending::event::Action;
use library_lending::keys::SHELVING_GROUP;

use crate::guards::{add_handoff, fill_storage, give, request, serve, waits};
use crate::histories::{finish, run_chunk};
use crate::library::Library;
use crate::model::Model;
use crate::world::*;

/// A library with a full storage and a book that is nowhere.
fn full_with_a_lost_book() -> Model {
    let mut model = Model::default();
    for n in 0..20 {
        model.storage.insert(book(&format!("filler{n}")));
        model.out.insert(book(&format!("filler{n}")), id(0, 1));
    }
    model.out.insert(book("lost"), id(0, 1));
    model
}

/// A request that was told "no" reserved its books again in every round, and so was in the way of
/// the other of its millisecond: that one never got to wait for the return in front alone, and all
/// three waited for ever (I5).
#[test]
fn requests_of_one_millisecond_for_a_book_that_is_nowhere_are_decided() {
    let mut world = World::new(Library::new());
    world.start(full_with_a_lost_book());
    let by = world.library.instance("worker1");
    world.add(event(Action::Return, id(1, 1), "user1", "kim"));
    world.add(event(Action::Request, id(1, 2), "user2", "lost,momo"));
    world.add(event(Action::Request, id(1, 3), "user3", "lost"));
    finish(&mut world, &by, Vec::new(), Vec::new()).unwrap();
    assert_eq!(world.model.outcomes.len(), 3);
}

/// The same without equal milliseconds: while something older was undecided, a request that was
/// told "no" fetched what else it asked for and handed it back to shelving, round after round.
#[test]
fn a_request_that_was_told_no_reserves_nothing_until_what_is_older_is_decided() {
    let mut world = World::new(Library::new());
    world.start(full_with_a_lost_book());
    let by = world.library.instance("worker1");
    world.add(event(Action::Return, id(1, 1), "user1", "kim"));
    // It is in work in an instance that has not got to it yet.
    world.library.take("worker2", Action::Return, 1);
    world.add(event(Action::Request, id(2, 1), "user2", "lost,momo"));
    let mut waiting: Vec<_> = world.library.take("worker1", Action::Request, 1);
    let mut again = vec![InHand::fresh(waiting.remove(0))];
    for _ in 0..5 {
        let handoffs = world.library.take_handoffs("worker1", 10);
        if !handoffs.is_empty() {
            world.shelve(&by, &handoffs).unwrap();
        }
        let tries = std::mem::take(&mut again);
        run_chunk(&mut world, &by, tries, &mut again).unwrap();
    }
    // Once at first, once under a reservation.
    let fetches = world.history.iter().filter(|line| line.contains("asks for")).count();
    assert_eq!(fetches, 2, "{}", world.history.join("\n"));
    let other = world.library.instance("worker2");
    let older = event(Action::Return, id(1, 1), "user1", "kim");
    assert_eq!(world.decide(&other, vec![first_try(&older)]).unwrap().decided.len(), 1);
    finish(&mut world, &by, again, Vec::new()).unwrap();
    assert_eq!(world.model.outcomes[1]["book_ids"], "momo");
}

/// A hand-off has no reservation, so reject.lua, which gave it up then, was given the stream of hand-offs in
/// that key's place, and deleted it: one malformed hand-off took all others with it, and their books were
/// nowhere from then on (I4, I5).
#[test]
fn a_malformed_handoff_goes_to_the_dead_letters_alone() {
    let mut library = Library::new();
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    for (id, books) in [("1-0", "geb"), ("2-0", "a,,b"), ("3-0", "momo")] {
        library.redis.ask::<()>(&["XADD", &keys.handoffs, id, "book_ids", books]);
    }
    library.read("worker1", &keys.handoffs, 2);
    library.discard(&by, id(2, 0), "book_id_empty").unwrap();
    let dump = library.dump();
    let undone = dump.stream(&keys.handoffs).undone(SHELVING_GROUP);
    let ids: Vec<_> = undone.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["1-0", "3-0"]);
    let letters = dump.stream(&keys.dead_letters).entries;
    assert_eq!(letters.len(), 1);
    let letter = [
        ("stream", keys.handoffs.as_str()),
        ("event_id", "2-0"),
        ("cause", "book_id_empty"),
        ("deliveries", "1"),
        ("book_ids", "a,,b"),
    ];
    assert_eq!(letters[0].1, letter.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(dump.stream(&keys.outcomes).entries.is_empty(), "a hand-off has no outcome");
}

/// A request that waits puts back what it had; the main storage goes on saying that it has it,
/// until the book has come to its shelf. When its instance began anew it asked again, was told
/// "yes" of a book that meanwhile was on its way to the shelves from somebody else, and lent it or
/// handed it off a second time (I1).
#[test]
fn a_book_that_a_waiting_request_has_put_back_is_not_its_own_any_more() {
    let mut world = World::new(Library::new());
    let mut model = Model::default();
    for n in 0..19 {
        model.storage.insert(book(&format!("filler{n}")));
        model.out.insert(book(&format!("filler{n}")), id(0, 1));
    }
    lent_before(&mut model, "user9", &["kim", "emma"], None);
    world.start(model);
    let by = world.library.instance("worker1");
    // It is in work in an instance that has not got to it yet.
    world.add(event(Action::Return, id(1, 1), "user8", "kim"));
    world.library.take("worker2", Action::Return, 1);
    let waiting = &mut Vec::new();
    let mut run = |world: &mut World, event| {
        world.add(event);
        let mut chunk = world.library.take("worker1", Action::Request, 1);
        chunk.extend(world.library.take("worker1", Action::Return, 1));
        let chunk = chunk.into_iter().map(InHand::fresh).collect();
        run_chunk(world, &by, chunk, waiting).unwrap();
    };
    // It waits: geb goes to storage, is lent, and back to a storage that is full.
    run(&mut world, event(Action::Request, id(2, 1), "user1", "geb,kim"));
    run(&mut world, event(Action::Request, id(3, 1), "user2", "geb"));
    run(&mut world, event(Action::Return, id(4, 1), "user9", "emma"));
    run(&mut world, event(Action::Return, id(5, 1), "user2", "geb"));
    assert_eq!(world.model.handoffs.len(), 1);
    let again = world.library.next_session(&by);
    let chunk = waiting.drain(..).map(|one| InHand::fresh(one.event));
    let chunk = chunk.collect();
    run_chunk(&mut world, &again, chunk, waiting).unwrap();
    world.library.lose_lease(&again);
    let other = world.library.instance("worker2");
    let older = event(Action::Return, id(1, 1), "user8", "kim");
    world.decide(&other, vec![first_try(&older)]).unwrap();
    let again = world.library.next_session(&again);
    finish(&mut world, &again, std::mem::take(waiting), Vec::new()).unwrap();
    assert_eq!(world.model.outcomes.last().unwrap()["book_ids"], "geb");
}

/// A request for a book that is nowhere put its other book back whenever it was in doubt, waited for
/// that book to come to its shelf, and had forgotten by then which hand-offs its doubt was about: with
/// others' hand-offs always under way it went round for ever (I5).
#[test]
fn a_request_in_doubt_that_waits_for_a_book_goes_on_with_the_same_doubt() {
    let library = &mut Library::new();
    let by = library.instance("worker1");
    let keys = library.keys.clone();
    fill_storage(library);
    library.redis.ask::<()>(&["HSET", &keys.shelves, "lost", "0-1"]);
    add_handoff(library, "1-0", "other");
    let one = InHand::fresh(request(5, "user1", "lost,momo"));
    give(library, &by, &one.event);
    let doubt = waits(&serve(library, &by, one.clone())).unwrap();
    assert!(matches!(&doubt, Doubt::About(handoff) if handoff.starts_with("1-0")), "{doubt:?}");
    // momo is on its way to its shelf.
    let again = InHand { fresh: false, doubt: doubt.clone(), ..one };
    assert_eq!(waits(&serve(library, &by, again)).unwrap(), doubt);
}
