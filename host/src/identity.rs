//! Who is calling, and with what token.
//!
//! | step | input | output | module |
//! |---|---|---|---|
//! | keys | `<state>/jwt` | a [`keys::Signer`] and a closed [`ring::Ring`] of verification keys | [`keys`], [`ring`] |
//! | certificates | `<state>/tls` | what the TLS listener and its users need | [`tls`] |
//! | mint | signer, gateway, sandbox, generation, clock | a token and its [`claims::Claims`] | [`mod@mint`] |
//! | parse | what a caller sent | header, claims and signature in their one canonical spelling | [`compact`] |
//! | verify | parsed token, ring, clock | claims, or a [`refusal::Refusal`] | [`verify`] |
//! | authenticate | transport, bearer, live records | a [`principal::Principal`], or a refusal | [`principal`] |
//! | permit | RPC, principal | yes, or a [`guard::Denial`] | [`guard`] |
//!
//! Ed25519 is done by `ed25519-dalek` on both sides, not by a JWT library: verification has to be the strict one
//! (small-order keys and non-canonical signatures are refused), and a general library reads the private key anew for
//! every signature. What such a library would add, the choice of an algorithm by the token, is what must not be.
//! The tests exchange tokens with `jsonwebtoken` both ways.

pub mod claims;
pub mod compact;
pub mod guard;
pub mod host_key;
pub mod keys;
pub mod mint;
pub mod principal;
pub mod refusal;
pub mod ring;
pub mod secret_dir;
pub mod tls;
pub mod verified;
pub mod verify;
