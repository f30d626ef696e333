//! Making a token.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::Signer as _;
use secrecy::SecretString;
use uuid::Uuid;

use super::{
    claims::{Claims, authority, subject},
    compact::{ALGORITHM, TYPE},
    keys::Signer,
};

/// A new token.
#[derive(Debug)]
pub struct Minted {
    /// The compact form.
    pub token: SecretString,
    /// What it says.
    pub claims: Claims,
}

/// A pure function of its arguments. `issued_at` is in seconds since the epoch; a TTL counts in whole seconds.
pub fn mint(
    signer: &Signer,
    gateway_id: &Uuid,
    sandbox_id: Uuid,
    generation: u64,
    jti: Uuid,
    issued_at: u64,
    ttl: Duration,
) -> Minted {
    let authority = authority(gateway_id);
    let claims = Claims {
        sub: subject(&sandbox_id),
        iss: authority.clone(),
        aud: authority,
        sandbox_id,
        iat: issued_at,
        exp: issued_at.saturating_add(ttl.as_secs()),
        jti,
        generation,
    };
    Minted { token: sign(signer, &claims).into(), claims }
}

/// The compact form of any claims.
pub(super) fn sign(signer: &Signer, claims: &Claims) -> String {
    /// Strings, numbers and UUIDs under fixed names.
    const JSON: &str = "claims have a JSON form";
    let claims = serde_json::to_vec(claims).expect(JSON);
    let mut token = String::with_capacity(signer.header().len() + claims.len() * 4 / 3 + 96);
    token.push_str(signer.header());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
    let signature = signer.key().sign(token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature.to_bytes(), &mut token);
    token
}

/// The encoded header; the same for all tokens of a key. A key id is hex and needs no escaping.
pub(super) fn header(kid: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{ALGORITHM}","typ":"{TYPE}","kid":"{kid}"}}"#))
}
