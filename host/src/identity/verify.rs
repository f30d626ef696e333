//! Whether a token is one of ours, and good now.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    claims::{Claims, authority, subject},
    compact::Compact,
    refusal::Refusal,
    ring::Ring,
    verified::Verified,
};

/// Checks tokens of one gateway. What depends on records (the sandbox exists, the generation is not revoked, the
/// transport is that sandbox's) is never remembered here; [`super::principal::authenticate`] does it each time.
#[derive(Debug)]
pub struct Verifier {
    ring: Ring,
    authority: String,
    leeway: u64,
    max_ttl: u64,
    verified: Verified,
}

impl Verifier {
    /// `leeway` is the tolerance for `iat` and `exp`, `max_ttl` the longest life of a token that is believed.
    pub fn new(ring: Ring, gateway_id: Uuid, leeway: Duration, max_ttl: Duration) -> Self {
        Self {
            ring,
            authority: authority(&gateway_id),
            leeway: leeway.as_secs(),
            max_ttl: max_ttl.as_secs(),
            verified: Verified::default(),
        }
    }

    /// The claims of a good token. `now` is in seconds since the epoch.
    ///
    /// A signature is checked once per token and remembered; the times are judged on every call, for the clock may
    /// have been set back or forth since.
    pub fn verify(&self, token: &str, now: u64) -> Result<Arc<Claims>, Refusal> {
        let digest = Verified::digest(token);
        if let Some(claims) = self.verified.get(&digest) {
            return self
                .judge_times(&claims, now)
                .map(|()| claims.clone())
                .inspect_err(|_| self.verified.remove(&digest));
        }
        let token = Compact::parse(token)?;
        let key = self.ring.get(&token.kid).ok_or(Refusal::UnknownKey)?;
        key.verify_strict(token.signed, &token.signature).map_err(|_| Refusal::Signature)?;
        self.judge_parties(&token.claims)?;
        self.judge_times(&token.claims, now)?;
        let claims = Arc::new(token.claims);
        self.verified.insert(digest, claims.clone());
        Ok(claims)
    }

    fn judge_parties(&self, claims: &Claims) -> Result<(), Refusal> {
        if claims.iss != self.authority {
            return Err(Refusal::Issuer);
        }
        if claims.aud != self.authority {
            return Err(Refusal::Audience);
        }
        if claims.sub != subject(&claims.sandbox_id) {
            return Err(Refusal::Subject);
        }
        Ok(())
    }

    fn judge_times(&self, claims: &Claims, now: u64) -> Result<(), Refusal> {
        if claims.iat > now.saturating_add(self.leeway) {
            return Err(Refusal::IssuedInFuture);
        }
        let lifetime = claims.exp.saturating_sub(claims.iat);
        if lifetime == 0 || lifetime > self.max_ttl {
            return Err(Refusal::Lifetime);
        }
        if claims.exp <= now.saturating_sub(self.leeway) {
            return Err(Refusal::Expired { exp: claims.exp });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
