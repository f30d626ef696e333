//! How long to wait before the next attempt.

use std::time::Duration;

use proto::budget::{RECONNECT_MAX, RECONNECT_MIN};

/// Full jitter: anywhere between nothing and a ceiling that doubles with each failure. `random` is in 0..1.
pub fn delay(failures: u32, random: f64) -> Duration {
    let ceiling = RECONNECT_MIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(RECONNECT_MAX);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}

/// The failures in a row of one connection.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The gateway refused for a reason that time alone may cure: from here on at the cap.
    pub fn slow_down(&mut self) {
        self.failures = self.failures.max(16);
    }

    /// The delay after one more failure.
    pub fn next(&mut self, random: f64) -> Duration {
        let delay = delay(self.failures, random);
        self.failures = self.failures.saturating_add(1).min(31);
        delay
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_is_below_its_ceiling(failures in 0_u32..100, random in 0.0..1.0) {
            let delay = delay(failures, random);
            prop_assert!(delay <= RECONNECT_MAX);
            prop_assert!(delay <= RECONNECT_MIN * 2_u32.saturating_pow(failures.min(7)));
        }

        #[test]
        fn more_failures_never_shorten_it(failures in 0_u32..40, random in 0.0..1.0) {
            prop_assert!(delay(failures, random) <= delay(failures + 1, random));
        }
    }

    #[test]
    fn it_doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::default();
        let series: Vec<u128> = (0..9).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(series, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), RECONNECT_MIN);
        backoff.slow_down();
        assert_eq!(backoff.next(1.0), RECONNECT_MAX);
    }
}
