//! The control port must be out of the workload's reach: it cannot even make the socket.

use rustix::net::{AddressFamily, SocketType, socket};

pub(crate) fn attempt() {
    let families = [("vsock", AddressFamily::from_raw(40)), ("unix", AddressFamily::UNIX), ("inet", AddressFamily::INET)];
    for (name, family) in families {
        for (kind_name, kind) in [("stream", SocketType::STREAM), ("datagram", SocketType::DGRAM)] {
            match socket(family, kind, None) {
                Ok(_) => println!("{name} {kind_name}: made"),
                Err(error) => println!("{name} {kind_name}: refused: {error}"),
            }
        }
    }
}
