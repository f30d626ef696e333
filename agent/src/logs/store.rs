//! The lines of this boot, and the gaps between them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use proto::log::{RATE_LINES, SOURCE_AGENT};

/// What an entry costs beside its message, here and on its way.
const ENTRY: usize = 128;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number, over all sources.
    pub sequence: u64,
    /// When it was written, since the epoch, by the guest's clock.
    pub at: Duration,
    /// One of `proto::log::LEVELS`.
    pub level: &'static str,
    /// Stream, or module of the agent.
    pub target: &'static str,
    /// Who wrote it.
    pub source: Arc<str>,
    /// Without its end.
    pub message: Box<str>,
    /// Whether it was too long and goes on in the next one of its source.
    pub continues: bool,
}

/// Lines that were dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Whose they were; the agent's where they were anybody's.
    pub source: Arc<str>,
    /// Why.
    pub reason: Reason,
}

/// Why lines are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Their source wrote too fast.
    Rate,
    /// They had to make room for newer ones.
    Memory,
    /// The store was in use when the agent wrote them.
    Busy,
}

impl Reason {
    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Memory => "memory",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate => write!(f, "written faster than {RATE_LINES} lines a second or their bytes"),
            Self::Memory => f.write_str("newer ones took their room in the guest"),
            Self::Busy => f.write_str("the agent could not write them down"),
        }
    }
}

/// What a receiver gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A line.
    Line(Line),
    /// In place of lines.
    Gap(Gap),
}

impl Entry {
    /// The number of its last line.
    pub fn last(&self) -> u64 {
        match self {
            Self::Line(line) => line.sequence,
            Self::Gap(gap) => gap.last,
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Line(line) => ENTRY + line.message.len(),
            Self::Gap(_) => ENTRY,
        }
    }
}

/// See the module. Entries follow each other without a hole, from the one after `evicted` to `last`.
#[derive(Debug)]
pub(super) struct Store {
    entries: VecDeque<Entry>,
    cost: usize,
    bound: usize,
    last: u64,
    /// All up to here made room.
    evicted: u64,
    nobody: Arc<str>,
}

impl Store {
    /// With room for so many bytes.
    pub(super) fn new(bound: usize) -> Self {
        Self { entries: VecDeque::new(), cost: 0, bound, last: 0, evicted: 0, nobody: SOURCE_AGENT.into() }
    }

    /// The number of the last line.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Keeps the line that is made with this number.
    pub(super) fn write(&mut self, line: impl FnOnce(u64) -> Line) {
        self.last += 1;
        self.push(Entry::Line(line(self.last)));
    }

    /// Counts so many lines that are not kept.
    pub(super) fn skip(&mut self, lines: u64, source: &str, reason: Reason) {
        if lines == 0 {
            return;
        }
        let first = self.last + 1;
        self.last += lines;
        match self.entries.back_mut() {
            Some(Entry::Gap(gap)) if gap.reason == reason && &*gap.source == source => gap.last = self.last,
            _ => self.push(Entry::Gap(Gap { first, last: self.last, source: source.into(), reason })),
        }
    }

    fn push(&mut self, entry: Entry) {
        self.cost += entry.cost();
        self.entries.push_back(entry);
        while self.cost > self.bound
            && let Some(oldest) = self.entries.pop_front()
        {
            self.cost -= oldest.cost();
            self.evicted = oldest.last();
        }
    }

