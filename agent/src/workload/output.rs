//! Reading what a program writes, also after its end.

use std::io;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proto::budget::RELAY_CHUNK;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::reaper::Exit;

/// After the program's end, silence that counts as the end of its output. A child in the background may hold the
/// other end for ever, and must not keep its parent's exit code back.
const SILENCE: Duration = Duration::from_millis(200);
/// After the program's end, what a child in the background may still say. A pipe holds at most this much.
const AFTERWARDS: usize = 1024 * 1024;
/// And for how long it is listened to: of reading, not of waiting for whoever takes what was read.
const LISTEN: Duration = Duration::from_secs(1);

/// One stream of output.
#[derive(Debug)]
pub struct Output {
    from: pipe::Receiver,
    exit: Exit,
    afterwards: usize,
    listened: Duration,
    buffer: BytesMut,
}

impl Output {
    /// Of a program with this exit.
    pub fn new(from: pipe::Receiver, exit: Exit) -> Self {
        Self { from, exit, afterwards: 0, listened: Duration::ZERO, buffer: BytesMut::new() }
    }

    /// The next piece; nothing at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let ended = self.exit.borrow_and_update().is_some();
            let read = if ended {
                if self.afterwards >= AFTERWARDS || self.listened >= LISTEN {
                    return None;
                }
                let began = Instant::now();
                let read = timeout(SILENCE, read(&mut self.from, &mut self.buffer)).await.unwrap_or(Ok(0));
                self.listened += began.elapsed();
                read
            } else {
                tokio::select! {
                    biased;
                    read = read(&mut self.from, &mut self.buffer) => read,
                    changed = self.exit.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => Ok(0),
                    },
                }
            };
            // A terminal whose last user has gone answers EIO instead of an end.
            let length = read.unwrap_or(0);
            if length == 0 {
                return None;
            }
            if ended {
                self.afterwards += length;
            }
            return Some(self.buffer.split().freeze());
        }
    }
}

async fn read(from: &mut pipe::Receiver, buffer: &mut BytesMut) -> io::Result<usize> {
    // Nothing is kept in reserve between reads: an idle program costs no buffer.
    from.readable().await?;
    buffer.reserve(8 * 1024);
    from.take(RELAY_CHUNK as u64).read_buf(buffer).await
}
