//! Clocks that pass when they are told to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use host::rotation::clock::{Clock, Now, SystemClock};

/// Stands still in between.
pub(crate) struct Still(Mutex<Now>);

impl Still {
    pub(crate) fn now() -> Self {
        Self(SystemClock.now().into())
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.wall += by;
        now.monotonic += by;
    }
}

impl Clock for Still {
    fn now(&self) -> Now {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's clocks, so many milliseconds ahead.
#[derive(Default)]
pub(crate) struct Ahead(AtomicU64);

impl Ahead {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Now {
        let ahead = Duration::from_millis(self.0.load(Ordering::SeqCst));
        let Now { wall, monotonic } = SystemClock.now();
        Now { wall: wall + ahead, monotonic: monotonic + ahead }
    }
}
