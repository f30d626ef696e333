//! The keys whose signatures count.

use std::{collections::BTreeMap, fmt};

use ed25519_dalek::{VerifyingKey, pkcs8::EncodePublicKey};
use sha2::{Digest, Sha256};

use crate::hex::hex;

/// A closed set of verification keys by key id. A token can name a key, it can never bring or locate one.
#[derive(Clone, Default)]
pub struct Ring {
    keys: BTreeMap<String, VerifyingKey>,
}

impl Ring {
    /// A ring that accepts nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key under its own id, which is returned. A small-order key would accept signatures that nobody made
    /// and is not taken.
    pub fn insert(&mut self, key: VerifyingKey) -> Option<String> {
        if key.is_weak() {
            return None;
        }
        let kid = key_id(&key);
        self.keys.insert(kid.clone(), key);
        Some(kid)
    }

    /// The key of that id.
    pub fn get(&self, kid: &str) -> Option<&VerifyingKey> {
        self.keys.get(kid)
    }

    /// All keys, in the order of their ids.
    pub fn keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        self.keys.values()
    }

    /// All ids, in order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// Lowercase hex of the first 16 bytes of SHA-256 over the key as SubjectPublicKeyInfo in DER.
pub fn key_id(key: &VerifyingKey) -> String {
    /// The encoding of an Ed25519 key has a fixed length and cannot fail.
    const DER: &str = "an Ed25519 public key has a DER encoding";
    let der = key.to_public_key_der().expect(DER);
    hex(&Sha256::digest(der.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_order_keys_are_not_taken() {
        let mut ring = Ring::new();
        let mut identity = [0_u8; 32];
        identity[0] = 1;
        for bytes in [identity, [0; 32]] {
            assert_eq!(ring.insert(VerifyingKey::from_bytes(&bytes).unwrap()), None);
        }
        assert_eq!(ring.key_ids().count(), 0);
    }

    #[test]
    fn a_key_is_found_by_its_id_only() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let mut ring = Ring::new();
        let kid = ring.insert(key).unwrap();
        assert_eq!(kid.len(), 32);
        assert_eq!(ring.get(&kid), Some(&key));
        for other in ["", "../jwt", &kid.to_uppercase(), &kid[1..]] {
            assert_eq!(ring.get(other), None);
        }
    }
}
