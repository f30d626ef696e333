//! What the agent needs to know of its own token. It cannot verify a signature and does not have to: the file came
//! from the host. It orders tokens, and refuses what is not one.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use uuid::Uuid;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Rises with every token of a sandbox.
    pub generation: u64,
    /// From `iat` to `exp`. The two themselves are the host's times and are never compared with the guest's clock.
    pub life: Duration,
}

/// Why a text is not a token of this sandbox. Says nothing of what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Torn, or something else.
    #[error("the token is not three base64url segments")]
    Segments,
    /// The middle segment.
    #[error("the token's claims are not the JSON object that they have to be")]
    Json,
    /// A token of another sandbox in this one's directory.
    #[error("the token names sandbox {0}, which is another one")]
    OtherSandbox(Uuid),
    /// `exp` is not after `iat`.
    #[error("the token ends before it begins")]
    NoLife,
}

#[derive(Deserialize)]
struct Wire {
    sandbox_id: Uuid,
    #[serde(rename = "gen")]
    generation: u64,
    iat: u64,
    exp: u64,
}

/// See the module.
pub fn parse(token: &str, sandbox: Uuid) -> Result<Claims, ClaimsError> {
    let mut segments = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        return Err(ClaimsError::Segments);
    };
    let decode = |segment: &str| match URL_SAFE_NO_PAD.decode(segment) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(ClaimsError::Segments),
    };
    decode(header)?;
    decode(signature)?;
    let wire: Wire = serde_json::from_slice(&decode(payload)?).map_err(|_| ClaimsError::Json)?;
    if wire.sandbox_id != sandbox {
        return Err(ClaimsError::OtherSandbox(wire.sandbox_id));
    }
    let life = wire.exp.checked_sub(wire.iat).filter(|life| *life > 0).ok_or(ClaimsError::NoLife)?;
    Ok(Claims { generation: wire.generation, life: Duration::from_secs(life) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: Uuid = Uuid::from_u128(7);

    fn token(payload: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(payload), encode("signature"))
    }

    fn payload(sandbox: Uuid, iat: u64, exp: u64) -> String {
        format!(r#"{{"sub":"x","sandbox_id":"{sandbox}","gen":3,"iat":{iat},"exp":{exp}}}"#)
    }

    #[test]
    fn a_token_tells_its_generation_and_its_life() {
        let claims = parse(&token(&payload(SANDBOX, 100, 130)), SANDBOX);
        assert_eq!(claims, Ok(Claims { generation: 3, life: Duration::from_secs(30) }));
    }

    #[test]
    fn anything_else_is_refused() {
        let good = token(&payload(SANDBOX, 100, 130));
        for torn in 0..good.len() {
            let result = parse(&good[..torn], SANDBOX);
            let only_the_signature_is_short = torn > good.rfind('.').unwrap();
            assert!(result.is_err() || only_the_signature_is_short, "accepted {torn} of {} bytes", good.len());
        }
        let cases = [
            (format!("{good}.x"), ClaimsError::Segments),
            (format!("{good}\n"), ClaimsError::Segments),
            (good.replace('.', "=."), ClaimsError::Segments),
            (token("[]"), ClaimsError::Json),
            (token(&payload(SANDBOX, 100, 130).replace(r#""gen":3"#, r#""gen":-3"#)), ClaimsError::Json),
            (token(&payload(SANDBOX, 100, 130).replace(r#""gen":3,"#, r#""gen":3,"gen":4,"#)), ClaimsError::Json),
            (token(&payload(Uuid::nil(), 100, 130)), ClaimsError::OtherSandbox(Uuid::nil())),
            (token(&payload(SANDBOX, 130, 130)), ClaimsError::NoLife),
        ];
        for (text, error) in cases {
            assert_eq!(parse(&text, SANDBOX), Err(error));
        }
    }
}
