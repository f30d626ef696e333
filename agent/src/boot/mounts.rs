//! The file systems that the kernel provides.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use super::{Fault, Machine};

struct Kernel {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const INERT: MountFlags = SAFE.union(MountFlags::NOEXEC);

/// In order: some stand in others.
const KERNEL: [Kernel; 8] = [
    Kernel { kind: "proc", at: "/proc", flags: INERT, data: Some(c"hidepid=invisible") },
    Kernel { kind: "sysfs", at: "/sys", flags: INERT.union(MountFlags::RDONLY), data: None },
    Kernel { kind: "cgroup2", at: "/sys/fs/cgroup", flags: INERT, data: None },
    Kernel { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, data: None },
    Kernel {
        kind: "devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=0620,ptmxmode=0666,gid=5"),
    },
    Kernel { kind: "tmpfs", at: "/dev/shm", flags: SAFE, data: Some(c"mode=1777") },
    Kernel { kind: "tmpfs", at: "/run", flags: SAFE, data: Some(c"mode=0755") },
    Kernel { kind: "tmpfs", at: "/tmp", flags: SAFE, data: Some(c"mode=1777") },
];

/// A devtmpfs has the device nodes, but not these.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

pub(super) fn early_devices(_: &mut Machine) -> Result<(), Fault> {
    match mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None) {
        Err(rustix::io::Errno::BUSY) => Ok(()),
        other => other.map_err(|errno| Fault::new("/dev", errno)),
    }
}

pub(super) fn kernel(_: &mut Machine) -> Result<(), Fault> {
    for Kernel { kind, at, flags, data } in KERNEL {
        // On sysfs the directory exists, and nothing can be made.
        if !Path::new(at).is_dir() {
            make_directories(Path::new(at), 0o755)?;
        }
        mount(kind, at, kind, flags, data).map_err(|errno| Fault::new(at, errno))?;
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Fault::new(link, error)),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn shield(_: &mut Machine) -> Result<(), Fault> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| Fault::new("PR_SET_DUMPABLE", errno))?;
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(|error| Fault::new("/proc/self/oom_score_adj", error))?;
    let files = Rlimit { current: Some(65_536), maximum: Some(65_536) };
    setrlimit(Resource::Nofile, files).map_err(|errno| Fault::new("RLIMIT_NOFILE", errno))
}

/// Makes a directory of the image and what is missing above it. A link on the way is refused: what is mounted by
/// this name must be reached by this name.
pub(super) fn make_directories(directory: &Path, mode: u32) -> Result<(), Fault> {
    let mut path = PathBuf::new();
    for component in directory.components() {
        path.push(component);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Fault::new(path.display(), "the image has something else than a directory there")),
            Err(_) => {
                let made = fs::DirBuilder::new().mode(mode).create(&path);
                made.map_err(|error| Fault::new(path.display(), error))?;
            }
        }
    }
    Ok(())
}

/// Gives a directory to root alone.
pub(super) fn close_directory(directory: &Path) -> Result<(), Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::new(directory.display(), error);
    rustix::fs::chown(directory, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT)).map_err(|e| failed(&e))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(|e| failed(&e))
}
