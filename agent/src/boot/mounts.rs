//! The file systems that the kernel provides.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
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
const KERNEL: [Kernel; 5] = [
    Kernel { kind: "proc", at: "/proc", flags: INERT, data: Some(c"hidepid=invisible") },
    Kernel { kind: "sysfs", at: "/sys", flags: INERT.union(MountFlags::RDONLY), data: None },
    // Every program moves itself into a group: without this, each of them waits out a grace period of the kernel's RCU.
    Kernel { kind: "cgroup2", at: "/sys/fs/cgroup", flags: INERT, data: Some(c"favordynmods") },
    Kernel { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, data: None },
    Kernel {
        kind: "devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=0620,ptmxmode=0666,gid=5"),
    },
];

/// What a workload can fill, with its mode and its part of the machine's memory in percent. With [`WRITABLE_PERCENT`]
/// they leave enough to go on.
const MEMORY: [(&str, u32, u64); 3] = [("/dev/shm", 0o1777, 10), ("/run", 0o755, 5), ("/tmp", 0o1777, 20)];
/// What is written over the image may take this part of the memory.
pub(super) const WRITABLE_PERCENT: u64 = 40;
/// An empty file costs memory, too, which no size bounds: one for each page of the size.
const BYTES_PER_INODE: u64 = 4096;

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
        make_directories(Path::new(at), 0o755)?;
        mount(kind, at, kind, flags, data).map_err(|errno| Fault::new(at, errno))?;
    }
    for (at, mode, percent) in MEMORY {
        make_directories(Path::new(at), 0o755)?;
        let options = memory_options(at, mode, percent)?;
        mount("tmpfs", at, "tmpfs", SAFE, options.as_c_str()).map_err(|errno| Fault::new(at, errno))?;
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Fault::new(link, error)),
            _ => {}
        }
    }
    Ok(())
}

/// Options of a file system in memory at `at` that takes no more than this part of it.
pub(super) fn memory_options(at: &str, mode: u32, percent: u64) -> Result<CString, Fault> {
    let machine = rustix::system::sysinfo();
    let memory = machine.totalram.saturating_mul(machine.mem_unit.into());
    CString::new(bounded(memory, mode, percent)).map_err(|error| Fault::new(at, error))
}

fn bounded(memory: u64, mode: u32, percent: u64) -> String {
    // Not 0, which would be no bound at all.
    let inodes = (memory / 100 * percent / BYTES_PER_INODE).max(1);
    format!("mode={mode:04o},size={percent}%,nr_inodes={inodes}")
}

pub(super) fn shield(_: &mut Machine) -> Result<(), Fault> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| Fault::new("PR_SET_DUMPABLE", errno))?;
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(|error| Fault::new("/proc/self/oom_score_adj", error))?;
    LIMITS.into_iter().try_for_each(|(name, resource, current, maximum)| {
        setrlimit(resource, Rlimit { current, maximum }).map_err(|errno| Fault::new(name, errno))
    })
}

/// Every program inherits them.
const LIMITS: [(&str, Resource, Option<u64>, Option<u64>); 3] = [
    ("RLIMIT_NOFILE", Resource::Nofile, Some(65_536), Some(65_536)),
    // A control group bounds processes. This limit counts by uid, and the kernel's first value is half of what it has.
    ("RLIMIT_NPROC", Resource::Nproc, None, None),
    // A workload may ask for core files of its own, as everywhere. The agent writes none, whatever this says: it is not
    // dumpable.
    ("RLIMIT_CORE", Resource::Core, Some(0), None),
];

/// Makes a directory of the image and what is missing above it. A link on the way is refused: what is mounted by
/// this name must be reached by this name.
pub(super) fn make_directories(directory: &Path, mode: u32) -> Result<(), Fault> {
    make_directories_that(directory, mode, |_| Ok(()))
}

/// The same for a place that root relies on: nobody else may be able to rename a directory on the way to it.
pub(super) fn make_root_held(directory: &Path, mode: u32) -> Result<(), Fault> {
    make_directories_that(directory, mode, |metadata| held_by_root(metadata.uid(), metadata.mode()))
}

fn held_by_root(uid: u32, mode: u32) -> Result<(), &'static str> {
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    match (uid, mode) {
        (1.., _) => Err("it belongs to another user than root in the image, who could put something else there"),
        (0, mode) if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 => {
            Err("others than root may write there in the image, and could put something else there")
        }
        _ => Ok(()),
    }
}

fn make_directories_that(
    directory: &Path,
    mode: u32,
    sound: impl Fn(&fs::Metadata) -> Result<(), &'static str>,
) -> Result<(), Fault> {
    let mut path = PathBuf::new();
    for component in directory.components() {
        path.push(component);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => sound(&metadata).map_err(|cause| Fault::new(path.display(), cause))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_roots_is_below_directories_that_nobody_else_can_rename() {
        for (uid, mode, sound) in [
            (0, 0o40755, true),
            (0, 0o41777, true),
            (0, 0o40777, false),
            (0, 0o40775, false),
            (1000, 0o40755, false),
            (1000, 0o41777, false),
        ] {
            assert_eq!(held_by_root(uid, mode).is_ok(), sound, "{uid} {mode:o}");
        }
    }

    #[test]
    fn a_link_on_the_way_is_refused_and_a_writable_directory_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir(root.join("etc")).unwrap();
        symlink("etc", root.join("tmp")).unwrap();
        assert!(make_directories(&root.join("etc/a/b"), 0o755).is_ok() && root.join("etc/a/b").is_dir());
        for link in ["tmp", "tmp/a"] {
            let fault = make_directories(&root.join(link), 0o755).unwrap_err();
            assert_eq!(fault.object, root.join("tmp").display().to_string());
        }
        fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o777)).unwrap();
        let fault = make_root_held(&root.join("etc/a/b"), 0o755).unwrap_err();
        if rustix::process::geteuid().is_root() {
            assert_eq!(fault.object, root.join("etc").display().to_string());
        }
    }

    #[test]
    fn memory_is_bounded_in_bytes_and_in_files() {
        assert_eq!(bounded(1 << 30, 0o1777, 20), "mode=1777,size=20%,nr_inodes=52428");
        assert_eq!(bounded(0, 0o755, 5), "mode=0755,size=5%,nr_inodes=1");
        let all = MEMORY.iter().map(|(_, _, percent)| percent).sum::<u64>() + WRITABLE_PERCENT;
        assert_eq!(all, 75);
    }
}
