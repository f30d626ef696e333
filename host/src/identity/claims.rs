//! What a token says.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use uuid::Uuid;

/// The claims of a sandbox token: exactly these members, each of exactly this type, none twice. Reading is as strict
/// as that, because nobody but a gateway writes them; unknown members are refused, not skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// [`subject`] of the sandbox.
    pub sub: String,
    /// [`authority`] of the gateway that signed.
    pub iss: String,
    /// The same authority: a sandbox token is good for the gateway that made it and for nobody else.
    pub aud: String,
    /// The sandbox that this token is.
    #[serde(deserialize_with = "canonical_uuid")]
    pub sandbox_id: Uuid,
    /// When it was made, in seconds since the epoch by the gateway's clock.
    pub iat: u64,
    /// When it ends, likewise.
    pub exp: u64,
    /// Names this token in audit lines.
    #[serde(deserialize_with = "canonical_uuid")]
    pub jti: Uuid,
    /// Rises with every token of a sandbox.
    #[serde(rename = "gen")]
    pub generation: u64,
}

/// Issuer and audience of a gateway's tokens.
pub fn authority(gateway_id: &Uuid) -> String {
    format!("openshell-gateway:{gateway_id}")
}

/// Subject of a sandbox's tokens.
pub fn subject(sandbox_id: &Uuid) -> String {
    format!("spiffe://openshell/sandbox/{sandbox_id}")
}

/// A UUID has several spellings; one id must have one.
fn canonical_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    let id = Uuid::try_parse(&text).map_err(D::Error::custom)?;
    if id.hyphenated().to_string() == text { Ok(id) } else { Err(D::Error::custom("UUID is not in canonical form")) }
}
