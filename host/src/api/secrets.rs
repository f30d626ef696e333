//! Secrets: in by users, out to the sandboxes that were created with their provider.

use std::collections::HashMap;

use proto::openshell::v1::GetSandboxProviderEnvironmentResponse;
use proto::openshell::vm::v1::*;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::Status;

use super::reply::timestamp;
use super::services::Api;
use crate::sandbox::rules;
use crate::sandbox::task::Handle;
use crate::sandbox::view::wall_ms;
use crate::secrets::SecretsError;
use crate::status;

impl Api {
    pub(super) fn provider_environment(&self, handle: &Handle) -> GetSandboxProviderEnvironmentResponse {
        let providers = &handle.view().record.spec.providers;
        // The revision first: a change in between makes the agent ask again.
        let provider_env_revision = self.secrets.revision(providers);
        let values = self.secrets.environment(providers).into_iter();
        let environment: HashMap<_, _> = values.map(|(key, value)| (key, value.expose_secret().to_owned())).collect();
        GetSandboxProviderEnvironmentResponse { environment, provider_env_revision }
    }

    pub(super) fn set_secret(&self, request: SetSecretRequest, who: &str) -> Result<SetSecretReply, Status> {
        let SetSecretRequest { provider, key, value } = request;
        rules::name(&provider).map_err(|error| status::invalid("provider", format!("provider: {error}")))?;
        let one = [(key.clone(), value)].into();
        rules::environment(&one, &[]).map_err(|error| status::invalid("key", error))?;
        let value = one.into_values().next().map(SecretString::from).unwrap_or_default();
        self.secrets.set(&provider, &key, value, wall_ms(&*self.clock)).map_err(refused)?;
        tracing::info!(provider, key, who, "audit: set a secret");
        Ok(SetSecretReply { stored_in: self.secrets.path().display().to_string() })
    }

    pub(super) fn list_secrets(&self, request: &ListSecretsRequest) -> Result<ListSecretsReply, Status> {
        if !request.provider.is_empty() && !self.secrets.knows(&request.provider) {
            return Err(refused(SecretsError::Unknown(format!("provider `{}`", request.provider.escape_debug()))));
        }
        let secrets = self.secrets.list(&request.provider).into_iter().map(|listed| Secret {
            sandboxes: self.users_of(&listed.provider),
            provider: listed.provider,
            key: listed.key,
            updated_time: Some(timestamp(listed.updated_ms)),
        });
        Ok(ListSecretsReply { secrets: secrets.collect() })
    }

    pub(super) fn remove_secret(&self, request: &RemoveSecretRequest, who: &str) -> Result<RemoveSecretReply, Status> {
        let RemoveSecretRequest { provider, key } = request;
        let users = self.users_of(provider);
        if key.is_empty() && !users.is_empty() {
            return Err(Status::failed_precondition(format!(
                "provider `{provider}` is used by {}; delete them first, or remove its secrets one by one",
                users.join(", ")
            )));
        }
        let removed = self.secrets.remove(provider, key, wall_ms(&*self.clock)).map_err(refused)?;
        tracing::info!(provider, key, who, "audit: removed secrets");
        Ok(RemoveSecretReply { removed })
    }

    /// A create that names a provider which is not there would start a workload without its secrets.
    pub(super) fn check_providers(&self, providers: &[String]) -> Result<(), Status> {
        match providers.iter().find(|name| !self.secrets.knows(name)) {
            None => Ok(()),
            Some(unknown) => {
                let name = unknown.escape_debug();
                Err(Status::failed_precondition(format!(
                    "provider `{name}` does not exist; `openshell secret set {name} KEY` makes it"
                )))
            }
        }
    }

    fn users_of(&self, provider: &str) -> Vec<String> {
        let uses = |handle: &Handle| handle.view().record.spec.providers.iter().any(|name| name == provider);
        self.registry.all().iter().filter(|handle| uses(handle)).map(|handle| handle.name.clone()).collect()
    }
}

fn refused(error: SecretsError) -> Status {
    match error {
        SecretsError::Unknown(_) => Status::not_found(error.to_string()),
        SecretsError::TooMuch(_) => Status::resource_exhausted(error.to_string()),
        SecretsError::Unusable { .. } | SecretsError::Exposed(_) | SecretsError::Io { .. } => {
            Status::internal(error.to_string())
        }
    }
}
