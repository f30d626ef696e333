//! The last bytes of the main process's output, in order, each with its stream.

use std::collections::VecDeque;

use bytes::Bytes;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Out,
    /// Standard error.
    Err,
}

/// What an entry costs beside its bytes: somebody who writes single bytes to both streams in turn must not make the
/// ring many times as big as it is allowed to be.
const ENTRY: usize = 64;
/// Entries grow up to this.
const ENTRY_MAX: usize = 8 * 1024;

/// A buffer that forgets its beginning. Positions count all bytes that were ever written.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<(Stream, Vec<u8>)>,
    capacity: usize,
    cost: usize,
    start: u64,
    end: u64,
}

impl Ring {
    /// Holds about `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), capacity, cost: 0, start: 0, end: 0 }
    }

    /// The position behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds bytes, and forgets as many old ones as needed.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        self.end += bytes.len() as u64;
        while !bytes.is_empty() {
            let space = match self.entries.back() {
                Some((last, entry)) if *last == stream => ENTRY_MAX.saturating_sub(entry.len()),
                _ => 0,
            };
            if space == 0 {
                self.entries.push_back((stream, Vec::new()));
                self.cost += ENTRY;
                continue;
            }
            let (now, later) = bytes.split_at(space.min(bytes.len()));
            if let Some((_, entry)) = self.entries.back_mut() {
                entry.extend_from_slice(now);
            }
            self.cost += now.len();
            bytes = later;
        }
        while self.cost > self.capacity && self.entries.len() > 1 {
            if let Some((_, entry)) = self.entries.pop_front() {
                self.cost -= ENTRY + entry.len();
                self.start += entry.len() as u64;
            }
        }
    }

    /// Whether writing so many bytes would forget some that stand behind `position`.
    pub fn would_lose(&self, length: usize, position: u64) -> bool {
        let cost = self.cost + length + ENTRY * (length / ENTRY_MAX + 2);
        let mut excess = cost.saturating_sub(self.capacity);
        let mut forgotten = self.start;
        for (_, entry) in &self.entries {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(ENTRY + entry.len());
            forgotten += entry.len() as u64;
        }
        position < forgotten
    }

    /// What stands at `position`, or at the beginning of what is left, and the position after it.
    pub fn read(&self, position: u64) -> Option<(Stream, Bytes, u64)> {
        let mut entry_start = self.start;
        let position = position.max(self.start);
        for (stream, entry) in &self.entries {
            let entry_end = entry_start + entry.len() as u64;
            if position < entry_end {
                let from = usize::try_from(position - entry_start).unwrap_or(0);
                return Some((*stream, Bytes::copy_from_slice(&entry[from..]), entry_end));
            }
            entry_start = entry_end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(ring: &Ring, mut position: u64) -> Vec<(Stream, u8)> {
        let mut all = Vec::new();
        while let Some((stream, bytes, next)) = ring.read(position) {
            all.extend(bytes.iter().map(|byte| (stream, *byte)));
            position = next;
        }
        assert_eq!(position.max(ring.end()), ring.end());
        all
    }

    proptest! {
        #[test]
        fn what_is_left_is_the_end_of_what_was_written(
            writes in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..60),
            capacity in 1_usize..4000,
        ) {
            let mut ring = Ring::new(capacity);
            let mut written = Vec::new();
            let mut safe = 0;
            for (err, bytes) in writes {
                let stream = if err { Stream::Err } else { Stream::Out };
                let kept = !ring.would_lose(bytes.len(), safe);
                ring.write(stream, &bytes);
                if kept {
                    prop_assert!(ring.start <= safe);
                } else {
                    safe = ring.end();
                }
                written.extend(bytes.into_iter().map(|byte| (stream, byte)));
            }
            let left = read_all(&ring, 0);
            prop_assert_eq!(&written[written.len() - left.len()..], &left[..]);
            prop_assert!(left.len() <= capacity.max(ENTRY_MAX));
            prop_assert!(ring.entries.len() * ENTRY <= capacity + ENTRY);
        }
    }

    #[test]
    fn a_position_in_the_middle_is_kept() {
        let mut ring = Ring::new(10_000);
        ring.write(Stream::Out, b"hello ");
        let seen = ring.end();
        ring.write(Stream::Out, b"world");
        assert_eq!(ring.read(seen), Some((Stream::Out, Bytes::from_static(b"world"), 11)));
        assert_eq!(ring.read(11), None);
    }
}
