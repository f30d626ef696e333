//! One gateway per state directory, for as long as it lives.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Held for life; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("state directory {0} is locked by another gateway; stop that one, or name another state_dir")]
    Held(String),
    /// The lock file cannot be used.
    #[error("failed to lock {path}: {cause}; make the state directory writable for this user")]
    Failed {
        /// The lock file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
}

impl StateLock {
    /// Takes the lock of `state_dir`, at once or not at all.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("gateway.lock");
        let failed = |cause: std::io::Error| LockError::Failed { path: path.display().to_string(), cause };
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held(state_dir.display().to_string())),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_gateway_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        assert!(matches!(StateLock::take(dir.path()), Err(LockError::Held(_))));
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }
}
