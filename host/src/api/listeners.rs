//! The listeners: a unix socket for the local user, one for each sandbox, and TCP for users with an SDK.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use uuid::Uuid;

use super::guard::Authority;
use super::loopback::loopback_uid;
use super::serve;
use crate::identity::principal::Transport;
use crate::rotation::leases::{CloseReason, Connections};
use crate::sandbox::link::Link;
use crate::session::refusals::Refusals;
use crate::session::sessions::Sessions;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections by TCP at a time.
const TCP_CONNECTIONS: usize = 256;

/// What listeners hand to connections; known once everything else is built.
#[derive(Clone)]
pub struct Serving {
    /// The services, for users.
    pub user_routes: Routes,
    /// The same with smaller messages, for sandboxes.
    pub vm_routes: Routes,
    /// The guard's knowledge.
    pub authority: Arc<Authority>,
}

/// The per-VM listeners; the [`Link`] of the sandbox tasks.
pub struct VmListeners {
    serving: OnceLock<Serving>,
    listening: Mutex<HashMap<Uuid, Listening>>,
    connections: Connections,
    sessions: Sessions,
    refusals: Arc<Refusals>,
}

struct Listening {
    socket: PathBuf,
    accepting: AbortHandle,
}

impl VmListeners {
    /// Serves nothing until [`VmListeners::serve`].
    pub fn new(connections: Connections, sessions: Sessions, refusals: Arc<Refusals>) -> Self {
        Self { serving: OnceLock::new(), listening: Mutex::default(), connections, sessions, refusals }
    }

    /// Says what is served; once, before the first sandbox is taken on.
    pub fn serve(&self, serving: Serving) {
        // A second call would be a second composition root.
        assert!(self.serving.set(serving).is_ok(), "listeners are wired once");
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for VmListeners {
    fn open(&self, sandbox_id: Uuid, socket: &Path) -> Result<(), String> {
        let serving = self.serving.get().cloned().ok_or("the gateway is still starting")?;
        let mut listening = self.lock();
        if listening.get(&sandbox_id).is_some_and(|l| l.socket == socket && socket.exists()) {
            return Ok(());
        }
        // The vmm comes as its jail's user; the directory above decides who gets this far.
        let listener = bind(socket, 0o666).map_err(|e| format!("failed to listen on {}: {e}", socket.display()))?;
        let accepting = tokio::spawn(accept_sandbox(listener, serving, self.connections.clone(), sandbox_id));
        let new = Listening { socket: socket.into(), accepting: accepting.abort_handle() };
        if let Some(old) = listening.insert(sandbox_id, new) {
            old.accepting.abort();
        }
        Ok(())
    }

    fn nudge(&self, sandbox_id: Uuid) {
        self.sessions.nudge(sandbox_id);
    }

    fn close_below(&self, sandbox_id: Uuid, floor: u64) {
        self.connections.close_below(sandbox_id, floor);
    }

    fn close(&self, sandbox_id: Uuid) {
        if let Some(old) = self.lock().remove(&sandbox_id) {
            old.accepting.abort();
            // Gone already where the runtime directory is.
            drop(fs::remove_file(&old.socket));
        }
        self.connections.close_all(sandbox_id, CloseReason::Stopped);
        self.refusals.forget(sandbox_id);
    }

    fn refusals(&self, sandbox_id: Uuid) -> Vec<String> {
        self.refusals.latest(sandbox_id)
    }
}

/// Binds under another name and renames, so that a path always leads to a socket that is listened on.
fn bind(socket: &Path, mode: u32) -> io::Result<UnixListener> {
    let staged = socket.with_extension("new");
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&staged)?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(mode))?;
    fs::rename(&staged, socket)?;
    Ok(listener)
}

/// What connections come from.
trait Listener {
    type Connection: Send;
    fn next(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Listener for UnixListener {
    type Connection = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Connection = (TcpStream, SocketAddr);
    async fn next(&self) -> io::Result<Self::Connection> {
        self.accept().await
    }
}

/// Accepts for ever and serves each connection in a task of its own; dropped, it ends them all.
async fn accept<L: Listener, F>(listener: L, mut serve: impl FnMut(L::Connection) -> Option<F>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut serving_now = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.next() => match accepted {
                Ok(stream) => {
                    if let Some(serving) = serve(stream) {
                        serving_now.spawn(serving);
                    }
                }
                // For want of descriptors, mostly; a pause lets some go instead of spinning.
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = serving_now.join_next() => {}
        }
    }
}

async fn accept_sandbox(listener: UnixListener, serving: Serving, connections: Connections, sandbox_id: Uuid) {
    accept(listener, |stream| {
        // More than a guest may have: dropped, which closes it.
        let lease = connections.open(sandbox_id).ok()?;
        let Serving { vm_routes, authority, .. } = serving.clone();
        Some(serve::sandbox(stream, vm_routes, authority, Transport::Vm { sandbox_id }, lease))
    })
    .await;
}

/// Listens for the local user on `socket`, for ever.
///
/// # Errors
/// The socket cannot be bound, with its path.
pub async fn serve_user(socket: &Path, serving: Serving) -> Result<(), String> {
    let listener = bind(socket, 0o600).map_err(|e| format!("failed to listen on {}: {e}", socket.display()))?;
    tracing::info!(socket = %socket.display(), "listening for the local user");
    accept(listener, |stream| {
        let uid = stream.peer_cred().ok()?.uid();
        let Serving { user_routes, authority, .. } = serving.clone();
        Some(serve::user(stream, user_routes, authority, Transport::LocalUser { uid }))
    })
    .await;
    Ok(())
}

/// Who may come in by TCP.
#[derive(Clone)]
pub enum TcpUsers {
    /// Whoever has a certificate of this gateway.
    Certificate(TlsAcceptor),
    /// Whoever the kernel says has the other end, which must be on this machine. In clear text.
    Loopback,
}

/// Serves users on a bound TCP listener, for ever.
pub async fn serve_tcp(listener: TcpListener, users: TcpUsers, serving: Serving) {
    let permits = Arc::new(Semaphore::new(TCP_CONNECTIONS));
    accept(listener, |(stream, peer)| {
        // More than a user has: dropped, which closes it.
        let permit = permits.clone().try_acquire_owned().ok()?;
        let (users, serving) = (users.clone(), serving.clone());
        Some(async move {
            serve_tcp_stream(stream, peer, users, serving).await;
            drop(permit);
        })
    })
    .await;
}

async fn serve_tcp_stream(stream: TcpStream, peer: SocketAddr, users: TcpUsers, serving: Serving) {
    let Serving { user_routes, authority, .. } = serving;
    let _as_it_is = stream.set_nodelay(true);
    match users {
        TcpUsers::Certificate(acceptor) => match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => serve::user(stream, user_routes, authority, Transport::Certificate).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "audit: refused a TLS handshake"),
            Err(_) => tracing::debug!(%peer, "audit: no TLS handshake within {HANDSHAKE:?}"),
        },
        TcpUsers::Loopback => match stream.local_addr().and_then(|local| loopback_uid(local, peer)) {
            Ok(uid) => serve::user(stream, user_routes, authority, Transport::LocalUser { uid }).await,
            Err(error) => tracing::warn!(%peer, %error, "audit: refused a connection whose user is not known"),
        },
    }
}
