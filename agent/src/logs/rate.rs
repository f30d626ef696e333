//! How fast one source may write.

use std::time::Instant;

use proto::log::{RATE_BURST_SECONDS, RATE_BYTES, RATE_LINES};

/// What one source may still write now.
#[derive(Debug)]
pub(super) struct Rate {
    lines: f64,
    bytes: f64,
    filled: Instant,
    /// Since it has used everything up, until it may write for a whole second again: a flood becomes a few long
    /// gaps, not one after each line.
    closed: bool,
}

impl Rate {
    /// Of a source that has been quiet.
    pub(super) fn new(now: Instant) -> Self {
        let mut rate = Self { lines: 0.0, bytes: 0.0, filled: now, closed: false };
        rate.fill(RATE_BURST_SECONDS as f64);
        rate
    }

    /// Whether a line of so many bytes may be written; then it counts.
    pub(super) fn admit(&mut self, bytes: usize, now: Instant) -> bool {
        self.fill(now.saturating_duration_since(self.filled).as_secs_f64());
        self.filled = now;
        if self.closed {
            self.closed = self.lines < RATE_LINES as f64 || self.bytes < RATE_BYTES as f64;
        } else {
            self.closed = self.lines < 1.0 || self.bytes < bytes as f64;
        }
        if !self.closed {
            self.lines -= 1.0;
            self.bytes -= bytes as f64;
        }
        !self.closed
    }

    fn fill(&mut self, seconds: f64) {
        let burst = RATE_BURST_SECONDS as f64;
        self.lines = (self.lines + seconds * RATE_LINES as f64).min(burst * RATE_LINES as f64);
        self.bytes = (self.bytes + seconds * RATE_BYTES as f64).min(burst * RATE_BYTES as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_a_flood_has_few_gaps() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut admitted = vec![];
        // A line every 100 microseconds, for ten seconds.
        for number in 0..100_000_u32 {
            admitted.push(rate.admit(10, start + Duration::from_micros(100) * number));
        }
        let count = admitted.iter().filter(|admitted| **admitted).count() as u64;
        let most = (RATE_BURST_SECONDS + 10) * RATE_LINES;
        assert!((10 * RATE_LINES..=most).contains(&count), "{count}");
        let gaps = admitted.windows(2).filter(|pair| pair[0] && !pair[1]).count();
        assert!(gaps <= 10, "{gaps}");
    }

    #[test]
    fn long_lines_count_by_their_bytes() {
        let now = Instant::now();
        let mut rate = Rate::new(now);
        let admitted = (0..10_000).filter(|_| rate.admit(4096, now)).count() as u64;
        assert_eq!(admitted, RATE_BURST_SECONDS * RATE_BYTES / 4096);
    }
}