    /// What follows the line with this number, oldest first: at least one entry where there is any, and otherwise at
    /// most so many lines and bytes.
    pub(super) fn after(&self, sequence: u64, lines: usize, bytes: usize) -> Vec<Entry> {
        let mut found = vec![];
        if self.evicted > sequence {
            let source = self.nobody.clone();
            found.push(Entry::Gap(Gap { first: sequence + 1, last: self.evicted, source, reason: Reason::Memory }));
        }
        let begin = self.entries.partition_point(|entry| entry.last() <= sequence);
        let mut cost = found.len() * ENTRY;
        for entry in self.entries.range(begin..) {
            cost += entry.cost();
            if found.len() >= lines || (cost > bytes && !found.is_empty()) {
                break;
            }
            let mut entry = entry.clone();
            if let Entry::Gap(gap) = &mut entry {
                gap.first = gap.first.max(sequence + 1);
            }
            found.push(entry);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(sequence: u64, message: &str) -> Line {
        let (at, source, message) = (Duration::ZERO, "main".into(), message.into());
        Line { sequence, at, level: "INFO", target: "stdout", source, message, continues: false }
    }

    #[test]
    fn what_made_room_is_a_gap_for_whoever_has_not_got_it() {
        let mut store = Store::new(3 * ENTRY + 10);
        for _ in 0..5 {
            store.write(|sequence| line(sequence, "x"));
        }
        let numbers = |after| store.after(after, 10, 10_000).iter().map(Entry::last).collect::<Vec<_>>();
        assert_eq!(numbers(0), [2, 3, 4, 5]);
        assert_eq!(numbers(2), [3, 4, 5]);
        assert_eq!(numbers(5), [0_u64; 0]);
        let Entry::Gap(gap) = &store.after(1, 10, 10_000)[0] else { panic!("a gap") };
        assert_eq!((gap.first, gap.last, gap.reason), (2, 2, Reason::Memory));
    }

    #[test]
    fn a_batch_is_bounded_and_never_empty() {
        let mut store = Store::new(100_000);
        for _ in 0..10 {
            store.write(|sequence| line(sequence, "x"));
        }
        assert_eq!(store.after(0, 3, 10_000).len(), 3);
        assert_eq!(store.after(0, 100, 2 * (ENTRY + 1)).len(), 2);
        assert_eq!(store.after(0, 100, 1).len(), 1);
    }

    /// What can happen.
    #[derive(Debug, Clone)]
    enum Step {
        Write,
        Skip(u64, bool),
        /// A batch is sent; it arrives or not, and the sender hears of it or not.
        Send {
            lines: usize,
            arrives: bool,
            heard: bool,
        },
        /// The sender asks for what the receiver has.
        Ask,
        /// The receiver is started again and has forgotten everything.
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Write),
            2 => (1..50_u64, any::<bool>()).prop_map(|(count, rate)| Step::Skip(count, rate)),
            4 => (1..20_usize, any::<bool>(), any::<bool>())
                .prop_map(|(lines, arrives, heard)| Step::Send { lines, arrives, heard }),
            2 => Just(Step::Ask),
            1 => Just(Step::Forget),
        ]
    }

    /// Takes what is new; each number is that of a line or in a gap, once and in order.
    fn receive(highest: &mut u64, lines: &mut Vec<u64>, batch: &[Entry]) -> Result<(), TestCaseError> {
        for entry in batch {
            if entry.last() <= *highest {
                continue;
            }
            match entry {
                Entry::Line(line) => {
                    prop_assert_eq!(line.sequence, *highest + 1, "a line that nobody speaks of is missing");
                    prop_assert_eq!(&*line.message, line.sequence.to_string());
                    lines.push(line.sequence);
                }
                Entry::Gap(gap) => {
                    prop_assert!(gap.first <= *highest + 1 && gap.first <= gap.last);
                }
            }
            *highest = entry.last();
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn each_line_comes_once_in_order_or_is_in_a_gap(steps in proptest::collection::vec(step(), 0..200)) {
            let mut store = Store::new(20 * ENTRY);
            let (mut kept, mut written) = (0, vec![]);
            let (mut highest, mut received, mut sent) = (0, vec![], 0);
            for step in steps.into_iter().chain([Step::Ask]) {
                match step {
                    Step::Write => {
                        store.write(|sequence| {
                            kept = sequence;
                            line(sequence, &sequence.to_string())
                        });
                        written.push(kept);
                    }
                    Step::Skip(count, rate) => {
                        store.skip(count, "main", if rate { Reason::Rate } else { Reason::Busy });
                    }
                    Step::Send { lines, arrives, heard } => {
                        let batch = store.after(sent, lines, 10_000);
                        if arrives {
                            receive(&mut highest, &mut received, &batch)?;
                        }
                        // A sender that does not know asks before it goes on.
                        sent = if arrives && heard { batch.last().map_or(sent, Entry::last) } else { highest };
                    }
                    Step::Ask => sent = highest,
                    Step::Forget => (highest, sent, received) = (0, 0, vec![]),
                }
                prop_assert!(store.cost <= store.bound);
            }
            receive(&mut highest, &mut received, &store.after(sent, usize::MAX, usize::MAX))?;
            prop_assert_eq!(highest, store.last());
            prop_assert!(received.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(received.iter().all(|number| written.contains(number)), "a line that was never written");
        }
    }
}
