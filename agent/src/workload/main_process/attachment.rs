//! Those who watch the main process, and the one of them who types.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{Input, MainProcess, State};
use crate::workload::ring::Stream;

/// One who watches.
#[derive(Debug)]
pub struct Attachment {
    pub(super) main: Arc<MainProcess>,
    pub(super) reader: u64,
    pub(super) written: watch::Receiver<u64>,
    pub(super) state: watch::Receiver<State>,
}

/// What there is to see.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Output.
    Output(Stream, Bytes),
    /// It has ended, and all of its output was seen.
    Ended(i32),
}

impl Attachment {
    /// The next thing; call it again only after the last one was passed on.
    pub async fn next(&mut self) -> Seen {
        loop {
            // Before the look, so that what comes between look and wait is not missed.
            self.written.mark_unchanged();
            let state = *self.state.borrow_and_update();
            if let Some((stream, bytes)) = self.take() {
                return Seen::Output(stream, bytes);
            }
            if let State::Ended(code) = state {
                return Seen::Ended(code);
            }
            tokio::select! {
                _ = self.written.changed() => {}
                _ = self.state.changed() => {}
            }
        }
    }

    /// The right to type that this one may have.
    pub fn typist(&self) -> Typist {
        Typist { main: self.main.clone(), reader: self.reader }
    }

    fn take(&self) -> Option<(Stream, Bytes)> {
        let mut output = self.main.lock_output();
        let position = *output.readers.get(&self.reader)?;
        let (stream, bytes, next) = output.ring.read(position)?;
        output.readers.insert(self.reader, next);
        drop(output);
        self.main.progress.send_modify(|count| *count += 1);
        Some((stream, bytes))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.main.lock_output().readers.remove(&self.reader);
        self.main.lease.leave(self.reader);
        self.main.progress.send_modify(|count| *count += 1);
    }
}

/// One attachment, as far as it types.
#[derive(Debug, Clone)]
pub struct Typist {
    main: Arc<MainProcess>,
    reader: u64,
}

impl Typist {
    /// Whether it may type: it has the input, or gets it now because nobody has.
    pub fn may_type(&self) -> bool {
        self.main.lease.claim(self.reader)
    }

    /// Whether it has the input.
    pub fn has_input(&self) -> bool {
        self.main.lease.is_held_by(self.reader)
    }

    /// Resolves when this one has it.
    pub async fn got_input(&self) {
        self.main.lease.got(self.reader).await;
    }

    /// Resolves when somebody took the input from this one, which has it.
    pub async fn lost_input(&self) {
        self.main.lease.lost(self.reader).await;
    }

    /// Types, once there is room.
    pub async fn send(&self, input: Input) {
        // The receiving end lives as long as the main process's runs; after them nobody misses it.
        let _ = self.main.input.send(input).await;
    }
}
