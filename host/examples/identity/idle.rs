//! A tick with nothing to do, among very many sandboxes and among few.
//!
//! Time stands still, so that neither a token nor a slice of the audit is due. So many directories would be more
//! descriptors than most processes may have: all sandboxes of an engine share one directory here, which such a tick
//! never touches.

use std::sync::Arc;

use host::rotation::publish::IdentityDirectory;
use uuid::Uuid;

use crate::directories::{Place, Rotation, enrolment};
use crate::row::{Bar, Row, each, in_turns};
use crate::time::Still;

const MANY: usize = 100_000;
const FEW: usize = 100;
/// Many and short: a neighbour on the machine then disturbs some of them, and not all.
const PAIRS: usize = 101;
const TICKS: usize = 10_000;

pub(crate) fn measure() {
    let place = Place::new();
    let (mut many, mut few) = (enrolled(&place, MANY), enrolled(&place, FEW));
    let ticks = |rotation: &mut Rotation| {
        each(TICKS, || {
            for _ in 0..TICKS {
                std::hint::black_box(rotation.engine.tick());
            }
        })
    };
    in_turns(1, || ticks(&mut many), || ticks(&mut few));
    let pairs = in_turns(PAIRS, || ticks(&mut many), || ticks(&mut few));
    eprintln!("tick_idle: {} pairs of {TICKS} ticks each", pairs.len());
    Row {
        name: "tick_idle",
        of: format!("rotation tick with {MANY} sandboxes, none due"),
        against: "the same with 100",
        unit: "us",
        pairs,
        bar: Bar::AtMost(2.0),
    }
    .print();
}

fn enrolled(place: &Place, count: usize) -> Rotation {
    let mut rotation = place.rotation(Arc::new(Still::now()));
    let one = enrolment(place.path());
    let directory = IdentityDirectory::create(&one.directory, None).expect("make an identity directory");
    for _ in 0..count {
        let sandbox_id = Uuid::new_v4();
        rotation.engine.insert(sandbox_id, directory.clone());
        rotation.engine.rotate(sandbox_id).expect("rotate");
    }
    rotation.forget_events();
    rotation
}
