//! Why a command to the rotation thread was not carried out.

use std::{path::PathBuf, time::Duration};

use uuid::Uuid;

use super::publish::PublishError;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// Its directory is already looked after.
    #[error("sandbox {sandbox_id} already has an identity directory in use: withdraw it first")]
    AlreadyEnrolled {
        /// Which.
        sandbox_id: Uuid,
    },
    /// Nothing is known of it.
    #[error("sandbox {sandbox_id} has no identity directory in use: start it first")]
    Unknown {
        /// Which.
        sandbox_id: Uuid,
    },
    /// There is no directory to work with.
    #[error("failed to set up identity directory of sandbox {sandbox_id} in {}: {cause}", .dir.display())]
    Directory {
        /// Whose.
        sandbox_id: Uuid,
        /// The runtime directory.
        dir: PathBuf,
        /// Why.
        cause: PublishError,
    },
    /// The token is not in place.
    #[error("failed to publish token for sandbox {sandbox_id} in {}: {cause}", .dir.display())]
    Publish {
        /// Whose.
        sandbox_id: Uuid,
        /// The runtime directory.
        dir: PathBuf,
        /// Why.
        cause: PublishError,
    },
    /// No generation to give to a token.
    #[error("failed to reserve generations for sandbox {sandbox_id}: {cause}")]
    Generations {
        /// Whose.
        sandbox_id: Uuid,
        /// The store's words.
        cause: String,
    },
    /// The directory could not be inspected or put right.
    #[error("failed to audit identity directory of sandbox {sandbox_id} in {}: {cause}", .dir.display())]
    Audit {
        /// Whose.
        sandbox_id: Uuid,
        /// The runtime directory.
        dir: PathBuf,
        /// Why.
        cause: PublishError,
    },
    /// The operating system gave no thread.
    #[error("failed to start the rotation thread: {cause}")]
    Spawn {
        /// The system's words.
        cause: String,
    },
    /// The thread has ended.
    #[error("the rotation thread has ended: restart the gateway")]
    Stopped,
    /// The thread did not answer.
    #[error("waited {waited:?} for the rotation thread to {act}")]
    Deadline {
        /// For how long.
        waited: Duration,
        /// For what.
        act: &'static str,
    },
}
