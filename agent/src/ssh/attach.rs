//! A channel that watches the main process: what its ring still has, what comes, its exit code.

use std::sync::Arc;
use std::time::Duration;

use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::time::timeout;

use super::exec::{Peer, ended, finish, send};
use super::handler::Event;
use super::stdin::{Flow, Sink};
use crate::workload::main_process::{Attachment, Input, MainProcess, Seen};
use crate::workload::process::Terminal;

/// How long the peer may take to close its side, which tells that it has taken everything.
const TAKEN: Duration = Duration::from_secs(2);

/// See the module. Ends with the main process or with the channel; the main process goes on without it.
pub(super) async fn attach(peer: Peer, main: Arc<MainProcess>, terminal: Option<Terminal>) {
    let Peer { writer, handle, input, mut events } = peer;
    let mut attachment = main.attach(terminal);
    let feeding = feed(input, &main, &handle, &writer);
    let watching = watch(&mut attachment, &writer);
    tokio::pin!(feeding, watching);
    let mut fed = false;
    let finished = loop {
        tokio::select! {
            biased;
            // First: of one who has gone nothing more is typed.
            event = events.recv() => match event {
                Some(Event::Resize(size)) => main.resize(size),
                Some(Event::Signal(signal)) => main.signal(signal),
                None => break false,
            },
            finished = &mut watching => break finished.is_ok(),
            () = &mut feeding, if !fed => fed = true,
        }
    };
    if finished {
        let _ = timeout(TAKEN, ended(&mut events)).await;
    }
}

async fn watch(attachment: &mut Attachment, writer: &ChannelWriteHalf<Msg>) -> Result<(), russh::Error> {
    loop {
        match attachment.next().await {
            Seen::Output(stream, bytes) => send(writer, stream, bytes).await?,
            Seen::Ended(code) => {
                finish(writer, code).await;
                return Ok(());
            }
        }
    }
}

async fn feed(mut input: Sink, main: &MainProcess, handle: &russh::server::Handle, writer: &ChannelWriteHalf<Msg>) {
    let to_main = main.input();
    while let Some((bytes, flow)) = input.next().await {
        if flow == Flow::GoOn {
            let _ = handle.xon_xoff_request(writer.id(), true).await;
        }
        if to_main.send(Input::Data(bytes)).await.is_err() {
            return;
        }
    }
    let _ = to_main.send(Input::End).await;
}
