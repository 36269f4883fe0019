//! What the keeper tidies up, with that part of the daemon in this process.

use std::time::Duration;

use library_lending::daemon::tidy::Tidy;

use super::inline::{link, session};
use crate::common::*;

/// A step is short, so that nobody has to wait for it: with one in each turn, every two seconds, a reference
/// application at work left more than was cleared away.
#[test]
fn a_turn_takes_as_many_steps_as_there_is_time_for() {
    /// In twenty steps.
    const LEFT: usize = 10_000;
    let redis = Redis::new();
    let session = session(&redis);
    let add = |n: usize| {
        let (id, book) = (format!("5-{n}"), format!("book{n}"));
        ["XADD", REQUESTS, &id, "user_id", "user1", "book_ids", &book].map(str::to_owned).to_vec()
    };
    redis.pipeline(&(1..=LEFT).map(add).collect::<Vec<_>>());
    let read = ["XREADGROUP", "GROUP", "lending_service", "reference", "NOACK", "STREAMS"];
    redis.cmd(&[&read[..], &[REQUESTS, ">"]].concat());
    let of_old_hand_off = |n| {
        ["HSET", "lending_book_states", &format!("book{n}"), ">5-0"].map(str::to_owned).to_vec()
    };
    redis.pipeline(&(1..=LEFT).map(of_old_hand_off).collect::<Vec<_>>());
    let mut connection = link(&redis, Duration::ZERO);
    let mut tidy = Tidy::new(&session);
    let mut turns = 0;
    while redis.length(REQUESTS) > 0 || redis.ask::<bool>(&["EXISTS", "lending_book_states"]) {
        tidy.turn(&mut connection).unwrap();
        turns += 1;
        assert!(turns <= 10, "{} events are left", redis.length(REQUESTS));
    }
}
