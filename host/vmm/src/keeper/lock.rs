//! The proof of life: a POSIX record lock. The kernel gives it back however the keeper ends, and tells everybody
//! who asks (`F_GETLK`) the holder's pid, so that no pid file can lie.

use std::{fs::File, os::unix::fs::OpenOptionsExt, path::Path};

use proto::{
    layout,
    vmm::{Failure, FailureKind},
};
use rustix::fs::{FlockOperation, fcntl_lock};

use crate::failure;

/// Held as long as it exists. A process must open the file only once: closing any of its descriptors would
/// release the lock.
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    pub(crate) fn take(run_dir: &Path) -> Result<Self, Failure> {
        let path = run_dir.join(layout::RUN_LOCK);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failure::spec(format!("failed to open {}: {error}", path.display())))?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(Failure {
                kind: FailureKind::AlreadyRunning,
                message: format!("failed to lock {}: another keeper holds it", path.display()),
                remedy: "stop the sandbox that runs there first".to_owned(),
            }),
            Err(error) => Err(failure::spec(format!("failed to lock {}: {error}", path.display()))),
        }
    }
}
