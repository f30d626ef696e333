//! Names by which the gateway tells its users more than the messages have fields for.

/// Annotation of a sandbox: the generation of the token that is published. None of these while it is stopped.
pub const TOKEN_GENERATION: &str = "openshell.token/generation";
/// Annotation: when that token was issued, RFC 3339.
pub const TOKEN_ISSUED: &str = "openshell.token/issued";
/// Annotation: when that token ends, RFC 3339.
pub const TOKEN_EXPIRES: &str = "openshell.token/expires";
/// Annotation: the id of that token.
pub const TOKEN_ID: &str = "openshell.token/jti";
/// Annotation: the key that signed that token.
pub const TOKEN_KEY: &str = "openshell.token/kid";
/// Annotation: the issuer in that token.
pub const TOKEN_ISSUER: &str = "openshell.token/issuer";
/// Annotation: the highest generation that the sandbox was seen to present.
pub const TOKEN_SEEN: &str = "openshell.token/seen-generation";
/// Annotation: from the rename of the newest token to its first presentation, in milliseconds.
pub const TOKEN_DELAY: &str = "openshell.token/last-delay-ms";
/// Annotation that a user sets at create, with the service's name behind it: the text of the service's declaration, as
/// a file of the image would have it ([`crate::service`]).
pub const SERVICE: &str = "openshell.service/";
