//! The gateway's signing key on disk: `signing.pem`, `public.pem` and `kid` in a directory of their own, and in
//! `verify/` the public keys whose tokens count as well.
//!
//! The directory appears whole or not at all (it is made beside its place and renamed). Once there it is only ever
//! read: complete and consistent it is used as it is, anything else is refused with the remedy. It is never replaced
//! but by [`Fresh::replace`], which somebody has to ask for.

use std::{fmt, path::Path, sync::Arc};

use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, KeypairBytes,
        spki::der::pem::LineEnding,
    },
};
use rand::{TryRng as _, rngs::SysRng};
use secrecy::{ExposeSecret as _, SecretString};

pub use super::secret_dir::KeyError;
use super::secret_dir::{Readers, SecretDir, Secrets};
use super::{mint, ring::Ring, ring::key_id};

mod retired;

/// The private key, PKCS#8, in the key directory.
pub const SIGNING_FILE: &str = "signing.pem";
/// The public key, SubjectPublicKeyInfo, in the key directory.
pub const PUBLIC_FILE: &str = "public.pem";
/// The id of the key, in the key directory.
pub const KEY_ID_FILE: &str = "kid";
/// Public keys of earlier signing keys, in the key directory.
pub const VERIFY_DIR: &str = "verify";

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
    ///
    /// # Errors
    /// [`KeyError`]: incomplete, inconsistent, exposed to others, or unreadable.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        match Self::load(dir) {
            Err(KeyError::Missing { .. }) => {
                Fresh::make(dir)?.create(dir)?;
                Self::load(dir)
            }
            loaded => loaded,
        }
    }

    /// Reads the directory; [`KeyError::Missing`] where there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        place(dir).check(&[SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE])?;
        read(place(dir))
    }

    /// Whether these are the keys of a state directory that knows `known`: the signing key is, or one that still counts.
    pub fn belong_to(&self, known: &[String]) -> bool {
        known.is_empty() || known.iter().any(|kid| self.ring.get(kid).is_some())
    }

    /// Removes what a replacement that was cut short left beside the directory.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear_leftover(dir: &Path) -> Result<(), KeyError> {
        place(dir).clear()
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

    /// The ids of the other keys whose tokens count.
    pub fn retired(&self) -> Vec<&str> {
        self.ring.key_ids().filter(|kid| *kid != self.kid()).collect()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("kid", &self.kid()).finish_non_exhaustive()
    }
}

/// A key pair that is on no disk yet.
pub struct Fresh {
    kid: String,
    private_pem: SecretString,
    public_pem: String,
}

impl Fresh {
    /// From the system's randomness; `dir` is for messages.
    ///
    /// # Errors
    /// The system gives none.
    pub fn make(dir: &Path) -> Result<Self, KeyError> {
        let failed = |act, cause: String| KeyError::Io { act, path: dir.into(), cause };
        let mut seed = [0_u8; 32];
        SysRng
            .try_fill_bytes(&mut seed)
            .map_err(|error| failed("get randomness from the system for", error.to_string()))?;
        let public = SigningKey::from_bytes(&seed).verifying_key();
        // PKCS#8 version 1, without the public half: version 2 is not read everywhere.
        let private_pem = KeypairBytes { secret_key: seed, public_key: None }
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| failed("encode a key for", error.to_string()))?;
        let public_pem = public_pem(&public).map_err(|cause| failed("encode a key for", cause))?;
        Ok(Self { kid: key_id(&public), private_pem: private_pem.as_str().into(), public_pem })
    }

    /// The id that tokens of this key will name.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Makes the directory, which is not there.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn create(&self, dir: &Path) -> Result<(), KeyError> {
        self.files(dir, &Ring::new(), |files| place(dir).create(files))
    }

    /// Puts the directory in the place of whatever is there, in one step. Tokens of the keys in `retired` count on.
    /// What was replaced stays beside it until [`Keys::clear_leftover`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn replace(&self, dir: &Path, retired: &Ring) -> Result<(), KeyError> {
        self.files(dir, retired, |files| place(dir).exchange(files))
    }

    fn files<T>(
        &self,
        dir: &Path,
        retired: &Ring,
        put: impl FnOnce(&[(&str, &[u8])]) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let kid = format!("{}\n", self.kid);
        let retired = retired::files(dir, retired)?;
        let mut files = vec![
            (SIGNING_FILE, self.private_pem.expose_secret().as_bytes()),
            (PUBLIC_FILE, self.public_pem.as_bytes()),
            (KEY_ID_FILE, kid.as_bytes()),
        ];
        files.extend(retired.iter().map(|(name, pem)| (name.as_str(), pem.as_bytes())));
        put(&files)
    }
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The public keys in `dir` whose tokens are to count on when it is replaced: those of a directory that is whole and
/// belongs to a state directory that knows `known`; of one that is broken the public key alone, if it is known. None
/// of one that others could read or write: whoever has its key could still make tokens.
pub fn to_retire(dir: &Path, known: &[String]) -> Ring {
    match Keys::load(dir) {
        Ok(keys) if keys.belong_to(known) => keys.ring,
        Err(KeyError::Partial { .. } | KeyError::Foreign { .. } | KeyError::Verify { .. }) => {
            let mut ring = Ring::new();
            let kid = read_public(place(dir)).ok().and_then(|public| ring.insert(public));
            let ours = kid.is_some_and(|kid| known.is_empty() || known.contains(&kid));
            if ours { ring } else { Ring::new() }
        }
        _ => Ring::new(),
    }
}

fn place(dir: &Path) -> SecretDir<'_> {
    SecretDir { path: dir, secrets: Secrets::SigningKeys }
}

fn public_pem(key: &VerifyingKey) -> Result<String, String> {
    key.to_public_key_pem(LineEnding::LF).map_err(|error| error.to_string())
}

fn read_public(dir: SecretDir<'_>) -> Result<VerifyingKey, KeyError> {
    let public = dir.read(PUBLIC_FILE, Readers::Anybody)?;
    VerifyingKey::from_public_key_pem(public.expose_secret())
        .map_err(|_| dir.foreign(PUBLIC_FILE, "is not an Ed25519 public key in PEM"))
}

fn read(dir: SecretDir<'_>) -> Result<Keys, KeyError> {
    let signing = dir.read(SIGNING_FILE, Readers::Owner)?;
    let signing = SigningKey::from_pkcs8_pem(signing.expose_secret())
        .map_err(|_| dir.foreign(SIGNING_FILE, "is not an Ed25519 private key in PKCS#8 PEM"))?;
    let public = read_public(dir)?;
    if public != signing.verifying_key() {
        return Err(dir.foreign(PUBLIC_FILE, "is not the public half of signing.pem"));
    }
    let kid = dir.read(KEY_ID_FILE, Readers::Anybody)?;
    let signer = Signer::new(signing);
    if kid.expose_secret().trim_end() != signer.kid() {
        return Err(dir.foreign(KEY_ID_FILE, "does not name the key in signing.pem"));
    }
    let mut ring = Ring::new();
    ring.insert(public).ok_or_else(|| dir.foreign(PUBLIC_FILE, "is a key of small order"))?;
    retired::read(&dir.path.join(VERIFY_DIR), &mut ring)?;
    Ok(Keys { signer, ring })
}

#[cfg(test)]
mod tests;
