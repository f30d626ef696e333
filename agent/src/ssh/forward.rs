//! TCP through an SSH connection, on the guest's loopback alone: to one of its ports (`direct-tcpip`), and from ports
//! that are listened on for the peer (`tcpip-forward`), which ends with the connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::stdin::{Flow, Sink, Source, queue};

/// TCP connections that one SSH connection carries at a time.
pub(super) const FORWARDS_MAX: usize = 22;
/// Ports that one SSH connection listens on.
const LISTENERS_MAX: usize = 8;
/// Ports below are for the guest's own services.
const PORT_MIN: u16 = 1024;
/// How long a port of the guest, or the peer, may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the last bytes of a peer that has closed its channel may take to be written.
const LAST: Duration = Duration::from_secs(2);
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
const CHUNK: usize = 16 * 1024;

/// The address of a port of the guest's loopback.
pub(crate) fn loopback_address(host: &str, port: u32) -> Result<SocketAddr, String> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0);
    let address = loopback(host).zip(port).map(SocketAddr::from);
    address.ok_or_else(|| format!("`{}` port {port:?} is not a loopback address of the sandbox", host.escape_debug()))
}

/// Connects to a port of the guest's loopback.
pub(crate) async fn connect(host: &str, port: u32) -> Result<TcpStream, String> {
    let address = loopback_address(host, port)?;
    match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("failed to connect to {address} in the sandbox: {error}")),
        Err(_) => Err(format!("{address} in the sandbox did not accept within {CONNECT:?}")),
    }
}

fn loopback(host: &str) -> Option<IpAddr> {
    match host {
        "" | "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok().filter(IpAddr::is_loopback),
    }
}

/// What one SSH connection forwards.
pub(super) struct Forwards {
    places: Arc<Semaphore>,
    listeners: HashMap<(String, u32), Listener>,
}

/// Ends when it is dropped.
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Forwards {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(FORWARDS_MAX)), listeners: HashMap::new() }
    }

    /// Connects a channel that the peer wants to open, and answers.
    pub(super) async fn connect(
        &self,
        channel: Channel<Msg>,
        (host, port): (&str, u32),
        reply: ChannelOpenHandle,
        handle: Handle,
    ) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        if loopback_address(host, port).is_err() {
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        }
        let host = host.to_owned();
        // On its own: a port that does not accept must not hold up the connection.
        tokio::spawn(async move {
            match connect(&host, port).await {
                Ok(stream) => {
                    reply.accept().await;
                    bridge(channel, stream, handle, place).await;
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
    }

    /// Listens for the peer. The port that it is, where the peer leaves the choice.
    pub(super) async fn listen(&mut self, host: &str, port: u32, handle: Handle) -> Option<u32> {
        self.listeners.retain(|_, listener| !listener.0.is_finished());
        // An empty host would mean every address.
        let address = loopback(host).filter(|_| !host.is_empty())?;
        let port = u16::try_from(port).ok().filter(|port| *port == 0 || *port >= PORT_MIN)?;
        if self.listeners.len() >= LISTENERS_MAX {
            return None;
        }
        let listener = TcpListener::bind((address, port)).await.ok()?;
        let bound = u32::from(listener.local_addr().ok()?.port());
        let accepting = accept(listener, (host.to_owned(), bound), handle, self.places.clone());
        self.listeners.insert((host.to_owned(), bound), Listener(tokio::spawn(accepting)));
        Some(bound)
    }

    /// Listens no more. What came in meanwhile goes on.
    pub(super) fn cancel(&mut self, host: &str, port: u32) -> bool {
        self.listeners.remove(&(host.to_owned(), port)).is_some()
    }
}

async fn accept(listener: TcpListener, (host, port): (String, u32), handle: Handle, places: Arc<Semaphore>) {
    loop {
        // Whoever connects while all places are taken waits in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, from)) = listener.accept().await else {
            // Too many files are open, most likely, and that passes.
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (host, handle) = (host.clone(), handle.clone());
        tokio::spawn(async move {
            let (origin, origin_port) = (from.ip().to_string(), u32::from(from.port()));
            let opening = handle.channel_open_forwarded_tcpip(host, port, origin, origin_port);
            if let Ok(Ok(channel)) = timeout(CONNECT, opening).await {
                bridge(channel, stream, handle, place).await;
            }
        });
    }
}

/// Carries bytes until both directions, or the channel, have ended.
async fn bridge(channel: Channel<Msg>, stream: TcpStream, handle: Handle, place: OwnedSemaphorePermit) {
    let (read, writer) = channel.split();
    let (source, sink) = queue();
    let (from, to) = stream.into_split();
    let receiving = receive(read, source, &handle, &writer);
    let carrying = async { tokio::join!(write(sink, to, &handle, &writer), send(from, &writer)) };
    tokio::pin!(carrying);
    tokio::select! {
        () = receiving => drop(timeout(LAST, &mut carrying).await),
        _ = &mut carrying => {}
    }
    let _ = writer.close().await;
    drop(place);
}

/// Takes what comes at once: as long as it is not taken, the whole connection stands still.
async fn receive(mut read: ChannelReadHalf, source: Source, handle: &Handle, writer: &ChannelWriteHalf<Msg>) {
    loop {
        match read.wait().await {
            Some(ChannelMsg::Data { data }) => {
                if source.push(&data) == Flow::Pause {
                    let _ = handle.xon_xoff_request(writer.id(), false).await;
                }
                source.room().await;
            }
            Some(ChannelMsg::Eof) => source.end(),
            Some(ChannelMsg::Close) | None => return source.end(),
            Some(_) => {}
        }
    }
}

async fn write(mut input: Sink, mut to: OwnedWriteHalf, handle: &Handle, writer: &ChannelWriteHalf<Msg>) {
    while let Some((bytes, flow)) = input.next().await {
        if flow == Flow::GoOn {
            let _ = handle.xon_xoff_request(writer.id(), true).await;
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn send(mut from: OwnedReadHalf, writer: &ChannelWriteHalf<Msg>) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if writer.data_bytes(buffer.split().freeze()).await.is_err() {
            return;
        }
    }
    let _ = writer.eof().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_reached() {
        assert_eq!(loopback_address("localhost", 80).unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(loopback_address("127.0.0.2", 80).unwrap().to_string(), "127.0.0.2:80");
        assert_eq!(loopback_address("::1", 8080).unwrap().to_string(), "[::1]:8080");
        for (host, port) in [("10.0.0.1", 80), ("example.org", 80), ("127.0.0.1", 0), ("127.0.0.1", 65_536)] {
            assert!(loopback_address(host, port).is_err(), "{host} {port}");
        }
    }
}
