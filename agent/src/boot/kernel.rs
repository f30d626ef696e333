//! What the kernel is told, and asked, before anything runs on it.

use std::fs;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};

use super::{Fault, Machine};
use crate::sys::cgroup;

/// The log names addresses and devices, and whatever a driver is unlucky to print; addresses help exploits.
const SETTINGS: [(&str, &str); 2] = [("/proc/sys/kernel/dmesg_restrict", "1"), ("/proc/sys/kernel/kptr_restrict", "1")];
const RANDOM: &str = "/dev/random";
const RANDOM_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn close_log(_: &mut Machine) -> Result<(), Fault> {
    SETTINGS.iter().try_for_each(|(path, value)| fs::write(path, value).map_err(|error| Fault::new(path, error)))
}

pub(super) fn limit_workload(_: &mut Machine) -> Result<(), Fault> {
    cgroup::make().map_err(|(path, error)| Fault::new(path, error))
}

/// `/dev/random` becomes readable once getrandom does not block any more.
pub(super) fn await_randomness(_: &mut Machine) -> Result<(), Fault> {
    let failed = |errno| Fault::new(RANDOM, errno);
    let device = open(RANDOM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let deadline = Timespec { tv_sec: RANDOM_DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&deadline)).map_err(failed)?;
    if ready == 0 {
        let cause = format!("the kernel has gathered no randomness within {RANDOM_DEADLINE:?}: is there a virtio-rng?");
        return Err(Fault::new(RANDOM, cause));
    }
    Ok(())
}
