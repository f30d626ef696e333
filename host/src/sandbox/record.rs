//! What is kept of a sandbox while no process runs, and the store that keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::decide::Machine;
use super::document::Configuration;
use super::spec::Spec;

/// The durable part of a sandbox. Holds no secret: tokens are never stored, and the SSH host key is derived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Identity; never reused.
    pub id: Uuid,
    /// Unique among the sandboxes that exist.
    pub name: String,
    /// What was asked for.
    pub spec: Spec,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Rises with every change.
    pub version: u64,
    /// Where it stands.
    pub machine: Machine,
    /// `<boot counter>-<uuid>` of the current or last boot; empty before the first.
    pub instance_id: String,
    /// The lowest generation that is accepted: the first of the current boot, or of the time after a revocation.
    pub floor: u64,
    /// The main process's runs in this boot, as the agent tells them. Kept with whatever else is recorded: the agent
    /// tells them again.
    #[serde(default)]
    pub main: MainRuns,
    /// What it is configured with.
    #[serde(default)]
    pub configuration: Configuration,
    /// Why it is in `Error`, or what is odd about it; for people.
    pub note: String,
    /// The kind of failure behind the note, for programs; empty where there is none.
    #[serde(default)]
    pub reason: String,
    /// When it came into its phase, in milliseconds since the epoch.
    pub phase_since_ms: u64,
}

/// See [`Record::main`]. Times are in milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MainRuns {
    /// Runs after the first.
    pub restarts: u32,
    /// When the newest one began.
    pub started_ms: Option<u64>,
    /// When the next one begins, while it is waited for.
    pub next_ms: Option<u64>,
    /// Of the newest one that ended.
    pub last_code: Option<i32>,
    /// Not 0: so many in a row ended too soon, and there is no other.
    pub crash_loop: u32,
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// Another sandbox has the name.
    NameTaken,
    /// Anything else: act, object and cause.
    Failed(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken => f.write_str("another sandbox has this name"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for StoreError {}

/// Keeps records. Calls are short and synchronous; each is durable when it returns.
pub trait Store: Send + Sync {
    /// Every record.
    fn load(&self) -> Result<Vec<Record>, StoreError>;
    /// Adds one.
    fn insert(&self, record: &Record) -> Result<(), StoreError>;
    /// Replaces one.
    fn update(&self, record: &Record) -> Result<(), StoreError>;
    /// Removes one and everything that belongs to it.
    fn remove(&self, sandbox_id: Uuid) -> Result<(), StoreError>;
}
