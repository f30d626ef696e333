//! The end of the machine: files to disk, the exit code to the vmm, and a reboot, which is how a libkrun guest ends.

use std::os::fd::OwnedFd;

use rustix::fs::sync;
use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};

use crate::sys::raw;

/// Exit code of a guest whose agent could not boot it: `EX_SOFTWARE` of sysexits. The console says which step.
pub const EXIT_BOOT_FAILED: u8 = 70;
/// Exit code of a guest whose agent stopped by a fault of its own.
pub const EXIT_AGENT_FAULT: u8 = 71;

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
        sync();
        // The overlay may be busy still; what matters was synced.
        let _ = mount_remount("/", MountFlags::RDONLY, "");
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
