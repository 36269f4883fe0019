//! What is told of an outage: that there is one, and each cause once. An operator wants to know why it goes on,
//! and not to read the same line for each try.

use std::time::{Duration, Instant};

/// So long after the last word of an outage another cause is told as well. What everybody sees on the way, such
/// as a server that loads its data, is over by then.
const STILL_TRYING: Duration = Duration::from_secs(5);

/// How many causes of one outage are told at most: some errors may name something else each time.
const MOST_CAUSES: usize = 10;

/// An outage that was told.
#[derive(Debug)]
pub struct Outage {
    /// When it began.
    pub since: Instant,
    /// Without the numbers in them.
    causes: Vec<String>,
    told: Instant,
}

impl Outage {
    /// It is told with its first cause.
    pub fn new(cause: &str, since: Instant, now: Instant) -> Self {
        Self { since, causes: vec![without_numbers(cause)], told: now }
    }

    /// Whether this cause is to be told as well; it counts as told from then on.
    pub fn is_news(&mut self, cause: &str, now: Instant) -> bool {
        let cause = without_numbers(cause);
        let is_news = now - self.told >= STILL_TRYING
            && self.causes.len() < MOST_CAUSES
            && !self.causes.contains(&cause);
        if is_news {
            self.causes.push(cause);
            self.told = now;
        }
        is_news
    }
}

/// A cause to be known by: what somebody has counted or measured is another number each time.
fn without_numbers(cause: &str) -> String {
    cause.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_not_before_its_time() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut outage = Outage::new("refused, try 1", begin, begin);
        assert!(!outage.is_news("loading", after(4)), "it may be over soon");
        assert!(outage.is_news("loading", after(5)));
        assert!(!outage.is_news("no master", after(9)), "five seconds after the last word");
        assert!(!outage.is_news("refused, try 17", after(10)), "known, with another number");
        assert!(outage.is_news("no master", after(10)));
        let told = (1..100).filter(|n| outage.is_news(&"x".repeat(*n), after(10 + 5 * *n as u64)));
        assert_eq!(told.count(), MOST_CAUSES - 3);
    }
}
