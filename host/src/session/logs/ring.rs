//! The lines of one sandbox.
//!
//! Whoever reads holds a position and comes for what follows it: the ring keeps nothing for readers, and waits for
//! none. One that is too slow finds that its next lines are gone, and how many they were.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prost::Message as _;
use proto::log::{GATEWAY_LINES, GATEWAY_RING};
use proto::openshell::v1::SandboxLogLine;
use tokio::sync::watch;

use super::filter::Filter;

/// Bytes a second that a sandbox may send.
pub(super) const RATE: usize = 1024 * 1024;
/// Bytes that it may send at once: all that an agent keeps, with what the messages add.
const BURST: f64 = 4.0 * RATE as f64;
/// What a line costs beside its encoding.
const ENTRY: usize = 8;

/// See the module.
pub struct Ring {
    state: Mutex<State>,
    /// The position behind the last line.
    end: watch::Sender<u64>,
}

struct State {
    lines: VecDeque<(usize, Arc<SandboxLogLine>)>,
    /// The position of the first of them.
    first: u64,
    bytes: usize,
    boot: String,
    sequence: u64,
    allowance: f64,
    filled: Instant,
}

/// What there was to read.
#[derive(Debug, Default)]
pub struct Read {
    /// Lines that the filter admits.
    pub lines: Vec<Arc<SandboxLogLine>>,
    /// The position behind them.
    pub next: u64,
    /// Lines that were gone already.
    pub missed: u64,
}

impl Default for Ring {
    fn default() -> Self {
        let state = State {
            lines: VecDeque::new(),
            first: 0,
            bytes: 0,
            boot: String::new(),
            sequence: 0,
            allowance: BURST,
            filled: Instant::now(),
        };
        Self { state: Mutex::new(state), end: watch::Sender::new(0) }
    }
}

impl Ring {
    /// Takes those lines of a batch that are new. `false` where the sandbox sends more than it may: nothing is taken.
    pub(super) fn take(&self, boot: &str, numbered: Vec<(u64, SandboxLogLine)>, now: Instant) -> bool {
        let costed: Vec<_> =
            numbered.into_iter().map(|(number, line)| (line.encoded_len() + ENTRY, number, line)).collect();
        let mut state = self.lock();
        if !state.allow(costed.iter().map(|(cost, ..)| cost).sum(), now) {
            return false;
        }
        if state.boot != boot {
            (state.boot, state.sequence) = (boot.to_owned(), 0);
        }
        for (cost, number, line) in costed {
            if number > state.sequence {
                state.sequence = number;
                state.push(cost, line);
            }
        }
        self.end.send_replace(state.end());
        true
    }

    /// The number of the last line of this boot; 0 for none.
    pub(super) fn sequence(&self, boot: &str) -> u64 {
        let state = self.lock();
        if state.boot == boot { state.sequence } else { 0 }
    }

    /// Lines that are kept.
    pub fn total(&self) -> usize {
        self.lock().lines.len()
    }

    /// The position before the last `lines` of those that the filter admits, or before all of them.
    pub fn tail(&self, filter: &Filter, lines: usize) -> u64 {
        let state = self.lock();
        let admitted = state.lines.iter().enumerate().rev().filter(|(_, (_, line))| filter.admits(line));
        match admitted.take(lines).last() {
            Some((index, _)) => state.first + index as u64,
            None => state.end(),
        }
    }

    /// What follows a position: at most so many lines are looked at.
    pub fn read(&self, position: u64, filter: &Filter, most: usize) -> Read {
        let state = self.lock();
        let from = position.max(state.first);
        let skipped = usize::try_from(from - state.first).unwrap_or(usize::MAX).min(state.lines.len());
        let looked_at = state.lines.range(skipped..).take(most);
        let next = from + looked_at.len() as u64;
        let lines = looked_at.filter(|(_, line)| filter.admits(line)).map(|(_, line)| line.clone()).collect();
        Read { lines, next, missed: from - position }
    }

