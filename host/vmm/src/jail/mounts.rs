//! The jail's file system: a tmpfs of a few inodes, read-only in the end.
//!
//! ```text
//! /image          the erofs image               bind, ro nosuid nodev noexec
//! /share/         the identity directory        bind, ro nosuid nodev noexec
//! /ctl/           where the gateway listens     bind, ro nosuid nodev noexec
//! /dev/kvm        a node of its own (root) or a bind of the host's
//! /proc/self/fd/  this process's own descriptors
//! ```

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mknod},
    unistd::{Gid, Uid, chdir, chown, pivot_root},
};
use proto::{layout, vmm::Failure};

use crate::{failure, jail::privileges::Caller, krun::GuestFiles, spec::SandboxFiles};

/// A directory that every Linux has and that none of the jail's sources lies in. The tmpfs covers it in this
/// process's own mount namespace, until it becomes the root.
const STAND: &str = "/sys";
pub(super) const KVM: &str = "/dev/kvm";
/// The names in the jail.
pub(super) const GUEST_FILES: GuestFiles =
    GuestFiles { image: c"/image", share: c"/share", socket: c"/ctl/gateway.sock" };

const SEALED: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Builds the jail and moves into it.
pub(super) fn enter_root(files: Option<&SandboxFiles>, caller: &Caller) -> Result<(), Failure> {
    // Nothing that happens here is seen outside, nor the other way round.
    step("make all mounts private", mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("mode=0755,size=64k,nr_inodes=32");
    step("mount the jail's tmpfs", mount(Some("tmpfs"), STAND, Some("tmpfs"), flags, options))?;
    let root = Path::new(STAND);

    if let Some(files) = files {
        bind(&files.image, &file(root.join("image"))?, SEALED)?;
        bind(&files.share, &directory(root.join("share"))?, SEALED)?;
        // The directory, never the socket: a bound socket is lost for ever when its listener is made anew.
        bind(&files.ctl, &directory(root.join("ctl"))?, SEALED)?;
    }
    directory(root.join("dev"))?;
    place_kvm(root, caller)?;
    // virtio-fs opens its files through /proc/self/fd, and libkrun the console. This one directory, bound by the
    // process that it belongs to, shows nobody else's.
    let descriptors = directory(root.join("proc/self/fd"))?;
    bind(Path::new("/proc/self/fd"), &descriptors, SEALED)?;

    step("enter the jail's tmpfs", chdir(root))?;
    // With the same directory twice the old root lies on top of the new one, and comes off in the next step.
    step("pivot to the jail's root", pivot_root(".", "."))?;
    step("detach the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the jail's root", chdir("/"))?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    step("make the jail's root read-only", mount(NONE, "/", NONE, flags, NONE))
}

/// As root a node of its own, which only the jail's uid may open, whatever the host's group and mode are.
fn place_kvm(root: &Path, caller: &Caller) -> Result<(), Failure> {
    let missing = |cause: String| {
        failure::kvm(
            format!("failed to find {KVM}: {cause}"),
            "load the module kvm_intel or kvm_amd, and switch hardware virtualisation on in the firmware (in a \
             virtual machine: nested virtualisation on its host)",
        )
    };
    let host = fs::metadata(KVM).map_err(|error| missing(error.to_string()))?;
    if !host.file_type().is_char_device() {
        return Err(missing("it is not a device".to_owned()));
    }
    let path = root.join(&KVM[1..]);
    match caller {
        Caller::Root { uid } => {
            let made = mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, host.rdev())
                .and_then(|()| chown(&path, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*uid))));
            step("make the jail's /dev/kvm", made)
        }
        Caller::User { .. } => bind(Path::new(KVM), &file(path)?, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
    }
}

const NONE: Option<&str> = None;

fn step(act: &str, result: nix::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| failure::jail(act, error))
}

/// Flags of a bind take effect only in a second step.
fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<(), Failure> {
    let made = mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)
        .and_then(|()| mount(NONE, target, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, NONE));
    step(&format!("bind {} into the jail", source.display()), made)
}

fn directory(path: std::path::PathBuf) -> Result<std::path::PathBuf, Failure> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(failure::jail(format!("create {} for the jail", path.display()), error)),
    }
}

fn file(path: std::path::PathBuf) -> Result<std::path::PathBuf, Failure> {
    match fs::write(&path, []) {
        Ok(()) => Ok(path),
        Err(error) => Err(failure::jail(format!("create {} for the jail", path.display()), error)),
    }
}

// The socket's name in the jail is a literal because C wants it terminated.
const _: () = {
    let (name, expected) = (GUEST_FILES.socket.to_bytes(), layout::CTL_SOCKET.as_bytes());
    let prefix = name.len() - expected.len();
    let mut i = 0;
    while i < expected.len() {
        assert!(name[prefix + i] == expected[i]);
        i += 1;
    }
};
