//! Fault points of the agent, which its test builds have: an exec with the variable [`VARIABLE`] names one of [`PARTS`], and
//! the next time that part comes by, it panics, once.

/// The variable of an exec.
pub const VARIABLE: &str = "AGENT_FAULT";
/// One connection of the SSH server, while it answers a request.
pub const SSH: &str = "ssh";
/// What sends log lines to the gateway.
pub const LOGS: &str = "logs";
/// What keeps the data connection.
pub const DATA: &str = "data";
/// The session.
pub const CONTROL: &str = "control";
/// What waits for every process.
pub const REAPER: &str = "reaper";
/// All of them.
pub const PARTS: [&str; 5] = [SSH, LOGS, DATA, CONTROL, REAPER];
