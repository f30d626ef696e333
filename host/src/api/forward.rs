//! Bytes between a user and a sandbox: its SSH server, or a port of its loopback.

use std::pin::Pin;
use std::time::Instant;

use proto::openshell::datamodel::v1::{WorkspaceSelector, workspace_selector::Selection};
use proto::openshell::v1::relay_open::Target as RelayTarget;
use proto::openshell::v1::tcp_forward_frame::Payload;
use proto::openshell::v1::tcp_forward_init::Target;
use proto::openshell::v1::{TcpForwardFrame, TcpForwardInit};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::lifecycle::workspace;
use super::services::Api;
use crate::session::exec::relay;
use crate::session::relay::{RelayReader, RelayWriter};
use crate::status;

/// What a forward answers.
pub type ForwardFrames = Pin<Box<dyn Stream<Item = Result<TcpForwardFrame, Status>> + Send>>;

/// Pieces that wait for a slow reader; more wait in the relay, and in the sandbox.
const QUEUE: usize = 4;

type Frames = mpsc::Sender<Result<TcpForwardFrame, Status>>;

impl Api {
    pub(super) async fn forward(&self, mut inbound: Streaming<TcpForwardFrame>) -> Result<ForwardFrames, Status> {
        let first = timeout(proto::budget::HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no init within the deadline"))??;
        let Some(Payload::Init(init)) = first.and_then(|frame| frame.payload) else {
            return Err(Status::invalid_argument("the first frame of a forward is `init`"));
        };
        let TcpForwardInit { sandbox, workspace: named, target, authorization_token } = init;
        workspace(Some(&WorkspaceSelector { selection: Some(Selection::Workspace(named)) }))?;
        let handle = self.find(&sandbox)?;
        if !authorization_token.is_empty() && !self.ssh_tokens.admits(&authorization_token, handle.id, Instant::now()) {
            return Err(Status::permission_denied(
                "this token of an SSH session is not valid for this sandbox any more; make another with CreateSshSession",
            ));
        }
        let target = match target {
            Some(Target::Ssh(ssh)) => RelayTarget::Ssh(ssh),
            Some(Target::Tcp(tcp)) => RelayTarget::Tcp(tcp),
            None => return Err(status::invalid("target", "target: name `ssh` or `tcp`")),
        };
        let relay = relay(&self.supervisors, &handle, target).await?;
        let (from_sandbox, to_sandbox) =
            relay.split().ok_or_else(|| Status::unavailable("the relay has just ended"))?;
        let (frames, replies) = mpsc::channel(QUEUE);
        tokio::spawn(carry(inbound, to_sandbox, from_sandbox, frames));
        Ok(Box::pin(ReceiverStream::new(replies)))
    }
}

/// Until both directions have ended: one may do so long before the other. A caller that has left ends both.
async fn carry(
    inbound: Streaming<TcpForwardFrame>,
    to_sandbox: RelayWriter,
    from_sandbox: RelayReader,
    frames: Frames,
) {
    let (inwards, outwards) = (inwards(inbound, to_sandbox), outwards(from_sandbox, frames));
    tokio::pin!(inwards, outwards);
    tokio::select! {
        () = &mut inwards => drop(outwards.await),
        there = &mut outwards => {
            if there {
                inwards.await;
            }
        }
    }
}

async fn inwards(mut inbound: Streaming<TcpForwardFrame>, to_sandbox: RelayWriter) {
    loop {
        let message = tokio::select! {
            message = inbound.message() => message,
            () = to_sandbox.closed() => return,
        };
        // At the end of what the caller sends the sandbox hears that no more comes.
        let Ok(Some(TcpForwardFrame { payload: Some(Payload::Data(data)) })) = message else { return };
        if !to_sandbox.send(data).await {
            return;
        }
    }
}

/// Returns whether the caller is still there.
async fn outwards(mut from_sandbox: RelayReader, frames: Frames) -> bool {
    loop {
        let next = tokio::select! {
            next = from_sandbox.next() => next,
            // A sandbox that says nothing must not keep a relay whose caller has left.
            () = frames.closed() => return false,
        };
        let reply = match next {
            Ok(Some(data)) => Ok(TcpForwardFrame { payload: Some(Payload::Data(data)) }),
            Ok(None) => return true,
            Err(status) => Err(Status::unavailable(format!("the relay broke: {}", status.message()))),
        };
        let last = reply.is_err();
        if frames.send(reply).await.is_err() || last {
            return false;
        }
    }
}
