//! A directory of secret files that appears whole or not at all, belongs to one user, and is only ever read after.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use secrecy::SecretString;

/// What a directory of secrets holds: what is to be done about a broken one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// With what tokens are signed.
    SigningKeys,
    /// With what the TLS listener and its users know each other.
    Certificates,
}

impl Secrets {
    fn remedy(self) -> &'static str {
        match self {
            Self::SigningKeys => {
                "restore the key directory as a whole from a backup, or make new keys with `openshell gateway init \
                 --new-keys` (running sandboxes get tokens of the new key from the next gateway start and go on)"
            }
            Self::Certificates => {
                "restore the certificate directory as a whole from a backup, or remove it to have new certificates made \
                 (copies of the client certificate then have to be renewed; sandboxes are not concerned)"
            }
        }
    }
}

impl fmt::Display for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SigningKeys => "key directory",
            Self::Certificates => "certificate directory",
        })
    }
}

/// Why secrets cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// There is no such directory.
    #[error("{secrets} {} does not exist: {}", .dir.display(), .secrets.remedy())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// Of what.
        secrets: Secrets,
    },
    /// Some files are there, some are not.
    #[error("{secrets} {} is incomplete, {missing} missing: {}", .dir.display(), .secrets.remedy())]
    Partial {
        /// The directory.
        dir: PathBuf,
        /// Of what.
        secrets: Secrets,
        /// Names of the absent files.
        missing: String,
    },
    /// A file is not what this gateway writes, or does not belong to the others.
    #[error("{} {what}: {}", .path.display(), .secrets.remedy())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Of what.
        secrets: Secrets,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else could read or replace the key.
    #[error("{} {what}: it has to belong to the gateway's user, {remedy}", .path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The command that puts it right.
        remedy: String,
    },
    /// Something among the further verification keys is none.
    #[error("{} {what}: {remedy}; tokens of a key that is not there are refused", .path.display())]
    Verify {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The state directory came without its key directory.
    #[error(
        "key directory {} is missing, and the key {kid} of this state directory with it: restore it from where the state \
         directory was copied, or make new keys with `openshell gateway init --new-keys` (tokens of the old key are then \
         refused; running sandboxes get new ones from the next gateway start and go on)", .dir.display()
    )]
    Lost {
        /// Where it was looked for.
        dir: PathBuf,
        /// The key that the store knows.
        kid: String,
    },
    /// The key directory is that of another state directory.
    #[error(
        "key directory {} holds the key {found}, which is not the key of this state directory ({kid}), nor is that one among \
         its verification keys: restore the right one from where the state directory was copied, or make new keys with \
         `openshell gateway init --new-keys`", .dir.display()
    )]
    Other {
        /// The key directory.
        dir: PathBuf,
        /// The key in it.
        found: String,
        /// The key that the store knows.
        kid: String,
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
}

/// Whom a file may be read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner alone.
    Owner,
    /// Anybody; only its owner writes.
    Anybody,
}

/// One directory of secrets, there or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct SecretDir<'a> {
    pub(super) path: &'a Path,
    pub(super) secrets: Secrets,
}

