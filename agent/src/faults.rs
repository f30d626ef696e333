//! Fault points, as `proto::fault` names them: parts of the agent that a test makes panic. Compiled in with the feature
//! `faults` only.

#[cfg(feature = "faults")]
mod compiled_in {
    use std::sync::{Mutex, PoisonError};

    static NEXT: Mutex<Option<String>> = Mutex::new(None);

    /// Switches a part's panic on, if `variable` is the one.
    pub fn arm(variable: &str, part: &str) {
        if variable == proto::fault::VARIABLE {
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
