//! How an instance works: what its operator can set.

use std::time::Duration;

use crate::ids::InstanceName;

/// Which outcomes are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutcomes {
    /// All of them.
    All,
    /// Denied, unchanged and rejected ones, and accepted ones with a book refused.
    Refused,
    /// None.
    None,
}

/// The settings of an instance.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The unique name of this instance.
    pub name: InstanceName,
    /// How long the instance's lock outlives it.
    pub lease: Duration,
    /// The most events that one script decides.
    pub batch: usize,
    /// How many outcomes are kept, about.
    pub outcomes_kept: u64,
    /// How old outcomes get at most; `None` for as old as their number lets them.
    pub retained: Option<Duration>,
    /// Leave decided events in their streams.
    pub keep_events: bool,
    /// After how many tries alone an event that kills instances is given up.
    pub tries: u64,
    /// After how long an instance without a lease that does nothing holds up no refusal.
    pub silent_after: Duration,
    /// After how long the events of an instance without a lease are taken over.
    pub abandoned_after: Duration,
    /// Which outcomes are logged.
    pub log_outcomes: LogOutcomes,
}

impl Settings {
    /// Those of an instance for which nothing is set but its name.
    pub fn of(name: InstanceName) -> Self {
        Self {
            name,
            lease: Duration::from_secs(6),
            batch: 128,
            outcomes_kept: 100_000,
            retained: None,
            keep_events: false,
            tries: 3,
            silent_after: Duration::from_secs(60),
            abandoned_after: Duration::from_secs(3600),
            log_outcomes: LogOutcomes::All,
        }
    }
}
