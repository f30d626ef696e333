//! One relay: a byte stream that the gateway asked for, to the SSH server or to a loopback port.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proto::budget;
use proto::openshell::v1::{
    RelayClose, RelayFrame, RelayInit, RelayOpen, RelayOpenResult, SupervisorMessage, relay_frame, relay_open,
    supervisor_message,
};
use proto::relay::flow::{self, Incoming, Outgoing};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::connection::Client;
use super::control::{brief, message};
use crate::ssh::{Server, TRANSPORT_INBOUND, TRANSPORT_OUTBOUND, connect};

/// Frames that wait for the connection's window; beyond them the source waits.
const FRAMES: usize = 1;

/// What is read from a target at least; at most it is [`budget::RELAY_CHUNK`].
const CHUNK_MIN: usize = 4096;

const GATEWAY_ENDED: &str = "the gateway ended the relay";

/// What a stream leads to in this guest.
enum Target {
    Ssh(Arc<Server>),
    Tcp(TcpStream),
}

/// The answer to an order to open.
pub(super) fn result(channel_id: String, outcome: Result<(), String>) -> SupervisorMessage {
    let success = outcome.is_ok();
    let error = outcome.err().unwrap_or_default();
    message(supervisor_message::Payload::RelayOpenResult(RelayOpenResult { channel_id, success, error }))
}

/// Opens the stream and carries bytes until one side has ended. Dropped, it ends both.
pub(super) async fn run(
    order: RelayOpen,
    answer: mpsc::Sender<SupervisorMessage>,
    client: watch::Receiver<Option<Client>>,
    ssh: Arc<Server>,
) {
    let channel_id = order.channel_id;
    let prepared = match timeout(budget::RELAY_OPEN, prepare(order.target, client, ssh)).await {
        Ok(prepared) => prepared,
        Err(_) => Err("the agent has no data connection".to_owned()),
    };
    let (target, mut client) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = answer.send(result(channel_id, Err(error))).await;
            return;
        }
    };
    let (frames, source) = mpsc::channel(FRAMES);
    let counted = order.credit > 0;
    let init = RelayInit { channel_id: channel_id.clone(), credit: if counted { budget::RELAY_CREDIT } else { 0 } };
    let init = RelayFrame { payload: Some(relay_frame::Payload::Init(init)), ..RelayFrame::default() };
    let _ = frames.try_send(init);
    let _ = answer.try_send(result(channel_id.clone(), Ok(())));
    let opening = client.openshell.relay_stream(ReceiverStream::new(source));
    let mut flow = JoinSet::new();
    let reason = match timeout(budget::RELAY_OPEN, opening).await {
        Ok(Ok(stream)) => {
            let (end, incoming, outgoing) = flow::end();
            flow.spawn(flow::carry(end, stream.into_inner(), frames, order.credit));
            carry(target, incoming, outgoing).await.err()
        }
        Ok(Err(status)) => Some(format!("the gateway refused the relay stream: {}", brief(&status))),
        Err(_) => Some(format!("the gateway did not take the relay stream within {:?}", budget::RELAY_OPEN)),
    };
    if let Some(reason) = reason {
        let close = RelayClose { channel_id, reason };
        let _ = answer.try_send(message(supervisor_message::Payload::RelayClose(close)));
    }
    // What the target said last is still sent, and the connection needed until then.
    let _ = flow.join_next().await;
}

async fn prepare(
    target: Option<relay_open::Target>,
    mut client: watch::Receiver<Option<Client>>,
    ssh: Arc<Server>,
) -> Result<(Target, Client), String> {
    let target = match target {
        Some(relay_open::Target::Ssh(_)) => Target::Ssh(ssh),
        Some(relay_open::Target::Tcp(tcp)) => Target::Tcp(connect(&tcp.host, tcp.port).await?),
        None => return Err("the relay has no target that this agent knows".to_owned()),
    };
    let ready = client.wait_for(Option::is_some).await.ok().and_then(|client| client.clone());
    Ok((target, ready.ok_or("the agent is ending")?))
}

