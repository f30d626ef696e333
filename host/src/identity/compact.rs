//! The strict reading of a token, before any key is touched.
//!
//! A token has one spelling: three segments, canonical base64url without padding, a header of exactly `alg`, `typ`
//! and `kid`, claims of exactly the members of [`Claims`], no member twice, no nesting. That is what a gateway writes,
//! so whatever else arrives was not made by one, and everything after this point sees one meaning only.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::Signature;
use proto::budget::TOKEN_FILE_MAX;
use serde::{Deserialize, de::DeserializeOwned};

use super::{claims::Claims, refusal::Refusal};

/// The one `alg`.
pub const ALGORITHM: &str = "EdDSA";
/// The one `typ`.
pub const TYPE: &str = "JWT";

/// A well-formed token. Nothing in it is to be believed yet.
#[derive(Debug)]
pub struct Compact<'a> {
    /// The key that it names.
    pub kid: String,
    /// What it says.
    pub claims: Claims,
    /// What was signed.
    pub signed: &'a [u8],
    /// By this.
    pub signature: Signature,
}

/// `deny_unknown_fields` keeps out `crit`, `jwk`, `jku`, `x5u` and whatever comes after them; a derived struct also
/// refuses a member that comes twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

impl<'a> Compact<'a> {
    /// Reads a token, or says which rule it breaks.
    pub fn parse(token: &'a str) -> Result<Self, Refusal> {
        if token.len() > TOKEN_FILE_MAX {
            return Err(Refusal::TooLong { length: token.len() });
        }
        let mut segments = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(Refusal::Segments);
        };
        let signed = &token.as_bytes()[..header.len() + 1 + claims.len()];
        let header: Header = object(&decode(header)?).ok_or(Refusal::Header)?;
        if header.alg != ALGORITHM {
            return Err(Refusal::Algorithm);
        }
        if header.typ != TYPE {
            return Err(Refusal::Type);
        }
        let claims = object(&decode(claims)?).ok_or(Refusal::Claims)?;
        let signature = Signature::from_slice(&decode(signature)?).map_err(|_| Refusal::Signature)?;
        Ok(Self { kid: header.kid, claims, signed, signature })
    }
}

/// This engine refuses padding and trailing bits that are not zero.
fn decode(segment: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(segment).map_err(|_| Refusal::Encoding)
}

/// An object that begins at the first byte: serde would also read a struct from an array. Nesting cannot go deeper
/// than the first value, since all members are scalars.
fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    json.starts_with(b"{").then(|| serde_json::from_slice(json).ok()).flatten()
}
