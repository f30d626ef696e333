//! What a process of the workload gives up before its program starts. Order matters: each function needs rights
//! that the next one takes away.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};
use proto::boot::WorkloadUser;
use proto::layout::IDENTITY_TAG;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// Gives this process a view of the mounts of its own, in which the identity directory is not there: not hidden by
/// permissions, but gone, so that no uid and no capability bring it back. Fails where nothing is mounted there: then
/// it is mounted somewhere else.
pub fn leave_identity_directory(directory: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Whether the identity share is mounted anywhere that this process sees.
pub fn sees_identity_share() -> io::Result<bool> {
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    Ok(shows_identity_share(&String::from_utf8_lossy(&mounts)))
}

/// Behind the lone dash of each line of `mountinfo` stand the kind of file system and what is mounted.
fn shows_identity_share(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let Some((_, mounted)) = line.split_once(" - ") else { return false };
        let mut fields = mounted.split(' ');
        (fields.next(), fields.next()) == (Some("virtiofs"), Some(IDENTITY_TAG))
    })
}

/// Files by which the kernel is told what to do, and which ask for an owner and no capability: a program that uid 0 may
/// name as the handler of core files would be started with everything that this process gives up.
const KERNEL_FILES: [&str; 3] = ["/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"];

/// Makes them read-only in this process's view of the mounts. For uid 0 alone: others own none of them, and a `/proc`
/// with a mount in it would keep them from mounting one in a namespace of theirs.
pub fn close_kernel_files() -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for path in KERNEL_FILES {
        match mount_bind(path, path) {
            Err(rustix::io::Errno::NOENT) => continue,
            bound => bound?,
        }
        mount_remount(path, flags, "")?;
    }
    Ok(())
}

/// Empties the bounding set: no program that is executed from here on can gain a capability.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // The kernel is older than this list and has no such capability.
            Err(rustix::io::Errno::INVAL) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Becomes the user, without supplementary groups; leaving uid 0 empties the permitted and effective sets.
pub fn become_user(user: WorkloadUser) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::clear_ambient_capability_set()?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A number that the kernel takes for "as it is" would leave root what it was.
    let (uids, gids) = (getresuid()?, getresgid()?);
    let is = [
        (uids.real, uids.effective, uids.saved) == (uid, uid, uid),
        (gids.real, gids.effective, gids.saved) == (gid, gid, gid),
    ];
    if is != [true; 2] {
        return Err(io::Error::other(format!("uid {uid} and gid {gid} did not come into force")));
    }
    let none = CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::shows_identity_share;

    #[test]
    fn the_share_is_found_wherever_it_is_mounted() {
        let others = "22 1 0:20 / / rw,nodev - overlay overlay rw,lowerdir=/newroot/image\n\
            23 22 0:21 / /identity rw - tmpfs identity rw\n\
            24 22 0:5 / /virtiofs rw shared:2 - virtiofs /dev/root rw\n";
        assert!(!shows_identity_share(others));
        for place in ["/etc/openshell/auth", "/elsewhere\\040-\\040x"] {
            let line = format!("30 22 0:30 / {place} ro,nosuid,nodev,noexec relatime - virtiofs identity ro\n");
            assert!(shows_identity_share(&format!("{others}{line}")), "{place}");
        }
    }
}
