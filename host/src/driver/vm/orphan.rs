//! A VM whose runtime directory somebody removed while no gateway ran: its keeper holds a lock on a file that has no
//! name any more, and so cannot be asked who holds it. The list of processes is all that is left to find it by.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use proto::layout;
use rustix::process::{Pid, geteuid};
use uuid::Uuid;

use super::keeper::Keeper;

/// What the kernel adds to the name of an open file that was removed.
const REMOVED: &str = " (deleted)";

/// The keepers of wanted sandboxes below this directory, lock or no lock. A jailed child has its sandbox's id on its
/// command line; its parent is a keeper if it has the run lock of that sandbox open, which also tells the VMs of this
/// gateway from those of another one.
pub(super) fn search(root: &Path, wanted: impl Fn(Uuid) -> bool) -> io::Result<Vec<(Uuid, Keeper)>> {
    // The kernel names files without symbolic links. Where this directory is gone, too, its name must do.
    let resolved = root.parent().and_then(|above| Some(above.canonicalize().ok()?.join(root.file_name()?)));
    let root = resolved.as_deref().unwrap_or(root);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let Some(id) = unless_gone(fs::read(of(child, "cmdline")))?.and_then(|line| jailed(&line)) else { continue };
        if !wanted(id) {
            continue;
        }
        let lock = root.join(id.to_string()).join(layout::RUN_DIR).join(layout::RUN_LOCK);
        if let Some(keeper) = keeper_of(child, &lock)? {
            found.push((id, keeper));
        }
    }
    Ok(found)
}

fn keeper_of(child: Pid, lock: &Path) -> io::Result<Option<Keeper>> {
    let Some(pid) = parent(child)? else { return Ok(None) };
    let Some(keeper) = Keeper::open(pid)? else { return Ok(None) };
    let own = unless_gone(fs::metadata(of(pid, "")))?.is_some_and(|data| data.uid() == geteuid().as_raw());
    let is_keeper = own && has_open(pid, lock)?;
    // Alive after all that: so the number meant this process the whole time.
    Ok((is_keeper && keeper.is_alive()).then_some(keeper))
}

fn parent(child: Pid) -> io::Result<Option<Pid>> {
    let status = unless_gone(fs::read_to_string(of(child, "status")))?.unwrap_or_default();
    let number = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    Ok(number.and_then(Pid::from_raw))
}

fn has_open(pid: Pid, file: &Path) -> io::Result<bool> {
    let mut removed = file.as_os_str().to_owned();
    removed.push(REMOVED);
    let Some(descriptors) = unless_gone(fs::read_dir(of(pid, "fd")))? else { return Ok(false) };
    for descriptor in descriptors {
        let Some(descriptor) = unless_gone(descriptor)? else { return Ok(false) };
        let Some(name) = unless_gone(fs::read_link(descriptor.path()))? else { continue };
        if name == file || name.as_os_str() == removed {
            return Ok(true);
        }
    }
    Ok(false)
}

fn of(pid: Pid, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join(name)
}

/// The sandbox whose VM a process with this command line is.
fn jailed(command_line: &[u8]) -> Option<Uuid> {
    let mut words = command_line.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let (program, command, id) = (words.next()?, words.next()?, words.next()?);
    let is_jail = program == b"openshell-vmm" && command == b"jail" && words.next().is_none();
    is_jail.then(|| Uuid::try_parse_ascii(id).ok()).flatten()
}

/// Nothing about a process that ended meanwhile, or that is none of this user's business.
fn unless_gone<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_command_line_of_a_jailed_child_names_a_sandbox() {
        let id = Uuid::from_u128(7);
        assert_eq!(jailed(format!("openshell-vmm\0jail\0{id}\0").as_bytes()), Some(id));
        for other in [
            "".to_owned(),
            "openshell-vmm\0run\0".to_owned(),
            "openshell-vmm\0jail\0probe\0".to_owned(),
            format!("openshell-vmm\0jail\0{id}"),
            format!("openshell-vmm\0jail\0{id}\0more\0"),
            format!("grep\0jail\0{id}\0"),
            format!("sh\0-c\0openshell-vmm jail {id}\0"),
        ] {
            assert_eq!(jailed(other.as_bytes()), None, "{other:?}");
        }
    }
}
