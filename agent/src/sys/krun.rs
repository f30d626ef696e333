//! The one ioctl that no safe wrapper has: libkrun's exit code. The only file of this crate with `unsafe`.

use std::io;
use std::os::fd::AsFd;

use proto::layout::EXIT_CODE_IOCTL;

/// Sets the code with which the vmm process will end. `share` is a descriptor of any libkrun share.
pub fn set_exit_code(share: impl AsFd, code: u8) -> io::Result<()> {
    // SAFETY: libkrun 1.19.7 reads the argument of this ioctl as a number, never as an address, and any other file
    // system refuses the request with ENOTTY; the descriptor is borrowed for the length of the call.
    unsafe {
        let request = rustix::ioctl::IntegerSetter::<EXIT_CODE_IOCTL>::new_usize(usize::from(code));
        rustix::ioctl::ioctl(share, request)?;
    }
    Ok(())
}
