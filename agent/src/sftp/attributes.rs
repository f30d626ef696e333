//! What a file is, to a client, and what a client wants it to be.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, fchown};
use std::path::Path;

use russh_sftp::protocol::{File as Entry, FileAttributes};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, futimens, utimensat};

/// Of what a mode says, the part that a client may set.
const MODE: u32 = 0o7777;

/// For a client.
pub(super) fn of(metadata: &Metadata) -> FileAttributes {
    // The protocol has 32 bits.
    let seconds = |time: i64| Some(u32::try_from(time).unwrap_or_default());
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::default()
    }
}

/// One line of a listing.
pub(super) fn entry(name: &str, metadata: &Metadata) -> Entry {
    Entry::new(name, of(metadata))
}

/// The mode of a new file.
pub(super) fn mode(wanted: &FileAttributes, default: u32) -> u32 {
    wanted.permissions.map_or(default, |mode| mode & MODE)
}

/// Changes what is wanted of a path.
pub(super) fn set(path: &Path, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        File::options().write(true).open(path)?.set_len(size)?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        chown(path, wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.permissions {
        std::fs::set_permissions(path, Permissions::from_mode(mode & MODE))?;
    }
    match times(wanted) {
        Some(times) => Ok(utimensat(CWD, path, &times, AtFlags::empty())?),
        None => Ok(()),
    }
}

/// The same for an open file.
pub(super) fn set_open(file: &File, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        fchown(file, wanted.uid, wanted.gid)?;
    }
    if let Some(mode) = wanted.permissions {
        file.set_permissions(Permissions::from_mode(mode & MODE))?;
    }
    match times(wanted) {
        Some(times) => Ok(futimens(file, &times)?),
        None => Ok(()),
    }
}

/// They come together or not at all.
fn times(wanted: &FileAttributes) -> Option<Timestamps> {
    let at = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Some(Timestamps { last_access: at(wanted.atime?), last_modification: at(wanted.mtime?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "12345").unwrap();
        let wanted = FileAttributes {
            size: Some(3),
            permissions: Some(0o100_640),
            atime: Some(7),
            mtime: Some(1_000_000_000),
            ..FileAttributes::default()
        };
        set(&path, &wanted).unwrap();
        let told = of(&path.metadata().unwrap());
        assert_eq!((told.size, told.permissions, told.mtime), (Some(3), Some(0o100_640), Some(1_000_000_000)));
        let file = File::options().write(true).open(&path).unwrap();
        set_open(&file, &FileAttributes { permissions: Some(0o600), ..FileAttributes::default() }).unwrap();
        assert_eq!(of(&file.metadata().unwrap()).permissions, Some(0o100_600));
        assert_eq!(std::fs::read(&path).unwrap(), b"123");
    }
}
