//! Calls that an agent makes with its own identity because its gateway's user asks for them: the name of the SSH
//! subsystem is [`crate::layout::DEBUG_SUBSYSTEM`], a space, and this document. Output is JSON on standard output, or
//! code and message of the refusal on standard error.

use serde::{Deserialize, Serialize};

use crate::layout::DEBUG_SUBSYSTEM;

/// Exit code where the gateway refused the call, and where there is no identity to make one with.
pub const EXIT_REFUSED: i32 = 7;
/// Exit code where the call failed otherwise.
pub const EXIT_FAILED: i32 = 1;
/// What a program gets that asks in a guest on its own.
pub const NO_IDENTITY: &str = "no identity here";

/// Which call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DebugCall {
    /// The configuration of a sandbox: its own where nothing is said.
    GetSandboxConfig {
        /// Whose.
        sandbox_id: Option<String>,
    },
    /// A new token, by RPC.
    Refresh,
    /// Who the gateway takes it for.
    ShowPrincipal,
    /// The claims of the token that it holds.
    ShowToken,
    /// How the services of its guest are, which needs no identity.
    ListServices,
}

impl DebugCall {
    /// The subsystem's name.
    pub fn encode(&self) -> String {
        format!("{DEBUG_SUBSYSTEM} {}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The call in a subsystem's name; nothing where it is another subsystem.
    pub fn decode(name: &str) -> Option<Result<Self, String>> {
        let document = name.strip_prefix(DEBUG_SUBSYSTEM)?.strip_prefix(' ')?;
        Some(serde_json::from_str(document).map_err(|error| format!("not a debug call: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let of_another = DebugCall::GetSandboxConfig { sandbox_id: Some("a\" b".into()) };
        for call in
            [of_another, DebugCall::Refresh, DebugCall::ShowPrincipal, DebugCall::ShowToken, DebugCall::ListServices]
        {
            assert_eq!(DebugCall::decode(&call.encode()), Some(Ok(call)));
        }
        assert_eq!(DebugCall::decode("sftp"), None);
        assert!(DebugCall::decode(&format!("{DEBUG_SUBSYSTEM} {{}}")).is_some_and(|call| call.is_err()));
    }
}
