//! Why a caller is nobody.

use uuid::Uuid;

/// What every refused caller is told, whatever the reason: the difference would tell a forger how far it came.
pub const PUBLIC_REFUSAL: &str = "the presented identity is not accepted";

/// The reason, for the audit line. Holds no part of a token but ids of one that was verified. Its `Display` is
/// [`PUBLIC_REFUSAL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", PUBLIC_REFUSAL)]
pub enum Refusal {
    /// Longer than any token of a gateway.
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// Not three segments.
    Segments,
    /// A segment is not canonical base64url without padding.
    Encoding,
    /// The header is not exactly `alg`, `typ` and `kid`.
    Header,
    /// `alg` is not EdDSA.
    Algorithm,
    /// `typ` is not JWT.
    Type,
    /// The claims are not exactly ours.
    Claims,
    /// `kid` names no key of the ring.
    UnknownKey,
    /// Not signed by that key, or not canonically.
    Signature,
    /// Another `iss`.
    Issuer,
    /// Another `aud`.
    Audience,
    /// `sub` does not name `sandbox_id`.
    Subject,
    /// `iat` is further in the future than clocks differ.
    IssuedInFuture,
    /// `exp` is over.
    Expired {
        /// From the token.
        exp: u64,
    },
    /// `exp` is not after `iat`, or too long after it.
    Lifetime,
    /// Metadata with no bearer that could be read: not `Bearer TOKEN`, or several.
    Authorization,
    /// A token of one sandbox on the transport of another.
    OtherSandbox {
        /// Whose transport it is.
        transport: Uuid,
        /// Whose token was presented.
        token: Uuid,
    },
    /// The sandbox was deleted.
    NoRecord {
        /// Which.
        sandbox_id: Uuid,
    },
    /// Revoked.
    BelowFloor {
        /// Of the token.
        generation: u64,
        /// The lowest that is accepted.
        floor: u64,
    },
    /// A bearer on the socket of the local user.
    BearerFromUser,
    /// The local socket, and neither the gateway's user nor root.
    OtherUser {
        /// Who it was.
        uid: u32,
    },
}

impl Refusal {
    /// A short code for audit lines and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too-long",
            Self::Segments => "segments",
            Self::Encoding => "encoding",
            Self::Header => "header",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::Claims => "claims",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::IssuedInFuture => "issued-in-future",
            Self::Expired { .. } => "expired",
            Self::Lifetime => "lifetime",
            Self::Authorization => "authorization",
            Self::OtherSandbox { .. } => "cross-sandbox",
            Self::NoRecord { .. } => "no-record",
            Self::BelowFloor { .. } => "revoked",
            Self::BearerFromUser => "bearer-from-user",
            Self::OtherUser { .. } => "other-user",
        }
    }
}
