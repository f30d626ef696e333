//! Relays: byte streams into a sandbox, asked for by the gateway and opened by the agent.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use proto::budget;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::relay_frame::Payload as FramePayload;
use proto::openshell::v1::relay_open::Target;
use proto::openshell::v1::{RelayFrame, RelayOpen};
use proto::relay::flow::{self, Incoming, Outgoing};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::sessions::Session;

/// Frames towards an agent that may wait to be sent.
const OUTBOUND: usize = 8;

type Opened = Result<RelayStream, String>;

/// Relays that were asked for and have not been opened yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct Relays {
    pending: Arc<Mutex<HashMap<Uuid, Pending>>>,
}

struct Pending {
    sandbox_id: Uuid,
    opened: oneshot::Sender<Opened>,
}

/// Takes a request back when whoever made it has left.
struct Asked<'a> {
    relays: &'a Relays,
    channel: Uuid,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.relays.lock().remove(&self.channel);
    }
}

impl Relays {
    /// Asks the agent of `session` for a byte stream to `target` and waits for it.
    ///
    /// # Errors
    /// Why there is none: refused by the agent, session ended, or not opened within [`budget::RELAY_OPEN`].
    pub async fn open(&self, sandbox_id: Uuid, session: &Session, target: Target) -> Result<RelayStream, String> {
        let channel = Uuid::new_v4();
        let (opened, answer) = oneshot::channel();
        self.lock().insert(channel, Pending { sandbox_id, opened });
        let _asked = Asked { relays: self, channel };
        let open = RelayOpen { channel_id: channel.to_string(), target: Some(target), credit: budget::RELAY_CREDIT };
        let wait = async {
            session.send(Payload::RelayOpen(open)).await?;
            answer.await.map_err(|_| "the relay was dropped".to_string())?
        };
        timeout(budget::RELAY_OPEN, wait)
            .await
            .map_err(|_| format!("the agent did not open a relay within {:?}", budget::RELAY_OPEN))?
    }

    /// The agent says that it will not open a relay.
    pub fn refused(&self, sandbox_id: Uuid, channel_id: &str, reason: &str) {
        if let Some(pending) = self.take(sandbox_id, channel_id) {
            drop(pending.opened.send(Err(format!("the agent refused the relay: {reason}"))));
        }
    }

    /// Takes a new `RelayStream` of `sandbox_id` to whoever asked for it; returns what goes back to the agent.
    ///
    /// # Errors
    /// The stream does not begin with an init, or nobody of this sandbox asked for it.
    pub async fn opened(
        &self,
        sandbox_id: Uuid,
        mut inbound: Streaming<RelayFrame>,
    ) -> Result<mpsc::Receiver<RelayFrame>, Status> {
        let first = timeout(budget::UNARY, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no init within the deadline"))??;
        let Some(FramePayload::Init(init)) = first.and_then(|frame| frame.payload) else {
            return Err(Status::invalid_argument("the first frame of a relay is `init`"));
        };
        // Whether the channel is another sandbox's or nobody's is the same answer.
        let pending = self
            .take(sandbox_id, &init.channel_id)
            .ok_or_else(|| Status::permission_denied("no such relay was asked of this sandbox"))?;
        let (outbound, receiver) = mpsc::channel(OUTBOUND);
        let (end, incoming, outgoing) = flow::end();
        let flow = tokio::spawn(flow::carry(end, inbound, outbound, init.credit));
        let held = Arc::new(Held(flow.abort_handle()));
        let stream = RelayStream { incoming, buffer: Bytes::new(), outgoing: PollSender::new(outgoing), held };
        pending.opened.send(Ok(stream)).map_err(|_| Status::cancelled("whoever asked for the relay has left"))?;
        Ok(receiver)
    }

    fn take(&self, sandbox_id: Uuid, channel_id: &str) -> Option<Pending> {
        let channel: Uuid = channel_id.parse().ok()?;
        let mut pending = self.lock();
        (pending.get(&channel)?.sandbox_id == sandbox_id).then(|| pending.remove(&channel))?
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gateway's end of a relay, as plain bytes.
pub struct RelayStream {
    incoming: Incoming,
    buffer: Bytes,
    outgoing: PollSender<Bytes>,
    held: Arc<Held>,
}

/// What comes out of a relay, in the pieces in which it comes.
pub struct RelayReader(Incoming, #[expect(dead_code, reason = "its end is what counts")] Arc<Held>);

/// What goes into a relay. Dropped, it says that there is no more.
pub struct RelayWriter(Outgoing, #[expect(dead_code, reason = "its end is what counts")] Arc<Held>);

/// Whoever uses a relay. What they gave last is sent after they have left, unless the sandbox does not take it: the agent
/// has to hear that nobody is there.
struct Held(AbortHandle);

impl Drop for Held {
    fn drop(&mut self) {
        let flow = self.0.clone();
        if !flow.is_finished()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                sleep(budget::UNARY).await;
                flow.abort();
            });
        }
    }
}

impl RelayStream {
    /// The two directions of a new relay, for whoever needs no stream of bytes.
    pub fn split(self) -> Option<(RelayReader, RelayWriter)> {
        let writer = self.outgoing.get_ref()?.clone();
        Some((RelayReader(self.incoming, self.held.clone()), RelayWriter(writer, self.held)))
    }
}

impl RelayReader {
    /// The next piece; nothing at the end.
    ///
    /// # Errors
    /// The relay broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        self.0.recv().await.transpose()
    }
}

impl RelayWriter {
    /// Sends it; waits while the agent reads slowly. False once the relay has ended.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(bytes).await.is_ok()
    }

    /// Resolves when the agent takes nothing any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.buffer.is_empty() {
            match ready!(self.incoming.poll_recv(cx)) {
                Some(Ok(data)) => self.buffer = data,
                Some(Err(status)) => return Poll::Ready(Err(io::Error::other(status.message().to_string()))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = into.remaining().min(self.buffer.len());
        into.put_slice(&self.buffer[..count]);
        self.buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the relay is closed");
        ready!(self.outgoing.poll_reserve(cx)).map_err(closed)?;
        let count = bytes.len().min(budget::RELAY_CHUNK);
        self.outgoing.send_item(Bytes::copy_from_slice(&bytes[..count])).map_err(closed)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.close();
        Poll::Ready(Ok(()))
    }
}
