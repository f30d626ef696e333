//! Supervisor sessions and their relays.
//!
//! A session is the agent's outbound `ConnectSupervisor` stream. A relay is a byte stream that the gateway asks for
//! on the session and the agent opens back as `RelayStream`. Execs run over SSH inside a relay.

pub mod agent;
mod connection;
pub mod exec;
pub mod logs;
pub mod refusals;
pub mod relay;
pub mod sessions;
pub mod ssh_tokens;
pub mod supervisor;
pub mod throttle;