impl SecretDir<'_> {
    /// Checks that it is there, belongs to this user alone and holds all of `names`.
    pub(super) fn check(self, names: &[&str]) -> Result<(), KeyError> {
        let Self { path: dir, secrets } = self;
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing { dir: dir.into(), secrets });
            }
            Err(error) => return Err(failed("inspect", dir, &error)),
            Ok(metadata) if !metadata.is_dir() => return Err(self.foreign("", "is not a directory")),
            Ok(metadata) => private(dir, &metadata, 0o077, "chmod 0700")?,
        }
        let absent = |name: &&str| fs::symlink_metadata(dir.join(name)).is_err();
        let missing: Vec<_> = names.iter().copied().filter(absent).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(KeyError::Partial { dir: dir.into(), secrets, missing: missing.join(" and ") })
    }

    /// Reads one file.
    pub(super) fn read(self, name: &str, readers: Readers) -> Result<SecretString, KeyError> {
        let path = self.path.join(name);
        let metadata = fs::symlink_metadata(&path).map_err(|error| failed("inspect", &path, &error))?;
        if !metadata.is_file() {
            return Err(self.foreign(name, "is not a regular file"));
        }
        let forbidden = match readers {
            Readers::Owner => 0o077,
            Readers::Anybody => 0o022,
        };
        private(&path, &metadata, forbidden, "chmod 0600")?;
        fs::read_to_string(&path).map(SecretString::from).map_err(|error| failed("read", &path, &error))
    }

    /// A file that does not belong here; the directory itself where `name` is empty.
    pub(super) fn foreign(self, name: &str, what: impl Into<String>) -> KeyError {
        let path = if name.is_empty() { self.path.into() } else { self.path.join(name) };
        KeyError::Foreign { path, secrets: self.secrets, what: what.into() }
    }

    /// Makes it with all of its files, 0600 in 0700, beside its place, and renames it. A name may have one directory.
    pub(super) fn create(self, files: &[(&str, &[u8])]) -> Result<(), KeyError> {
        let fresh = self.stage(files)?;
        fs::rename(&fresh, self.path).map_err(|error| failed("put in place", self.path, &error))?;
        self.sync_place()
    }

    /// The same, in the place of what is there, which is then beside it under the name of [`Self::beside`]: at no
    /// moment is there neither the old nor the new one.
    pub(super) fn exchange(self, files: &[(&str, &[u8])]) -> Result<(), KeyError> {
        let fresh = self.stage(files)?;
        match renameat_with(CWD, &fresh, CWD, self.path, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => {
                fs::rename(&fresh, self.path).map_err(|error| failed("put in place", self.path, &error))?;
            }
            Err(errno) => return Err(failed("replace", self.path, &errno.into())),
        }
        self.sync_place()
    }

    /// Removes what a process that was killed left beside the directory, and what was exchanged.
    pub(super) fn clear(self) -> Result<(), KeyError> {
        let beside = self.beside();
        let removed = match fs::symlink_metadata(&beside) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&beside),
            Ok(_) => fs::remove_file(&beside),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove leftover", &beside, &error)),
            _ => Ok(()),
        }
    }

    fn beside(self) -> PathBuf {
        self.path.with_extension("new")
    }

    fn stage(self, files: &[(&str, &[u8])]) -> Result<PathBuf, KeyError> {
        // What a process that was killed here left behind was never in use.
        self.clear()?;
        let fresh = self.beside();
        let make = |dir: &Path| {
            let made = fs::DirBuilder::new().mode(0o700).create(dir);
            made.map_err(|error| failed("create key directory", dir, &error))
        };
        make(&fresh)?;
        let mut below: Option<PathBuf> = None;
        for (name, content) in files {
            let path = fresh.join(name);
            if let Some(parent) = path.parent().filter(|parent| *parent != fresh)
                && below.as_deref() != Some(parent)
            {
                make(parent)?;
                below = Some(parent.to_owned());
            }
            write(&path, content)?;
        }
        if let Some(below) = below {
            sync(&below)?;
        }
        sync(&fresh)?;
        Ok(fresh)
    }

    fn sync_place(self) -> Result<(), KeyError> {
        sync(self.path.parent().unwrap_or(Path::new("/")))
    }
}

/// Refuses what belongs to somebody else or has one of the `forbidden` permission bits.
pub(super) fn private(path: &Path, metadata: &fs::Metadata, forbidden: u32, command: &str) -> Result<(), KeyError> {
    let remedy =
        || format!("chown and {command} {} after making sure that the key is not known to others", path.display());
    let owner = rustix::process::geteuid().as_raw();
    if metadata.uid() != owner {
        let what = format!("belongs to uid {}, not to {owner}", metadata.uid());
        return Err(KeyError::Exposed { path: path.into(), what, remedy: remedy() });
    }
    if metadata.mode() & forbidden != 0 {
        let what = format!("has permissions {:04o}", metadata.mode() & 0o7777);
        return Err(KeyError::Exposed { path: path.into(), what, remedy: remedy() });
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(|error| failed("write", path, &error))
}

fn sync(dir: &Path) -> Result<(), KeyError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| failed("sync directory", dir, &error))
}

pub(super) fn failed(act: &'static str, path: &Path, error: &io::Error) -> KeyError {
    KeyError::Io { act, path: path.into(), cause: error.to_string() }
}
