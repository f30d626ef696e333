//! The identity directory of one sandbox, from the host's side.
//!
//! `share/` is what the guest sees, `stage/` where a file is written before it is renamed into `share/`: a reader sees
//! the old file or the new one, never half of one. Both are held by descriptor for as long as the sandbox lives,
//! because the guest has pinned the inode of `share/`, and that one, not whatever is at its path, is where the token
//! has to go. The directory is on a tmpfs: no write waits for a disk, and nothing of it outlives the machine.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, fchown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{
    boot::BootSpec,
    budget::{BOOT_SPEC_MAX, TOKEN_FILE_MAX},
    layout::{BOOT_SPEC_FILE, SHARE_DIR, STAGE_DIR, TOKEN_FILE},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::faults;
use crate::tmpfs::is_tmpfs;

/// Permissions of the files; the owner is the one user that reads them.
pub(super) const FILE_MODE: u32 = 0o400;

/// Why a file is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Tokens are never written to a disk.
    #[error("{} is not on a tmpfs: set the runtime directory to a place on one, for example below /dev/shm", .path.display())]
    NotTmpfs {
        /// The runtime directory.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("failed to {act} {}: {cause}", .path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        cause: String,
    },
    /// A boot spec that no agent would read.
    #[error("failed to publish boot spec in {}: {cause}", .path.display())]
    BootSpec {
        /// Where to.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// See the module. Also remembers what it has put there, so that an audit can compare and restore. A clone holds the
/// same directory by the same descriptors.
#[derive(Debug, Clone)]
pub struct IdentityDirectory {
    pub(super) root: PathBuf,
    pub(super) share: Arc<OwnedFd>,
    pub(super) stage: Arc<OwnedFd>,
    pub(super) owner: Option<(u32, u32)>,
    token: Option<SecretString>,
    boot_spec: Option<SecretString>,
}

impl IdentityDirectory {
    /// Makes `share/` and `stage/` anew in a sandbox's runtime directory. No compute may be running: what an earlier
    /// boot has left there is removed. `owner` is who the vmm runs as, where that is not the gateway's own user.
    pub fn create(runtime_dir: &Path, owner: Option<(u32, u32)>) -> Result<Self, PublishError> {
        if !on_tmpfs(runtime_dir)? {
            return Err(PublishError::NotTmpfs { path: runtime_dir.into() });
        }
        for name in [SHARE_DIR, STAGE_DIR] {
            let path = runtime_dir.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove old", &path, &error));
                }
                _ => {}
            }
            let made = fs::DirBuilder::new().mode(0o700).create(&path);
            made.map_err(|error| failed("create", &path, &error))?;
        }
        let directory = Self::hold(runtime_dir, owner)?;
        directory.set_share_mode()?;
        Ok(directory)
    }

    /// Takes over the directory of a running VM with what it finds there: the boot spec cannot be made again, and the
    /// token is to stay until there is a new one.
    pub fn open(runtime_dir: &Path, owner: Option<(u32, u32)>) -> Result<Self, PublishError> {
        if !on_tmpfs(runtime_dir)? {
            return Err(PublishError::NotTmpfs { path: runtime_dir.into() });
        }
        let mut directory = Self::hold(runtime_dir, owner)?;
        directory.token = directory.read(TOKEN_FILE, TOKEN_FILE_MAX).map(SecretString::from);
        directory.boot_spec = directory.read(BOOT_SPEC_FILE, BOOT_SPEC_MAX).map(SecretString::from);
        Ok(directory)
    }

    fn hold(root: &Path, owner: Option<(u32, u32)>) -> Result<Self, PublishError> {
        let share = open_directory(&root.join(SHARE_DIR))?.into();
        let stage = open_directory(&root.join(STAGE_DIR))?.into();
        Ok(Self { root: root.into(), share, stage, owner, token: None, boot_spec: None })
    }

    /// Puts a token in place of the one before.
    pub fn put_token(&mut self, token: &SecretString) -> Result<(), PublishError> {
        self.put(TOKEN_FILE, token.expose_secret())?;
        self.token = Some(token.clone());
        Ok(())
    }

    /// Puts the boot spec there.
    pub fn put_boot_spec(&mut self, boot_spec: &BootSpec) -> Result<(), PublishError> {
        let refused = |cause: String| PublishError::BootSpec { path: self.root.clone(), cause };
        let json = serde_json::to_string(boot_spec).map_err(|error| refused(error.to_string()))?;
        if json.len() > BOOT_SPEC_MAX {
            return Err(refused(format!("it has {} bytes, an agent reads at most {BOOT_SPEC_MAX}", json.len())));
        }
        let json = SecretString::from(json);
        self.put(BOOT_SPEC_FILE, json.expose_secret())?;
        self.boot_spec = Some(json);
        Ok(())
    }

    /// The boot spec that is there, if it can be read.
    #[cfg(test)]
    fn boot_spec(&self) -> Option<BootSpec> {
        serde_json::from_str(self.boot_spec.as_ref()?.expose_secret()).ok()
    }

    /// Takes the token away: a stopped sandbox has none on disk.
    pub fn remove_token(&mut self) -> Result<(), PublishError> {
        self.token = None;
        for (directory, path) in [(&self.share, self.share_path()), (&self.stage, self.stage_path())] {
            match rustix::fs::unlinkat(directory, TOKEN_FILE, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("remove", &path.join(TOKEN_FILE), &error.into())),
            }
        }
        Ok(())
    }

    /// The token that is there.
    pub(super) fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// What should be in `share/`.
    pub(super) fn expected(&self) -> impl Iterator<Item = (&'static str, &SecretString)> {
        [(TOKEN_FILE, &self.token), (BOOT_SPEC_FILE, &self.boot_spec)]
            .into_iter()
            .filter_map(|(name, content)| Some((name, content.as_ref()?)))
    }

    /// Write beside, then rename. On a tmpfs there is nothing to sync. Nothing stays in the stage after a failure.
    pub(super) fn put(&self, name: &'static str, content: &str) -> Result<(), PublishError> {
        self.write_staged(name, content).inspect_err(|_| {
            // Where this fails too, the next attempt takes the leftover away.
            let _leftover = rustix::fs::unlinkat(&self.stage, name, AtFlags::empty());
        })
    }

    fn write_staged(&self, name: &'static str, content: &str) -> Result<(), PublishError> {
        let path = || self.stage_path().join(name);
        let mut file = self.stage_file(name).map_err(|error| failed("create", &path(), &error.into()))?;
        file.write_all(content.as_bytes()).map_err(|error| failed("write", &path(), &error))?;
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(uid), Some(gid)).map_err(|error| failed("give away", &path(), &error))?;
        }
        faults::crash(faults::AFTER_STAGE);
        rustix::fs::renameat(&self.stage, name, &self.share, name)
            .map_err(|error| failed("put in place", &self.share_path().join(name), &error.into()))?;
        faults::crash(faults::AFTER_RENAME);
        Ok(())
    }

    /// A new file of that name; one that a killed gateway left half-written is taken away first.
    fn stage_file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let created = match rustix::fs::openat(&self.stage, name, flags, mode) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.stage, name, AtFlags::empty())?;
                rustix::fs::openat(&self.stage, name, flags, mode)
            }
            created => created,
        }?;
        // The umask may have taken bits away.
        rustix::fs::fchmod(&created, mode)?;
        Ok(created.into())
    }

    /// The content of a file in `share/`; nothing where it is no regular UTF-8 file of at most `limit` bytes. Opening
    /// must not hang on a FIFO or follow a link.
    pub(super) fn read(&self, name: &str, limit: usize) -> Option<String> {
        use std::io::Read as _;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.share, name, flags, Mode::empty()).ok()?);
        file.metadata().ok().filter(fs::Metadata::is_file)?;
        let mut content = String::new();
        file.take(limit as u64 + 1).read_to_string(&mut content).ok()?;
        (content.len() <= limit).then_some(content)
    }

    /// Gives `share/` to its reader. Only root can write to a directory that it has no write permission on; where the
    /// gateway is the owner itself, it needs one.
    pub(super) fn set_share_mode(&self) -> Result<(), PublishError> {
        let path = self.share_path();
        rustix::fs::fchmod(&self.share, Mode::from_raw_mode(self.share_mode()))
            .map_err(|error| failed("set permissions of", &path, &error.into()))?;
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        fchown(&self.share, Some(uid), Some(gid)).map_err(|error| failed("give away", &path, &error))
    }

    pub(super) fn share_mode(&self) -> u32 {
        if self.owner.is_some() { 0o500 } else { 0o700 }
    }

    pub(super) fn share_path(&self) -> PathBuf {
        self.root.join(SHARE_DIR)
    }

    pub(super) fn stage_path(&self) -> PathBuf {
        self.root.join(STAGE_DIR)
    }
}

fn on_tmpfs(path: &Path) -> Result<bool, PublishError> {
    is_tmpfs(path).map_err(|error| failed("inspect the file system of", path, &error))
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, PublishError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open directory", path, &error.into()))
}

pub(super) fn failed(act: &'static str, path: &Path, error: &io::Error) -> PublishError {
    PublishError::Io { act, path: path.into(), cause: error.to_string() }
}

#[cfg(test)]
pub(super) mod tests;
