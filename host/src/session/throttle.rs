//! How often a guest may have something durable done.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// Between two times of one sandbox.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Sandboxes that are remembered before those whose time has passed are forgotten.
const REMEMBERED: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Mutex<HashMap<Uuid, Instant>>,
}

impl Throttle {
    /// Whether it may be done now; if so, it counts.
    pub fn admit(&self, sandbox_id: Uuid, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if last.get(&sandbox_id).is_some_and(recent) {
            return false;
        }
        if last.len() >= REMEMBERED {
            last.retain(|_, at| recent(at));
        }
        last.insert(sandbox_id, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_second_and_sandbox() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(throttle.admit(one, now) && throttle.admit(two, now));
        assert!(!throttle.admit(one, now + INTERVAL / 2));
        assert!(throttle.admit(one, now + INTERVAL));
        for number in 3..3 * REMEMBERED as u128 {
            throttle.admit(Uuid::from_u128(number), now + INTERVAL * (number as u32));
        }
        assert!(throttle.last.lock().unwrap().len() <= REMEMBERED);
    }
}
