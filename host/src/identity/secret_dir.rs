//! A directory of secret files that appears whole or not at all, belongs to one user, and is only ever read after.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use secrecy::SecretString;

/// Why secrets cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// There is no key directory.
    #[error("key directory {} does not exist: restore it from a backup, or start with an empty state directory", .dir.display())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Some files are there, some are not.
    #[error(
        "key directory {} is incomplete, {missing} missing: restore it from a backup, or remove the directory to have \
         new keys made (running sandboxes then have to be restarted)", .dir.display()
    )]
    Partial {
        /// The key directory.
        dir: PathBuf,
        /// Names of the absent files.
        missing: String,
    },
    /// A file is not what this gateway writes, or does not belong to the others.
    #[error(
        "{} {what}: restore the key directory as a whole from a backup, or remove it to have new keys made \
         (running sandboxes then have to be restarted)", .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
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

/// Checks that `dir` is there, belongs to this user alone and holds all of `names`.
pub(super) fn check(dir: &Path, names: &[&str]) -> Result<(), KeyError> {
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeyError::Missing { dir: dir.into() }),
        Err(error) => return Err(failed("inspect key directory", dir, &error)),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(KeyError::Foreign { path: dir.into(), what: "is not a directory".into() });
        }
        Ok(metadata) => private(dir, &metadata, 0o077, "chmod 0700")?,
    }
    let absent = |name: &&str| fs::symlink_metadata(dir.join(name)).is_err();
    let missing: Vec<_> = names.iter().copied().filter(absent).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(KeyError::Partial { dir: dir.into(), missing: missing.join(" and ") })
}

/// Reads one file.
pub(super) fn read(path: &Path, readers: Readers) -> Result<SecretString, KeyError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| failed("inspect", path, &error))?;
    if !metadata.is_file() {
        return Err(KeyError::Foreign { path: path.into(), what: "is not a regular file".into() });
    }
    let forbidden = match readers {
        Readers::Owner => 0o077,
        Readers::Anybody => 0o022,
    };
    private(path, &metadata, forbidden, "chmod 0600")?;
    fs::read_to_string(path).map(SecretString::from).map_err(|error| failed("read", path, &error))
}

/// Makes the directory with all of its files, 0600 in 0700, beside its place, and renames it.
pub(super) fn create(dir: &Path, files: &[(&str, &[u8])]) -> Result<(), KeyError> {
    // What a process that was killed here left behind was never in use.
    let fresh = dir.with_extension("new");
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove leftover", &fresh, &error)),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(|error| failed("create key directory", &fresh, &error))?;
    for (name, content) in files {
        write(&fresh.join(name), content)?;
    }
    sync(&fresh)?;
    fs::rename(&fresh, dir).map_err(|error| failed("put in place key directory", dir, &error))?;
    sync(dir.parent().unwrap_or(Path::new("/")))
}

/// Refuses what belongs to somebody else or has one of the `forbidden` permission bits.
fn private(path: &Path, metadata: &fs::Metadata, forbidden: u32, command: &str) -> Result<(), KeyError> {
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
