//! The least that a machine can do with an image: mount it, run one program of it, end.

use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, reboot};

const AT: &str = "/newroot";

/// Says how `/bin/true` ended: the exit code of a machine tells too little, as that of one that never started is 0.
pub(crate) fn run_true() {
    let entered =
        mount("/dev/vda", AT, "erofs", MountFlags::RDONLY, None).and_then(|()| chroot(AT)).and_then(|()| chdir("/"));
    match entered {
        Ok(()) => match Command::new("/bin/true").status() {
            Ok(status) => println!("image: /bin/true ended: {status}"),
            Err(error) => println!("image: failed to run /bin/true: {error}"),
        },
        Err(error) => println!("image: failed to enter: {error}"),
    }
    let refused = reboot(RebootCommand::Restart);
    println!("image: failed to reboot: {refused:?}");
}
