//! Very many tokens due at the same moment, next to one token at a time.

use std::sync::Arc;

use proto::budget;

use crate::directories::{Place, many};
use crate::row::{Bar, Row, each, in_turns};
use crate::time::Still;

const PAIRS: usize = 7;
const SINGLE: usize = 2_000;

pub(crate) fn measure() {
    let (place, count) = (Place::new(), many());
    let clock = Arc::new(Still::now());
    let mut all = place.rotation(clock.clone());
    all.enroll(count);
    let mut alone = place.rotation(Arc::new(Still::now()));
    let single = alone.enroll(1)[0];

    let mut ours = || {
        clock.advance(budget::rotate_until(budget::TTL_DEFAULT));
        let took = each(count, || while all.engine.tick().is_some_and(|idle| idle.is_zero()) {});
        // In order, and every one of them.
        let mut published = 0;
        while let Some(event) = all.next_event() {
            assert!(matches!(event, host::rotation::event::RotationEvent::Published(_)), "{event:?}");
            published += 1;
        }
        assert_eq!(published, count, "one token each");
        took
    };
    let mut theirs = || {
        let took = each(SINGLE, || {
            for _ in 0..SINGLE {
                alone.engine.rotate(single).expect("rotate");
            }
        });
        alone.forget_events();
        took
    };
    in_turns(1, &mut ours, &mut theirs);
    let pairs = in_turns(PAIRS, ours, theirs);
    eprintln!("due_at_once: {} pairs, {count} due at once", pairs.len());
    Row {
        name: "due_at_once",
        of: format!("{count} tokens due at once, per token"),
        against: "one token of one sandbox",
        unit: "us",
        pairs,
        bar: Bar::AtMost(1.3),
    }
    .print();
}
