//! SSH sessions of the published API, and the host keys that clients check.

use std::time::Instant;

use proto::openshell::v1::*;
use proto::openshell::vm::v1::{GetSshHostKeyReply, GetSshHostKeyRequest};
use secrecy::ExposeSecret as _;
use tonic::Status;

use super::lifecycle::workspace;
use super::reply::timestamp;
use super::services::Api;
use crate::sandbox::view::wall_ms;
use crate::session::ssh_tokens::LIFETIME;
use crate::status;

impl Api {
    pub(super) fn create_ssh(&self, request: &CreateSshSessionRequest) -> Result<CreateSshSessionResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let handle = self.find(&request.sandbox)?;
        let token = self.ssh_tokens.issue(handle.id, Instant::now()).ok_or_else(|| {
            Status::resource_exhausted(
                "as many SSH sessions are open as there may be; revoke some with RevokeSshSession, or wait until they end",
            )
        })?;
        Ok(CreateSshSessionResponse {
            sandbox_id: handle.id.to_string(),
            token: token.expose_secret().into(),
            host_key_fingerprint: self.host_keys.fingerprint(handle.id).map_err(Status::internal)?,
            expiration_time: Some(timestamp(wall_ms(&*self.clock) + LIFETIME.as_millis() as u64)),
            // The caller goes where it has come from: ForwardTcp is a call of the same service.
            ..CreateSshSessionResponse::default()
        })
    }

    pub(super) fn revoke_ssh(&self, request: &RevokeSshSessionRequest) -> Result<RevokeSshSessionResponse, Status> {
        if request.token.is_empty() {
            return Err(status::invalid("token", "token: must not be empty"));
        }
        let outcome = match self.ssh_tokens.revoke(&request.token, Instant::now()) {
            true => DeletionOutcome::Completed,
            false if request.allow_missing => DeletionOutcome::AlreadyAbsent,
            false => {
                return Err(Status::not_found("there is no SSH session with this token; it may have ended by itself"));
            }
        };
        Ok(RevokeSshSessionResponse { outcome: outcome.into() })
    }

    pub(super) fn ssh_host_key(&self, request: &GetSshHostKeyRequest) -> Result<GetSshHostKeyReply, Status> {
        let handle = self.find(&request.sandbox)?;
        let key = self.host_keys.public(handle.id).map_err(Status::internal)?;
        let public_key =
            key.to_openssh().map_err(|error| Status::internal(format!("failed to write the key: {error}")))?;
        Ok(GetSshHostKeyReply { sandbox_id: handle.id.to_string(), public_key })
    }
}
