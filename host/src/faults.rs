//! Fault points: places where a test can make something go wrong.
//!
//! Compiled in with the feature `faults` only. The points that are on are the lines of the file `faults` in the
//! state directory, read at every check, so that a test switches them while the gateway runs.

/// The nudge after a rotation is not sent.
pub const SUPPRESS_NUDGE: &str = "suppress-nudge";

#[cfg(feature = "faults")]
mod compiled_in {
    use std::{
        path::{Path, PathBuf},
        sync::OnceLock,
    };

    static FILE: OnceLock<PathBuf> = OnceLock::new();

    /// Names the state directory, once at start.
    pub fn install(state_dir: &Path) {
        FILE.get_or_init(|| state_dir.join("faults"));
    }

    /// Whether this point is on.
    pub fn hit(name: &str) -> bool {
        let Some(file) = FILE.get() else { return false };
        std::fs::read_to_string(file).is_ok_and(|names| names.lines().any(|line| line == name))
    }
}

#[cfg(feature = "faults")]
pub use compiled_in::{hit, install};

/// Names the state directory, once at start.
#[cfg(not(feature = "faults"))]
pub fn install(_state_dir: &std::path::Path) {}

/// Whether this point is on.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn hit(_name: &str) -> bool {
    false
}
