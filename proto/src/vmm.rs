//! The documents between gateway and vmm: what to run (on an inherited descriptor), whether it started (a line on
//! the keeper's standard output) and how it ended (`exit.json`).

use std::{ops::RangeInclusive, path::PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Virtual CPUs that one microVM may have.
pub const VCPUS: RangeInclusive<u8> = 1..=32;
/// Guest memory that one microVM may have, in MiB. Below the least the guest's kernel does not start.
pub const MEMORY_MIB: RangeInclusive<u32> = 128..=1024 * 1024;

/// What the agent prints on the console, as a line of its own, when it finds neither a disk nor an identity
/// directory: it was booted only to show that KVM works.
pub const PROBE_LINE: &str = "openshell-agent: kvm works";
/// The guest's exit code after [`PROBE_LINE`].
pub const PROBE_EXIT: i32 = 42;

/// One microVM, as the keeper reads it as JSON from its standard input. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmSpec {
    /// For messages and for the exit record.
    pub sandbox_id: Uuid,
    /// For the exit record: a record of another boot says nothing about this one.
    pub instance_id: String,
    /// The erofs image; attached read-only.
    pub image: PathBuf,
    /// The agent's static binary; becomes [`crate::layout::INIT`].
    pub agent: PathBuf,
    /// `libkrunfw.so.5`: an absolute path, or nothing for the dynamic linker's own search.
    pub libkrunfw: Option<PathBuf>,
    /// The sandbox's runtime directory, which holds `share/`, `ctl/` and `run/` (see [`crate::layout`]).
    pub runtime_dir: PathBuf,
    /// Virtual CPUs, within [`VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, within [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// As whom the jailed child runs when the keeper is root; ids that no image uses. Ignored where the keeper is
    /// not root: a user namespace then maps the caller's own ids.
    pub jail_uid: u32,
}

/// What the keeper writes as its first and only line on standard output, then it closes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    /// The jail stands and libkrun was entered. Not that the guest boots: only the agent's hello says that.
    Running {
        /// Process id of the keeper.
        keeper_pid: u32,
        /// Process id of the jailed child, for people.
        child_pid: u32,
    },
    /// Nothing runs, and nothing is left behind but this record (which is also `exit.json`).
    Failed(Failure),
}

/// Why a VM did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind, for programs.
    pub kind: FailureKind,
    /// Act, object and cause, for people.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of [`Failure`]; each has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The spec is not a [`VmmSpec`], or names something that is not there.
    Spec,
    /// Another keeper holds `run.lock`.
    AlreadyRunning,
    /// `libkrunfw.so.5` cannot be loaded.
    Libkrunfw,
    /// `/dev/kvm` is missing, not allowed, or not a working KVM.
    Kvm,
    /// Neither root nor user namespaces, or a step of the jail failed.
    Jail,
    /// libkrun refused the configuration.
    Libkrun,
}

impl FailureKind {
    /// The exit code of `openshell-vmm` for this kind. 0 means that a VM ran and left its exit record (or, of a
    /// probe, that KVM works); 2 is wrong usage.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Spec => 20,
            Self::AlreadyRunning => 21,
            Self::Libkrunfw => 22,
            Self::Kvm => 23,
            Self::Jail => 24,
            Self::Libkrun => 25,
        }
    }
}

/// How a vmm ended, written as `exit.json` by rename. Its existence and a free lock mean: nothing runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// From the spec.
    pub sandbox_id: Uuid,
    /// From the spec.
    pub instance_id: String,
    /// How.
    pub ended: Ended,
    /// When, in milliseconds since the epoch.
    pub at_ms: u64,
    /// Last words of the vmm on its standard error, lossy UTF-8, at most 4 KiB.
    #[serde(default)]
    pub stderr: String,
}

/// See [`ExitRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The vmm process left with this code: the guest's exit code if a guest ever ran. libkrun says 0 for guests
    /// that never reached userland, too, so that 0 alone is no success.
    Exited(i32),
    /// The vmm process was ended by this signal from elsewhere.
    Signalled(i32),
    /// The keeper ended it because it was told to (SIGTERM).
    Killed,
    /// It never started.
    Failed(Failure),
}