    /// The position behind the last line, as it rises.
    pub fn end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    fn allow(&mut self, bytes: usize, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.allowance = (self.allowance + passed * RATE as f64).min(BURST);
        self.filled = now;
        let allowed = self.allowance >= bytes as f64;
        if allowed {
            self.allowance -= bytes as f64;
        }
        allowed
    }

    fn push(&mut self, cost: usize, line: SandboxLogLine) {
        self.bytes += cost;
        self.lines.push_back((cost, Arc::new(line)));
        while self.bytes > GATEWAY_RING || self.lines.len() > GATEWAY_LINES {
            let Some((cost, _)) = self.lines.pop_front() else { return };
            self.bytes -= cost;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn numbered(numbers: impl IntoIterator<Item = u64>, message: &str) -> Vec<(u64, SandboxLogLine)> {
        let line = |number: u64| SandboxLogLine {
            message: format!("{message}{number}"),
            level: "INFO".into(),
            ..Default::default()
        };
        numbers.into_iter().map(|number| (number, line(number))).collect()
    }

    fn messages(read: &Read) -> Vec<&str> {
        read.lines.iter().map(|line| line.message.as_str()).collect()
    }

    #[test]
    fn what_comes_twice_is_kept_once_and_a_boot_begins_anew() {
        let (ring, all, now) = (Ring::default(), Filter::default(), Instant::now());
        assert!(ring.take("1-a", numbered([1, 2, 3], "a"), now));
        assert!(ring.take("1-a", numbered([2, 3, 4], "a"), now));
        assert_eq!((ring.sequence("1-a"), ring.sequence("2-b")), (4, 0));
        assert!(ring.take("2-b", numbered([1, 2], "b"), now));
        let read = ring.read(0, &all, 100);
        assert_eq!(messages(&read), ["a1", "a2", "a3", "a4", "b1", "b2"]);
        assert_eq!((read.next, read.missed, *ring.end().borrow(), ring.total()), (6, 0, 6, 6));
        assert_eq!(messages(&ring.read(4, &all, 1)), ["b1"]);
        assert_eq!(messages(&ring.read(6, &all, 1)), [""; 0]);
    }

    #[test]
    fn the_last_lines_that_are_admitted() {
        let (ring, all) = (Ring::default(), Filter::default());
        assert_eq!(ring.tail(&all, 5), 0);
        assert!(ring.take("1-a", numbered(1..=10, ""), Instant::now()));
        assert_eq!(ring.tail(&all, 3), 7);
        assert_eq!(ring.tail(&all, 100), 0);
        assert_eq!(ring.tail(&all, 0), 10);
        assert_eq!(ring.tail(&Filter::new(vec![], "warn", None).unwrap(), 3), 10);
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let (ring, all, now) = (Ring::default(), Filter::default(), Instant::now());
        let lines = GATEWAY_LINES as u64;
        for begin in (0..lines + 500).step_by(100) {
            assert!(ring.take("1-a", numbered(begin + 1..=begin + 100, ""), now));
        }
        let read = ring.read(100, &all, 1);
        assert_eq!((messages(&read), read.missed, read.next), (vec!["501"], 400, 501));
        assert_eq!(ring.total(), GATEWAY_LINES);
    }

    #[test]
    fn whatever_comes_the_ring_is_bounded_and_so_is_the_rate() {
        let (ring, start) = (Ring::default(), Instant::now());
        let long = "x".repeat(4000);
        let taken = |now| {
            (1..).take_while(|number| ring.take("1-a", numbered([u64::MAX - 10_000 + number], &long), now)).count()
        };
        let burst = taken(start);
        assert!(burst > 1000 && burst < 1100, "{burst}");
        assert!(ring.lock().bytes <= GATEWAY_RING);
        assert!(taken(start + Duration::from_secs(1)) > 250);
        // The last number that there is.
        assert!(ring.take("1-a", numbered([u64::MAX], ""), start + Duration::from_secs(9)));
        assert_eq!(ring.sequence("1-a"), u64::MAX);
    }
}
