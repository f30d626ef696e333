//! One program on one channel: a task that owns it from its start to its end.

use std::sync::Arc;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::server::{Handle, Msg};
use rustix::process::kill_process_group;
use rustix::termios::tcgetpgrp;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::handler::Event;
use super::stdin::{Flow, Sink};
use crate::workload::Workload;
use crate::workload::output::Output;
use crate::workload::process::{Process, hang_up, resize};
use crate::workload::reaper::exited;
use crate::workload::ring::Stream;

/// Code of what could not be started, as shells say it.
const EXIT_NOT_STARTED: i32 = 126;
/// End of file, typed on a terminal.
const VEOF: &[u8] = &[4];

/// The other side of a channel.
pub(super) struct Peer {
    pub(super) writer: ChannelWriteHalf<Msg>,
    pub(super) handle: Handle,
    pub(super) input: Sink,
    /// Ends when the channel or the connection has ended.
    pub(super) events: mpsc::Receiver<Event>,
}

/// See the module.
pub(super) async fn exec(mut peer: Peer, started: Result<Process, String>, workload: Arc<Workload>) {
    match started {
        Ok(process) => run(peer, process, &workload).await,
        Err(message) => {
            let told = send(&peer.writer, Stream::Err, Bytes::from(format!("openshell-agent: {message}\n")));
            tokio::select! {
                told = told => if told.is_ok() { finish(&peer.writer, EXIT_NOT_STARTED).await },
                () = ended(&mut peer.events) => {}
            }
        }
    }
}

async fn run(peer: Peer, process: Process, workload: &Workload) {
    let Peer { writer, handle, input, mut events } = peer;
    let Process { family, stdin, stdout, stderr, terminal } = process;
    let exit = &family.exit;
    let out = carry(&writer, Stream::Out, Some(Output::new(stdout, exit.clone())));
    let err = carry(&writer, Stream::Err, stderr.map(|stderr| Output::new(stderr, exit.clone())));
    let mut code = exit.clone();
    let finishing = async {
        tokio::try_join!(out, err)?;
        finish(&writer, exited(&mut code).await).await;
        Ok::<(), russh::Error>(())
    };
    let feeding = feed(input, stdin, &handle, &writer, terminal.is_some());
    tokio::pin!(finishing, feeding);
    let mut fed = false;
    let finished = loop {
        tokio::select! {
            finished = &mut finishing => break finished.is_ok(),
            () = &mut feeding, if !fed => fed = true,
            event = events.recv() => match event {
                Some(Event::Resize(size)) => {
                    if let Some(terminal) = &terminal {
                        let _ = resize(terminal, size);
                    }
                }
                Some(Event::Signal(signal)) => match terminal.as_ref().and_then(|fd| tcgetpgrp(fd).ok()) {
                    // What a user on a terminal means is what is in its foreground.
                    Some(foreground) => drop(kill_process_group(foreground, signal)),
                    None => workload.reaper.signal_group(family.leader, signal),
                },
                None => break false,
            },
        }
    };
    if !finished {
        drop(terminal);
        hang_up(&workload.reaper, &family).await;
    }
}

/// Output to the peer, as fast as the peer takes it.
async fn carry(writer: &ChannelWriteHalf<Msg>, stream: Stream, output: Option<Output>) -> Result<(), russh::Error> {
    let Some(mut output) = output else { return Ok(()) };
    while let Some(bytes) = output.next().await {
        send(writer, stream, bytes).await?;
    }
    Ok(())
}

pub(super) async fn send(writer: &ChannelWriteHalf<Msg>, stream: Stream, bytes: Bytes) -> Result<(), russh::Error> {
    match stream {
        Stream::Out => writer.data_bytes(bytes).await,
        Stream::Err => writer.extended_data_bytes(1, bytes).await,
    }
}

/// Exit code, end of output, close: in this order, or clients do not see the code.
pub(super) async fn finish(writer: &ChannelWriteHalf<Msg>, code: i32) {
    let _ = writer.exit_status(code.cast_unsigned()).await;
    let _ = writer.eof().await;
    let _ = writer.close().await;
}

/// Input to the program, until one of them ends.
async fn feed(
    mut input: Sink,
    mut stdin: pipe::Sender,
    handle: &Handle,
    writer: &ChannelWriteHalf<Msg>,
    terminal: bool,
) {
    while let Some((bytes, flow)) = input.next().await {
        if flow == Flow::GoOn {
            let _ = handle.xon_xoff_request(writer.id(), true).await;
        }
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
    if terminal {
        let _ = stdin.write_all(VEOF).await;
    }
}

/// Resolves when the channel is over.
pub(super) async fn ended(events: &mut mpsc::Receiver<Event>) {
    while events.recv().await.is_some() {}
}
