//! Looking at an identity directory: is it what it should be, and if not, can it be put right?

use std::{fmt, fs, os::unix::fs::DirBuilderExt as _};

use proto::budget::BOOT_SPEC_MAX;
use rustix::{
    fs::{AtFlags, Dir, FileType, Stat},
    io::Errno,
};
use secrecy::ExposeSecret as _;

use super::publish::{FILE_MODE, IdentityDirectory, PublishError, failed, open_directory};

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Exactly the right files with the right content.
    Sound,
    /// Something else, in the directory that the guest sees.
    Healable(Vec<Difference>),
    /// The directory that the guest sees was removed or replaced.
    DirectoryLost,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A file is not there.
    Missing(&'static str),
    /// Something else than a regular file has its name.
    NotRegular(&'static str),
    /// It has another owner or other permissions.
    Permissions(&'static str),
    /// It has another content: truncated, older, or somebody else's.
    Content(&'static str),
    /// There is something else in the directory.
    Unexpected(String),
    /// The directory itself has another owner or other permissions.
    SharePermissions,
    /// The directory that files are written in is gone.
    Stage,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "{name} was missing"),
            Self::NotRegular(name) => write!(f, "{name} was not a regular file"),
            Self::Permissions(name) => write!(f, "{name} had another owner or other permissions"),
            Self::Content(name) => write!(f, "{name} had another content"),
            Self::Unexpected(name) => write!(f, "{} does not belong there", name.escape_debug()),
            Self::SharePermissions => f.write_str("the share had another owner or other permissions"),
            Self::Stage => f.write_str("the stage was gone"),
        }
    }
}

impl IdentityDirectory {
    /// Compares what is on disk with what was put there. An error says that looking itself failed.
    pub fn inspect(&self) -> Result<Finding, PublishError> {
        let path = self.share_path();
        let looking = |error: Errno| failed("inspect", &path, &error.into());
        let held = rustix::fs::fstat(&self.share).map_err(looking)?;
        match rustix::fs::lstat(&path) {
            Ok(linked) if same_inode(&linked, &held) => {}
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Finding::DirectoryLost),
            Err(error) => return Err(looking(error)),
        }
        let mut differences = Vec::new();
        if held.st_mode & 0o7777 != self.share_mode() || !self.owned(&held) {
            differences.push(Difference::SharePermissions);
        }
        let stage = rustix::fs::fstat(&self.stage).map_err(looking)?;
        if !rustix::fs::lstat(self.stage_path()).is_ok_and(|linked| same_inode(&linked, &stage)) {
            differences.push(Difference::Stage);
        }
        for (name, content) in self.expected() {
            differences.extend(self.inspect_file(name, content.expose_secret()));
        }
        for entry in Dir::read_from(&self.share).map_err(looking)? {
            let name = entry.map_err(looking)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." && self.expected().all(|(expected, _)| expected != name) {
                differences.push(Difference::Unexpected(name));
            }
        }
        Ok(if differences.is_empty() { Finding::Sound } else { Finding::Healable(differences) })
    }

    fn inspect_file(&self, name: &'static str, content: &str) -> Vec<Difference> {
        let Ok(status) = rustix::fs::statat(&self.share, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return vec![Difference::Missing(name)];
        };
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return vec![Difference::NotRegular(name)];
        }
        let mut differences = vec![];
        if status.st_mode & 0o7777 != FILE_MODE || !self.owned(&status) {
            differences.push(Difference::Permissions(name));
        }
        let same = status.st_size as u64 == content.len() as u64
            && self.read(name, BOOT_SPEC_MAX).is_some_and(|found| found == content);
        if !same {
            differences.push(Difference::Content(name));
        }
        differences
    }

    fn owned(&self, status: &Stat) -> bool {
        let own = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        match self.owner {
            Some(owner) => (status.st_uid, status.st_gid) == owner,
            None => status.st_uid == own().0,
        }
    }

    /// Puts right what [`Self::inspect`] found.
    pub fn heal(&mut self, differences: &[Difference]) -> Result<(), PublishError> {
        // First what the others need.
        if differences.contains(&Difference::Stage) {
            self.renew_stage()?;
        }
        if differences.contains(&Difference::SharePermissions) {
            self.set_share_mode()?;
        }
        for difference in differences {
            match difference {
                Difference::Unexpected(name) => self.clear(name)?,
                Difference::NotRegular(name) => {
                    self.clear(name)?;
                    self.put_again(name)?;
                }
                Difference::Missing(name) | Difference::Permissions(name) | Difference::Content(name) => {
                    self.put_again(name)?;
                }
                Difference::Stage | Difference::SharePermissions => {}
            }
        }
        Ok(())
    }

    fn put_again(&self, name: &'static str) -> Result<(), PublishError> {
        let content = self.expected().find(|(expected, _)| *expected == name);
        content.map_or(Ok(()), |(name, content)| self.put(name, content.expose_secret()))
    }

    /// Removes whatever has that name in `share/`.
    fn clear(&self, name: &str) -> Result<(), PublishError> {
        let path = self.share_path().join(name);
        let removed = match rustix::fs::unlinkat(&self.share, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => fs::remove_dir_all(&path),
            Err(error) => Err(error.into()),
        };
        removed.map_err(|error| failed("remove", &path, &error))
    }

    fn renew_stage(&mut self) -> Result<(), PublishError> {
        let path = self.stage_path();
        match rustix::fs::lstat(&path).map(|status| FileType::from_raw_mode(status.st_mode)) {
            Ok(FileType::Directory) | Err(_) => {}
            Ok(_) => fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))?,
        }
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed("create", &path, &error));
            }
            _ => {}
        }
        self.stage = open_directory(&path)?.into();
        rustix::fs::fchmod(&self.stage, rustix::fs::Mode::RWXU)
            .map_err(|error| failed("set permissions of", &path, &error.into()))
    }
}

fn same_inode(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}
