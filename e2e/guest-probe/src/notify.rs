//! Says something to whoever supervises this program as a service.

use std::io;
use std::os::unix::net::UnixDatagram;

/// One datagram to the socket that the environment names.
pub(crate) fn say(message: &[u8]) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or_else(|| io::Error::other("NOTIFY_SOCKET is not set"))?;
    UnixDatagram::unbound()?.send_to(message, path).map(drop)
}
