//! What the kernel is told, and asked, before anything runs on it.

use std::fs;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::{Fault, Machine};
use crate::sys::cgroup;

/// The log names addresses and devices, and whatever a driver is unlucky to print; addresses help exploits.
const LOG: [(&str, &str); 2] = [("/proc/sys/kernel/dmesg_restrict", "1"), ("/proc/sys/kernel/kptr_restrict", "1")];
/// What the kernel starts by itself, the handler of core files for example, gets no capability, in no way. It can only be
/// taken away.
const HELPERS: [(&str, &str); 2] =
    [("/proc/sys/kernel/usermodehelper/bset", "0 0"), ("/proc/sys/kernel/usermodehelper/inheritable", "0 0")];
const RANDOM: &str = "/dev/random";
const RANDOM_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn close_log(_: &mut Machine) -> Result<(), Fault> {
    set(&LOG)
}

/// Settings that name programs belong to root, and need no capability: uid 0 of the workload gets at them by a directory
/// that somebody with another view of the mounts lends it.
pub(super) fn leave_to_helpers(_: &mut Machine) -> Result<(), Fault> {
    set(&HELPERS)?;
    let failed = |error: &dyn std::fmt::Display| Fault::new("a mount namespace", error);
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed(&errno))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).map_err(|errno| failed(&errno))
}

fn set(settings: &[(&str, &str)]) -> Result<(), Fault> {
    settings.iter().try_for_each(|(path, value)| fs::write(path, value).map_err(|error| Fault::new(path, error)))
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
