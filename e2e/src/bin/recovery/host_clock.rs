//! The clock of this machine, set wrong for a while.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Sets it right again when dropped, by what the monotonic clock says has passed.
pub(crate) struct WrongClock {
    right: Timespec,
    since: Instant,
}

impl WrongClock {
    /// Steps the clock by so many seconds.
    ///
    /// # Errors
    /// Not allowed.
    pub(crate) fn set(by: i64) -> Result<Self, String> {
        let (right, since) = (clock_gettime(ClockId::Realtime), Instant::now());
        let wrong = Timespec { tv_sec: right.tv_sec + by, ..right };
        clock_settime(ClockId::Realtime, wrong).map_err(|error| format!("failed to set the clock: {error}"))?;
        Ok(Self { right, since })
    }
}

impl Drop for WrongClock {
    fn drop(&mut self) {
        let now = Duration::new(self.right.tv_sec as u64, self.right.tv_nsec as u32) + self.since.elapsed();
        let now = Timespec { tv_sec: now.as_secs() as i64, tv_nsec: now.subsec_nanos().into() };
        clock_settime(ClockId::Realtime, now).expect("what was set can be set back");
    }
}
