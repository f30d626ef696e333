//! What an agent says of itself, and what becomes of one that this gateway cannot speak with.

use std::fmt;

use proto::version::{
    AGENT_BUILD_KEY, AGENT_ENDPOINT_KEY, AGENT_VERSION_KEY, PROTOCOL, PROTOCOL_KEY, ProtocolRange, VERSION,
};

use crate::sandbox::task::Handle;

/// Metadata key by which agents proved themselves before there were tokens. Never read; it tells which kind of agent
/// came.
pub const FORMER_SECRET: &str = "x-sandbox-secret";

/// The longest version that is repeated.
const VERSION_MAX: usize = 64;
const REMEDY: &str = "replace the agent binary (agent_bin) by the one that came with this gateway";

/// What the agent said of itself in the metadata of the request.
#[derive(Debug, Clone)]
pub struct AgentVersion {
    version: String,
    build: String,
    endpoint: String,
    protocol: Option<ProtocolRange>,
}

impl fmt::Display for AgentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (build {})", self.version, self.build)
    }
}

impl AgentVersion {
    /// From a request whose metadata `text` looks up.
    pub fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Self {
        // Whatever a guest writes into a log is short and cannot steer a terminal.
        let word = |key: &str| {
            let said = text(key).filter(|said| !said.is_empty()).unwrap_or("unknown");
            said.chars().filter(char::is_ascii_graphic).take(VERSION_MAX).collect()
        };
        Self {
            version: word(AGENT_VERSION_KEY),
            build: word(AGENT_BUILD_KEY),
            endpoint: word(AGENT_ENDPOINT_KEY),
            protocol: text(PROTOCOL_KEY).and_then(|range| range.parse().ok()),
        }
    }

    /// By which of its endpoints it came; an agent may have several.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether there is a generation that both sides speak.
    ///
    /// # Errors
    /// Both versions and the remedy, for people.
    pub fn check(&self) -> Result<(), String> {
        match self.protocol {
            Some(theirs) if PROTOCOL.common(theirs).is_some() => Ok(()),
            _ => Err(format!("{}; {REMEDY}", self.both())),
        }
    }

    /// Why one is refused that asks for a session and shows no token.
    pub fn without_token(&self, former_secret: bool) -> String {
        let shown = if former_secret { "a shared secret, which is accepted no more, and no token" } else { "no token" };
        format!("the agent asked for a session with {shown}: {}; {REMEDY}", self.both())
    }

    fn both(&self) -> String {
        let theirs = self.protocol.map_or_else(|| "unknown".to_string(), |range| range.to_string());
        format!("agent {self} speaks protocol {theirs}, gateway {VERSION} speaks {PROTOCOL}")
    }
}

/// Gives the sandbox up if it is on its way up: the same agent would come again with every boot. Not waited for: it
/// closes the very connection that asks.
pub fn give_up(handle: &Handle, why: String) {
    // Later it would change nothing, and a guest can ask for it without end.
    if !handle.view().phase().is_booting() {
        return;
    }
    let handle = handle.clone();
    // The connection is that of the current boot: those of an earlier one went with its vmm.
    let instance = handle.view().record.instance_id.clone();
    tokio::spawn(async move {
        // Late where the sandbox was up already: then it is a refusal like others.
        drop(handle.agent_refused(&instance, why).await);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(version: &'static str, protocol: Option<&'static str>) -> AgentVersion {
        AgentVersion::read(|key| match key {
            AGENT_VERSION_KEY => Some(version),
            AGENT_BUILD_KEY => Some("b1"),
            PROTOCOL_KEY => protocol,
            _ => None,
        })
    }

    #[test]
    fn both_versions_are_named() {
        assert_eq!(agent("9.1.0", Some("1-99")).check(), Ok(()));
        let ours = format!("gateway {VERSION} speaks {PROTOCOL}; replace");
        for (protocol, said) in [(Some("90-99"), "90-99"), (None, "unknown"), (Some("soon"), "unknown")] {
            let refused = agent("9.1.0", protocol).check().unwrap_err();
            assert!(refused.contains(&format!("agent 9.1.0 (build b1) speaks protocol {said}, {ours}")), "{refused}");
        }
        assert!(
            agent("", None)
                .without_token(false)
                .contains("with no token: agent unknown (build b1) speaks protocol unknown")
        );
        assert!(agent("", None).without_token(true).contains("a shared secret, which is accepted no more"));
        assert!(agent("x", None).without_token(true).contains(&ours));
        assert_eq!(agent("9".repeat(1000).leak(), None).version.len(), VERSION_MAX);
    }
}
