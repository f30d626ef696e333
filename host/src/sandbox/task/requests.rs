//! What is asked of a sandbox beside its moves: revoke its tokens, change its configuration.

use std::time::Duration;

use super::{AskError, Owner};
use crate::faults;
use crate::rotation::event::Published;
use crate::sandbox::document::{Configuration, Update, UpdateError};

/// For how long after a revocation the agent may bring its connections to the new token.
const REVOKED_CONNECTIONS: Duration = Duration::from_secs(5);

/// Why nothing was revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// It has no compute: no token of it is accepted.
    #[error("the sandbox is {0}: no token of it is accepted")]
    NoToken(&'static str),
    /// The new token could not be published: the old one stays good.
    #[error("nothing is revoked: {0}")]
    Failed(String),
    /// The sandbox is gone.
    #[error("the sandbox is gone")]
    Gone,
}

/// Why the configuration is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigureError {
    /// By the rules of the configuration.
    Refused(UpdateError),
    /// By the store, or because the sandbox is gone.
    Failed(AskError),
}

impl Owner {
    /// Publish, persist the floor, and some time later close what has not come up to it. A gateway that ends at any
    /// arrow leaves a good token and no connection: before the floor is stored nothing is revoked, and whoever asked
    /// got no answer; after it everything is.
    pub(super) async fn revoke(&mut self) -> Result<Published, RevokeError> {
        let view = self.snapshot();
        if !view.accepts_tokens() {
            return Err(RevokeError::NoToken(view.phase().name()));
        }
        let id = self.record.id;
        let published = self.deps.rotation.rotate_now(id).await.map_err(|e| RevokeError::Failed(e.to_string()))?;
        faults::crash(faults::BEFORE_FLOOR);
        let mut record = self.record.clone();
        record.floor = published.generation;
        self.save(record).map_err(RevokeError::Failed)?;
        // From here on the guard refuses what is below.
        self.publish();
        faults::crash(faults::AFTER_FLOOR);
        tracing::warn!(sandbox = %id, floor = published.generation, jti = %published.jti, "audit: revoked");
        // The new token was nudged when it was published; a floor is nothing that an agent would have to know.
        let (link, floor) = (self.deps.link.clone(), published.generation);
        tokio::spawn(async move {
            tokio::time::sleep(REVOKED_CONNECTIONS).await;
            link.close_below(id, floor);
            faults::crash(faults::AFTER_CLOSE);
        });
        Ok(published)
    }

    pub(super) fn configure(&mut self, update: Update) -> Result<Configuration, ConfigureError> {
        let mut record = self.record.clone();
        record.configuration =
            record.configuration.updated(update, record.version + 1).map_err(ConfigureError::Refused)?;
        if record.configuration == self.record.configuration {
            return Ok(record.configuration);
        }
        self.save(record).map_err(|error| ConfigureError::Failed(AskError::Store(error)))?;
        self.publish();
        Ok(self.record.configuration.clone())
    }
}
