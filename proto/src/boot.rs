//! The boot spec: what a guest is told before it has a session, as `boot.json` in its identity directory.
//!
//! The guest pulls it, so that nothing secret is on a kernel command line and a VM can boot while its gateway is
//! away. Fields are added, never changed; an agent ignores those it does not know.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::service::Service;

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BootSpec {
    /// The sandbox that this guest is.
    pub sandbox_id: Uuid,
    /// `<boot counter>-<uuid>`, new with every start of the compute; fences late words of an earlier boot.
    pub instance_id: String,
    /// Host name of the guest: the sandbox's name.
    pub hostname: String,
    /// Where the gateway is: `vsock://2:<port>`, `unix:///path` or `https://host:port`.
    pub endpoint: String,
    /// Where else it may be, in the order in which that is tried. An agent that does not know this field uses
    /// [`Self::endpoint`] alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// The host's wall clock when the compute was started, in milliseconds since the epoch. The guest's clock
    /// starts no earlier.
    pub wall_time_ms: u64,
    /// Private host key of the SSH server that is reached by relay (OpenSSH format).
    #[serde(serialize_with = "expose")]
    pub ssh_host_key: SecretString,
    /// The workload's user.
    pub user: WorkloadUser,
    /// What the sandbox runs; without it the agent idles, and the sandbox lives until it is stopped.
    pub main: Option<MainProcess>,
    /// Secrets are attached, which come by the session: the main process waits for them.
    #[serde(default)]
    pub needs_session: bool,
    /// Added to the environment of the main process and of every exec.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Services that were given at create; those of the image are read in the guest.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Where main process and execs start; the user's home where nothing is said.
    #[serde(default)]
    pub workdir: Option<String>,
    /// How the image's own command is run, where there is no `main` and the image has one.
    #[serde(default)]
    pub image_main: ImageMain,
}

/// See [`BootSpec::image_main`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageMain {
    /// On a terminal, or on pipes.
    pub tty: bool,
    /// Whether it is started again when it has ended.
    pub restart: RestartPolicy,
}

/// Under whose ids the workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadUser {
    /// User id; never 0.
    pub uid: u32,
    /// Group id; never 0.
    pub gid: u32,
}

/// The user where nothing else is said; the images of this project have it as `sandbox`.
pub const DEFAULT_USER: WorkloadUser = WorkloadUser { uid: 1000, gid: 1000 };

/// The process that a sandbox exists for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainProcess {
    /// Program and arguments, exactly; no shell in between. Never empty.
    pub argv: Vec<String>,
    /// On a terminal, or on pipes.
    pub tty: bool,
    /// Start only once somebody is attached.
    pub await_attachment: bool,
    /// Whether it is started again when it has ended.
    #[serde(default)]
    pub restart: RestartPolicy,
}

/// Whether a program that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It is not.
    #[default]
    Never,
    /// Where its exit code is not 0.
    OnFailure,
    /// However it ended.
    Always,
}

/// The only way by which a secret leaves its type: into the identity directory.
fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    use secrecy::ExposeSecret;
    serializer.serialize_str(secret.expose_secret())
}
