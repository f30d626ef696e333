//! What rotation tells the gateway.

use std::time::{Instant, SystemTime};

use uuid::Uuid;

/// A token that is in its directory. Says all about it but the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Whose.
    pub sandbox_id: Uuid,
    /// Its generation; at least 1.
    pub generation: u64,
    /// From the token, in seconds since the epoch.
    pub iat: u64,
    /// From the token, likewise.
    pub exp: u64,
    /// Names the token in audit lines.
    pub jti: Uuid,
    /// When it was renamed into place.
    pub renamed_at: Instant,
}

/// What keeps a sandbox from new tokens, for as long as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// One word, for programs.
    pub reason: &'static str,
    /// Act, object, cause.
    pub message: String,
    /// Since when.
    pub since: SystemTime,
}

/// A change of state; a state that lasts is not repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotationEvent {
    /// A new token is in place: nudge the agent. Ends a [`Self::Failed`] of the same sandbox.
    Published(Published),
    /// A token that was due could not be published. The old one stays until its end, the attempts go on.
    Failed {
        /// Whose.
        sandbox_id: Uuid,
        /// Act, object, cause.
        error: String,
        /// Since when.
        since: SystemTime,
    },
    /// The audit found something else than it should and put it right. Ends a [`Self::Failed`] that an audit caused.
    Healed {
        /// Whose.
        sandbox_id: Uuid,
        /// What was wrong.
        what: String,
    },
    /// The directory that the guest sees is not the one at its path any more. The guest can only be brought back by
    /// a restart onto a fresh directory, and should be before `exp`.
    DirectoryLost {
        /// Whose.
        sandbox_id: Uuid,
        /// The end of the last token that was published.
        exp: u64,
        /// When that was found.
        since: SystemTime,
    },
}
