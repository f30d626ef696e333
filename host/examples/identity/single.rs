//! One token: minted and published by the rotation engine, next to a bare signature and a bare write + rename of the
//! same bytes on the same tmpfs.

use std::fs;
use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use host::rotation::clock::SystemClock;
use proto::layout::{SHARE_DIR, TOKEN_FILE};

use crate::directories::Place;
use crate::row::{Bar, Row, each, in_turns};

/// Many and short: a neighbour on the machine then disturbs some of them, and not all.
const PAIRS: usize = 201;
const TOKENS: usize = 50;

pub(crate) fn measure() {
    let place = Place::new();
    let mut rotation = place.rotation(Arc::new(SystemClock));
    let sandbox_id = rotation.enroll(1)[0];
    let token = place.sandbox(sandbox_id).join(SHARE_DIR).join(TOKEN_FILE);
    let token = fs::read(token).expect("read a token");
    // Header and claims are what is signed.
    let signed = &token[..token.iter().rposition(|byte| *byte == b'.').expect("three segments")];
    let key = SigningKey::from_bytes(&[7; 32]);
    let (staged, there) = (place.path().join("staged"), place.path().join("there"));

    let mut ours = || {
        let took = each(TOKENS, || {
            for _ in 0..TOKENS {
                rotation.engine.rotate(sandbox_id).expect("rotate");
            }
        });
        rotation.forget_events();
        took
    };
    let theirs = || {
        each(TOKENS, || {
            for _ in 0..TOKENS {
                std::hint::black_box(key.sign(signed));
                fs::write(&staged, &token).expect("write");
                fs::rename(&staged, &there).expect("rename");
            }
        })
    };
    in_turns(3, &mut ours, theirs);
    let pairs = in_turns(PAIRS, &mut ours, theirs);
    eprintln!("mint_publish: {} pairs of {TOKENS} tokens each", pairs.len());
    Row {
        name: "mint_publish",
        of: "mint + publish of one token by the rotation engine".into(),
        against: "bare Ed25519 signature + write + rename of the same bytes on the same tmpfs",
        unit: "us",
        pairs,
        bar: Bar::AtMost(1.3),
    }
    .print();
}
