use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use ed25519_dalek::{Signer as _, SigningKey, pkcs8::EncodePrivateKey as _};
use proptest::prelude::*;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::*;
use crate::identity::{keys::Signer, mint::mint, refusal::PUBLIC_REFUSAL, ring::key_id};

const NOW: u64 = 1_800_000_000;
const GATEWAY: Uuid = Uuid::from_u128(0x6a7e_0001);
const SANDBOX: Uuid = Uuid::from_u128(0x5a4d_0001);
const TTL: Duration = Duration::from_secs(30);

fn key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

fn kid() -> String {
    key_id(&key().verifying_key())
}

fn verifier() -> Verifier {
    let mut ring = Ring::new();
    ring.insert(key().verifying_key()).unwrap();
    ring.insert(SigningKey::from_bytes(&[43; 32]).verifying_key()).unwrap();
    Verifier::new(ring, GATEWAY, Duration::from_secs(3), Duration::from_secs(3600))
}

fn good() -> String {
    mint(&Signer::new(key()), &GATEWAY, SANDBOX, 7, Uuid::from_u128(9), NOW, TTL).token.expose_secret().to_owned()
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "JWT", "kid": kid()})
}

fn claims() -> Value {
    let authority = authority(&GATEWAY);
    json!({
        "sub": subject(&SANDBOX), "iss": authority, "aud": authority, "sandbox_id": SANDBOX,
        "iat": NOW, "exp": NOW + 30, "jti": Uuid::from_u128(9), "gen": 7,
    })
}

/// A token with a right signature over whatever header and claims.
fn signed(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let signature = key().sign(message.as_bytes()).to_bytes();
    format!("{message}.{}", B64.encode(signature))
}

fn with(base: Value, name: &str, value: Value) -> String {
    let mut base = base;
    base.as_object_mut().unwrap().insert(name.into(), value);
    base.to_string()
}

fn without(base: Value, name: &str) -> String {
    let mut base = base;
    base.as_object_mut().unwrap().remove(name).unwrap();
    base.to_string()
}

#[track_caller]
fn refused(token: &str, expected: Refusal) {
    let refusal = verifier().verify(token, NOW).unwrap_err();
    assert_eq!(refusal, expected);
    assert_eq!(refusal.to_string(), PUBLIC_REFUSAL);
}

#[test]
fn ours_is_accepted_also_twice_and_by_any_key_of_the_ring() {
    let verifier = verifier();
    for _ in 0..2 {
        let claims = verifier.verify(&good(), NOW).unwrap();
        assert_eq!((claims.sandbox_id, claims.generation, claims.exp), (SANDBOX, 7, NOW + 30));
    }
    let second = Signer::new(SigningKey::from_bytes(&[43; 32]));
    let minted = mint(&second, &GATEWAY, SANDBOX, 8, Uuid::nil(), NOW, TTL);
    assert_eq!(*verifier.verify(minted.token.expose_secret(), NOW).unwrap(), minted.claims);
    assert!(!format!("{minted:?}").contains(minted.token.expose_secret()));
    verifier.verify(&signed(&header().to_string(), &claims().to_string()), NOW).unwrap();
}

#[test]
fn an_independent_library_agrees() {
    use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
    let mut head = Header::new(Algorithm::EdDSA);
    head.kid = Some(kid());
    let der = key().to_pkcs8_der().unwrap();
    let theirs = jsonwebtoken::encode(&head, &claims(), &EncodingKey::from_ed_der(der.as_bytes())).unwrap();
    assert_eq!(verifier().verify(&theirs, NOW).unwrap().sandbox_id, SANDBOX);

    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[authority(&GATEWAY)]);
    validation.set_issuer(&[authority(&GATEWAY)]);
    validation.validate_exp = false;
    let decoding = DecodingKey::from_ed_der(key().verifying_key().as_bytes());
    let ours = jsonwebtoken::decode::<Claims>(good(), &decoding, &validation).unwrap();
    assert_eq!(ours.header.kid, Some(kid()));
    assert_eq!(ours.claims.generation, 7);
}

#[test]
fn times_are_judged_on_every_call() {
    let (verifier, token) = (verifier(), good());
    let expired = Err(Refusal::Expired { exp: NOW + 30 });
    for (now, expected) in [
        (NOW, Ok(())),
        (NOW - 3, Ok(())),
        (NOW - 4, Err(Refusal::IssuedInFuture)),
        (NOW + 32, Ok(())),
        (NOW + 33, expired.clone()),
        (u64::MAX, expired),
        (0, Err(Refusal::IssuedInFuture)),
        (NOW, Ok(())),
    ] {
        assert_eq!(verifier.verify(&token, now).map(drop), expected, "{now}");
    }
}

