//! One connection, served until it or its lease ends.

use std::sync::Arc;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proto::budget;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::service::Routes;

use super::guard::{Authority, Guarded};
use crate::identity::principal::Transport;
use crate::rotation::leases::Lease;

/// Streams that one connection of a user may have open.
const USER_STREAMS: u32 = 256;
/// Streams that one connection of a sandbox may have open: its relays, its session and unary calls.
const VM_STREAMS: u32 = 80;
/// Metadata is a token and a few words.
const HEADERS_MAX: u32 = 32 * 1024;

/// Serves a user's connection until it is closed.
pub async fn user<S>(stream: S, routes: Routes, authority: Arc<Authority>, transport: Transport)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = Guarded::new(routes, authority, transport, None);
    let mut builder = builder();
    builder
        .max_concurrent_streams(USER_STREAMS)
        .initial_connection_window_size(budget::USER_CONNECTION_WINDOW)
        .initial_stream_window_size(budget::USER_STREAM_WINDOW);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a user's connection broke");
    }
}

/// Serves a sandbox's connection until it is closed or its lease ends; then every stream on it ends, too.
///
/// hyper reads whatever arrives for as long as this runs, and the windows are smaller than the vmm's socket buffer:
/// both are needed, because a peer that does not read freezes the whole VM.
pub async fn sandbox(
    stream: UnixStream,
    routes: Routes,
    authority: Arc<Authority>,
    transport: Transport,
    lease: Lease,
) {
    let service = Guarded::new(routes, authority, transport, Some(lease.clone()));
    let sandbox_id = lease.sandbox_id();
    let mut builder = builder();
    builder
        .max_concurrent_streams(VM_STREAMS)
        .initial_connection_window_size(budget::VM_CONNECTION_WINDOW)
        .initial_stream_window_size(budget::VM_STREAM_WINDOW)
        // A chunk of a relay is one frame: no stream may send a longer one.
        .max_frame_size(budget::VM_STREAM_WINDOW);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        // A request that is there already is looked at before a deadline that it may move.
        biased;
        served = connection => if let Err(error) = served {
            tracing::debug!(sandbox = %sandbox_id, %error, "a connection broke");
        },
        end = lease.ended() => tracing::debug!(sandbox = %sandbox_id, ?end, "a connection was closed"),
    }
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).max_header_list_size(HEADERS_MAX);
    builder
}
