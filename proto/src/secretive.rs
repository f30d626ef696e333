//! `Debug` of the messages that hold a token or a secret: everything but that.

use std::fmt;

use crate::openshell::v1::{
    CreateSshSessionResponse, GetSandboxProviderEnvironmentResponse, IssueSandboxTokenResponse,
    RefreshSandboxTokenResponse, RevokeSshSessionRequest, TcpForwardInit,
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

impl fmt::Debug for TcpForwardInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpForwardInit").field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateSshSessionResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sandbox_id, expiration_time, .. } = self;
        let mut shown = f.debug_struct("CreateSshSessionResponse");
        shown.field("sandbox_id", sandbox_id).field("expiration_time", expiration_time).finish_non_exhaustive()
    }
}

impl fmt::Debug for RevokeSshSessionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allow_missing = &self.allow_missing;
        f.debug_struct("RevokeSshSessionRequest").field("allow_missing", allow_missing).finish_non_exhaustive()
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
            format!("{:?}", TcpForwardInit { authorization_token: secret(), ..Default::default() }),
            format!("{:?}", CreateSshSessionResponse { token: secret(), ..Default::default() }),
            format!("{:?}", RevokeSshSessionRequest { token: secret(), ..Default::default() }),
            format!("{:?}", SetSecretRequest { value: secret(), ..Default::default() }),
        ];
        assert!(printed.iter().all(|text| !text.contains("geheim")), "{printed:?}");
    }
}
