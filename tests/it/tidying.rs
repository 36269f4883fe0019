//! What the keeper tidies up, with that part of the daemon in this process.

use std::time::Duration;

use library_lending::daemon::tidy::Tidy;

use super::inline::{link, session};
use crate::common::*;

/// A step is short, so that nobody has to wait for it: with one in each turn, every two seconds, a reference
/// application at work left more than was cleared away.
#[test]
fn a_turn_takes_as_many_steps_as_there_is_time_for() {
    const LEFT: usize = 10_000;
    /// About so many are looked at in one.
    const STEP: usize = 500;
    let redis = Redis::new();
    let session = session(&redis);
    let add = |n: usize| {
        let (id, book) = (format!("5-{n}"), format!("book{n}"));
        xadd(REQUESTS, &id, "user1", &book)
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
    let left = || [redis.length(REQUESTS), redis.ask(&["HLEN", "lending_book_states"])];
    tidy.turn(&mut connection, Duration::ZERO).unwrap();
    // A page of a hash has a few more.
    let steps = left().map(|left| LEFT - left);
    assert!(steps.iter().all(|step| (STEP..2 * STEP).contains(step)), "{steps:?} without any time");
    let (mut before, mut most) = (left(), [0, 0]);
    for _ in 0..2 * LEFT / STEP {
        tidy.turn(&mut connection, Duration::from_millis(20)).unwrap();
        let now = left();
        most = [0, 1].map(|n| most[n].max(before[n] - now[n]));
        before = now;
    }
    assert_eq!(before, [0, 0], "are left");
    // Where the machine is busy there is time for one step in most turns.
    assert!(most.iter().all(|most| *most > 3 * STEP / 2), "{most:?} at most in a turn");
}
