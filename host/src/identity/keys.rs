//! The gateway's signing key on disk: `signing.pem`, `public.pem` and `kid` in a directory of their own.
//!
//! The directory appears whole or not at all (it is made beside its place and renamed). Once there it is only ever
//! read: complete and consistent it is used as it is, anything else is refused with the remedy, because a key that is
//! silently replaced locks out every sandbox that holds a token of the old one.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use rand::{TryRng as _, rngs::SysRng};
use secrecy::{ExposeSecret as _, SecretString};

use super::{mint, ring::Ring, ring::key_id};

/// The private key, PKCS#8, in the key directory.
pub const SIGNING_FILE: &str = "signing.pem";
/// The public key, SubjectPublicKeyInfo, in the key directory.
pub const PUBLIC_FILE: &str = "public.pem";
/// The id of the key, in the key directory.
pub const KEY_ID_FILE: &str = "kid";

/// Why there are no keys.
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

/// A signing key with its id. Cheap to clone; the key is wiped with the last clone.
#[derive(Clone)]
pub struct Signer {
    key: Arc<SigningKey>,
    kid: Arc<str>,
    header: Arc<str>,
}

impl Signer {
    /// Takes a key; its id follows from it.
    pub fn new(key: SigningKey) -> Self {
        let kid = key_id(&key.verifying_key());
        Self { header: mint::header(&kid).into(), kid: kid.into(), key: Arc::new(key) }
    }

    /// The id that tokens of this signer name.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The encoded header of every token of this signer.
    pub(super) fn header(&self) -> &str {
        &self.header
    }

    /// The key itself, for minting.
    pub(super) fn key(&self) -> &SigningKey {
        &self.key
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// What the key directory holds.
#[derive(Clone)]
pub struct Keys {
    signer: Signer,
    ring: Ring,
}

impl Keys {
    /// Reads the directory, or makes it where there is none. The caller holds the lock of the state directory.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        match Self::load(dir) {
            Err(KeyError::Missing { .. }) => {
                create(dir)?;
                Self::load(dir)
            }
            loaded => loaded,
        }
    }

    /// Reads the directory; [`KeyError::Missing`] where there is none.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeyError::Missing { dir: dir.into() }),
            Err(error) => Err(failed("inspect key directory", dir, &error)),
            Ok(metadata) if !metadata.is_dir() => {
                Err(KeyError::Foreign { path: dir.into(), what: "is not a directory".into() })
            }
            Ok(metadata) => {
                private(dir, &metadata, 0o077, "chmod 0700")?;
                read(dir)
            }
        }
    }

    /// Signs new tokens.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Verifies tokens.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The id of the signing key.
    pub fn kid(&self) -> &str {
        self.signer.kid()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("kid", &self.kid()).finish_non_exhaustive()
    }
}

fn read(dir: &Path) -> Result<Keys, KeyError> {
    let present = |name: &&str| fs::symlink_metadata(dir.join(name)).is_ok();
    let missing: Vec<_> = [SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE].into_iter().filter(|name| !present(name)).collect();
    if !missing.is_empty() {
        return Err(KeyError::Partial { dir: dir.into(), missing: missing.join(" and ") });
    }
    let foreign = |name: &str, what: &str| KeyError::Foreign { path: dir.join(name), what: what.into() };

    let signing = read_file(&dir.join(SIGNING_FILE), 0o077)?;
    let signing = SigningKey::from_pkcs8_pem(signing.expose_secret())
        .map_err(|_| foreign(SIGNING_FILE, "is not an Ed25519 private key in PKCS#8 PEM"))?;
    let public = read_file(&dir.join(PUBLIC_FILE), 0o022)?;
    let public = VerifyingKey::from_public_key_pem(public.expose_secret())
        .map_err(|_| foreign(PUBLIC_FILE, "is not an Ed25519 public key in PEM"))?;
    if public != signing.verifying_key() {
        return Err(foreign(PUBLIC_FILE, "is not the public half of signing.pem"));
    }
    let kid = read_file(&dir.join(KEY_ID_FILE), 0o022)?;
    let signer = Signer::new(signing);
    if kid.expose_secret().trim_end() != signer.kid() {
        return Err(foreign(KEY_ID_FILE, "does not name the key in signing.pem"));
    }
    let mut ring = Ring::new();
    ring.insert(public).ok_or_else(|| foreign(PUBLIC_FILE, "is a key of small order"))?;
    Ok(Keys { signer, ring })
}

fn read_file(path: &Path, forbidden: u32) -> Result<SecretString, KeyError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| failed("inspect", path, &error))?;
    if !metadata.is_file() {
        return Err(KeyError::Foreign { path: path.into(), what: "is not a regular file".into() });
    }
    private(path, &metadata, forbidden, "chmod 0600")?;
    fs::read_to_string(path).map(SecretString::from).map_err(|error| failed("read", path, &error))
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

fn create(dir: &Path) -> Result<(), KeyError> {
    let mut seed = [0_u8; 32];
    SysRng.try_fill_bytes(&mut seed).map_err(|error| KeyError::Io {
        act: "get randomness from the system for",
        path: dir.into(),
        cause: error.to_string(),
    })?;
    let signing = SigningKey::from_bytes(&seed);
    // PKCS#8 version 1, without the public half: version 2 is not read everywhere.
    let pem = KeypairBytes { secret_key: seed, public_key: None };
    let unencodable = |_| KeyError::Foreign { path: dir.into(), what: "cannot hold an unencodable key".into() };
    let private_pem =
        ed25519_dalek::pkcs8::EncodePrivateKey::to_pkcs8_pem(&pem, LineEnding::LF).map_err(unencodable)?;
    let public = signing.verifying_key();
    let public_pem = public
        .to_public_key_pem(LineEnding::LF)
        .map_err(|_| KeyError::Foreign { path: dir.into(), what: "cannot hold an unencodable key".into() })?;

    // What a gateway that was killed here left behind was never in use.
    let fresh = dir.with_extension("new");
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove leftover", &fresh, &error)),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(|error| failed("create key directory", &fresh, &error))?;
    write(&fresh.join(SIGNING_FILE), private_pem.as_bytes())?;
    write(&fresh.join(PUBLIC_FILE), public_pem.as_bytes())?;
    write(&fresh.join(KEY_ID_FILE), format!("{}\n", key_id(&public)).as_bytes())?;
    sync(&fresh)?;
    fs::rename(&fresh, dir).map_err(|error| failed("put in place key directory", dir, &error))?;
    sync(dir.parent().unwrap_or(Path::new("/")))
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

fn failed(act: &'static str, path: &Path, error: &io::Error) -> KeyError {
    KeyError::Io { act, path: path.into(), cause: error.to_string() }
}

#[cfg(test)]
mod tests;
