//! The guest's wall clock.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Time since the epoch, as the guest believes.
pub fn wall() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Time since the kernel started.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Sets the wall clock, as a step.
pub fn set_wall(to: Duration) -> io::Result<()> {
    let tv_sec = i64::try_from(to.as_secs()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec: to.subsec_nanos().into() })?)
}
