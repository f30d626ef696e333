//! A gateway in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host::api::guard::Authority;
use host::api::listeners::{Serving, VmListeners, serve_user};
use host::api::services::Api;
use host::identity::claims::authority;
use host::identity::host_key::HostKeys;
use host::identity::keys::Keys;
use host::identity::mint::mint;
use host::identity::verify::Verifier;
use host::rotation::clock::{Clock, SystemClock};
use host::rotation::leases::Connections;
use host::rotation::receipts::Receipts;
use host::rotation::rotor::{Deps as RotationDeps, Rotation, Rotor};
use host::sandbox::phase::Phase;
use host::sandbox::registry::Registry;
use host::sandbox::spec::Bounds;
use host::sandbox::task::{Deps, Handle, Times};
use host::sandbox::view::View;
use host::secrets::Secrets;
use host::session::logs::Logs;
use host::session::refusals::Refusals;
use host::session::relay::Relays;
use host::session::sessions::Sessions;
use host::session::supervisor::Supervisors;
use hyper_util::rt::TokioIo;
use proto::budget;
use proto::layout::{CTL_DIR, CTL_SOCKET, SHARE_DIR, TOKEN_FILE};
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::{CreateSandboxRequest, SandboxSpec};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use uuid::Uuid;

use crate::driver::FakeDriver;
use crate::store::FlakyStore;

/// For telling "never" from "not yet".
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What tests choose.
#[derive(Clone, Copy)]
pub(crate) struct Knobs {
    pub(crate) heartbeat: Duration,
    pub(crate) boot: Duration,
    pub(crate) stop: Duration,
    pub(crate) leeway: Duration,
}

impl Default for Knobs {
    /// Nothing happens by time alone.
    fn default() -> Self {
        let long = Duration::from_secs(600);
        Self { heartbeat: long, boot: long, stop: long, leeway: Duration::from_secs(3) }
    }
}

pub(crate) struct Stage {
    pub(crate) driver: Arc<FakeDriver>,
    pub(crate) store: Arc<FlakyStore>,
    pub(crate) registry: Registry,
    pub(crate) rotation: Rotation,
    pub(crate) sessions: Sessions,
    pub(crate) relays: Relays,
    #[allow(dead_code, reason = "the benchmark has no use for them")]
    pub(crate) logs: Logs,
    #[allow(dead_code, reason = "the benchmark serves the same without its guard")]
    pub(crate) serving: Serving,
    keys: Keys,
    dir: TempDir,
    _stop: oneshot::Sender<()>,
}

impl Stage {
    pub(crate) async fn up() -> Self {
        Self::with(Knobs::default()).await
    }

    pub(crate) async fn with(knobs: Knobs) -> Self {
        Self::at(knobs, Arc::new(SystemClock)).await
    }

