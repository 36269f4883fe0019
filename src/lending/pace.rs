//! How often the waiting room tries events again of whose reasons to wait it hears nothing: at the ring of
//! another instance some of the oldest, and in rounds everything. Both slow down while that brings nothing.

use std::time::{Duration, Instant};

/// Pause after a round that brought nothing, at first and at most. Doubled each time: somebody
/// else's event is usually decided within milliseconds, or else takes a takeover.
pub(super) const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Pause for each event that waits, so that trying them all again and again takes less than a fifth of
/// Redis' time: a try in vain costs it about 15 microseconds, in calls of few.
pub(super) const PAUSE_FOR_EACH: Duration = Duration::from_micros(80);

/// How many of the oldest are tried again when another instance rings: first, and at most. Most
/// wait for what is older than they, and nobody says what the other has decided.
pub(super) const FEWEST_RUNG: usize = 16;
const MOST_RUNG: usize = 64;

/// Pause after a ring that brought nothing, in which no other is answered: first, and at most.
/// Doubled each time. An instance at full speed rings a thousand times a second; what waits for
/// another one had better not be tried as often.
pub(super) const SHORTEST_DEAF: Duration = Duration::from_micros(500);
pub(super) const LONGEST_DEAF: Duration = Duration::from_millis(8);

/// Rounds, in which everything is tried.
#[derive(Debug)]
pub struct Rounds {
    pub(super) pause: Duration,
    pub(super) next: Instant,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { pause: SHORTEST_PAUSE, next: Instant::now() }
    }
}

impl Rounds {
    /// The first events wait.
    pub fn begin(&mut self) {
        *self = Self { pause: SHORTEST_PAUSE, next: Instant::now() + SHORTEST_PAUSE };
    }

    /// Something was decided, and so many events wait: it goes on.
    pub fn hasten(&mut self, waiting: usize) {
        self.pause = SHORTEST_PAUSE;
        self.next = self.next.min(Instant::now() + self.pause_for(waiting));
    }

    /// When the next one is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Whether one begins now, with so many events that wait. Where others are due all the time, because
    /// decisions make them so without end, it is late, and comes all the same.
    pub fn begins(&mut self, now: Instant, waiting: usize, are_others_due: bool) -> bool {
        let due = if are_others_due { self.next + LONGEST_PAUSE } else { self.next };
        let begins = now >= due;
        if begins {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.next = now + self.pause_for(waiting);
        }
        begins
    }

    fn pause_for(&self, waiting: usize) -> Duration {
        self.pause.max(PAUSE_FOR_EACH * u32::try_from(waiting).unwrap_or(u32::MAX))
    }
}

/// The bell, by which other instances say that they have decided something.
#[derive(Debug)]
pub struct Bell {
    has_rung: bool,
    /// How many are tried at the next ring that is answered.
    number: usize,
    /// The pause after it.
    pause: Duration,
    /// No ring is answered before.
    deaf_until: Instant,
}

impl Default for Bell {
    fn default() -> Self {
        Self {
            has_rung: false,
            number: FEWEST_RUNG,
            pause: SHORTEST_DEAF,
            deaf_until: Instant::now(),
        }
    }
}

impl Bell {
    /// It has rung.
    pub fn ring(&mut self) {
        self.has_rung = true;
    }

    /// Something was decided of what was tried again: it is worth while to listen.
    pub fn listen_again(&mut self) {
        *self = Self { has_rung: self.has_rung, ..Self::default() };
    }

    /// When a ring that is not answered yet will be.
    pub fn next(&self) -> Option<Instant> {
        self.has_rung.then_some(self.deaf_until)
    }

    /// Answers a ring if it is time: how many of the oldest are to be tried for it.
    pub fn answer(&mut self, now: Instant) -> Option<usize> {
        if !self.has_rung || now < self.deaf_until {
            return None;
        }
        self.has_rung = false;
        self.deaf_until = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_DEAF);
        let number = self.number;
        self.number = (number * 2).min(MOST_RUNG);
        Some(number)
    }
}
