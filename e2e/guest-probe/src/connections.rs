//! Guest root against the vmm's descriptors: more connections than any gateway takes, all at once.

use std::time::Duration;

use proto::layout::CONTROL_PORT;
use rustix::process::{Resource, Rlimit, setrlimit};
use vsock::{VMADDR_CID_HOST, VsockStream};

/// Twice the usual limit of open files, at which libkrun ends.
const ATTEMPTS: usize = 2048;
/// For how long libkrun keeps a connection that was closed.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) fn attempt() {
    let limit = Some(2 * ATTEMPTS as u64);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }) {
        println!("connections: failed to raise the guest's own limit: {error}");
    }
    let mut kept = Vec::new();
    let mut refused = 0;
    for _ in 0..ATTEMPTS {
        match VsockStream::connect_with_cid_port(VMADDR_CID_HOST, CONTROL_PORT) {
            Ok(stream) => kept.push(stream),
            Err(_) => refused += 1,
        }
    }
    println!("connections: {} made, {refused} refused", kept.len());
    drop(kept);
    std::thread::park_timeout(LINGER + Duration::from_secs(1));
    match VsockStream::connect_with_cid_port(VMADDR_CID_HOST, CONTROL_PORT) {
        Ok(_) => println!("connections: one more made"),
        Err(error) => println!("connections: one more failed: {error}"),
    }
}
