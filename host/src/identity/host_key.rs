//! SSH host keys of sandboxes: derived from one seed and the sandbox's id, so that nothing is stored for each and a
//! sandbox keeps its key over stop and start.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The seed, in the state directory.
pub const SEED_FILE: &str = "ssh_host.seed";
const DOMAIN: &[u8] = b"openshell sandbox ssh host key v1";

/// See the module.
#[derive(Debug)]
pub struct HostKeys {
    seed: SecretBox<[u8; 32]>,
}

impl HostKeys {
    /// Reads the seed from `state_dir`, or makes it.
    ///
    /// # Errors
    /// The file is unreadable, readable by others, or not a seed.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, String> {
        let path = state_dir.join(SEED_FILE);
        let explain = |cause: String| {
            format!(
                "failed to use {}: {cause}; restore it from a copy, or remove it to give sandboxes new host keys",
                path.display()
            )
        };
        if !path.exists() {
            create(state_dir, &path).map_err(|e| explain(e.to_string()))?;
        }
        let mode = fs::metadata(&path).map_err(|e| explain(e.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(explain(format!("its mode {:o} lets others read it", mode & 0o7777)));
        }
        let bytes = fs::read(&path).map_err(|e| explain(e.to_string()))?;
        let seed: [u8; 32] = bytes.try_into().map_err(|_| explain("it is not 32 bytes long".into()))?;
        Ok(Self { seed: SecretBox::new(Box::new(seed)) })
    }

    fn key(&self, sandbox_id: Uuid) -> Result<PrivateKey, String> {
        // Every input has a fixed length, so a plain hash of their concatenation is a sound derivation.
        let derived: [u8; 32] = Sha256::new()
            .chain_update(self.seed.expose_secret())
            .chain_update(DOMAIN)
            .chain_update(sandbox_id)
            .finalize()
            .into();
        let pair = KeypairData::from(Ed25519Keypair::from_seed(&derived));
        PrivateKey::new(pair, "").map_err(|e| format!("failed to derive the SSH host key of {sandbox_id}: {e}"))
    }

    /// For the boot spec.
    ///
    /// # Errors
    /// The key cannot be encoded.
    pub fn private(&self, sandbox_id: Uuid) -> Result<SecretString, String> {
        let text = self.key(sandbox_id)?.to_openssh(LineEnding::LF).map_err(|e| e.to_string())?;
        Ok(SecretString::from(text.as_str()))
    }

    /// What the gateway expects of the sandbox's SSH server.
    ///
    /// # Errors
    /// The key cannot be derived.
    pub fn public(&self, sandbox_id: Uuid) -> Result<PublicKey, String> {
        Ok(self.key(sandbox_id)?.public_key().clone())
    }

    /// For people: `SHA256:…`.
    ///
    /// # Errors
    /// The key cannot be derived.
    pub fn fingerprint(&self, sandbox_id: Uuid) -> Result<String, String> {
        Ok(self.public(sandbox_id)?.fingerprint(HashAlg::Sha256).to_string())
    }
}

/// Whole or not at all.
fn create(state_dir: &Path, path: &Path) -> io::Result<()> {
    let seed: [u8; 32] = rand::random();
    let staged = state_dir.join(format!("{SEED_FILE}.new"));
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
    file.write_all(&seed)?;
    file.sync_all()?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_keeps_its_key_and_no_two_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        let first = HostKeys::load_or_create(dir.path()).unwrap();
        let again = HostKeys::load_or_create(dir.path()).unwrap();
        assert_eq!(first.fingerprint(a), again.fingerprint(a));
        assert_ne!(first.fingerprint(a), first.fingerprint(b));
        assert!(first.private(a).unwrap().expose_secret().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        assert!(!format!("{first:?}").contains(&format!("{:?}", first.seed.expose_secret())));
    }

    #[test]
    fn a_seed_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        HostKeys::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(SEED_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(HostKeys::load_or_create(dir.path()).unwrap_err().contains("644"));
    }
}
