//! The composition root: the only place that names a concrete driver and store.
//!
//! A start goes in this order, and each step may refuse: directories, lock, store, keys, rotation, driver; then the
//! sandboxes that an earlier gateway left are adopted, each with a fresh token on disk before a session is accepted;
//! only then the user's socket opens. The end is quicker: stop listening, stop rotating, let go of the lock. No VM
//! notices.

use std::io;
use std::sync::Arc;

use proto::budget;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::api::guard::Authority;
use crate::api::listeners::{Serving, VmListeners, serve_user};
use crate::api::services::Api;
use crate::config::Config;
use crate::config::directories::{DirectoryError, prepare_runtime_dir, prepare_state_dir};
use crate::driver::vm::{VmDriver, VmDriverConfig};
use crate::faults;
use crate::identity::claims::authority;
use crate::identity::host_key::HostKeys;
use crate::identity::keys::{KeyError, Keys};
use crate::identity::tls::Certificates;
use crate::identity::verify::Verifier;
use crate::rotation::clock::{Clock, SystemClock};
use crate::rotation::error::RotationError;
use crate::rotation::event::RotationEvent;
use crate::rotation::leases::Connections;
use crate::rotation::receipts::Receipts;
use crate::rotation::rotor::{Deps as RotationDeps, Rotation, Rotor};
use crate::sandbox::decide::Event;
use crate::sandbox::driver::ComputeDriver;
use crate::sandbox::record::StoreError;
use crate::sandbox::registry::Registry;
use crate::sandbox::spec::Bounds;
use crate::sandbox::task::{Deps, Times};
use crate::secrets::{Secrets, SecretsError};
use crate::session::logs::Logs;
use crate::session::refusals::Refusals;
use crate::session::relay::Relays;
use crate::session::sessions::Sessions;
use crate::session::supervisor::Supervisors;
use crate::store::lock::{DirectoryLock, LockError};
use crate::store::sqlite::{OpenError, SqliteStore};

pub mod init;

mod claim;
mod keys;
mod tcp;

/// The largest message of a user: an exec with all that it may carry.
const USER_MESSAGE: usize = 40 * 1024 * 1024;
/// The largest message of a sandbox: a relay's chunk with its envelope, and what an agent of another maker may put in one.
const VM_MESSAGE: usize = 128 * 1024;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The state directory is another gateway's.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The SSH host keys cannot be used.
    #[error("{0}")]
    HostKeys(String),
    /// The secrets cannot be read.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The rotation thread did not start.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// The runtime directory holds sandboxes of another gateway.
    #[error(
        "{0} holds sandboxes of another gateway's state directory; start with that state_dir, or name another runtime_dir"
    )]
    OtherRuntime(String),
    /// The runtime directory cannot be marked.
    #[error("failed to write {path}: {cause}; make the runtime directory writable for this user")]
    Claim {
        /// The file.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// The user's socket or the TCP listener cannot be bound.
    #[error("{0}")]
    Socket(String),
}

/// Runs a gateway until `stop`.
///
/// # Errors
/// [`StartError`]; nothing that it found was changed.
pub async fn run(config: &Config, stop: impl Future<Output = ()>) -> Result<(), StartError> {
    let uid = rustix::process::getuid().as_raw();
    let state_dir = &config.gateway.state_dir;
    prepare_state_dir(state_dir, uid)?;
    let _state_lock = DirectoryLock::take(state_dir)?;
    faults::install(state_dir);
    prepare_runtime_dir(&config.gateway.runtime_dir, uid)?;
    let _runtime_lock = DirectoryLock::take(&config.gateway.runtime_dir)?;
    let store = Arc::new(SqliteStore::open(state_dir)?);
    let keys = keys::open(&state_dir.join(keys::DIR), &store)?;
    let certificates = Certificates::load_or_create(&state_dir.join(keys::CERTIFICATES_DIR))?;
    let host_keys = Arc::new(HostKeys::load_or_create(state_dir).map_err(StartError::HostKeys)?);
    claim::claim(&config.gateway.runtime_dir, store.gateway_id())?;
    let tcp = tcp::bind(&config.gateway).await?;
    let secrets = Arc::new(Secrets::open(state_dir)?);
    let gateway = compose(config, uid, &store, &keys, host_keys, secrets)?;
    tracing::info!(gateway = %store.gateway_id(), kid = keys.kid(), verify_kids = keys.retired().join(" "),
        issuer = authority(&store.gateway_id()), ttl = ?config.gateway.token_ttl, state = %state_dir.display(),
        "gateway starts");
    // Not yet a reason to end: what runs already goes on, and a create says it again.
    match gateway.driver.inspect_agent().await {
        Ok(agent) => tracing::info!(path = %agent.path.display(), sha256 = agent.digest, version = agent.version,
            protocol = %agent.protocol, "guests get this agent"),
        Err(error) => tracing::warn!(%error, "guests cannot be booted"),
    }
    let adopted = gateway.registry.adopt().await?;
    tracing::info!(sandboxes = adopted, "took over the sandboxes of this state directory");
    let following = follow(gateway.events, keys.kid(), gateway.registry.clone(), gateway.sessions);
    let socket = config.gateway.socket();
    let served = tokio::select! {
        served = serve_user(&socket, gateway.serving.clone()) => served.map_err(StartError::Socket),
        () = tcp::serve(tcp, &config.gateway, &certificates, gateway.serving) => Ok(()),
        () = stop => Ok(()),
        // Tokens would grow old in silence: the next gateway does better.
        () = following => Err(RotationError::Stopped.into()),
    };
    tracing::info!("gateway ends; its sandboxes go on");
    if let Err(error) = gateway.rotation.shutdown() {
        tracing::warn!(%error, "rotation did not end in order");
    }
    if let Err(error) = store.checkpoint() {
        tracing::warn!(%error, "the store's log stays for the next start");
    }
    served
}