async fn carry(target: Target, incoming: Incoming, outgoing: Outgoing) -> Result<(), String> {
    match target {
        Target::Ssh(server) => {
            // One buffer for each direction, of its own size; a dropped end closes the other one.
            let (to_server, server_reads) = tokio::io::duplex(TRANSPORT_INBOUND);
            let (server_writes, from_server) = tokio::io::duplex(TRANSPORT_OUTBOUND);
            let serving = server.serve(tokio::io::join(server_reads, server_writes));
            let served = async { tokio::join!(serving, pump_out(from_server, outgoing)).0 };
            let inwards = async {
                match pump_in(incoming, to_server).await {
                    // The server hears of it, and has the last word.
                    Ok(()) => std::future::pending().await,
                    Err(why) => Err(why),
                }
            };
            tokio::select! {
                ended = served => ended,
                ended = inwards => ended,
            }
        }
        Target::Tcp(stream) => {
            let (read, write) = stream.into_split();
            let (inwards, outwards) = (pump_in(incoming, write), pump_out(read, outgoing));
            tokio::pin!(inwards, outwards);
            tokio::select! {
                ended = &mut inwards => match ended {
                    Ok(()) => outwards.await,
                    Err(why) => Err(why),
                },
                ended = &mut outwards => match ended {
                    Ok(()) => inwards.await,
                    Err(why) => {
                        if why == GATEWAY_ENDED {
                            // What came before is still the target's, if it takes it.
                            let _ = timeout(budget::UNARY, inwards).await;
                        }
                        Err(why)
                    }
                },
            }
        }
    }
}

async fn pump_in(mut incoming: Incoming, mut to: impl AsyncWrite + Unpin) -> Result<(), String> {
    while let Some(data) = incoming.recv().await {
        let data = data.map_err(|status| format!("the relay broke: {}", brief(&status)))?;
        to.write_all(&data).await.map_err(|error| format!("the relay's target broke: {error}"))?;
    }
    let _ = to.shutdown().await;
    Ok(())
}

async fn pump_out(mut from: impl AsyncRead + Unpin, outgoing: Outgoing) -> Result<(), String> {
    let mut buffer = BytesMut::new();
    let mut room = CHUNK_MIN;
    loop {
        buffer.reserve(room);
        let mut chunk = (&mut from).take(room as u64);
        let read = tokio::select! {
            read = chunk.read_buf(&mut buffer) => read,
            // A target that says nothing must not keep a relay whose gateway has gone.
            () = outgoing.closed() => return Err(GATEWAY_ENDED.to_owned()),
        };
        let read = read.map_err(|error| format!("the relay's target broke: {error}"))?;
        if read == 0 {
            return Ok(());
        }
        let data: Bytes = buffer.split().freeze();
        let next = next_room(room, read);
        if next < room {
            // Else a relay that streamed once would keep a block of that size.
            buffer = BytesMut::new();
        }
        room = next;
        if outgoing.send(data).await.is_err() {
            return Err(GATEWAY_ENDED.to_owned());
        }
    }
}

/// Twice as much after a read that filled its room, and the least again after one that would have fitted into a quarter: a
/// prompt costs a page, and a stream few frames.
fn next_room(room: usize, read: usize) -> usize {
    if read >= room {
        (room * 2).min(budget::RELAY_CHUNK)
    } else if read <= room / 4 && room > CHUNK_MIN {
        CHUNK_MIN
    } else {
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_follows_what_is_read() {
        let most = budget::RELAY_CHUNK;
        for (room, read, next) in [
            (CHUNK_MIN, CHUNK_MIN, 2 * CHUNK_MIN),
            (most / 2, most / 2, most),
            (most - 1, most - 1, most),
            (most, most, most),
            (most, most / 4 + 1, most),
            (most, most / 4, CHUNK_MIN),
            (CHUNK_MIN, 1, CHUNK_MIN),
        ] {
            assert_eq!(next_room(room, read), next, "{read} of {room}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_is_few_frames() {
        const BYTES: usize = 1 << 20;
        let (mut target, from) = tokio::io::duplex(BYTES);
        target.write_all(&vec![7; BYTES]).await.unwrap();
        drop(target);
        let (outgoing, mut source) = mpsc::channel(1);
        tokio::spawn(pump_out(from, outgoing));
        let (mut count, mut bytes) = (0, 0);
        while let Some(data) = source.recv().await {
            assert!(data.len() <= budget::RELAY_CHUNK);
            (count, bytes) = (count + 1, bytes + data.len());
        }
        assert_eq!(bytes, BYTES);
        assert!(count <= BYTES / budget::RELAY_CHUNK + 4, "{count} frames");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_silent_target_does_not_outlive_the_gateway() {
        let (_target, from) = tokio::io::duplex(64);
        let (outgoing, source) = mpsc::channel(1);
        let pumping = tokio::spawn(pump_out(from, outgoing));
        tokio::task::yield_now().await;
        assert!(!pumping.is_finished());
        drop(source);
        assert_eq!(pumping.await.unwrap().unwrap_err(), GATEWAY_ENDED);
    }
}
