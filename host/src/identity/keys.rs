//! The gateway's signing key on disk: `signing.pem`, `public.pem` and `kid` in a directory of their own.
//!
//! The directory appears whole or not at all (it is made beside its place and renamed). Once there it is only ever
//! read: complete and consistent it is used as it is, anything else is refused with the remedy, because a key that is
//! silently replaced locks out every sandbox that holds a token of the old one.

use std::{fmt, path::Path, sync::Arc};

use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use rand::{TryRng as _, rngs::SysRng};
use secrecy::ExposeSecret as _;

pub use super::secret_dir::KeyError;
use super::secret_dir::{self, Readers};
use super::{mint, ring::Ring, ring::key_id};

/// The private key, PKCS#8, in the key directory.
pub const SIGNING_FILE: &str = "signing.pem";
/// The public key, SubjectPublicKeyInfo, in the key directory.
pub const PUBLIC_FILE: &str = "public.pem";
/// The id of the key, in the key directory.
pub const KEY_ID_FILE: &str = "kid";

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
        secret_dir::check(dir, &[SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE])?;
        read(dir)
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
    let foreign = |name: &str, what: &str| KeyError::Foreign { path: dir.join(name), what: what.into() };

    let signing = secret_dir::read(&dir.join(SIGNING_FILE), Readers::Owner)?;
    let signing = SigningKey::from_pkcs8_pem(signing.expose_secret())
        .map_err(|_| foreign(SIGNING_FILE, "is not an Ed25519 private key in PKCS#8 PEM"))?;
    let public = secret_dir::read(&dir.join(PUBLIC_FILE), Readers::Anybody)?;
    let public = VerifyingKey::from_public_key_pem(public.expose_secret())
        .map_err(|_| foreign(PUBLIC_FILE, "is not an Ed25519 public key in PEM"))?;
    if public != signing.verifying_key() {
        return Err(foreign(PUBLIC_FILE, "is not the public half of signing.pem"));
    }
    let kid = secret_dir::read(&dir.join(KEY_ID_FILE), Readers::Anybody)?;
    let signer = Signer::new(signing);
    if kid.expose_secret().trim_end() != signer.kid() {
        return Err(foreign(KEY_ID_FILE, "does not name the key in signing.pem"));
    }
    let mut ring = Ring::new();
    ring.insert(public).ok_or_else(|| foreign(PUBLIC_FILE, "is a key of small order"))?;
    Ok(Keys { signer, ring })
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

    let kid = format!("{}\n", key_id(&public));
    let files =
        [(SIGNING_FILE, private_pem.as_bytes()), (PUBLIC_FILE, public_pem.as_bytes()), (KEY_ID_FILE, kid.as_bytes())];
    secret_dir::create(dir, &files)
}

#[cfg(test)]
mod tests;
