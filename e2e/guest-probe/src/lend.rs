//! A directory, from one uid to another: what an accomplice does for a program whose own view of it is read-only.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{Mode, OFlags, openat};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Gives it to the first who connects to the socket.
pub(crate) fn lend(directory: &str, socket: &str) -> io::Result<()> {
    let lent = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o777))?;
    println!("ready");
    let (peer, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let lent = [lent.as_fd()];
    message.push(SendAncillaryMessage::ScmRights(&lent));
    sendmsg(&peer, &[io::IoSlice::new(b"!")], &mut message, SendFlags::empty())?;
    Ok(())
}

/// Writes `value` into a file of the directory that is lent there.
pub(crate) fn borrow(socket: &str, file: &str, value: &str) -> io::Result<()> {
    let peer = UnixStream::connect(socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&peer, &mut [io::IoSliceMut::new(&mut [0])], &mut message, RecvFlags::empty())?;
    let mut lent = message.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<OwnedFd>>(),
        _ => vec![],
    });
    let directory = lent.next().ok_or_else(|| io::Error::other("nothing was lent"))?;
    let file = openat(&directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}
