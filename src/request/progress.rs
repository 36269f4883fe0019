//! How far a batch is: a bar on a terminal, now and then a line in a log.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::show::say;

/// Between two pictures of the bar.
const ON_TERMINAL: Duration = Duration::from_millis(200);
/// Between two lines of a log.
const IN_LOG: Duration = Duration::from_secs(30);
/// The width of the bar itself, where there is room for it.
const WIDTH: u64 = 20;
/// A line that reaches the end of a terminal would be two, and stay there.
const LINE_WIDTH: usize = 79;

/// Whether the bar stands on the terminal's line: there is one terminal.
static DRAWN: AtomicBool = AtomicBool::new(false);

/// Takes the bar away, so that something else can be said.
pub fn clear() {
    if DRAWN.swap(false, Ordering::Relaxed) {
        let _ = io::stderr().lock().write_all(b"\r\x1b[K");
    }
}

/// How far a batch is.
pub struct Progress {
    total: u64,
    sent: u64,
    answered: u64,
    begun: Instant,
    shown: Instant,
    terminal: bool,
    quiet: bool,
}

impl Progress {
    /// At the beginning.
    pub fn new(total: u64, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !dumb;
        let now = Instant::now();
        Self { total, sent: 0, answered: 0, begun: now, shown: now, terminal, quiet }
    }

    /// More events are queued.
    pub fn sent(&mut self, events: u64) {
        self.sent += events;
        self.show();
    }

    /// More outcomes have come.
    pub fn answered(&mut self, events: u64) {
        self.answered += events;
        self.show();
    }

    /// Shows it, if it is time to.
    pub fn show(&mut self) {
        let pause = if self.terminal { ON_TERMINAL } else { IN_LOG };
        if self.quiet || self.shown.elapsed() < pause {
            return;
        }
        self.shown = Instant::now();
        let line = self.line(self.begun.elapsed());
        if self.terminal {
            DRAWN.store(true, Ordering::Relaxed);
            let _ = io::stderr().lock().write_all(format!("\r{line}\x1b[K").as_bytes());
        } else {
            say(&line);
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        // Sending is fast and done first; from then on the answers tell how far it is.
        let done = if self.answered > 0 { self.answered } else { self.sent };
        let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
        let left = match self.total.saturating_sub(done) {
            // Who answers has not begun to.
            _ if self.sent == self.total && self.answered == 0 => "-:--".to_owned(),
            left => {
                let seconds = if rate > 0.0 { (left as f64 / rate).ceil() as u64 } else { 0 };
                format!("{}:{:02}", seconds / 60, seconds % 60)
            }
        };
        let (sent, total, answered) = (self.sent, self.total, self.answered);
        let line = format!("{sent} of {total} sent, {answered} answered, {rate:.0}/s, {left} left");
        if !self.terminal {
            return line;
        }
        let width = (LINE_WIDTH.saturating_sub(line.len() + "[] ".len()) as u64).min(WIDTH);
        let full = (done * width / self.total.max(1)).min(width);
        let (full, empty) = (full as usize, (width - full) as usize);
        format!("[{}{}] {line}", "#".repeat(full), ".".repeat(empty))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_of_a_large_batch_stays_on_one_line_of_a_terminal() {
        let mut progress = Progress::new(10_000_000, true);
        progress.terminal = true;
        progress.sent(10_000_000);
        progress.answered(1_000_000);
        let line = progress.line(Duration::from_secs(2));
        assert!(line.starts_with("[#.........") && line.len() < 80, "{} {line}", line.len());
    }

    #[test]
    fn the_line_tells_counts_rate_and_time_left() {
        let mut progress = Progress::new(1_000, true);
        progress.terminal = true;
        progress.sent(500);
        assert_eq!(
            progress.line(Duration::from_secs(2)),
            "[##########..........] 500 of 1000 sent, 0 answered, 250/s, 0:02 left"
        );
        progress.sent(500);
        let line = progress.line(Duration::from_secs(2));
        assert!(line.ends_with(" 1000 of 1000 sent, 0 answered, 500/s, -:-- left"), "{line}");
        progress.answered(100);
        assert_eq!(
            progress.line(Duration::from_secs(10)),
            "[##..................] 1000 of 1000 sent, 100 answered, 10/s, 1:30 left"
        );
    }
}
