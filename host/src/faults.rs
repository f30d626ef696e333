//! Fault points: places where a test can make something go wrong.
//!
//! Compiled in with the feature `faults` only. The points that are on are the lines of the file `faults` in the
//! state directory, read at every check, so that a test switches them while the gateway runs.

/// The nudge after a rotation is not sent.
pub const SUPPRESS_NUDGE: &str = "suppress-nudge";
/// A Sync is answered, and extends no lease.
pub const SYNC_UNHEARD: &str = "sync-unheard";
/// The gateway kills itself: with a token that nobody has.
pub const AFTER_MINT: &str = "crash-after-mint";
/// With a token in the stage.
pub const AFTER_STAGE: &str = "crash-after-stage";
/// With a token in place that nobody was told of.
pub const AFTER_RENAME: &str = "crash-after-rename";
/// After the nudge.
pub const AFTER_NUDGE: &str = "crash-after-nudge";
/// After a new token was presented for the first time.
pub const AFTER_RECEIPT: &str = "crash-after-receipt";
/// In a revocation: with a new token in place, and the floor as it was.
pub const BEFORE_FLOOR: &str = "crash-before-floor";
/// In a revocation: with the floor stored, and connections of earlier tokens open.
pub const AFTER_FLOOR: &str = "crash-after-floor";
/// In a revocation: after those were closed.
pub const AFTER_CLOSE: &str = "crash-after-close";

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

    /// Ends this process with SIGKILL if this point is on. It is switched off first: the next one lives.
    pub fn crash(name: &str) {
        if hit(name) {
            FILE.get().map(std::fs::remove_file);
            let _killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

#[cfg(feature = "faults")]
pub use compiled_in::{crash, hit, install};

/// Names the state directory, once at start.
#[cfg(not(feature = "faults"))]
pub fn install(_state_dir: &std::path::Path) {}

/// Whether this point is on.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn hit(_name: &str) -> bool {
    false
}

/// Ends this process with SIGKILL if this point is on.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn crash(_name: &str) {}
