//! One HTTP/2 connection, and the credentials of every request on it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::budget;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::vm::v1::vm_client::VmClient;
use proto::version::{AGENT_BUILD_KEY, AGENT_ENDPOINT_KEY, AGENT_VERSION_KEY, PROTOCOL, PROTOCOL_KEY, VERSION};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Session;
use super::data::RELAYS_MAX;
use super::endpoint::{Endpoint, Stream};
use super::pacing::Paced;

/// A hash over what this agent is made of.
const BUILD: &str = env!("AGENT_BUILD");

type Transport = InterceptedService<Channel, Credentials>;

/// What the gateway may send before the agent has read it. Room for every relay to stand still at once, and some
/// more: relays whose targets do not read must not keep back the answers to Sync of a gateway that does not count credit.
const RECEIVE_WINDOW: u32 = (RELAYS_MAX as u32 + 2) * budget::AGENT_STREAM_WINDOW;

/// The longest silence of a gateway that is alive, while pings ask for its answers.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A gateway may stand still for some time without losing its relays.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The two services of a gateway, on one connection.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) openshell: OpenShellClient<Transport>,
    pub(super) vm: VmClient<Transport>,
}

/// Resolves when the connection is over, for whatever reason.
pub(super) type Closed = oneshot::Receiver<()>;

/// Whether a silent gateway is pinged. Its answers show that it reads, and output is then hardly held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pings {
    /// Where a stream is always open: a ping each second would wake a guest that has nothing to do.
    Never,
    /// While a stream is open.
    WhileActive,
}

/// Connects once. Reconnecting is the caller's affair: a channel that did it by itself would hide the loss.
pub(super) async fn open(
    endpoint: &Endpoint,
    session: &Arc<Session>,
    pings: Pings,
) -> Result<(Client, Closed), String> {
    let stream = endpoint.connect(session.tokens.directory()).await;
    let stream = stream.map_err(|error| format!("failed to connect to the gateway at {endpoint}: {error}"))?;
    let (open, closed) = oneshot::channel();
    let stream = Watched { stream: Box::new(Paced::new(stream)), _open: open };
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    let mut settings = tonic::transport::Endpoint::from_static("http://gateway.openshell")
        .initial_connection_window_size(RECEIVE_WINDOW)
        .initial_stream_window_size(budget::AGENT_STREAM_WINDOW)
        .buffer_size(32);
    if pings == Pings::WhileActive {
        settings = settings
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false);
    }
    let channel = settings
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("failed to speak HTTP/2 with the gateway at {endpoint}: {error}"))?;
    let named = MetadataValue::try_from(endpoint.to_string());
    let named = named.map_err(|_| format!("the endpoint {endpoint} cannot be a header"))?;
    let credentials = Credentials { session: session.clone(), endpoint: named };
    let client = Client {
        openshell: OpenShellClient::with_interceptor(channel.clone(), credentials.clone()),
        vm: VmClient::with_interceptor(channel, credentials),
    };
    Ok((client, closed))
}

/// Puts the bearer that is held at this moment, and the versions, on each request.
#[derive(Clone)]
pub(super) struct Credentials {
    session: Arc<Session>,
    /// By which of several it came.
    endpoint: MetadataValue<Ascii>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let bearer = self.session.tokens.bearer().ok_or_else(|| Status::unauthenticated("no token is held"))?;
        let metadata = request.metadata_mut();
        metadata.insert("authorization", bearer);
        metadata.insert(AGENT_VERSION_KEY, MetadataValue::from_static(VERSION));
        metadata.insert(AGENT_BUILD_KEY, MetadataValue::from_static(BUILD));
        metadata.insert(AGENT_ENDPOINT_KEY, self.endpoint.clone());
        let range = MetadataValue::try_from(PROTOCOL.to_string());
        metadata.insert(PROTOCOL_KEY, range.map_err(|_| Status::internal("protocol range"))?);
        Ok(request)
    }
}

/// A stream whose end can be waited for: the HTTP/2 connection drops it when it is over.
struct Watched {
    stream: Box<dyn Stream>,
    _open: oneshot::Sender<()>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
