//! When to act. Pure functions of times; jitter is an argument.

use std::time::Duration;

use proto::budget;

/// How far wall and monotonic clock may drift apart between two looks before it counts as a jump. Well below the
/// leeway, well above what slewing does in the seconds between two looks.
pub const JUMP: Duration = Duration::from_millis(500);
/// How often the clocks are compared while there is something to rotate.
pub const CLOCK_LOOK: Duration = Duration::from_secs(1);
/// A sandbox that asks for a new token gets at most one in this time.
pub const REFRESH_MIN: Duration = Duration::from_secs(1);
/// The shortest time between two slices of an audit.
const SLICE_MIN: Duration = Duration::from_millis(100);
/// First and last delay of a retry.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The age at which a token is replaced: between 45 and 55 % of its life. `jitter` is in 0..1.
pub fn rotate_after(ttl: Duration, jitter: f64) -> Duration {
    let (from, until) = (budget::rotate_from(ttl), budget::rotate_until(ttl));
    from + (until - from).mul_f64(jitter.clamp(0.0, 1.0))
}

/// The delay before the next attempt after so many failed ones: doubles from 100 ms to 5 s, the upper half of it by
/// jitter.
pub fn retry_after(failures: u32, jitter: f64) -> Duration {
    let (first, last) = RETRY;
    let ceiling = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(last);
    ceiling.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// The rhythm of an audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Time from one slice to the next.
    pub every: Duration,
    /// Directories in a slice.
    pub count: usize,
}

/// Slices such that each of `total` directories is looked at once per `interval`; nothing where there are none.
/// Few directories are looked at one at a time, many in slices that are at least 100 ms apart.
pub fn audit_slice(total: usize, interval: Duration) -> Option<Slice> {
    let divisor = u32::try_from(total).unwrap_or(u32::MAX);
    let every = interval.checked_div(divisor)?.max(SLICE_MIN).min(interval);
    let slices = (interval.as_nanos() / every.as_nanos().max(1)).max(1) as usize;
    Some(Slice { every, count: total.div_ceil(slices) })
}

/// Whether the clocks disagree about how much time has passed: the wall clock was set, or the host slept.
pub fn jumped(wall: (Duration, Duration), monotonic: Duration) -> bool {
    let (before, after) = wall;
    after.abs_diff(before + monotonic) > JUMP
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn retries_double_to_a_cap() {
        let delays: Vec<_> = [1, 2, 3, 6, 7, 100, u32::MAX].map(|n| retry_after(n, 1.0).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 3200, 5000, 5000, 5000]);
        assert_eq!(retry_after(1, 0.0).as_millis(), 50);
    }

    #[test]
    fn jumps() {
        let at = |seconds| Duration::from_secs(seconds);
        for (before, after, passed, expected) in [
            (at(100), at(101), SECOND, false),
            (at(100), at(100), SECOND, true),
            (at(100), at(100), JUMP, false),
            (at(100), at(100) + 2 * SECOND, SECOND, true),
            (at(100), at(0), SECOND, true),
            (at(100), at(3 * 86400), SECOND, true),
        ] {
            assert_eq!(jumped((before, after), passed), expected, "{before:?} {after:?} {passed:?}");
        }
    }

    #[test]
    fn slices() {
        let interval = Duration::from_millis(7500);
        for (total, expected) in [
            (0, None),
            (1, Some(Slice { every: interval, count: 1 })),
            (10, Some(Slice { every: interval / 10, count: 1 })),
            (75, Some(Slice { every: SLICE_MIN, count: 1 })),
            (76, Some(Slice { every: SLICE_MIN, count: 2 })),
            (100_000, Some(Slice { every: SLICE_MIN, count: 1334 })),
        ] {
            assert_eq!(audit_slice(total, interval), expected, "{total}");
        }
    }

    proptest! {
        #[test]
        fn rotation_leaves_time_for_a_stale_reader(ttl in 30_u64..=3600, jitter in 0.0..1.0_f64) {
            let ttl = Duration::from_secs(ttl);
            let age = rotate_after(ttl, jitter);
            prop_assert!(age >= ttl.mul_f64(0.449) && age <= ttl.mul_f64(0.551), "{age:?} of {ttl:?}");
            let needed = budget::SHARE_ENTRY_LIFETIME + 2 * budget::heartbeat(ttl) + budget::leeway(ttl);
            prop_assert!(age + needed <= ttl, "{age:?} of {ttl:?}");
        }

        #[test]
        fn every_directory_is_audited_once_per_interval(total in 1_usize..200_000, ttl in 30_u64..=3600) {
            let interval = budget::audit_interval(Duration::from_secs(ttl));
            let slice = audit_slice(total, interval).unwrap();
            let slices = (interval.as_nanos() / slice.every.as_nanos()) as usize;
            prop_assert!(slices * slice.count >= total, "{slice:?}");
            prop_assert!(slice.every >= SLICE_MIN);
            // And not much more often than that.
            prop_assert!(slice.count <= 1 + total / slices);
        }
    }
}