#[test]
fn shape() {
    for token in ["", ".", "a.b", "a.b.c.d", &format!("{}.", good()), &format!("{}.x", good())] {
        refused(token, Refusal::Segments);
    }
    refused("..", Refusal::Header);
    refused(&"A".repeat(1 << 20), Refusal::TooLong { length: 1 << 20 });
    for huge in [
        signed(&with(header(), "kid", "k".repeat(1 << 20).into()), "{}"),
        signed(&header().to_string(), &with(claims(), "sub", "s".repeat(1 << 20).into())),
    ] {
        refused(&huge, Refusal::TooLong { length: huge.len() });
    }
    let token = good();
    for bad in
        [format!("{token}="), format!("{token}=="), format!("{token}\n"), format!(" {token}"), token.replace('.', "=.")]
    {
        refused(&bad, Refusal::Encoding);
    }
    // The last character of 64 bytes carries four bits that have to be zero.
    let last = token.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    refused(&format!("{}{next}", &token[..token.len() - 1]), Refusal::Encoding);
    refused(&token.replace('-', "+").replace('_', "/").replacen('.', "+.", 1), Refusal::Encoding);
}

#[test]
fn header_attacks() {
    let claims = claims().to_string();
    let try_header = |header: &str, expected| refused(&signed(header, &claims), expected);
    for alg in ["none", "None", "HS256", "RS256", "ES256", "eddsa", "Ed25519", ""] {
        try_header(&with(header(), "alg", alg.into()), Refusal::Algorithm);
    }
    for typ in ["jwt", "at+jwt", ""] {
        try_header(&with(header(), "typ", typ.into()), Refusal::Type);
    }
    for kid in [
        "",
        "../../jwt/kid",
        "a\0b",
        "/dev/null",
        &kid().to_uppercase(),
        &key_id(&SigningKey::from_bytes(&[1; 32]).verifying_key()),
    ] {
        try_header(&with(header(), "kid", kid.into()), Refusal::UnknownKey);
    }
    for (name, value) in [
        ("jwk", json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(key().verifying_key().as_bytes())})),
        ("jku", "https://example.com/keys".into()),
        ("x5u", "https://example.com/cert".into()),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", false.into()),
        ("zip", "DEF".into()),
    ] {
        try_header(&with(header(), name, value), Refusal::Header);
    }
    for name in ["alg", "typ", "kid"] {
        try_header(&without(header(), name), Refusal::Header);
        for value in [Value::Null, 1.into(), json!(["EdDSA"]), json!({})] {
            try_header(&with(header(), name, value), Refusal::Header);
        }
    }
    let twice = header().to_string().replacen('{', r#"{"alg":"none","#, 1);
    let trailing = format!("{} {{}}", header());
    let array = json!(["EdDSA", "JWT", kid()]).to_string();
    let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let deep = with(header(), "kid", "@".into()).replace("\"@\"", &nested);
    for bad in ["", "null", "{}", " {}", "\u{feff}{}", &twice, &trailing, &array, &nested, &deep] {
        try_header(bad, Refusal::Header);
    }
}

#[test]
fn unsigned_and_wrongly_signed() {
    let (head, body) = (header().to_string(), claims().to_string());
    let message = format!("{}.{}", B64.encode(&head), B64.encode(&body));
    refused(&format!("{message}."), Refusal::Signature);
    refused(&format!("{message}.{}", B64.encode([0; 64])), Refusal::Signature);
    refused(&format!("{message}.{}", B64.encode([0; 63])), Refusal::Signature);
    let other = SigningKey::from_bytes(&[43; 32]).sign(message.as_bytes()).to_bytes();
    refused(&format!("{message}.{}", B64.encode(other)), Refusal::Signature);

    // HMAC keyed with the public key, under our own header.
    let hmac = jsonwebtoken::crypto::sign(
        message.as_bytes(),
        &jsonwebtoken::EncodingKey::from_secret(key().verifying_key().as_bytes()),
        jsonwebtoken::Algorithm::HS256,
    );
    refused(&format!("{message}.{}", hmac.unwrap()), Refusal::Signature);

    // S + L verifies where S is not checked for its range.
    let mut signature = key().sign(message.as_bytes()).to_bytes();
    add_group_order(&mut signature[32..]);
    refused(&format!("{message}.{}", B64.encode(signature)), Refusal::Signature);

    // Any byte of header, claims or signature.
    let token = good();
    let verifier = verifier();
    for position in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        assert!(verifier.verify(std::str::from_utf8(&bytes).unwrap(), NOW).is_err(), "byte {position}");
    }
}

/// Little-endian addition of L = 2^252 + 27742317777372353535851937790883648493.
fn add_group_order(scalar: &mut [u8]) {
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0_u16;
    for (byte, order) in scalar.iter_mut().zip(L) {
        carry += u16::from(*byte) + u16::from(order);
        *byte = (carry & 0xff) as u8;
        carry >>= 8;
    }
    assert_eq!(carry, 0);
}

