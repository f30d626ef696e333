//! `openshell-agent sftp-server`: files for SFTP clients, on standard input and output.
//!
//! A program of the workload, which the agent starts like any other: what it may do with a file is what the
//! workload's user may do. Nothing here decides about rights.

mod attributes;
mod extensions;
mod files;
mod handles;

use std::io;
use std::process::ExitCode;

use rustix::stdio;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// The verb.
pub const VERB: &str = "sftp-server";
/// The longest packet of a client, and the longest answer to a read with its header.
const PACKET_MAX: u32 = 256 * 1024;

/// Until the client closes its end.
pub fn serve() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|runtime| runtime.block_on(serve_standard_streams()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("openshell-agent: failed to serve files on the standard streams: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve_standard_streams() -> io::Result<()> {
    // The agent makes pipes; a terminal is nothing for a binary protocol, and refused here.
    let input = pipe::Receiver::from_owned_fd(rustix::io::dup(stdio::stdin())?)?;
    let output = pipe::Sender::from_owned_fd(rustix::io::dup(stdio::stdout())?)?;
    let (ended, end) = oneshot::channel();
    let config = russh_sftp::server::Config { max_client_packet_len: PACKET_MAX };
    // Serves in a task of its own, and drops the files with their sender when it is done.
    russh_sftp::server::run_with_config(tokio::io::join(input, output), files::Files::new(ended), config).await;
    let _ = end.await;
    Ok(())
}
