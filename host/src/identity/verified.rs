//! Tokens whose signature was checked before.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use super::claims::Claims;

/// How many tokens are remembered at most.
pub const CAPACITY: usize = 4096;

/// SHA-256 of a token.
pub(super) type TokenDigest = [u8; 32];

/// Maps the digest of a token to its claims. Two halves take turns: when the young one is full it becomes the old
/// one, and what is asked for in the old one moves to the young one. So no look-up and no insertion ever scans.
#[derive(Debug, Default)]
pub(super) struct Verified {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<TokenDigest, Arc<Claims>>,
    old: HashMap<TokenDigest, Arc<Claims>>,
}

impl Verified {
    pub(super) fn digest(token: &str) -> TokenDigest {
        Sha256::digest(token.as_bytes()).into()
    }

    pub(super) fn get(&self, digest: &TokenDigest) -> Option<Arc<Claims>> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = halves.young.get(digest) {
            return Some(claims.clone());
        }
        let claims = halves.old.remove(digest)?;
        halves.insert(*digest, claims.clone());
        Some(claims)
    }

    pub(super) fn insert(&self, digest: TokenDigest, claims: Arc<Claims>) {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, claims);
    }

    pub(super) fn remove(&self, digest: &TokenDigest) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.young.remove(digest);
        halves.old.remove(digest);
    }
}

impl Halves {
    fn insert(&mut self, digest: TokenDigest, claims: Arc<Claims>) {
        if self.young.len() >= CAPACITY / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest, claims);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn bounded_and_keeps_what_is_in_use() {
        let claims = Arc::new(Claims {
            sub: String::new(),
            iss: String::new(),
            aud: String::new(),
            sandbox_id: Uuid::nil(),
            iat: 0,
            exp: 0,
            jti: Uuid::nil(),
            generation: 0,
        });
        let verified = Verified::default();
        let hot = Verified::digest("hot");
        verified.insert(hot, claims.clone());
        for number in 0..3 * CAPACITY {
            verified.insert(Verified::digest(&number.to_string()), claims.clone());
            assert!(verified.get(&hot).is_some(), "{number}");
        }
        let halves = verified.halves.lock().unwrap();
        assert!(halves.young.len() + halves.old.len() <= CAPACITY);
        drop(halves);
        assert!(verified.get(&Verified::digest("0")).is_none());
        verified.remove(&hot);
        assert!(verified.get(&hot).is_none());
    }
}
