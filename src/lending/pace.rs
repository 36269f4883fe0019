//! How often the waiting room tries events again of whose reasons to wait it hears nothing: at the ring of
//! another instance some of the oldest, and in rounds everything. Rounds slow down while nothing is decided, and
//! by what they take: what tries in vain cost Redis is measured, not guessed, since that is three times as
//! much on one machine as on another. Rings are answered the less often the longer the oldest stands still. And how
//! many are tried at once, by what came of the last.

use std::time::{Duration, Instant};

/// Pause after a round that brought nothing, at first and at most. Doubled each time: somebody
/// else's event is usually decided within milliseconds, or else takes a takeover.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How many of the oldest are tried again when another instance rings: first, and at most. Most
/// wait for what is older than they, and nobody says what the other has decided.
pub(super) const FEWEST_RUNG: usize = 16;
const MOST_RUNG: usize = 64;

/// Pause after a ring, in which no other is answered: at least, and at most. An instance at full speed rings a
/// thousand times a second; what waits for another one had better not be tried as often.
pub(super) const SHORTEST_DEAF: Duration = Duration::from_micros(500);
pub(super) const LONGEST_DEAF: Duration = Duration::from_millis(30);
/// In between, one part in so many of the time for which the oldest has waited by then: where instances work
/// side by side it is everybody's turn every few milliseconds; where one is dead, not before its lease is over.
const STILL_FOR_EACH: u32 = 16;

/// From one round of everything to the next it takes so many times as long as the tries of one take, since they
/// seldom find anything that was not heard of; but no longer than this, however slow Redis was for a while.
pub(super) const ROUND_IN: u32 = 20;
pub(super) const LONGEST_TO_A_ROUND: Duration = Duration::from_secs(5);

/// The weight of what is known of the cost already, when another call comes: in how many calls one becomes
/// a third of what it was. Calls of few and of many events come in turn.
const MEMORY: f64 = 16.0;

/// What a try is taken to take at most. What is beyond that is the link's, or a pause of Redis' or ours: with it,
/// rounds of a few hundred came seconds apart over a link of 30 ms.
const MOST_FOR_A_TRY: Duration = Duration::from_micros(60);

/// How many of those that are due are tried by one script: at least, and at most. Twice as many as by the last one
/// if of those at least one in [`SHARE_WORTH`] was decided at once, else half as many: where dozens of events of a
/// millisecond wait for each other, one after the other is decided, and all others that are tried with it are only
/// in its way.
pub(super) const LEAST_SHARE: usize = 32;
pub(super) const MOST_SHARE: usize = 512;
const SHARE_WORTH: usize = 4;

/// What a try in vain takes, on the average of the last calls.
#[derive(Debug)]
pub struct Cost {
    took: Duration,
    tries: f64,
}

impl Default for Cost {
    /// As measured where Redis is quick, until something is known.
    fn default() -> Self {
        Self { took: Duration::from_micros(480), tries: 32.0 }
    }
}

impl Cost {
    /// So many tries in vain took so long.
    pub fn note(&mut self, tries: usize, took: Duration) {
        let kept = 1.0 - 1.0 / MEMORY;
        let took = took.min(MOST_FOR_A_TRY.mul_f64(tries as f64));
        self.took = self.took.mul_f64(kept) + took;
        self.tries = self.tries * kept + tries as f64;
    }

    /// What so many tries will take.
    pub(super) fn of(&self, tries: usize) -> Duration {
        self.took.mul_f64(tries as f64 / self.tries)
    }
}

/// How many of those that are due are tried by one script.
#[derive(Debug)]
pub struct Share(usize);

impl Default for Share {
    fn default() -> Self {
        Self(LEAST_SHARE)
    }
}

impl Share {
    /// How many were tried by one, and how many of those were decided.
    pub fn note(&mut self, number: usize, decided: usize) {
        let share = if decided * SHARE_WORTH >= number { 2 * self.0 } else { self.0 / 2 };
        self.0 = share.clamp(LEAST_SHARE, MOST_SHARE);
    }

