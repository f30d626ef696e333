//! The unix sockets: one for the local user, one for each sandbox.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::net::UnixListener;
use tokio::task::{AbortHandle, JoinSet};
use tonic::service::Routes;
use uuid::Uuid;

use super::guard::Authority;
use super::refusals::Refusals;
use super::serve;
use crate::identity::principal::Transport;
use crate::rotation::leases::{CloseReason, Connections};
use crate::sandbox::link::Link;
use crate::session::sessions::Sessions;

/// What listeners hand to connections; known once everything else is built.
#[derive(Clone)]
pub struct Serving {
    /// The services.
    pub routes: Routes,
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

async fn accept_sandbox(listener: UnixListener, serving: Serving, connections: Connections, sandbox_id: Uuid) {
    let mut serving_now = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    out_of_descriptors(&error).await;
                    continue;
                }
            },
            Some(_) = serving_now.join_next() => continue,
        };
        // More than a guest may have: dropped, which closes it.
        let Ok(lease) = connections.open(sandbox_id) else { continue };
        let Serving { routes, authority } = serving.clone();
        serving_now.spawn(serve::sandbox(stream, routes, authority, Transport::Vm { sandbox_id }, lease));
    }
}

/// Listens for the local user on `socket` until `stop`.
///
/// # Errors
/// The socket cannot be bound, with its path.
pub async fn serve_user(socket: &Path, serving: Serving, stop: impl Future<Output = ()>) -> Result<(), String> {
    let listener = bind(socket, 0o600).map_err(|e| format!("failed to listen on {}: {e}", socket.display()))?;
    tracing::info!(socket = %socket.display(), "listening for the local user");
    let mut serving_now = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    out_of_descriptors(&error).await;
                    continue;
                }
            },
            Some(_) = serving_now.join_next() => continue,
            () = &mut stop => return Ok(()),
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let Serving { routes, authority } = serving.clone();
        serving_now.spawn(serve::user(stream, routes, authority, Transport::LocalUser { uid: peer.uid() }));
    }
}

/// Accept fails for want of descriptors; a pause lets some go instead of spinning.
async fn out_of_descriptors(error: &io::Error) {
    tracing::warn!(%error, "failed to accept a connection");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}
