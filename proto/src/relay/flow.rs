//! How much of a relay may be on its way: an account of its own for each direction.
//!
//! All relays of a sandbox share one HTTP/2 connection and its window. What an application does not read stays in that
//! window, so a few readers that have paused would stop everybody else, the connection's `Sync` among them. Both ends
//! therefore always read, into a queue as long as the credit that they gave, and give more as the queue is emptied.
//!
//! Ends that name a credit in `RelayOpen` and `RelayInit` are held to it. Where one of them does not, the window of the
//! HTTP/2 stream does the same work, and the end of the stream is the end of what it carries. Credit still has to go
//! back after that end, which is therefore a frame of its own where both count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use prost::bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{SHORT, data_frame, without_data};
use crate::budget::{RELAY_CHUNK, RELAY_CREDIT, UNARY};
use crate::openshell::v1::RelayFrame;
use crate::openshell::v1::relay_frame::Payload;

/// What is read is given back from this many bytes on, not byte by byte.
const GIVEN_BACK: u32 = RELAY_CREDIT / 4;
/// More than anybody has a queue for.
const CREDIT_MAX: usize = 64 << 20;

// Whoever waits for the peer to read does not wait for ever: a chunk fits into what is never held back.
const _: () = assert!(RELAY_CHUNK as u32 + GIVEN_BACK <= RELAY_CREDIT);

/// What comes out of the other end. What is taken from it makes room for more.
#[derive(Debug)]
pub struct Incoming {
    queue: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
    room: Arc<Room>,
}

/// What goes to the other end. Dropped, it says that no more comes; it is closed once the other end has gone.
pub type Outgoing = mpsc::Sender<Bytes>;

/// One end of a relay for whoever carries it.
#[derive(Debug)]
pub struct End {
    queue: mpsc::UnboundedSender<Result<Bytes, Status>>,
    room: Arc<Room>,
    outgoing: mpsc::Receiver<Bytes>,
}

/// What the queue still takes.
#[derive(Debug)]
struct Room {
    bytes: Semaphore,
    /// Taken from the queue, and not given back to the peer as credit yet.
    owed: AtomicU32,
    /// Enough of it.
    due: Notify,
}

/// An end, and the two directions of whoever uses it.
pub fn end() -> (End, Incoming, Outgoing) {
    let bytes = Semaphore::new(RELAY_CREDIT as usize);
    let room = Arc::new(Room { bytes, owed: AtomicU32::new(0), due: Notify::new() });
    let (queue, queued) = mpsc::unbounded_channel();
    let (writer, outgoing) = mpsc::channel(1);
    (End { queue, room: room.clone(), outgoing }, Incoming { queue: queued, room }, writer)
}

impl Incoming {
    /// The next piece, and nothing at the end. After an error nothing comes.
    pub async fn recv(&mut self) -> Option<Result<Bytes, Status>> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// See [`Self::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let next = ready!(self.queue.poll_recv(cx));
        if let Some(Ok(data)) = &next {
            self.room.taken(charge(data));
        }
        Poll::Ready(next)
    }
}

impl Room {
    fn taken(&self, charge: u32) {
        self.bytes.add_permits(charge as usize);
        // After the room is there, for who reads it to give credit. It wraps where nobody counts, and nobody waits there.
        if self.owed.fetch_add(charge, Ordering::Release).wrapping_add(charge) >= GIVEN_BACK {
            self.due.notify_one();
        }
    }
}

/// Carries until both directions have ended. A user who drops [`Incoming`] wants no more of it; what they have given to
/// [`Outgoing`] is still sent. `credit` is what the peer began with, in bytes, and 0 where it does not count; a peer
/// that does has got [`RELAY_CREDIT`].
pub async fn carry(
    end: End,
    frames: impl Stream<Item = Result<RelayFrame, Status>> + Unpin,
    peer: mpsc::Sender<RelayFrame>,
    credit: u32,
) {
    let flow = Flow {
        counted: credit > 0,
        room: end.room,
        credit: Semaphore::new(CREDIT_MAX.min(credit as usize)),
        ended: Notify::new(),
        gone: Notify::new(),
    };
    let giving = flow.counted.then(|| peer.clone());
    let receiving = flow.receive(frames, end.queue.clone());
    let both = async { tokio::join!(flow.send(end.outgoing, peer), flow.give(end.queue, giving)) };
    tokio::pin!(receiving, both);
    tokio::select! {
        _ = &mut both => {
            // A stream that is dropped before its end is reset, and what waits to be sent is lost.
            let _ = timeout(UNARY, receiving).await;
        }
        () = &mut receiving => {
            both.await;
        }
    }
}

