//! Configuration: flag over environment over file over default.
//!
//! Every key stands once, in [`keys`]: its place in the file, its variable, its flag, its default and what it
//! means. Sources are arguments ([`Environment`], [`GatewayFlags`]), so that the whole is a function; all
//! mistakes are reported at once, each with the place where it was made.
//!
//! `gateway.toml` is read and never written: other products keep files of the same layout there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub mod directories;
pub mod environment;
pub mod file;
pub mod flags;
pub mod keys;
pub mod problem;
mod resolve;

pub use environment::Environment;
pub use flags::GatewayFlags;
pub use problem::{ConfigError, Origin, Problem};

/// What a gateway is run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[openshell.gateway]`
    pub gateway: GatewayConfig,
    /// `[openshell.drivers.vm]`
    pub vm: VmConfig,
}

/// The gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where the store, the signing keys and the lock are. Absolute.
    pub state_dir: PathBuf,
    /// Where sockets and tokens are; has to be a tmpfs ([`directories::prepare_runtime_dir`]). Absolute.
    pub runtime_dir: PathBuf,
    /// How long a token lives, within the bounds of [`proto::budget`].
    pub token_ttl: Duration,
    /// From create to session up.
    pub provisioning_deadline: Duration,
    /// The agent's static binary. Absolute; whether it is there is for whoever uses it.
    pub agent_bin: PathBuf,
    /// A filter of `tracing`, known to parse.
    pub log: String,
    /// Under which the SDK finds this gateway.
    pub name: String,
    /// Where users with an SDK connect.
    pub listen: Listen,
    /// Where gateways are registered for the SDK; nothing without a home.
    pub registry_dir: Option<PathBuf>,
}

/// The TCP listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// None.
    Off,
    /// On the usual address, unless another process has it.
    Usual {
        /// Clear text, for this user's processes.
        clear: bool,
    },
    /// On this address, or no start.
    At {
        /// Which.
        address: SocketAddr,
        /// Clear text, for this user's processes.
        clear: bool,
    },
}

impl GatewayConfig {
    /// The API socket of the local user.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join(directories::API_SOCKET)
    }
}

/// The driver of microVMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// `openshell-vmm`. Absolute; whether it is there is for whoever uses it.
    pub vmm_bin: PathBuf,
    /// `libkrunfw.so.5`, or nothing for the dynamic linker's own search.
    pub libkrunfw: Option<PathBuf>,
    /// Where images are looked up by name.
    pub image_dir: PathBuf,
    /// The image of a sandbox that names none.
    pub default_image: String,
    /// Virtual CPUs of a sandbox that asks for none.
    pub default_cpus: u8,
    /// Memory of a sandbox that asks for none, in MiB.
    pub default_memory_mib: u32,
    /// The most virtual CPUs that a sandbox may ask for.
    pub max_cpus: u8,
    /// The most memory that a sandbox may ask for, in MiB.
    pub max_memory_mib: u32,
    /// How long a trial boot may take that tells whether KVM works.
    pub probe_deadline: Duration,
    /// The first of the user ids under which jailed vmm processes run when the gateway is root.
    pub jail_uid_base: u32,
}

impl Config {
    /// Flags over environment over file over defaults.
    pub fn load(flags: &GatewayFlags, environment: &Environment) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut given = match directories::config_file(flags, environment) {
            Some(place) => file::read(&place, &mut problems),
            None => keys::Given::default(),
        };
        environment.variables(&mut given, &mut problems);
        flags.values(&mut given);
        resolve::resolve(&given, environment, problems)
    }
}
