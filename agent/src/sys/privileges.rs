//! What a process of the workload gives up before its program starts. Order matters: each function needs rights
//! that the next one takes away.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use proto::boot::WorkloadUser;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

/// Gives this process a view of the mounts of its own, in which the identity directory is not there: not hidden by
/// permissions, but gone, so that no uid and no capability bring it back.
pub fn leave_identity_directory(directory: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    match unmount(directory, UnmountFlags::DETACH) {
        // Not a mount point, or not there: an ordinary process, as in a test.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
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
    let none = CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
