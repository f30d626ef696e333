//! Tokens: for a sandbox its own, for users everything but the token.

use proto::openshell::v1::RefreshSandboxTokenResponse;
use proto::openshell::vm::v1::TokenReply;
use secrecy::ExposeSecret as _;
use tonic::{Code, Status};

use super::reply::timestamp;
use super::services::Api;
use crate::rotation::error::RotationError;
use crate::rotation::event::Published;
use crate::sandbox::task::{Handle, RevokeError};
use crate::status;

impl Api {
    /// What is in the sandbox's identity directory as well, so that reply and file never disagree.
    pub(super) async fn refresh_token(&self, handle: &Handle) -> Result<RefreshSandboxTokenResponse, Status> {
        let (published, token) = self.rotation.refresh(handle.id).await.map_err(|error| unpublished(handle, error))?;
        Ok(RefreshSandboxTokenResponse {
            token: token.expose_secret().to_owned(),
            expiration_time: Some(timestamp(published.exp * 1000)),
        })
    }

    pub(super) async fn rotate_token(&self, reference: &str, who: &str) -> Result<TokenReply, Status> {
        let handle = self.find(reference)?;
        let phase = handle.view().phase();
        if !handle.view().accepts_tokens() {
            return Err(no_token(&handle, phase.name()));
        }
        let published = self.rotation.rotate_now(handle.id).await.map_err(|error| unpublished(&handle, error))?;
        tracing::info!(sandbox = %handle.id, who, generation = published.generation, "audit: rotated by a user");
        Ok(reply(&handle, published))
    }

    pub(super) async fn revoke_token(&self, reference: &str, who: &str) -> Result<TokenReply, Status> {
        let handle = self.find(reference)?;
        tracing::info!(sandbox = %handle.id, who, "audit: a user revokes");
        match handle.revoke().await {
            Ok(published) => Ok(reply(&handle, published)),
            Err(RevokeError::NoToken(phase)) => Err(no_token(&handle, phase)),
            Err(RevokeError::Failed(why)) => {
                let message = format!("sandbox {}: nothing is revoked: {why}; repeat it", handle.name);
                Err(status::not_now(Code::Unavailable, message))
            }
            Err(RevokeError::Gone) => Err(Status::not_found(format!("sandbox {} is gone", handle.name))),
        }
    }
}

fn reply(handle: &Handle, published: Published) -> TokenReply {
    TokenReply {
        sandbox_id: handle.id.to_string(),
        generation: published.generation,
        issued_time: Some(timestamp(published.iat * 1000)),
        expiration_time: Some(timestamp(published.exp * 1000)),
        token_id: published.jti.to_string(),
        floor: handle.view().record.floor,
    }
}

fn no_token(handle: &Handle, phase: &str) -> Status {
    let name = &handle.name;
    Status::failed_precondition(format!("sandbox {name} is {phase}: it has no token, and none of it is accepted"))
}

fn unpublished(handle: &Handle, error: RotationError) -> Status {
    match error {
        RotationError::Unknown { .. } => no_token(handle, handle.view().phase().name()),
        error => {
            let message = format!("sandbox {}: {error}; the old token stays", handle.name);
            status::not_now(Code::Unavailable, message)
        }
    }
}
