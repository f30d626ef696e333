//! The phases of a sandbox, and every edge between them.
//!
//! ```text
//!          create                     session up
//!   (none) ───────► Provisioning ──────────────────► Ready ◄──────────┐
//!                      │  deadline, failure            │  compute lost  │ session up
//!                      ▼                               │  (restart)     │
//!                    Error ◄──── crash loop ───────────┼──────────► Starting ◄── start ── Stopped, Completed, Error
//!                                                      │ stop               │ stop
//!                                                      ▼                    ▼
//!                    Completed ◄── main process ended  Stopping ───────► Stopped
//!   any ── delete ──► Deleting ──► (gone)
//! ```
//!
//! `Provisioning` and `Starting` differ only in whether the sandbox ever ran. Being without a session is a
//! condition of `Ready`, not a phase.

use proto::openshell::v1::SandboxPhase;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Created, and not yet up for the first time.
    Provisioning,
    /// Up: the agent said hello in this boot.
    Ready,
    /// Told to stop; the compute may still run.
    Stopping,
    /// Nothing runs; everything needed for a start is kept.
    Stopped,
    /// Started again, and not yet up.
    Starting,
    /// The main process ended; nothing runs.
    Completed,
    /// Gave up, with evidence; nothing runs.
    Error,
    /// Told to go; the compute may still run.
    Deleting,
}

impl Phase {
    /// All phases, for tests and tables.
    pub const ALL: [Self; 8] = [
        Self::Provisioning,
        Self::Ready,
        Self::Stopping,
        Self::Stopped,
        Self::Starting,
        Self::Completed,
        Self::Error,
        Self::Deleting,
    ];

    /// Whether compute may exist on the host in this phase.
    pub fn has_compute(self) -> bool {
        matches!(self, Self::Provisioning | Self::Starting | Self::Ready | Self::Stopping | Self::Deleting)
    }

    /// Whether the sandbox is on its way up.
    pub fn is_booting(self) -> bool {
        matches!(self, Self::Provisioning | Self::Starting)
    }

    /// The edges of the diagram, delete aside (which leads from every phase to `Deleting`).
    pub fn leads_to(self, next: Self) -> bool {
        use Phase::*;
        match (self, next) {
            (Deleting, _) => false,
            (_, Deleting) => true,
            (Provisioning | Starting, Ready | Error | Stopping | Completed) => true,
            (Ready, Stopping | Starting | Completed | Error) => true,
            (Stopping, Stopped) => true,
            (Stopped | Completed | Error, Starting) => true,
            _ => false,
        }
    }

    /// How people and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provisioning => "Provisioning",
            Self::Ready => "Ready",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::Deleting => "Deleting",
        }
    }
}

impl From<Phase> for SandboxPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Provisioning => Self::Provisioning,
            Phase::Ready => Self::Ready,
            Phase::Stopping => Self::Stopping,
            Phase::Stopped => Self::Stopped,
            Phase::Starting => Self::Starting,
            Phase::Completed => Self::Completed,
            Phase::Error => Self::Error,
            Phase::Deleting => Self::Deleting,
        }
    }
}
