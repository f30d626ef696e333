//! How services are: what an agent tells its gateway's user.

use serde::{Deserialize, Serialize};

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// What it depends on is not ready.
    Waiting,
    /// It runs, and is not ready.
    Starting,
    /// It runs and serves.
    Ready,
    /// It ended, and is started again after a pause.
    Backoff,
    /// It ended well and is not started again.
    Done,
    /// It is given up.
    Failed,
    /// It was asked to end.
    Stopping,
    /// It ended because it was asked to.
    Stopped,
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ServiceState {
    /// In the words that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: ServiceState,
    /// Whether others may count on it.
    pub ready: bool,
    /// Of the program that runs.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// Since when it stands there, in milliseconds since the epoch, by the guest's clock.
    pub since_ms: u64,
    /// The exit code of its last run that ended; 128 + n after signal n.
    pub last_exit: Option<i32>,
    /// Why it stands there, or what it says of itself; may be empty.
    pub message: String,
    /// Where it was declared.
    pub file: String,
}
