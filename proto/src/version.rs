//! Versions: of the programs, and of the protocol between gateway and agent.

use std::fmt;

/// The version of all programs of this workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Metadata key: the agent's version, on the first request of every connection.
pub const AGENT_VERSION_KEY: &str = "x-openshell-agent-version";
/// Metadata key: which build of that version it is, on the first request of every connection.
pub const AGENT_BUILD_KEY: &str = "x-openshell-agent-build";
/// Metadata key: the endpoint by which the agent came, on the first request of every connection. It may have several.
pub const AGENT_ENDPOINT_KEY: &str = "x-openshell-agent-endpoint";
/// Metadata key: the agent's [`ProtocolRange`], on the first request of every connection.
pub const PROTOCOL_KEY: &str = "x-openshell-protocol";

/// The oldest and newest protocol generation that a program speaks, written `1-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolRange {
    /// Oldest generation spoken.
    pub oldest: u32,
    /// Newest generation spoken.
    pub newest: u32,
}

/// What the programs of this build speak.
pub const PROTOCOL: ProtocolRange = ProtocolRange { oldest: 1, newest: 1 };

impl ProtocolRange {
    /// The newest generation that both sides speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.oldest, self.newest)
    }
}

impl std::str::FromStr for ProtocolRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || format!("protocol range `{}` is not of the form `1-2`", text.escape_debug());
        let (oldest, newest) = text.split_once('-').ok_or_else(bad)?;
        let range = Self { oldest: oldest.parse().map_err(|_| bad())?, newest: newest.parse().map_err(|_| bad())? };
        if range.oldest > range.newest {
            return Err(bad());
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_generation_is_the_newest_shared() {
        let range = |text: &str| text.parse::<ProtocolRange>().unwrap();
        assert_eq!(range("1-3").common(range("2-5")), Some(3));
        assert_eq!(range("2-5").common(range("1-3")), Some(3));
        assert_eq!(range("1-1").common(range("2-2")), None);
    }

    #[test]
    fn malformed_ranges_are_refused() {
        for text in ["", "1", "-", "2-1", "a-b", "1-2-3", "-1-2"] {
            assert!(text.parse::<ProtocolRange>().is_err(), "{text}");
        }
        assert_eq!(PROTOCOL.to_string().parse(), Ok(PROTOCOL));
    }
}
