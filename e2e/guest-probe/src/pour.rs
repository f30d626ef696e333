//! Bytes as fast as they go, to measure a way out of the guest.

use std::io::{self, Write};
use std::net::TcpListener;

use proto::layout::CONTROL_PORT;
use vsock::{VMADDR_CID_HOST, VsockStream};

const BYTES: usize = 64 << 20;
const PIECE: usize = 64 << 10;

fn pour(mut into: impl Write) -> io::Result<()> {
    let piece = [0x5a; PIECE];
    for _ in 0..BYTES / PIECE {
        into.write_all(&piece)?;
    }
    into.flush()
}

/// As PID 1: by the vsock port at which the gateway would be, and nothing else.
pub(crate) fn to_the_host() {
    let poured = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, CONTROL_PORT).and_then(pour);
    println!("pour: {poured:?}");
}

/// As a program: to whoever connects to a port on loopback, which it says.
pub(crate) fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    println!("{}", listener.local_addr().expect("an address").port());
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(pour) {
            println!("pour: {error}");
        }
    }
}
