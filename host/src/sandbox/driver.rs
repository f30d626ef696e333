//! What creates and removes the compute of a sandbox. Drivers implement it; only the gateway names them.

use std::{fmt, future::Future, path::PathBuf, pin::Pin};

use proto::vmm::ExitRecord;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A boxed future, so that the trait can be an object.
pub type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a sandbox runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// Whose it is.
    pub sandbox_id: Uuid,
    /// An image name, or a path.
    pub image: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// Host places of one sandbox, made by `prepare`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The sandbox's runtime directory.
    pub directory: PathBuf,
    /// Owner and group that the identity files get; nothing where the gateway is not root.
    pub owner: Option<(u32, u32)>,
    /// The gateway's address as the sandbox sees it, for the boot spec.
    pub endpoint: String,
    /// Where the gateway listens for this sandbox.
    pub socket: PathBuf,
}

/// Why a driver refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverError {
    /// For programs.
    pub reason: DriverReason,
    /// Act, object and cause.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

impl std::error::Error for DriverError {}

/// Kinds of [`DriverError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverReason {
    /// The image is unknown or unusable.
    InvalidImage,
    /// CPUs or memory.
    OutOfRange,
    /// KVM is missing, not allowed or not working.
    Kvm,
    /// libkrunfw cannot be loaded.
    Libkrunfw,
    /// No jail, no VM.
    Jail,
    /// Something of this sandbox runs already.
    AlreadyRunning,
    /// The driver's programs or directories.
    Runtime,
    /// A bug.
    Internal,
}

/// One kind of compute.
pub trait ComputeDriver: Send + Sync {
    /// Its name in specs and in the configuration.
    fn name(&self) -> &'static str;
    /// Checks what a create asks for before anything is made (image known and readable, sizes, KVM usable, libkrunfw).
    fn validate<'a>(&'a self, compute: &'a Compute) -> Task<'a, Result<(), DriverError>>;
    /// Makes the sandbox's runtime directories; idempotent.
    fn prepare(&self, sandbox_id: Uuid) -> Result<Places, DriverError>;
    /// Starts the compute; the sandbox's identity files are in place.
    fn start<'a>(&'a self, compute: &'a Compute, instance_id: &'a str) -> Task<'a, Result<(), DriverError>>;
    /// Ends when the compute of this sandbox is gone (at once if it is), with its exit record if one was written.
    fn wait_gone(&self, sandbox_id: Uuid) -> Task<'static, Option<ExitRecord>>;
    /// Is there compute of this sandbox?
    fn is_running(&self, sandbox_id: Uuid) -> bool;
    /// Ends the compute now; fine if there is none.
    fn kill<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>>;
    /// Removes every trace on the host; the compute must be gone.
    fn remove<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>>;
    /// Last lines of the console, lossy UTF-8, for people.
    fn console_tail(&self, sandbox_id: Uuid, lines: usize) -> String;
    /// Runtime directories found on this host, for adoption and for clearing strays.
    fn found(&self) -> Vec<Uuid>;
}
