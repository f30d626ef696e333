//! `Debug` of the messages that hold a token or a secret: everything but that.

use std::fmt;

use crate::openshell::v1::{
    GetSandboxProviderEnvironmentResponse, IssueSandboxTokenResponse, RefreshSandboxTokenResponse,
};
use crate::openshell::vm::v1::SetSecretRequest;

impl fmt::Debug for RefreshSandboxTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = "RefreshSandboxTokenResponse";
        f.debug_struct(name).field("expiration_time", &self.expiration_time).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssueSandboxTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = "IssueSandboxTokenResponse";
        f.debug_struct(name).field("expiration_time", &self.expiration_time).finish_non_exhaustive()
    }
}

impl fmt::Debug for GetSandboxProviderEnvironmentResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = "GetSandboxProviderEnvironmentResponse";
        f.debug_struct(name).field("provider_env_revision", &self.provider_env_revision).finish_non_exhaustive()
    }
}

impl fmt::Debug for SetSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, key, .. } = self;
        f.debug_struct("SetSecretRequest").field("provider", provider).field("key", key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_printed() {
        let secret = || "geheim".to_owned();
        let printed = [
            format!("{:?}", RefreshSandboxTokenResponse { token: secret(), ..Default::default() }),
            format!("{:?}", IssueSandboxTokenResponse { token: secret(), ..Default::default() }),
            format!(
                "{:?}",
                GetSandboxProviderEnvironmentResponse {
                    environment: [(secret(), secret())].into(),
                    ..Default::default()
                }
            ),
            format!("{:?}", SetSecretRequest { value: secret(), ..Default::default() }),
        ];
        assert!(printed.iter().all(|text| !text.contains("geheim")), "{printed:?}");
    }
}
