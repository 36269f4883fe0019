//! How far a batch is: a bar on a terminal, now and then a line in a log.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::show::say;

/// Between two pictures of the bar.
const ON_TERMINAL: Duration = Duration::from_millis(200);
/// Between two lines of a log.
const IN_LOG: Duration = Duration::from_secs(30);
/// The width of the bar itself.
const WIDTH: u64 = 20;

/// How far a batch is.
pub struct Progress {
    total: u64,
    sent: u64,
    answered: u64,
    begun: Instant,
    shown: Instant,
    terminal: bool,
    quiet: bool,
    /// Whether the bar stands on the terminal's line.
    drawn: bool,
}

impl Progress {
    /// At the beginning.
    pub fn new(total: u64, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let now = Instant::now();
        Self { total, sent: 0, answered: 0, begun: now, shown: now, terminal, quiet, drawn: false }
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
            self.drawn = true;
            let _ = io::stderr().lock().write_all(format!("\r{line}\x1b[K").as_bytes());
        } else {
            say(&line);
        }
    }

    /// Takes the bar away, so that something else can be said.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        // Sending is fast and done first; from then on the answers tell how far it is.
        let done = if self.answered > 0 { self.answered } else { self.sent };
        let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
        let filled = (done * WIDTH / self.total.max(1)).min(WIDTH);
        let bar = if self.terminal {
            let (full, empty) = (filled as usize, (WIDTH - filled) as usize);
            format!("[{}{}] ", "#".repeat(full), ".".repeat(empty))
        } else {
            String::new()
        };
        let left = match (self.total.saturating_sub(done), rate) {
            (left, rate) if rate > 0.0 => (left as f64 / rate).ceil() as u64,
            _ => 0,
        };
        format!(
            "{bar}{} of {} sent, {} answered, {rate:.0}/s, {}:{:02} left",
            self.sent,
            self.total,
            self.answered,
            left / 60,
            left % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        progress.answered(100);
        assert_eq!(
            progress.line(Duration::from_secs(10)),
            "[##..................] 1000 of 1000 sent, 100 answered, 10/s, 1:30 left"
        );
    }
}
