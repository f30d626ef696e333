//! Fault points: parts of the agent that a test makes panic.
//!
//! Compiled in with the feature `faults` only. An exec with the variable [`VARIABLE`] names one of [`PARTS`]; the next
//! time that part comes by, it panics, once.

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

#[cfg(feature = "faults")]
mod compiled_in {
    use std::sync::{Mutex, PoisonError};

    static NEXT: Mutex<Option<String>> = Mutex::new(None);

    /// Switches a part's panic on, if `variable` is the one.
    pub fn arm(variable: &str, part: &str) {
        if variable == super::VARIABLE {
            *NEXT.lock().unwrap_or_else(PoisonError::into_inner) = Some(part.to_owned());
        }
    }

    /// Panics if this part is the one.
    pub fn reach(part: &str) {
        let armed = NEXT.lock().unwrap_or_else(PoisonError::into_inner).take_if(|next| next == part).is_some();
        assert!(!armed, "fault point {part}");
    }
}

#[cfg(feature = "faults")]
pub use compiled_in::{arm, reach};

/// Switches a part's panic on.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn arm(_variable: &str, _part: &str) {}

/// Panics if this part is the one.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn reach(_part: &str) {}
