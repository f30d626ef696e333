//! The tokens of `CreateSshSession`.
//!
//! They let nobody in: whoever opens a relay has proved to be a user by transport or certificate. A caller of the
//! published API gets one, shows it with `ForwardTcp`, and may take it back; then that one is refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// For how long one is valid.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Valid ones at a time.
const MAX: usize = 256;

/// See the module. Only digests are kept.
#[derive(Debug, Default)]
pub struct SshTokens {
    valid: Mutex<HashMap<[u8; 32], Valid>>,
}

#[derive(Debug)]
struct Valid {
    sandbox_id: Uuid,
    until: Instant,
}

impl SshTokens {
    /// A new one for this sandbox; nothing where as many are valid as there may be.
    pub fn issue(&self, sandbox_id: Uuid, now: Instant) -> Option<SecretString> {
        let mut valid = self.lock();
        valid.retain(|_, token| token.until > now);
        if valid.len() >= MAX {
            return None;
        }
        let token = SecretString::from(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()));
        valid.insert(digest(token.expose_secret()), Valid { sandbox_id, until: now + LIFETIME });
        Some(token)
    }

    /// Whether it is valid for this sandbox.
    pub fn admits(&self, token: &str, sandbox_id: Uuid, now: Instant) -> bool {
        self.lock().get(&digest(token)).is_some_and(|token| token.sandbox_id == sandbox_id && token.until > now)
    }

    /// Makes it invalid. False if it was so already.
    pub fn revoke(&self, token: &str, now: Instant) -> bool {
        self.lock().remove(&digest(token)).is_some_and(|token| token.until > now)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Valid>> {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_sandbox_and_ends() {
        let (tokens, now) = (SshTokens::default(), Instant::now());
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let token = tokens.issue(one, now).unwrap();
        let token = token.expose_secret();
        assert!(tokens.admits(token, one, now));
        assert!(!tokens.admits(token, other, now));
        assert!(!tokens.admits("", one, now));
        assert!(!tokens.admits(token, one, now + LIFETIME));
        assert!(tokens.revoke(token, now));
        assert!(!tokens.revoke(token, now));
        assert!(!tokens.admits(token, one, now));
    }

    #[test]
    fn their_number_is_bounded_and_old_ones_make_room() {
        let (tokens, now) = (SshTokens::default(), Instant::now());
        let issued = (0..MAX + 1).filter(|_| tokens.issue(Uuid::nil(), now).is_some()).count();
        assert_eq!(issued, MAX);
        assert!(tokens.issue(Uuid::nil(), now + LIFETIME).is_some());
    }
}
