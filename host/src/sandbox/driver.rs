//! What creates and removes the compute of a sandbox. Drivers implement it; only the gateway names them.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use proto::version::ProtocolRange;
use proto::vmm::ExitRecord;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A boxed future, so that the trait can be an object.
pub type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The compute that a sandbox asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// Whose.
    pub sandbox_id: Uuid,
    /// As the driver names images.
    pub image: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// Host places of one sandbox, made by [`ComputeDriver::prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Its runtime directory, which holds `stage/`, `share/`, `ctl/` and `run/`.
    pub directory: PathBuf,
    /// User and group id that own the identity files; `None` means the gateway's own.
    pub owner: Option<(u32, u32)>,
    /// What the boot spec names as the endpoint.
    pub endpoint: String,
    /// Where the gateway listens for this sandbox.
    pub socket: PathBuf,
}

/// The program that a driver carries into guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFile {
    /// Where it was read.
    pub path: PathBuf,
    /// SHA-256 of it, in hex.
    pub digest: String,
    /// What it says of itself.
    pub version: String,
    /// Likewise.
    pub protocol: ProtocolRange,
}

impl fmt::Display for AgentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, digest, version, protocol } = self;
        write!(f, "{} (version {version}, protocol {protocol}, sha256 {digest})", path.display())
    }
}

/// Why a driver did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverError {
    /// For programs.
    pub reason: DriverReason,
    /// Act, object and cause.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of [`DriverError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverReason {
    /// There is no such image.
    UnknownImage,
    /// The image is unreadable or not an image.
    InvalidImage,
    /// CPUs or memory out of range.
    OutOfRange,
    /// No usable KVM.
    Kvm,
    /// `libkrunfw.so.5` is missing.
    Libkrunfw,
    /// Neither root nor user namespaces, or the jail failed.
    Jail,
    /// libkrun refused the configuration.
    Libkrun,
    /// The vmm refused the document that it was handed.
    VmmSpec,
    /// The agent is no program that guests can run, or speaks another protocol.
    Agent,
    /// A program that belongs to this one is missing or cannot be run.
    ProgramMissing,
    /// The compute of this sandbox runs already.
    VmmAlreadyRunning,
    /// Runtime directories cannot be made or removed.
    Runtime,
    /// Anything else.
    Internal,
}

impl DriverReason {
    /// One CamelCase word, for conditions and for the metadata of a refusal. Where a program that meets it has an
    /// exit code of its own, that code has the same name.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for DriverError {}

/// See the module.
pub trait ComputeDriver: Send + Sync {
    /// As `GetGatewayInfo` reports it.
    fn name(&self) -> &'static str;

    /// The agent that it carries into guests, as it was when a guest was last booted or asked for; nothing where none
    /// was looked at yet, or where guests bring their own.
    fn agent(&self) -> Option<AgentFile>;

    /// Checks what a create asks for before anything is made: image known and readable, sizes in range, host able.
    fn validate<'a>(&'a self, compute: &'a Compute) -> Task<'a, Result<(), DriverError>>;

    /// Makes the sandbox's runtime directories; idempotent.
    fn prepare(&self, sandbox_id: Uuid) -> Result<Places, DriverError>;

    /// Starts the compute. The identity directory is complete by now.
    fn start<'a>(&'a self, compute: &'a Compute, instance_id: &'a str) -> Task<'a, Result<(), DriverError>>;

    /// Ends when the compute of this sandbox is gone (at once if it is), with its exit record if one was written.
    fn wait_gone(&self, sandbox_id: Uuid) -> Task<'static, Option<ExitRecord>>;

    /// Whether compute of this sandbox exists.
    fn is_running(&self, sandbox_id: Uuid) -> bool;

    /// Ends the compute without asking the guest; returns once it is gone (at once if it is), or says why it is not.
    fn kill<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>>;

    /// Removes every trace on the host; the compute must be gone.
    fn remove<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>>;

    /// Last lines of the console, lossy UTF-8, for people.
    fn console_tail(&self, sandbox_id: Uuid, lines: usize) -> String;

    /// What its console holds behind byte number `from` of its newest boot, raw, and how many bytes that boot has said.
    fn console(&self, sandbox_id: Uuid, from: u64) -> (Vec<u8>, u64);

    /// Runtime directories found on this host, for adoption and for clearing strays.
    fn found(&self) -> Vec<Uuid>;
}
