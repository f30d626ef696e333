//! What the main process, services and the agent say, on its way to the gateway.
//!
//! ```text
//!  main, services, agent ──► lines ──► rate ──► store (one number for each line of this boot) ──► session ──► gateway
//! ```
//!
//! A writer is never kept waiting. What is written too fast, or is too much to be kept, is counted instead: numbers are
//! given to lines before anything is dropped, so a gap in the numbers is a gap in the lines, and whoever receives them
//! can tell exactly what it has not got. Lines stay in the store after they were sent, until newer ones need the room:
//! a gateway that was started again, and has forgotten them, gets them once more.

mod lines;
mod rate;
mod store;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::log::{AGENT_RING, MESSAGE_MAX, SOURCE_AGENT};
use tokio::sync::watch;

pub use store::{Entry, Gap, Line, Reason};

use crate::sys::clock;
use crate::workload::ring::Stream;
use lines::Lines;
use rate::Rate;
use store::Store;

/// How often a line of the agent looks for a moment at which nobody else writes.
const ATTEMPTS: usize = 100;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// Lines that found the store busy.
    unwritten: AtomicU64,
    end: watch::Sender<End>,
    /// The number of the last line that the gateway has, as far as is known.
    taken: watch::Sender<u64>,
    /// The sandbox ends: lines are not gathered any more.
    hurry: watch::Sender<bool>,
}

impl Default for Logs {
    fn default() -> Self {
        Self::bounded(AGENT_RING)
    }
}

