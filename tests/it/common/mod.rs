//! The harness: a private redis-server, the real binaries, and what both must look like.

mod command;
mod daemon;
mod events;
mod ledger;
mod process;
mod proxy;
mod redis;
mod state;

use std::time::{Duration, Instant};

pub use command::{Running, TestCommand};
pub use daemon::Daemon;
pub use events::{
    DEAD_LETTERS, Fields, LENT_BOOKS, OUTCOMES, Other, REQUESTS, RETURNS, SHELVES, SHELVING,
    STORAGE, assert_returns_find_their_loans, fields, outcome, xadd,
};
pub use ledger::Ledger;
pub use process::Process;
pub use proxy::{DECIDE, Fault, Proxy};
pub use redis::Redis;
pub use rustix::process::Signal;
pub use state::{Content, RawFields, State, numbers, text};

/// How long something may take that should take milliseconds. Long, because a test machine may
/// be busy; nobody waits for it but a failing test.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Asks again until `condition` holds; false if it does not within `deadline`.
#[must_use]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Whether `condition` holds all the time for `period`. For what must *not* happen, beside a
/// sentinel that did happen meanwhile wherever there is one.
#[must_use]
pub fn stays(period: Duration, mut condition: impl FnMut() -> bool) -> bool {
    !eventually(period, || !condition())
}

/// A library in this state, served by one instance, `worker1`.
pub fn library(state: &Ledger) -> (Redis, Daemon) {
    let redis = Redis::new();
    state.lay_down(&redis);
    let daemon = Daemon::start(&redis, &["worker1"]);
    (redis, daemon)
}
