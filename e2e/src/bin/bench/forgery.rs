//! Forged tokens on a sandbox's own socket, as fast as one thread makes and presents them.
//!
//! Each is one of the sandbox's own with another `jti`: our key id, our issuer, a point and a scalar that are valid, so
//! that nothing but the whole verification refuses it; and no two are the same, so that none is remembered. A
//! connection begins with an honest token, or it would be closed after two seconds, and shows one again now and then.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use e2e::api::channel;
use futures_util::future::join_all;
use proto::budget;
use proto::openshell::vm::v1::SyncRequest;
use proto::openshell::vm::v1::vm_client::VmClient;
use serde_json::Value;
use tokio::time::sleep;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// What the guest's two leave of those that one sandbox may have.
const CONNECTIONS: usize = budget::CONNECTIONS_PER_VM - 2;
/// Calls in flight on each.
const WIDTH: usize = 12;
/// How long a connection goes without an honest token.
const HONEST: Duration = Duration::from_secs(5);
const RECONNECT: Duration = Duration::from_millis(50);

/// Runs until it is told to stop.
pub(crate) struct Forger {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What came of it.
pub(crate) struct Forged {
    /// Tokens that were refused.
    pub(crate) refused: u64,
    /// Tokens that were accepted; none, or the gateway is broken.
    pub(crate) accepted: u64,
    /// Connections that ended early.
    pub(crate) broken: u64,
    /// Why the first of them did.
    pub(crate) why: String,
}

struct Shared {
    socket: PathBuf,
    token: PathBuf,
    stop: AtomicBool,
    number: AtomicU64,
    refused: AtomicU64,
    accepted: AtomicU64,
    broken: AtomicU64,
    why: OnceLock<String>,
}

impl Forger {
    /// With a sandbox's own socket and token file.
    pub(crate) fn start(socket: &Path, token: &Path) -> Self {
        let shared = Arc::new(Shared {
            socket: socket.into(),
            token: token.into(),
            stop: AtomicBool::default(),
            number: AtomicU64::default(),
            refused: AtomicU64::default(),
            accepted: AtomicU64::default(),
            broken: AtomicU64::default(),
            why: OnceLock::new(),
        });
        let forging = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let connections = (0..CONNECTIONS).map(|_| forging.keep_on());
            runtime.expect("a runtime").block_on(join_all(connections));
        });
        Self { shared, thread }
    }

    pub(crate) fn stop(self) -> Forged {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the forger's thread");
        let Shared { refused, accepted, broken, why, .. } = &*self.shared;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let why = why.get().cloned().unwrap_or_default();
        Forged { refused: read(refused), accepted: read(accepted), broken: read(broken), why }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection after another.
    async fn keep_on(&self) {
        while !self.stopped() {
            if let Err(status) = self.connection().await {
                self.why.get_or_init(|| format!("{:?}: {}", status.code(), status.message()));
                self.broken.fetch_add(1, Ordering::Relaxed);
                sleep(RECONNECT).await;
            }
        }
    }

    async fn connection(&self) -> Result<(), Status> {
        let channel = channel(&self.socket).await.map_err(|error| Status::unavailable(error.to_string()))?;
        while !self.stopped() {
            let honest = std::fs::read_to_string(&self.token)?;
            present(&channel, &honest).await?;
            let template = Template::of(&honest).ok_or_else(|| Status::internal("the token on disk is none"))?;
            let until = Instant::now() + HONEST;
            let ends = join_all((0..WIDTH).map(|_| self.forge(&channel, &template, until))).await;
            ends.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn forge(&self, channel: &Channel, template: &Template, until: Instant) -> Result<(), Status> {
        while !self.stopped() && Instant::now() < until {
            let forged = template.forge(self.number.fetch_add(1, Ordering::Relaxed));
            match present(channel, &forged).await {
                Err(status) if status.code() == Code::Unauthenticated => self.refused.fetch_add(1, Ordering::Relaxed),
                Err(status) => return Err(status),
                Ok(()) => self.accepted.fetch_add(1, Ordering::Relaxed),
            };
        }
        Ok(())
    }
}

/// One call with a token, on any socket of a sandbox.
pub(crate) async fn present(channel: &Channel, token: &str) -> Result<(), Status> {
    let mut bearer: AsciiMetadataValue =
        format!("Bearer {token}").parse().map_err(|_| Status::internal("a token is ASCII"))?;
    bearer.set_sensitive(true);
    let mut request = Request::new(SyncRequest::default());
    request.metadata_mut().insert("authorization", bearer);
    VmClient::new(channel.clone()).sync(request).await.map(drop)
}

struct Template {
    header: String,
    /// Before and after the `jti`.
    claims: (String, String),
    signature: String,
}

impl Template {
    fn of(token: &str) -> Option<Self> {
        let mut segments = token.trim().split('.');
        let (header, claims, signature) = (segments.next()?, segments.next()?, segments.next()?);
        let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let read: Value = serde_json::from_str(&claims).ok()?;
        let (before, after) = claims.split_once(read["jti"].as_str()?)?;
        Some(Self { header: header.into(), claims: (before.into(), after.into()), signature: signature.into() })
    }

    fn forge(&self, number: u64) -> String {
        let (before, after) = &self.claims;
        let claims = format!("{before}00000000-0000-4000-8000-{number:012x}{after}");
        format!("{}.{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims), self.signature)
    }
}