#[test]
fn claims_of_wrong_shape() {
    let head = header().to_string();
    let try_claims = |claims: &str| refused(&signed(&head, claims), Refusal::Claims);
    for name in ["sub", "iss", "aud", "sandbox_id", "iat", "exp", "jti", "gen"] {
        try_claims(&without(claims(), name));
        try_claims(&with(claims(), name, Value::Null));
        try_claims(&with(claims(), name, json!([authority(&GATEWAY)])));
        try_claims(&with(claims(), name, json!({})));
    }
    for name in ["iat", "exp", "gen"] {
        for number in ["\"1800000030\"", "1800000030.0", "1.8e9", "-1", "18446744073709551616", "1e400", "true", "01"] {
            try_claims(&with(claims(), name, "@".into()).replace("\"@\"", number));
        }
    }
    for id in
        [SANDBOX.simple().to_string(), SANDBOX.urn().to_string(), SANDBOX.to_string().to_uppercase(), String::new()]
    {
        try_claims(&with(claims(), "sandbox_id", id.clone().into()));
        try_claims(&with(claims(), "jti", id.into()));
    }
    for name in ["nbf", "scope", "sandbox-id", "Gen", ""] {
        try_claims(&with(claims(), name, 1.into()));
    }
    let twice = claims().to_string().replacen('{', "{\"gen\":9,", 1);
    let escaped_twice = claims().to_string().replacen('{', "{\"g\\u0065n\":9,", 1);
    let deep = with(claims(), "sub", "@".into()).replace("\"@\"", &format!("{}{}", "[".repeat(2000), "]".repeat(2000)));
    let array =
        json!([subject(&SANDBOX), authority(&GATEWAY), authority(&GATEWAY), SANDBOX, NOW, NOW + 30, Uuid::nil(), 7]);
    for bad in ["", "null", "{", &twice, &escaped_twice, &deep, &array.to_string(), &format!("{} ,", claims())] {
        try_claims(bad);
    }
}

#[test]
fn claims_of_wrong_value() {
    let head = header().to_string();
    let try_claims = |claims: &str, expected| refused(&signed(&head, claims), expected);
    let foreign = authority(&Uuid::from_u128(2));
    try_claims(&with(claims(), "iss", foreign.clone().into()), Refusal::Issuer);
    try_claims(&with(claims(), "iss", "".into()), Refusal::Issuer);
    try_claims(&with(claims(), "aud", foreign.into()), Refusal::Audience);
    try_claims(&with(claims(), "sub", subject(&GATEWAY).into()), Refusal::Subject);
    try_claims(&with(claims(), "sandbox_id", GATEWAY.to_string().into()), Refusal::Subject);
    try_claims(&with(claims(), "iat", (NOW + 4).into()), Refusal::IssuedInFuture);
    try_claims(&with(claims(), "iat", u64::MAX.into()), Refusal::IssuedInFuture);
    try_claims(&with(claims(), "exp", 0.into()), Refusal::Lifetime);
    try_claims(&with(claims(), "exp", NOW.into()), Refusal::Lifetime);
    try_claims(&with(claims(), "exp", (NOW + 3601).into()), Refusal::Lifetime);
    try_claims(&with(claims(), "exp", u64::MAX.into()), Refusal::Lifetime);
    let old = json!({"iat": NOW - 40, "exp": NOW - 3});
    let mut past = claims();
    past.as_object_mut().unwrap().extend(old.as_object().unwrap().clone());
    try_claims(&past.to_string(), Refusal::Expired { exp: NOW - 3 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is minted is accepted exactly within its life, widened by the leeway.
    #[test]
    fn minted_tokens_live_as_long_as_they_say(ttl in 30_u64..=3600, at in -100_i64..4000, generation: u64, id: u128, jti: u128) {
        let minted = mint(
            &Signer::new(key()), &GATEWAY, Uuid::from_u128(id), generation, Uuid::from_u128(jti), NOW, Duration::from_secs(ttl),
        );
        let verdict = verifier().verify(minted.token.expose_secret(), NOW.checked_add_signed(at).unwrap());
        prop_assert_eq!(verdict.is_ok(), at >= -3 && at < ttl as i64 + 3);
        if let Ok(claims) = verdict {
            prop_assert_eq!(&*claims, &minted.claims);
        }
    }

    /// Arbitrary text never panics and is never accepted.
    #[test]
    fn arbitrary_text_is_refused(text in "[A-Za-z0-9_.=-]{0,300}") {
        prop_assert!(verifier().verify(&text, NOW).is_err());
    }
}
