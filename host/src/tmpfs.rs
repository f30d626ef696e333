//! Whether a directory is in memory: tokens are nowhere else.

use std::io;
use std::path::Path;

/// `f_type` of a tmpfs.
const MAGIC: u64 = 0x0102_1994;

/// Asks the file system that `path` is on; it is never assumed (`/run` is a disk on some machines).
///
/// # Errors
/// The path cannot be inspected.
pub fn is_tmpfs(path: &Path) -> io::Result<bool> {
    // The type's width differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    let kind = rustix::fs::statfs(path)?.f_type as u64;
    Ok(kind == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_and_proc_is_not() {
        assert!(is_tmpfs(Path::new("/dev/shm")).unwrap());
        assert!(!is_tmpfs(Path::new("/proc")).unwrap());
        assert!(is_tmpfs(Path::new("/nowhere")).is_err());
    }
}
