//! The two clocks: the wall's, which tokens speak of, and the monotonic one, which schedules run on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Both clocks at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the epoch.
    pub wall: Duration,
    /// Monotonic; does not count while the host is suspended.
    pub monotonic: Instant,
}

impl Now {
    /// Whole seconds since the epoch.
    pub fn unix(&self) -> u64 {
        self.wall.as_secs()
    }
}

/// Where rotation takes the time from.
pub trait Clock: Send + Sync {
    /// Reads both clocks.
    fn now(&self) -> Now;
}

/// The host's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        // A clock before the epoch makes tokens that nobody accepts, and is noticed by its jump when it is set.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { wall, monotonic: Instant::now() }
    }
}

/// A clock that tests set.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct ManualClock(std::sync::Mutex<Now>);

#[cfg(test)]
impl ManualClock {
    pub(crate) fn at(unix: u64) -> Self {
        Self(Now { wall: Duration::from_secs(unix), monotonic: Instant::now() }.into())
    }

    /// Time passes.
    pub(crate) fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        now.wall += by;
        now.monotonic += by;
    }

    /// Somebody sets the wall clock.
    pub(crate) fn set_wall(&self, wall: Duration) {
        self.0.lock().unwrap().wall = wall;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}