struct Flow {
    /// Whether both ends count.
    counted: bool,
    room: Arc<Room>,
    /// What the peer still takes.
    credit: Semaphore,
    /// The peer sends nothing any more.
    ended: Notify,
    /// The peer takes nothing any more.
    gone: Notify,
}

impl Flow {
    /// Reads whatever comes, to the end of the stream.
    async fn receive(
        &self,
        mut frames: impl Stream<Item = Result<RelayFrame, Status>> + Unpin,
        queue: mpsc::UnboundedSender<Result<Bytes, Status>>,
    ) {
        let mut queue = Some(queue);
        let broken = loop {
            let received = match frames.next().await {
                Some(Ok(frame)) => self.take(frame, &mut queue).await,
                Some(Err(status)) => Err(status),
                None if self.counted => Err(Status::aborted("it broke off before its end")),
                // The end of the stream is that of the data.
                None => break None,
            };
            if let Err(status) = received {
                break Some(status);
            }
        };
        if let Some(status) = broken {
            // After an end there is nobody to tell.
            if let Some(queue) = queue {
                let _ = queue.send(Err(status));
            }
            self.gone.notify_one();
        }
        self.ended.notify_one();
    }

    async fn take(
        &self,
        frame: RelayFrame,
        queue: &mut Option<mpsc::UnboundedSender<Result<Bytes, Status>>>,
    ) -> Result<(), Status> {
        if self.credit.available_permits() + frame.credit as usize > CREDIT_MAX {
            return Err(Status::out_of_range("more credit was given than anybody can use"));
        }
        self.credit.add_permits(frame.credit as usize);
        match frame.payload {
            Some(Payload::Data(data)) => {
                let Some(queue) = queue else { return Err(Status::data_loss("data came after the end")) };
                if self.counted && data.len() > RELAY_CHUNK {
                    return Err(Status::out_of_range("a frame is longer than any may be"));
                }
                let charge = charge(&data);
                let room = match self.counted {
                    true => self.room.bytes.try_acquire_many(charge).ok(),
                    false => self.room.bytes.acquire_many(charge).await.ok(),
                };
                room.ok_or_else(|| Status::resource_exhausted("more was sent than there was credit for"))?.forget();
                // A slice keeps the whole message in memory, with whatever else the peer put into it.
                let _ = queue.send(Ok(Bytes::copy_from_slice(&data)));
            }
            Some(Payload::Init(_)) => return Err(Status::data_loss("a relay begins once")),
            None if frame.credit == 0 && !frame.end => return Err(Status::data_loss("a frame has nothing in it")),
            None => {}
        }
        if frame.end {
            *queue = None;
            self.ended.notify_one();
        }
        Ok(())
    }

    /// Gives credit for what the user has taken, until no more comes or they want no more.
    async fn give(&self, queue: mpsc::UnboundedSender<Result<Bytes, Status>>, peer: Option<mpsc::Sender<RelayFrame>>) {
        let giving = async {
            while let Some(peer) = &peer {
                self.room.due.notified().await;
                // A second notice may be of what was given back with the first.
                if self.room.owed.load(Ordering::Relaxed) >= GIVEN_BACK {
                    let credit = self.room.owed.swap(0, Ordering::Acquire);
                    let _ = peer.send(without_data(RelayFrame { credit, ..RelayFrame::default() })).await;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = giving => {}
            () = self.ended.notified() => {}
            () = queue.closed() => {}
        }
    }

    /// Sends what the user gives, as the peer has room for it.
    async fn send(&self, mut outgoing: mpsc::Receiver<Bytes>, peer: mpsc::Sender<RelayFrame>) {
        let sending = async {
            while let Some(mut bytes) = outgoing.recv().await {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(RELAY_CHUNK));
                    if self.counted
                        && let Ok(credit) = self.credit.acquire_many(charge(&piece)).await
                    {
                        credit.forget();
                    }
                    if peer.send(data_frame(piece)).await.is_err() {
                        return;
                    }
                }
            }
            if self.counted {
                let _ = peer.send(without_data(RelayFrame { end: true, ..RelayFrame::default() })).await;
            }
        };
        tokio::select! {
            () = sending => {}
            // A user who says nothing must not keep a relay whose other end has gone.
            () = self.gone.notified() => {}
            () = peer.closed() => {}
        }
    }
}

/// What a frame costs. Where nobody counts, one may be longer than all the room there is.
fn charge(data: &Bytes) -> u32 {
    data.len().clamp(SHORT, RELAY_CREDIT as usize).try_into().unwrap_or(RELAY_CREDIT)
}

#[cfg(test)]
mod tests;
