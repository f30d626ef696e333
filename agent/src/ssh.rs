//! The SSH server, reached only by relay: it has no listener, and whoever has a relay has been let in by the gateway.
//!
//! One connection per relay. Exec, shell, and by subsystem files (`sftp`), the main process and calls of the agent
//! itself; a terminal where asked; TCP to and from the guest's loopback.
//!
//! Flow control. Output: a program's pipe is read only as fast as the peer takes it. Input: russh grants its window
//! on receipt, so input is kept here, and beyond a mark the peer is asked to pause by `xon-xoff` (RFC 4254, 6.8):
//! `client_can_do` false means pause, true means go on. A peer that does not pause is slowed down with its whole
//! connection from a second mark on. What a peer may have in flight is less than the transport's inbound buffer: two
//! sides that both write and do not read cannot block each other.

mod attach;
mod debug;
mod exec;
mod forward;
mod handler;
mod stdin;
mod user;

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use proto::debug::DebugCall;
use russh::keys::PrivateKey;
use russh::server::{Config, run_stream};
use russh::{MethodKind, MethodSet, Preferred, kex};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};

use self::forward::FORWARDS_MAX;
pub(crate) use self::forward::connect;
use crate::workload::Workload;
use crate::workload::main_process::MainProcess;

/// What a peer may send on a channel before it is told of room.
const WINDOW: u32 = 128 * 1024;
/// What a peer may have sent and this side not read; more than the windows of all channels of a connection.
/// It is memory only while the peer is not read, which ends at the second mark of one of its channels.
pub const TRANSPORT_INBOUND: usize = 2 * (CHANNELS_MAX + FORWARDS_MAX) * WINDOW as usize;
/// What this side may have written and the relay not taken.
pub const TRANSPORT_OUTBOUND: usize = 64 * 1024;
/// Programs of one connection: as many as OpenSSH's own server lets share one.
const CHANNELS_MAX: usize = 10;

/// Each exec has a handshake of its own, and the way between the two ends leaves the machine nowhere: the one that
/// costs least.
const KEX: [kex::Name; 3] =
    [kex::CURVE25519, kex::EXTENSION_SUPPORT_AS_SERVER, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER];

/// See the module.
pub struct Server {
    config: Arc<Config>,
    services: Arc<Services>,
}

/// What channels lead to.
pub(crate) struct Services {
    workload: Arc<Workload>,
    main: Option<Arc<MainProcess>>,
    debug: Option<DebugCalls>,
}

/// Makes a call with the sandbox's identity: what it answers, or a message and an exit code.
pub type DebugCalls = Box<dyn Fn(DebugCall) -> DebugAnswer + Send + Sync>;
/// See [`DebugCalls`].
pub type DebugAnswer = Pin<Box<dyn Future<Output = Result<String, (String, i32)>> + Send>>;

impl Server {
    /// With this host key, in OpenSSH's format.
    pub fn new(
        host_key: &SecretString,
        workload: Arc<Workload>,
        main: Option<Arc<MainProcess>>,
        debug: Option<DebugCalls>,
    ) -> Result<Self, String> {
        let key = PrivateKey::from_openssh(host_key.expose_secret())
            .map_err(|error| format!("the SSH host key of the boot spec cannot be read: {error}"))?;
        let mut methods = MethodSet::empty();
        methods.push(MethodKind::None);
        let config = Config {
            methods,
            keys: vec![key],
            window_size: WINDOW,
            maximum_packet_size: 32 * 1024,
            channel_buffer_size: 1,
            preferred: Preferred { kex: Cow::Borrowed(&KEX), ..Preferred::DEFAULT },
            // The relay has its own ends and deadlines; a quiet program is not a dead one.
            inactivity_timeout: None,
            ..Config::default()
        };
        Ok(Self { config: Arc::new(config), services: Arc::new(Services { workload, main, debug }) })
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), String> {
        let handler = handler::Handler::new(self.services.clone());
        let ended = |error: russh::Error| match error {
            russh::Error::HUP | russh::Error::Disconnect => Ok(()),
            other => Err(format!("the SSH connection broke: {other}")),
        };
        match run_stream(self.config.clone(), stream, handler).await {
            Ok(running) => running.await.or_else(ended),
            Err(error) => ended(error),
        }
    }
}
