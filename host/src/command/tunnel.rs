//! Bytes between two local streams and a place in a sandbox.

use bytes::{Bytes, BytesMut};
use proto::budget::RELAY_CHUNK;
use proto::openshell::v1::tcp_forward_frame::Payload;
use proto::openshell::v1::tcp_forward_init::Target;
use proto::openshell::v1::{TcpForwardFrame, TcpForwardInit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::connect::Client;
use super::exit::ExitCode;
use super::failure::CommandError;

/// Pieces on their way; more wait where they come from.
const IN_FLIGHT: usize = 4;

/// Until the sandbox has said all, and the local side, too, unless it is not heard any more.
pub(crate) async fn carry(
    client: &mut Client,
    sandbox: &str,
    target: Target,
    from: impl AsyncRead + Send + Unpin + 'static,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<(), CommandError> {
    let act = match &target {
        Target::Ssh(_) => format!("reach the SSH server of sandbox `{sandbox}`"),
        Target::Tcp(tcp) => format!("reach port {} of sandbox `{sandbox}`", tcp.port),
    };
    let init = TcpForwardInit { sandbox: sandbox.to_owned(), target: Some(target), ..TcpForwardInit::default() };
    let (frames, requests) = mpsc::channel(IN_FLIGHT);
    // The channel is new and has room.
    let _ = frames.try_send(TcpForwardFrame { payload: Some(Payload::Init(init)) });
    let failed = |status: tonic::Status| CommandError::of_status(&act, &status);
    let mut replies = client.forward_tcp(ReceiverStream::new(requests)).await.map_err(failed)?.into_inner();
    // Ends with this function at the latest.
    let mut sending = JoinSet::new();
    sending.spawn(send(from, frames));
    while let Some(frame) = replies.message().await.map_err(failed)? {
        let Some(Payload::Data(data)) = frame.payload else { continue };
        let written = async { to.write_all(&data).await.and(to.flush().await) };
        if let Err(cause) = written.await {
            return Err(CommandError::new(
                ExitCode::StreamLost,
                format!("failed to {act}: nobody takes its bytes: {cause}"),
            ));
        }
    }
    let _ = to.shutdown().await;
    while sending.join_next().await.is_some() {}
    Ok(())
}

async fn send(mut from: impl AsyncRead + Unpin, frames: mpsc::Sender<TcpForwardFrame>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(RELAY_CHUNK);
        let mut piece = (&mut from).take(RELAY_CHUNK as u64);
        let read = tokio::select! {
            read = piece.read_buf(&mut buffer) => read,
            () = frames.closed() => return,
        };
        if !read.is_ok_and(|count| count > 0) {
            return;
        }
        let data: Bytes = buffer.split().freeze();
        if frames.send(TcpForwardFrame { payload: Some(Payload::Data(data)) }).await.is_err() {
            return;
        }
    }
}