struct Composed {
    registry: Registry,
    rotation: Rotation,
    sessions: Sessions,
    serving: Serving,
    driver: Arc<VmDriver>,
    events: UnboundedReceiver<RotationEvent>,
}

fn compose(
    config: &Config,
    uid: u32,
    store: &Arc<SqliteStore>,
    keys: &Keys,
    host_keys: Arc<HostKeys>,
    secrets: Arc<Secrets>,
) -> Result<Composed, StartError> {
    let ttl = config.gateway.token_ttl;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (gateway_id, receipts) = (store.gateway_id(), Arc::new(Receipts::new()));
    let (sender, events) = unbounded_channel();
    let rotation = Rotor::spawn(RotationDeps {
        signer: keys.signer().clone(),
        gateway_id,
        ttl,
        clock: clock.clone(),
        rng: StdRng::from_rng(&mut rand::rng()),
        generations: store.clone(),
        receipts: receipts.clone(),
        events: sender,
    })?;
    let (sessions, relays, refusals) = (Sessions::default(), Relays::default(), Arc::new(Refusals::default()));
    let listeners = Arc::new(VmListeners::new(Connections::new(), sessions.clone(), refusals.clone()));
    let driver = Arc::new(VmDriver::new(vm_driver(config)));
    let drivers = vec![driver.name().to_string()];
    let deps = Deps {
        store: store.clone(),
        driver: driver.clone(),
        rotation: rotation.clone(),
        link: listeners.clone(),
        host_keys: host_keys.clone(),
        clock: clock.clone(),
        times: Times {
            boot: config.gateway.provisioning_deadline,
            stop: budget::STOP_HOST,
            disconnected: budget::disconnected_restart(ttl),
        },
    };
    let registry = Registry::new(Arc::new(deps), bounds(config));
    let leeway = budget::leeway(ttl);
    let guard = Authority {
        owner: uid,
        leeway,
        verifier: Verifier::new(keys.ring().clone(), gateway_id, leeway, budget::TTL_MAX),
        registry: registry.clone(),
        receipts: receipts.clone(),
        refusals: refusals.clone(),
        clock: clock.clone(),
    };
    let api = Api {
        registry: registry.clone(),
        supervisors: Supervisors {
            registry: registry.clone(),
            sessions: sessions.clone(),
            relays,
            refusals: refusals.clone(),
            logs: Logs::default(),
            heartbeat: budget::heartbeat(ttl),
        },
        rotation: rotation.clone(),
        receipts,
        receipt_deadline: budget::receipt_deadline(ttl),
        throttle: Arc::default(),
        secrets,
        ssh_tokens: Arc::default(),
        host_keys,
        clock,
        drivers,
        kid: keys.kid().to_string(),
        issuer: authority(&gateway_id),
    };
    let serving = Serving {
        user_routes: api.routes(USER_MESSAGE),
        vm_routes: api.routes(VM_MESSAGE),
        authority: Arc::new(guard),
    };
    listeners.serve(serving.clone());
    Ok(Composed { registry, rotation, sessions, serving, driver, events })
}

fn vm_driver(config: &Config) -> VmDriverConfig {
    VmDriverConfig {
        runtime_dir: config.gateway.runtime_dir.clone(),
        vmm_bin: config.vm.vmm_bin.clone(),
        agent_bin: config.gateway.agent_bin.clone(),
        libkrunfw: config.vm.libkrunfw.clone(),
        image_dir: config.vm.image_dir.clone(),
        probe_deadline: config.vm.probe_deadline,
        jail_uid_base: config.vm.jail_uid_base,
    }
}

fn bounds(config: &Config) -> Bounds {
    Bounds {
        image: Some(config.vm.default_image.clone()),
        vcpus: config.vm.default_cpus,
        max_vcpus: config.vm.max_cpus,
        memory_mib: config.vm.default_memory_mib,
        max_memory_mib: config.vm.max_memory_mib,
    }
}

/// What rotation tells becomes nudges, log lines and restarts.
async fn follow(mut events: UnboundedReceiver<RotationEvent>, kid: &str, registry: Registry, sessions: Sessions) {
    while let Some(event) = events.recv().await {
        match event {
            RotationEvent::Published(token) => {
                tracing::info!(sandbox = %token.sandbox_id, generation = token.generation, jti = %token.jti,
                    kid, exp = token.exp, "audit: published");
                if !faults::hit(faults::SUPPRESS_NUDGE) {
                    sessions.nudge(token.sandbox_id);
                }
                faults::crash(faults::AFTER_NUDGE);
            }
            RotationEvent::Failed { sandbox_id, error, .. } => {
                tracing::error!(sandbox = %sandbox_id, error, "failed to publish a token; the old one stays, attempts go on");
            }
            RotationEvent::Healed { sandbox_id, what } => {
                tracing::warn!(sandbox = %sandbox_id, what, "audit: healed an identity directory");
            }
            RotationEvent::DirectoryLost { sandbox_id, exp, .. } => {
                tracing::error!(sandbox = %sandbox_id, exp, "IdentityDirectoryLost; restarting the sandbox onto a fresh one");
                if let Some(handle) = registry.get(sandbox_id) {
                    // On its own: a kill takes its time, and other sandboxes have news. A refusal means that this one
                    // is on its way down already.
                    tokio::spawn(async move { handle.ask(Event::DirectoryLost).await });
                }
            }
        }
    }
}
