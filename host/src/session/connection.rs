//! SSH connections to a sandbox's agent: made when one is needed, and kept for a while.
//!
//! One exec at a time has a connection: what its caller does not read holds up that connection, its relay and
//! nothing else. One that is done gives the connection back, and the next exec needs no relay and no handshake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use proto::layout::SSH_USER;
use russh::client::{self, Handle as SshHandle, Msg};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, Disconnect};
use tokio::time::{sleep, timeout};

use super::relay::RelayStream;

/// Connections that one session keeps. Each holds one of the agent's relays.
const IDLE_MAX: usize = 2;
/// For how long they wait for the next exec, twice at most. A relay keeps the agent's data connection open, which an idle
/// sandbox does without.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// How long one that was kept may take to open a channel. It may have broken without a word.
const KEPT_OPEN: Duration = Duration::from_secs(3);

/// Accepts the host key of one sandbox, and no other.
struct OneHost {
    expected: PublicKey,
}

impl client::Handler for OneHost {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(matches!(key, PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.expected.key_data()))
    }
}

/// One connection, for one channel at a time. Dropped, it ends with what runs on it.
pub(super) struct Connection {
    ssh: SshHandle<OneHost>,
}

impl Connection {
    /// Over a new relay.
    pub(super) async fn over(relay: RelayStream, expected: PublicKey) -> Result<Self, russh::Error> {
        // The session has its own heartbeat; an idle exec is no reason to end anything.
        let config = client::Config { inactivity_timeout: None, keepalive_interval: None, ..Default::default() };
        let mut ssh = client::connect_stream(Arc::new(config), relay, OneHost { expected }).await?;
        // Whoever reaches the server came by a relay, which only this gateway can ask for.
        match ssh.authenticate_none(SSH_USER).await?.success() {
            true => Ok(Self { ssh }),
            false => Err(russh::Error::NotAuthenticated),
        }
    }

    /// A channel for one exec.
    pub(super) async fn channel(&self) -> Result<Channel<Msg>, russh::Error> {
        self.ssh.channel_open_session().await
    }

    /// Says farewell, which ends what runs.
    pub(super) async fn end(self) {
        let farewell = self.ssh.disconnect(Disconnect::ByApplication, "", "");
        drop(timeout(proto::budget::UNARY, farewell).await);
    }
}

/// The connections that a session keeps. They end with the last of its clones.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// Each with the moment since which nobody has needed it; the one that was used last is at the end.
    connections: Vec<(Connection, Instant)>,
    /// Whether a task ends those that are not used.
    swept: bool,
}

/// Where a connection is given back; its session may be over by then.
pub(super) struct Home(Weak<Mutex<Idle>>);

impl Kept {
    /// A connection with an open channel, if one was kept and still answers. Nothing has run on that channel yet, so
    /// whoever gets none may make a connection without running anything twice.
    pub(super) async fn take(&self) -> Option<(Connection, Channel<Msg>)> {
        loop {
            let (connection, _) = lock(&self.0).connections.pop()?;
            if let Ok(Ok(channel)) = timeout(KEPT_OPEN, connection.channel()).await {
                return Some((connection, channel));
            }
        }
    }

    /// Where connections of this session go when they are done.
    pub(super) fn home(&self) -> Home {
        Home(Arc::downgrade(&self.0))
    }
}

impl Home {
    /// Keeps a connection whose channel was closed by both sides, or ends it.
    pub(super) async fn give_back(&self, connection: Connection) {
        if let Some(superfluous) = self.keep(connection) {
            superfluous.end().await;
        }
    }

    fn keep(&self, connection: Connection) -> Option<Connection> {
        let Some(kept) = self.0.upgrade() else { return Some(connection) };
        let mut idle = lock(&kept);
        idle.connections.retain(|(connection, _)| !connection.ssh.is_closed());
        if idle.connections.len() >= IDLE_MAX || connection.ssh.is_closed() {
            return Some(connection);
        }
        idle.connections.push((connection, Instant::now()));
        if !idle.swept {
            idle.swept = true;
            tokio::spawn(sweep(self.0.clone()));
        }
        None
    }
}

/// Ends what was not used for long, until nothing is kept.
async fn sweep(kept: Weak<Mutex<Idle>>) {
    loop {
        sleep(KEPT_FOR).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut idle = lock(&kept);
        idle.connections.retain(|(_, since)| since.elapsed() < KEPT_FOR);
        if idle.connections.is_empty() {
            idle.swept = false;
            return;
        }
    }
}

fn lock(kept: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