    /// How many are to be tried by the next.
    pub fn at_once(&self) -> usize {
        self.0
    }
}

/// What a round tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Some of the oldest: what is in front of all others may be decided without a ring.
    Oldest,
    /// Everything.
    All,
}

/// Rounds.
#[derive(Debug)]
pub struct Rounds {
    pub(super) pause: Duration,
    last: Instant,
    last_of_all: Instant,
}

impl Default for Rounds {
    fn default() -> Self {
        let now = Instant::now();
        Self { pause: SHORTEST_PAUSE, last: now, last_of_all: now }
    }
}

impl Rounds {
    /// The first events wait: what was before does not count.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Something was decided: it goes on.
    pub fn hasten(&mut self) {
        self.pause = SHORTEST_PAUSE;
    }

    /// When the next one is due, with so many events that wait.
    pub fn next(&self, waiting: usize, cost: &Cost) -> Instant {
        self.next_of_all(waiting, cost).min(self.last + self.pause)
    }

    /// When everything is tried next.
    pub(super) fn next_of_all(&self, waiting: usize, cost: &Cost) -> Instant {
        let rest = (ROUND_IN * cost.of(waiting)).min(LONGEST_TO_A_ROUND);
        self.last_of_all + self.pause.max(rest)
    }

    /// The round that begins now, with so many events that wait. Where others are due all the time, because
    /// decisions make them so without end, everything is tried late, and all the same.
    pub fn take_due(
        &mut self,
        now: Instant,
        waiting: usize,
        cost: &Cost,
        are_others_due: bool,
    ) -> Option<Round> {
        let late = if are_others_due { LONGEST_PAUSE } else { Duration::ZERO };
        let round = if now >= self.next_of_all(waiting, cost) + late {
            self.last_of_all = now;
            Round::All
        } else if now >= self.last + self.pause {
            Round::Oldest
        } else {
            return None;
        };
        self.last = now;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(round)
    }
}

/// The bell, by which other instances say that they have decided something.
#[derive(Debug)]
pub struct Bell {
    has_rung: bool,
    /// When a ring was answered last.
    answered: Instant,
    /// How many are tried at the next one.
    number: usize,
    /// When the oldest of all was decided last.
    moved: Instant,
}

impl Default for Bell {
    fn default() -> Self {
        let now = Instant::now();
        Self { has_rung: false, answered: now, number: FEWEST_RUNG, moved: now }
    }
}

impl Bell {
    /// It has rung.
    pub fn ring(&mut self) {
        self.has_rung = true;
    }

    /// The oldest of all was decided: it is worth while to answer rings.
    pub fn front_moved(&mut self, now: Instant) {
        self.number = FEWEST_RUNG;
        self.moved = now;
    }

    /// When a ring that is not answered yet will be.
    pub fn next(&self) -> Option<Instant> {
        self.has_rung.then(|| self.deaf_until())
    }

    /// Whether no ring would be answered now.
    pub fn is_deaf(&self, now: Instant) -> bool {
        now < self.deaf_until()
    }

    fn deaf_until(&self) -> Instant {
        let deaf = self.answered.saturating_duration_since(self.moved) / STILL_FOR_EACH;
        self.answered + deaf.clamp(SHORTEST_DEAF, LONGEST_DEAF)
    }

    /// Answers a ring if it is time: how many of the oldest are to be tried for it, or all `of_one_ms` with
    /// the oldest if those are more.
    pub fn answer(&mut self, now: Instant, of_one_ms: impl FnOnce() -> usize) -> Option<usize> {
        self.next().filter(|next| now >= *next)?;
        let number = self.number.max(of_one_ms());
        self.has_rung = false;
        self.answered = now;
        self.number = (2 * self.number).min(MOST_RUNG);
        Some(number)
    }
}