impl Logs {
    /// With room for so many bytes.
    pub fn bounded(bytes: usize) -> Self {
        let shared = Shared {
            store: Mutex::new(Store::new(bytes)),
            unwritten: AtomicU64::new(0),
            end: watch::Sender::new(End::default()),
            taken: watch::Sender::new(0),
            hurry: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// For whoever is called `source`. Its clones are one source: they share its rate and its unfinished lines.
    pub fn writer(&self, source: &str) -> Writer {
        let state = State { out: Lines::default(), err: Lines::default(), rate: Rate::new(Instant::now()) };
        Writer { logs: self.clone(), source: source.into(), state: Arc::new(Mutex::new(state)) }
    }

    /// What follows the line with this number, oldest first, in at most so many lines and bytes.
    pub fn after(&self, sequence: u64, lines: usize, bytes: usize) -> Vec<Entry> {
        self.store().after(sequence, lines, bytes)
    }

    /// How far it was written.
    pub fn written(&self) -> watch::Receiver<End> {
        self.shared.end.subscribe()
    }

    /// The number of the last line that the gateway has, as far as is known. Falls when a gateway has forgotten it.
    pub fn known(&self) -> watch::Receiver<u64> {
        self.shared.taken.subscribe()
    }

    /// The gateway has all lines up to this one, and none after it.
    pub fn taken(&self, sequence: u64) {
        self.shared.taken.send_if_modified(|taken| std::mem::replace(taken, sequence) != sequence);
    }

    /// Becomes true when the sandbox ends.
    pub fn hurried(&self) -> watch::Receiver<bool> {
        self.shared.hurry.subscribe()
    }

    /// Resolves when the gateway has all that was written so far. Nothing is gathered from here on.
    pub async fn drained(&self) {
        self.shared.hurry.send_replace(true);
        let last = self.shared.end.borrow().last;
        let _ = self.shared.taken.subscribe().wait_for(|taken| *taken >= last).await;
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.shared.store)
    }

    /// Writes to the store, and wakes whoever sends.
    fn commit(&self, mut store: MutexGuard<'_, Store>, pressing: bool, write: impl FnOnce(&mut Store)) {
        let unwritten = self.shared.unwritten.swap(0, Ordering::Relaxed);
        store.skip(unwritten, SOURCE_AGENT, Reason::Busy);
        write(&mut store);
        let last = store.last();
        drop(store);
        self.shared.end.send_if_modified(|end| {
            let new = last > end.last;
            // Of two writers, the later one may be here first.
            end.last = end.last.max(last);
            if pressing {
                end.pressing = end.pressing.max(last);
            }
            new
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far lines were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// The number of the last line.
    pub last: u64,
    /// That of the last one which somebody waits for: what the agent says of its daily work is none.
    pub pressing: u64,
}

/// One source of lines. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    logs: Logs,
    source: Arc<str>,
    state: Arc<Mutex<State>>,
}

struct State {
    out: Lines,
    err: Lines,
    rate: Rate,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Writer {
    /// Bytes of a program. A line is complete with its end, or when it has become too long.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        self.pieces(stream, |lines, piece| lines.push(bytes, piece));
    }

    /// No more will come of this program: what it has begun is a line.
    pub fn finish(&self) {
        for stream in [Stream::Out, Stream::Err] {
            self.pieces(stream, |lines, piece| lines.finish(piece));
        }
    }

    fn pieces(&self, stream: Stream, split: impl FnOnce(&mut Lines, &mut dyn FnMut(&str, bool))) {
        let (now, at) = (Instant::now(), clock::wall());
        let mut state = lock(&self.state);
        let State { out, err, rate } = &mut *state;
        let (lines, target) = match stream {
            Stream::Out => (out, "stdout"),
            Stream::Err => (err, "stderr"),
        };
        self.logs.commit(self.logs.store(), true, |store| {
            split(lines, &mut |message, continues| {
                if rate.admit(message.len(), now) {
                    let source = self.source.clone();
                    store.write(|sequence| Line {
                        sequence,
                        at,
                        level: "INFO",
                        target,
                        source,
                        message: message.into(),
                        continues,
                    });
                } else {
                    store.skip(1, &self.source, Reason::Rate);
                }
            });
        });
    }

    /// A whole line. Never waits for a lock: the agent also speaks of a panic while it is in here, by its panic hook.
    pub fn line(&self, level: &'static str, target: &'static str, message: &str) {
        let message = &message[..message.floor_char_boundary(MESSAGE_MAX)];
        for _ in 0..ATTEMPTS {
            if let (Ok(mut state), Ok(store)) = (self.state.try_lock(), self.logs.shared.store.try_lock()) {
                let (admitted, source) = (state.rate.admit(message.len(), Instant::now()), self.source.clone());
                let pressing = matches!(level, "WARN" | "ERROR");
                self.logs.commit(store, pressing, |store| {
                    if admitted {
                        let (at, message) = (clock::wall(), message.into());
                        let line = |sequence| Line { sequence, at, level, target, source, message, continues: false };
                        store.write(line);
                    } else {
                        store.skip(1, &source, Reason::Rate);
                    }
                });
                return;
            }
            std::thread::yield_now();
        }
        self.logs.shared.unwritten.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(logs: &Logs) -> Vec<(String, String)> {
        let line = |entry: Entry| match entry {
            Entry::Line(line) => (line.source.to_string(), line.message.to_string()),
            Entry::Gap(gap) => (gap.source.to_string(), format!("{}..={} {:?}", gap.first, gap.last, gap.reason)),
        };
        logs.after(0, usize::MAX, usize::MAX).into_iter().map(line).collect()
    }

    fn said(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(source, message)| ((*source).to_owned(), (*message).to_owned())).collect()
    }

    #[test]
    fn sources_have_one_order_and_streams_their_own_lines() {
        let logs = Logs::default();
        let (main, web) = (logs.writer("main"), logs.writer("web"));
        main.write(Stream::Out, b"he");
        main.write(Stream::Err, b"oops\n");
        web.write(Stream::Out, b"up\r\nand");
        main.clone().write(Stream::Out, b"llo\n");
        web.finish();
        logs.writer("agent").line("WARN", "agent::boot", "hm");
        assert_eq!(
            lines(&logs),
            said(&[("main", "oops"), ("web", "up"), ("main", "hello"), ("web", "and"), ("agent", "hm")])
        );
    }

    #[test]
    fn who_writes_too_fast_is_counted_and_others_are_heard() {
        let logs = Logs::default();
        let main = logs.writer("main");
        let flood = "x\n".repeat(100_000);
        main.write(Stream::Out, flood.as_bytes());
        logs.writer("agent").line("INFO", "agent", "still here");
        let entries = logs.after(0, usize::MAX, usize::MAX);
        assert_eq!(*logs.written().borrow(), End { last: 100_001, pressing: 100_000 });
        let [.., Entry::Gap(gap), Entry::Line(last)] = &entries[..] else { panic!("{:?}", entries.last()) };
        assert_eq!((gap.last, gap.reason, &*last.message), (100_000, Reason::Rate, "still here"));
    }

    #[test]
    fn a_busy_store_is_no_trap_and_its_lines_are_counted() {
        let logs = Logs::default();
        let agent = logs.writer("agent");
        let held = logs.store();
        agent.line("ERROR", "agent", "panic: in the store");
        drop(held);
        agent.line("INFO", "agent", "after");
        assert_eq!(lines(&logs), said(&[("agent", "1..=1 Busy"), ("agent", "after")]));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn drained_is_when_the_gateway_has_it() {
        let logs = Logs::default();
        logs.writer("main").write(Stream::Out, b"a\nb\n");
        let drained = tokio::spawn({
            let logs = logs.clone();
            async move { logs.drained().await }
        });
        logs.hurried().wait_for(|hurry| *hurry).await.unwrap();
        logs.taken(1);
        assert!(!drained.is_finished());
        logs.taken(2);
        drained.await.unwrap();
    }
}
