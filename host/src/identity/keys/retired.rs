//! `verify/` in the key directory: public keys that sign nothing here, and whose tokens count until they are over.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;

use super::{KeyError, Ring, VERIFY_DIR, key_id, public_pem};
use crate::identity::secret_dir::{failed, private};

/// Files that may be there.
pub(super) const FILES_MAX: usize = 16;
/// The longest of them, in bytes.
pub(super) const FILE_MAX: usize = 4 * 1024;

/// Adds what is there to the ring; nothing where there is no such directory. The names of the files do not matter.
pub(super) fn read(dir: &Path, ring: &mut Ring) -> Result<(), KeyError> {
    let metadata = match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        inspected => inspected.map_err(|error| failed("inspect", dir, &error))?,
    };
    if !metadata.is_dir() {
        return Err(refused(dir, "is not a directory"));
    }
    private(dir, &metadata, 0o022, "chmod 0700")?;
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths: Vec<_> =
        entries.map_err(|error| failed("list", dir, &error))?.iter().map(fs::DirEntry::path).collect();
    if paths.len() > FILES_MAX {
        return Err(too_many(dir, paths.len()));
    }
    // So that of several bad ones it is always the same that is named.
    paths.sort_unstable();
    for path in paths {
        let key = read_key(&path)?;
        ring.insert(key).ok_or_else(|| refused(&path, "is a key of small order"))?;
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<VerifyingKey, KeyError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| failed("inspect", path, &error))?;
    if !metadata.is_file() {
        return Err(refused(path, "is not a regular file"));
    }
    if path.extension().is_none_or(|extension| extension != "pem") {
        return Err(refused(path, "is not named *.pem"));
    }
    private(path, &metadata, 0o022, "chmod 0600")?;
    let mut bytes = vec![];
    fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| failed("read", path, &error))?;
    if bytes.len() > FILE_MAX {
        return Err(refused(path, &format!("is longer than {FILE_MAX} bytes")));
    }
    let pem = std::str::from_utf8(&bytes).ok();
    pem.and_then(|pem| VerifyingKey::from_public_key_pem(pem).ok())
        .ok_or_else(|| refused(path, "is not an Ed25519 public key in PEM"))
}

/// The files of a new key directory that keep these keys, by their names in it.
pub(super) fn files(dir: &Path, ring: &Ring) -> Result<Vec<(String, String)>, KeyError> {
    let keys: Vec<_> = ring.keys().collect();
    if keys.len() > FILES_MAX {
        return Err(too_many(&dir.join(VERIFY_DIR), keys.len()));
    }
    let file = |key: &&VerifyingKey| {
        let pem = public_pem(key).map_err(|cause| KeyError::Io { act: "encode a key for", path: dir.into(), cause })?;
        Ok((format!("{VERIFY_DIR}/{}.pem", key_id(key)), pem))
    };
    keys.iter().map(file).collect()
}

fn refused(path: &Path, what: &str) -> KeyError {
    let remedy = "only Ed25519 public keys in PEM belong there, named *.pem; remove it, or put the key in its place";
    KeyError::Verify { path: path.into(), what: what.into(), remedy }
}

fn too_many(dir: &Path, count: usize) -> KeyError {
    let remedy = "remove those whose tokens are over, which is every key that was replaced more than an hour ago";
    KeyError::Verify { path: dir.into(), what: format!("has {count} keys, and {FILES_MAX} may be there"), remedy }
}
