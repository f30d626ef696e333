//! A channel that watches the main process: what its ring still has, what comes, its exit code. And one of them types.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::server::{Handle, Msg};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::exec::{Peer, ended, finish, send};
use super::handler::Event;
use super::stdin::{Flow, Sink};
use crate::workload::main_process::{Attachment, Input, MainProcess, Seen, Typist};
use crate::workload::process::Terminal;
use crate::workload::ring::Stream;

/// How long the peer may take to close its side, which tells that it has taken everything.
const TAKEN: Duration = Duration::from_secs(2);
/// Words to the watcher that wait for their turn among the output.
const NOTICES: usize = 2;
const READ_ONLY: &str =
    "openshell: somebody else has the input of this process, and you watch; attach with --take-input to type\r\n";
const TAKEN_AWAY: &str = "openshell: somebody else took the input of this process; you watch from here on\r\n";

/// Words to the watcher.
type Notices = mpsc::Sender<&'static str>;
/// Columns and rows of the watcher's terminal, where it has one.
type Size = watch::Sender<Option<(u16, u16)>>;

/// See the module. Ends with the main process or with the channel; the main process goes on without it.
pub(super) async fn attach(peer: Peer, main: Arc<MainProcess>, terminal: Option<Terminal>, take: bool) {
    let Peer { writer, handle, input, mut events } = peer;
    let size = Size::new(terminal.as_ref().map(|terminal| terminal.size));
    let mut attachment = main.attach(terminal, take);
    let typist = attachment.typist();
    let (notices, mut told) = mpsc::channel(NOTICES);
    if size.borrow().is_some() && !typist.has_input() {
        let _ = notices.try_send(READ_ONLY);
    }
    let feeding = feed(input, &typist, &notices, &handle, &writer);
    let watching = watch(&mut attachment, &mut told, &writer);
    let following = follow(&typist, &main, &size, &notices);
    tokio::pin!(feeding, watching, following);
    let mut fed = false;
    let finished = loop {
        tokio::select! {
            biased;
            // First: of one who has gone nothing more is typed.
            event = events.recv() => match event {
                Some(Event::Resize(wanted)) => {
                    size.send_replace(Some(wanted));
                    if typist.has_input() {
                        main.resize(wanted);
                    }
                }
                Some(Event::Signal(signal)) => {
                    if typist.may_type() {
                        main.signal(signal);
                    }
                }
                None => break false,
            },
            () = &mut following => {}
            finished = &mut watching => break finished.is_ok(),
            () = &mut feeding, if !fed => fed = true,
        }
    };
    if finished {
        let _ = timeout(TAKEN, ended(&mut events)).await;
    }
}

async fn watch(
    attachment: &mut Attachment,
    told: &mut mpsc::Receiver<&'static str>,
    writer: &ChannelWriteHalf<Msg>,
) -> Result<(), russh::Error> {
    loop {
        let seen = tokio::select! {
            Some(notice) = told.recv() => Seen::Output(Stream::Err, Bytes::from_static(notice.as_bytes())),
            seen = attachment.next() => seen,
        };
        match seen {
            Seen::Output(stream, bytes) => send(writer, stream, bytes).await?,
            Seen::Ended(code) => {
                finish(writer, code).await;
                return Ok(());
            }
        }
    }
}

/// Never ends. The process's terminal has the size of that of whoever types.
async fn follow(typist: &Typist, main: &MainProcess, size: &Size, notices: &Notices) {
    loop {
        typist.got_input().await;
        if let Some(size) = *size.borrow() {
            main.resize(size);
        }
        typist.lost_input().await;
        let _ = notices.try_send(TAKEN_AWAY);
    }
}

/// What comes from one who may not type is dropped, and he is told once in a row: to keep it would have it typed later,
/// into something else.
async fn feed(mut input: Sink, typist: &Typist, notices: &Notices, handle: &Handle, writer: &ChannelWriteHalf<Msg>) {
    let mut told = false;
    while let Some((bytes, flow)) = input.next().await {
        if flow == Flow::GoOn {
            let _ = handle.xon_xoff_request(writer.id(), true).await;
        }
        if typist.may_type() {
            told = false;
            typist.send(Input::Data(bytes)).await;
        } else if !std::mem::replace(&mut told, true) {
            let _ = notices.try_send(READ_ONLY);
        }
    }
    if typist.may_type() {
        typist.send(Input::End).await;
    }
}
