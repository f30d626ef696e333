//! The root file system: image below, memory above.

use std::fs;

use proto::layout;
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::{Fault, Machine, mounts};

const IMAGE: &str = "/newroot/image";
const WRITABLE: &str = "/newroot/upper";
const WORK: &str = "/newroot/work";
const ROOT: &str = "/newroot/root";
const OVERLAY: &std::ffi::CStr = c"lowerdir=/newroot/image,upperdir=/newroot/upper,workdir=/newroot/work";

pub(super) fn keep_share(machine: &mut Machine) -> Result<(), Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    machine.power.share = Some(open("/", flags, Mode::empty()).map_err(|errno| Fault::new("/", errno))?);
    Ok(())
}

pub(super) fn mount_image(_: &mut Machine) -> Result<(), Fault> {
    let options = mounts::memory_options(layout::STAGING, 0o700, mounts::WRITABLE_PERCENT)?;
    mount("tmpfs", layout::STAGING, "tmpfs", MountFlags::NODEV, options.as_c_str())
        .map_err(|errno| Fault::new(layout::STAGING, errno))?;
    for directory in [IMAGE, WRITABLE, WORK, ROOT] {
        fs::create_dir(directory).map_err(|error| Fault::new(directory, error))?;
    }
    mount(layout::IMAGE_DISK, IMAGE, layout::IMAGE_FILESYSTEM, MountFlags::RDONLY | MountFlags::NODEV, None)
        .map_err(|errno| Fault::new(format!("{} as {}", layout::IMAGE_DISK, layout::IMAGE_FILESYSTEM), errno))?;
    mount("overlay", ROOT, "overlay", MountFlags::NODEV, OVERLAY).map_err(|errno| Fault::new(ROOT, errno))
}

pub(super) fn clone_agent(machine: &mut Machine) -> Result<(), Fault> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let agent = open_tree(CWD, layout::INIT, flags).map_err(|errno| Fault::new(layout::INIT, errno))?;
    machine.agent = Some(agent);
    Ok(())
}

/// The old root goes on top of the new one and is let go: no path leads to it any more.
pub(super) fn switch(_: &mut Machine) -> Result<(), Fault> {
    let failed = |errno| Fault::new(ROOT, errno);
    chdir(ROOT).map_err(failed)?;
    pivot_root(".", ".").map_err(failed)?;
    unmount(".", UnmountFlags::DETACH).map_err(|errno| Fault::new("the old root", errno))?;
    chdir("/").map_err(|errno| Fault::new("/", errno))
}

pub(super) fn install_agent(machine: &mut Machine) -> Result<(), Fault> {
    let failed = |errno| Fault::new(layout::AGENT, errno);
    let agent = machine.agent.take().ok_or_else(|| Fault::new(layout::AGENT, "it was not taken along"))?;
    if let Some(directory) = std::path::Path::new(layout::AGENT).parent() {
        mounts::make_root_held(directory, 0o755)?;
    }
    if fs::symlink_metadata(layout::AGENT).is_err() {
        fs::write(layout::AGENT, "").map_err(|error| Fault::new(layout::AGENT, error))?;
    }
    move_mount(&agent, "", CWD, layout::AGENT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(layout::AGENT, flags, "").map_err(failed)
}
