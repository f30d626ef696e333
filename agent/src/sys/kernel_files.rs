//! Files of the kernel that its root may write, without a capability, and through which a program becomes the
//! machine's real root: a core pattern is a program that the kernel starts.

use std::io;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

const WRITABLE_BY_ROOT: [&str; 3] = ["/proc/sys", "/proc/sysrq-trigger", "/sys"];

/// Makes them read-only in this process's own view of the mounts, in which nobody without capabilities brings them
/// back.
pub fn make_read_only() -> io::Result<()> {
    for path in WRITABLE_BY_ROOT {
        match mount_bind(path, path) {
            Ok(()) => {}
            // This kernel has none.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        }
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount_remount(path, flags, "")?;
    }
    Ok(())
}
