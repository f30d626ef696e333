//! The two calls that no safe wrapper has. The only file of this crate with `unsafe`.

use std::io;
use std::os::fd::AsFd;

use nix::libc;
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

/// Marks every descriptor but the three standard ones to be closed when the next program is executed.
pub fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: nothing is closed now, so that no descriptor which somebody owns becomes invalid; the call takes plain
    // numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
