use std::time::Duration;

use ed25519_dalek::SigningKey;
use secrecy::ExposeSecret as _;

use super::*;
use crate::identity::{keys::Signer, mint::mint, ring::Ring};

const NOW: u64 = 1_800_000_000;
const OWNER: u32 = 1000;
const GATEWAY: Uuid = Uuid::from_u128(1);
const MINE: Uuid = Uuid::from_u128(10);
const OTHER: Uuid = Uuid::from_u128(11);

fn verifier() -> Verifier {
    let mut ring = Ring::new();
    ring.insert(key().verifying_key()).unwrap();
    Verifier::new(ring, GATEWAY, Duration::from_secs(3), Duration::from_secs(3600))
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn token(sandbox: Uuid, generation: u64) -> String {
    let ttl = Duration::from_secs(30);
    mint(&Signer::new(key()), &GATEWAY, sandbox, generation, Uuid::nil(), NOW, ttl).token.expose_secret().to_owned()
}

fn ask(transport: Transport, bearer: Option<&str>, floor: Option<u64>) -> Result<Principal, Refusal> {
    authenticate(transport, bearer, OWNER, &verifier(), NOW, &|id| floor.filter(|_| id == MINE))
}

#[test]
fn on_a_vm_transport_that_sandbox_or_nobody() {
    let vm = Transport::Vm { sandbox_id: MINE };
    assert_eq!(ask(vm, None, Some(0)), Ok(Principal::Anonymous));
    let Ok(Principal::Sandbox { id, claims }) = ask(vm, Some(&token(MINE, 7)), Some(7)) else { panic!("refused") };
    assert_eq!((id, claims.generation), (MINE, 7));

    let cross = Refusal::OtherSandbox { transport: MINE, token: OTHER };
    assert_eq!(ask(vm, Some(&token(OTHER, 7)), Some(0)), Err(cross));
    assert_eq!(ask(vm, Some(&token(MINE, 7)), Some(8)), Err(Refusal::BelowFloor { generation: 7, floor: 8 }));
    assert_eq!(ask(vm, Some(&token(MINE, 7)), None), Err(Refusal::NoRecord { sandbox_id: MINE }));
    assert_eq!(ask(vm, Some("forged"), Some(0)), Err(Refusal::Segments));
}

#[test]
fn the_always_checks_are_not_remembered() {
    let (verifier, token) = (verifier(), token(MINE, 7));
    let vm = Transport::Vm { sandbox_id: MINE };
    let ask = |floor| authenticate(vm, Some(&token), OWNER, &verifier, NOW, &|_| floor);
    assert!(ask(Some(7)).is_ok());
    assert_eq!(ask(Some(8)), Err(Refusal::BelowFloor { generation: 7, floor: 8 }));
    assert_eq!(ask(None), Err(Refusal::NoRecord { sandbox_id: MINE }));
    let other = Transport::Vm { sandbox_id: OTHER };
    let refused = authenticate(other, Some(&token), OWNER, &verifier, NOW, &|_| Some(0));
    assert_eq!(refused, Err(Refusal::OtherSandbox { transport: OTHER, token: MINE }));
    assert!(ask(Some(7)).is_ok());
}

#[test]
fn on_the_local_socket_the_owner_or_root() {
    for (uid, expected) in [
        (OWNER, Ok(Principal::User { uid: OWNER })),
        (0, Ok(Principal::User { uid: 0 })),
        (1001, Err(Refusal::OtherUser { uid: 1001 })),
    ] {
        assert_eq!(ask(Transport::LocalUser { uid }, None, Some(0)), expected);
        assert_eq!(ask(Transport::LocalUser { uid }, Some(&token(MINE, 7)), Some(0)), Err(Refusal::BearerFromUser));
    }
}

#[test]
fn a_broken_bearer_is_not_no_bearer() {
    let headers = |values: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, http::HeaderValue::from_bytes(value).unwrap());
        }
        headers
    };
    assert_eq!(bearer(&headers(&[])), Ok(None));
    assert_eq!(bearer(&headers(&[b"Bearer a.b.c"])), Ok(Some("a.b.c")));
    for bad in [
        &[b"Bearer a".as_slice(), b"Bearer a"][..],
        &[b""],
        &[b"Bearer "],
        &[b"bearer a"],
        &[b"Basic a"],
        &[b"Bearer \xff"],
    ] {
        assert_eq!(bearer(&headers(bad)), Err(Refusal::Authorization));
    }
}
