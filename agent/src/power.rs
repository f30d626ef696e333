//! The end of the machine: files to disk, the exit code to the vmm, and a reboot, which is how a libkrun guest ends.
//!
//! Nothing is unmounted. The root is an overlay in memory over a read-only disk and is gone with the machine, like every
//! tmpfs; the identity share is read-only; and an unmount waits for whoever has a file open. What could lose something
//! is a file system on a disk that somebody in the guest has mounted for writing: that one is synced and remounted
//! read-only. A disk that does not answer must not keep the machine from ending, so each step has its deadline.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};

use crate::sys::raw;

/// Exit code of a guest whose agent could not boot it: `EX_SOFTWARE` of sysexits. The console says which step.
pub const EXIT_BOOT_FAILED: u8 = 70;
/// Exit code of a guest whose agent stopped by a fault of its own.
pub const EXIT_AGENT_FAULT: u8 = 71;

/// What the end of the machine may take of the grace of a stop.
pub const BUDGET: Duration = Duration::from_secs(1);
const STEP_DEADLINE: Duration = Duration::from_millis(400);
const _: () = assert!(LAST_STEPS.len() as u128 * STEP_DEADLINE.as_millis() < BUDGET.as_millis());

type LastStep = fn() -> Result<(), String>;

/// In this order: a file system that is remounted writes what is left, and a sync before makes that little.
const LAST_STEPS: [(&str, LastStep); 2] = [("sync", sync), ("remount disks read-only", remount_disks_read_only)];
/// Exit code of a guest that lost a critical service. The gateway was told which.
pub const EXIT_SERVICE_LOST: u8 = 72;

/// The right to end the machine; held by PID 1.
#[derive(Debug)]
pub struct Power {
    /// A descriptor of the root share, which carries the exit code.
    pub share: Option<OwnedFd>,
}

impl Power {
    /// Ends the machine with this exit code. Returns only where the kernel refuses.
    pub fn off(&self, code: u8) {
        for (act, step) in LAST_STEPS {
            if let Err(why) = within(STEP_DEADLINE, step) {
                tracing::warn!("failed to {act}: {why}");
            }
        }
        match &self.share {
            Some(share) => {
                if let Err(error) = raw::set_exit_code(share, code) {
                    tracing::error!(code, %error, "failed to hand over the exit code");
                }
            }
            None => tracing::error!(code, "no share is open that could carry the exit code"),
        }
        if let Err(error) = reboot(RebootCommand::Restart) {
            tracing::error!(%error, "failed to reboot");
        }
    }
}

/// On a thread of its own, which is left behind where it takes too long: the machine ends, and it with it.
fn within(deadline: Duration, step: fn() -> Result<(), String>) -> Result<(), String> {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().spawn(move || done.send(step()));
    thread.map_err(|error| format!("no thread for it: {error}"))?;
    result.recv_timeout(deadline).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => Err(format!("it was not done within {deadline:?}")),
        RecvTimeoutError::Disconnected => Err("it panicked".to_owned()),
    })
}

fn sync() -> Result<(), String> {
    rustix::fs::sync();
    Ok(())
}

fn remount_disks_read_only() -> Result<(), String> {
    let mounts = std::fs::read("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let mounts = String::from_utf8_lossy(&mounts).into_owned();
    let failures: Vec<String> = writable_disks(&mounts)
        .filter_map(|at| Some(format!("{at}: {}", mount_remount(at, MountFlags::RDONLY, "").err()?)))
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join(", ")) }
}

/// Where a device is mounted for writing. In a line of `mountinfo` the fifth field is the place and the last one says
/// how the file system itself is mounted; kind and source stand behind the lone dash.
fn writable_disks(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| {
        let (mount, mounted) = line.split_once(" - ")?;
        let mut mounted = mounted.split(' ');
        let (_, source, options) = (mounted.next()?, mounted.next()?, mounted.next()?);
        let is_writable = options.split(',').next() == Some("rw");
        (is_writable && source.starts_with("/dev/")).then(|| mount.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_written_to_are_found() {
        let mounts = "22 1 0:20 / / rw,nodev - overlay overlay rw,lowerdir=/newroot/image\n\
            23 22 254:0 / /newroot/image ro,nodev - erofs /dev/vda ro\n\
            24 22 254:16 / /data rw,relatime shared:2 - ext4 /dev/vdb rw,errors=remount-ro\n\
            25 22 0:5 / /dev rw,nosuid - devtmpfs devtmpfs rw\n\
            26 22 0:30 / /etc/openshell/auth ro - virtiofs identity ro\n";
        assert_eq!(writable_disks(mounts).collect::<Vec<_>>(), ["/data"]);
    }

    #[test]
    fn a_step_that_stands_still_is_left_behind() {
        let stuck = || {
            std::thread::park();
            Ok(())
        };
        assert!(within(Duration::from_millis(20), stuck).unwrap_err().contains("not done within 20ms"));
        assert_eq!(within(Duration::from_secs(5), || Err("no".to_owned())), Err("no".to_owned()));
        assert_eq!(within(Duration::from_secs(5), sync), Ok(()));
    }
}
