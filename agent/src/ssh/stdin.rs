//! Input of a channel, between its arrival and the program's read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

/// The peer is asked to pause above this, and to go on below half of it.
const PAUSE: usize = 256 * 1024;
/// A peer that did not pause is held back above this.
const FULL: usize = 1024 * 1024;
/// And not let go on at all above this.
const LIMIT: usize = 16 * 1024 * 1024;
/// To hold a peer back is to hold its whole connection, output too, and the program may be waiting for its output to
/// be taken before it reads on. So a hold is short, and longer each time that the program has not read meanwhile.
const HOLD_MIN: Duration = Duration::from_millis(20);
const HOLD_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    length: usize,
    ended: bool,
    paused: bool,
    /// Nobody reads any more.
    abandoned: bool,
    /// The last hold, while the program has not read since.
    hold: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Notify,
    emptied: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the connection puts it.
#[derive(Debug)]
pub(super) struct Source(Arc<Shared>);

/// Where the program's task takes it.
#[derive(Debug)]
pub(super) struct Sink(Arc<Shared>);

/// A word to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    AsItIs,
    Pause,
    GoOn,
}

pub(super) fn queue() -> (Source, Sink) {
    let shared = Arc::new(Shared::default());
    (Source(shared.clone()), Sink(shared))
}

impl Source {
    /// Takes it, and says whether the peer should pause.
    pub(super) fn push(&self, bytes: &[u8]) -> Flow {
        let mut queue = self.0.lock();
        if queue.abandoned || queue.ended {
            return Flow::AsItIs;
        }
        queue.pieces.push_back(Bytes::copy_from_slice(bytes));
        queue.length += bytes.len();
        self.0.filled.notify_one();
        if queue.length > PAUSE && !queue.paused {
            queue.paused = true;
            return Flow::Pause;
        }
        Flow::AsItIs
    }

    /// Resolves when one more piece may come: at once, for a peer that pauses when asked.
    pub(super) async fn room(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            let hold = {
                let mut queue = self.0.lock();
                if queue.length < FULL || queue.abandoned {
                    return;
                }
                queue.hold = (queue.hold * 2).clamp(HOLD_MIN, HOLD_MAX);
                (queue.length < LIMIT).then_some(queue.hold)
            };
            match hold {
                Some(hold) => {
                    if timeout(hold, emptied).await.is_err() {
                        return;
                    }
                }
                None => emptied.await,
            }
        }
    }

    /// The peer has said that nothing more comes. A peer that is merely gone has not: its input stays open.
    pub(super) fn end(&self) {
        self.0.lock().ended = true;
        self.0.filled.notify_one();
    }
}

impl Sink {
    /// The next piece and a word to the peer; nothing at the end.
    pub(super) async fn next(&mut self) -> Option<(Bytes, Flow)> {
        loop {
            {
                let mut queue = self.0.lock();
                if let Some(piece) = queue.pieces.pop_front() {
                    queue.length -= piece.len();
                    queue.hold = Duration::ZERO;
                    let go_on = queue.paused && queue.length < PAUSE / 2;
                    queue.paused &= !go_on;
                    self.0.emptied.notify_one();
                    return Some((piece, if go_on { Flow::GoOn } else { Flow::AsItIs }));
                }
                if queue.ended {
                    return None;
                }
            }
            self.0.filled.notified().await;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.abandoned = true;
        queue.pieces.clear();
        queue.length = 0;
        self.0.emptied.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_is_paused_and_let_go_on() {
        let (source, mut sink) = queue();
        let piece = [0_u8; 32 * 1024];
        let words: Vec<Flow> = (0..10).map(|_| source.push(&piece)).collect();
        assert_eq!(words.iter().filter(|word| **word == Flow::Pause).count(), 1);
        assert_eq!(words[8], Flow::Pause);
        let mut words = Vec::new();
        source.end();
        while let Some((_, word)) = sink.next().await {
            words.push(word);
        }
        assert_eq!(words.iter().position(|word| *word == Flow::GoOn), Some(6));
        assert_eq!(words.len(), 10);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_does_not_pause_is_held_back_for_longer_and_longer() {
        let (source, mut sink) = queue();
        source.push(&[0; FULL - 1]);
        source.room().await;
        assert_eq!(source.0.lock().hold, Duration::ZERO);
        source.push(&[0; 1]);
        source.room().await;
        source.room().await;
        assert_eq!(source.0.lock().hold, HOLD_MIN * 2);
        // It reads, and there is room again.
        assert!(sink.next().await.is_some());
        source.room().await;
        assert_eq!(source.0.lock().hold, Duration::ZERO);
        // At the limit there is no letting go, but for the end of the reader.
        source.push(&vec![0; LIMIT]);
        let held = tokio::spawn(async move { source.room().await });
        tokio::task::yield_now().await;
        assert!(!held.is_finished());
        drop(sink);
        held.await.unwrap();
    }
}