    pub(crate) async fn at(knobs: Knobs, clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm");
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("make the state directory");
        let store = Arc::new(FlakyStore::open(&state));
        let keys = Keys::load_or_create(&state.join("jwt")).expect("make keys");
        let host_keys = Arc::new(HostKeys::load_or_create(&state).expect("make host keys"));
        let driver = Arc::new(FakeDriver::new(dir.path().to_path_buf()));
        let receipts = Arc::new(Receipts::new());
        let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        let rotation = Rotor::spawn(RotationDeps {
            signer: keys.signer().clone(),
            gateway_id: store.gateway_id(),
            ttl: budget::TTL_DEFAULT,
            clock: clock.clone(),
            rng: StdRng::seed_from_u64(1),
            generations: store.clone(),
            receipts: receipts.clone(),
            events,
        })
        .expect("start rotation");
        let (sessions, relays, refusals) = (Sessions::default(), Relays::default(), Arc::new(Refusals::default()));
        let listeners = Arc::new(VmListeners::new(Connections::new(), sessions.clone(), refusals.clone()));
        let times = Times { boot: knobs.boot, stop: knobs.stop, disconnected: Duration::from_secs(600) };
        let deps = Deps {
            store: store.clone(),
            driver: driver.clone(),
            rotation: rotation.clone(),
            link: listeners.clone(),
            host_keys: host_keys.clone(),
            clock: clock.clone(),
            times,
        };
        let bounds =
            Bounds { image: Some("base".into()), vcpus: 1, max_vcpus: 4, memory_mib: 256, max_memory_mib: 4096 };
        let registry = Registry::new(Arc::new(deps), bounds);
        let guard = Authority {
            owner: rustix::process::getuid().as_raw(),
            leeway: knobs.leeway,
            verifier: Verifier::new(keys.ring().clone(), store.gateway_id(), knobs.leeway, budget::TTL_MAX),
            registry: registry.clone(),
            receipts: receipts.clone(),
            refusals: refusals.clone(),
            clock: clock.clone(),
        };
        let logs = Logs::default();
        let supervisors = Supervisors {
            registry: registry.clone(),
            sessions: sessions.clone(),
            relays: relays.clone(),
            refusals: refusals.clone(),
            logs: logs.clone(),
            heartbeat: knobs.heartbeat,
        };
        let api = Api {
            registry: registry.clone(),
            supervisors,
            rotation: rotation.clone(),
            receipts,
            receipt_deadline: budget::receipt_deadline(budget::TTL_DEFAULT),
            throttle: Arc::default(),
            secrets: Arc::new(Secrets::open(&state).expect("no secrets yet")),
            ssh_tokens: Arc::default(),
            host_keys,
            clock,
            drivers: vec!["fake".into()],
            kid: keys.kid().to_string(),
            issuer: authority(&store.gateway_id()),
        };
        let (user_routes, vm_routes) = (api.routes(40 << 20), api.routes(128 << 10));
        let serving = Serving { user_routes, vm_routes, authority: Arc::new(guard) };
        listeners.serve(serving.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let socket = dir.path().join("gateway.sock");
        let to_user = serving.clone();
        tokio::spawn(async move {
            let served = tokio::select! {
                served = serve_user(&socket, to_user) => served,
                _ = stopped => Ok(()),
            };
            served.expect("serve the user");
        });
        let stage = Self { driver, store, registry, rotation, sessions, relays, logs, serving, keys, dir, _stop: stop };
        until("the user's socket", || stage.socket().exists().then_some(())).await;
        stage
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("gateway.sock")
    }

    pub(crate) async fn user(&self) -> OpenShellClient<Channel> {
        OpenShellClient::new(channel(&self.socket()).await)
    }

    fn places(&self, sandbox_id: Uuid) -> PathBuf {
        self.dir.path().join("vm").join(sandbox_id.to_string())
    }

    pub(crate) fn vm_socket(&self, sandbox_id: Uuid) -> PathBuf {
        self.places(sandbox_id).join(CTL_DIR).join(CTL_SOCKET)
    }

    /// The token on disk.
    pub(crate) fn token(&self, sandbox_id: Uuid) -> String {
        std::fs::read_to_string(self.places(sandbox_id).join(SHARE_DIR).join(TOKEN_FILE)).expect("a token on disk")
    }

    /// A token of any life and generation, signed by this gateway.
    pub(crate) fn minted(&self, sandbox_id: Uuid, generation: u64, ttl: Duration) -> String {
        let (id, now) = (self.store.gateway_id(), SystemClock.now().unix());
        let minted = mint(self.keys.signer(), &id, sandbox_id, generation, Uuid::new_v4(), now, ttl);
        minted.token.expose_secret().to_string()
    }

    /// A sandbox whose compute runs, without a session yet.
    pub(crate) async fn launched(&self, name: &str) -> Handle {
        let handle = self.registry.create(&request(name)).await.expect("create");
        becomes(&handle, "launched", |view| view.record.floor > 0).await;
        handle
    }
}

/// A valid request with a main process.
pub(crate) fn request(name: &str) -> CreateSandboxRequest {
    let spec = SandboxSpec { command: vec!["sleep".into(), "1".into()], ..Default::default() };
    CreateSandboxRequest { name: name.into(), spec: Some(spec), ..Default::default() }
}

pub(crate) async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    let connect = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://gateway").connect_with_connector(connect).await.expect("connect")
}

/// Polls `level` until it gives something.
pub(crate) async fn until<T>(what: &str, mut level: impl FnMut() -> Option<T>) -> T {
    let waited = timeout(PATIENCE, async {
        loop {
            if let Some(value) = level() {
                return value;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Waits for a view of the sandbox.
pub(crate) async fn becomes(handle: &Handle, what: &str, wanted: impl Fn(&View) -> bool) -> Arc<View> {
    let mut views = handle.watch();
    let seen = timeout(PATIENCE, views.wait_for(|view| wanted(view))).await;
    let seen = seen.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}; it is {:?}", handle.view()));
    seen.unwrap_or_else(|_| panic!("the sandbox was removed instead of {what}")).clone()
}

pub(crate) async fn reaches(handle: &Handle, phase: Phase) -> Arc<View> {
    becomes(handle, phase.name(), |view| view.phase() == phase).await
}

/// Waits until the sandbox is removed.
pub(crate) async fn removed(stage: &Stage, handle: &Handle) {
    until("the sandbox to be removed", || stage.registry.get(handle.id).is_none().then_some(())).await;
}
