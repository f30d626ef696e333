//! A command in a sandbox, with the local standard streams as its own.

use std::sync::Arc;

use proto::budget::RELAY_CHUNK;
use proto::exec::{TAKE_INPUT_KEY, USER_KEY};
use proto::openshell::v1::exec_sandbox_event::Payload as Event;
use proto::openshell::v1::exec_sandbox_input::Payload as Input;
use proto::openshell::v1::{ExecSandboxInput, ExecSandboxRequest, ExecSandboxWindowResize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Request};

use super::connect::Client;
use super::console::Console;
use super::detach::{DetachKeys, Watcher};
use super::exit::ExitCode;
use super::failure::{CommandError, code_of};
use super::signals::Signals;
use super::terminal::{self, RawMode};

/// Chunks of input on their way; more wait in the pipe or the terminal.
const IN_FLIGHT: usize = 8;

/// How it ended, if not by an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code of its own.
    Exited(u8),
    /// By a signal to this process.
    Interrupted(ExitCode),
}

/// Runs `start`; an empty command attaches to the main process. As another user than the sandbox's, where one is named.
pub(crate) async fn run_as(
    client: &mut Client,
    start: ExecSandboxRequest,
    user: Option<MetadataValue<Ascii>>,
    console: &mut Console,
    signals: &mut Signals,
) -> Result<Ended, CommandError> {
    let mut beside = MetadataMap::new();
    if let Some(user) = user {
        beside.insert(USER_KEY, user);
    }
    let ended = carry(client, start, beside, DetachKeys::default(), console, signals).await?;
    // Without keys nobody detaches.
    Ok(ended.unwrap_or(Ended::Exited(0)))
}

/// The same for an attachment; nothing where `keys` were typed, on a terminal.
pub(crate) async fn run_until_detached(
    client: &mut Client,
    start: ExecSandboxRequest,
    take_input: bool,
    keys: DetachKeys,
    console: &mut Console,
    signals: &mut Signals,
) -> Result<Option<Ended>, CommandError> {
    let mut beside = MetadataMap::new();
    if take_input {
        beside.insert(TAKE_INPUT_KEY, MetadataValue::from_static("true"));
    }
    carry(client, start, beside, keys, console, signals).await
}

async fn carry(
    client: &mut Client,
    mut start: ExecSandboxRequest,
    beside: MetadataMap,
    keys: DetachKeys,
    console: &mut Console,
    signals: &mut Signals,
) -> Result<Option<Ended>, CommandError> {
    let terminals = console.terminals;
    let act = format!("run a command in sandbox `{}`", start.sandbox);
    let raw = match start.tty && terminals.stdin {
        true => Some(RawMode::enter().map_err(|cause| {
            CommandError::new(ExitCode::Failed, format!("failed to set the terminal to raw mode: {cause}"))
        })?),
        false => None,
    };
    if start.tty {
        (start.cols, start.rows) = terminal::size();
    }
    let resizes = start.tty && (terminals.stdin || terminals.stdout);
    let (input, requests) = mpsc::channel(IN_FLIGHT);
    let first = ExecSandboxInput { payload: Some(Input::Start(start)) };
    // The channel is new and has room.
    let _ = input.try_send(first);
    let mut request = Request::new(ReceiverStream::new(requests));
    *request.metadata_mut() = beside;
    let keys = Watcher::new(if raw.is_some() { keys } else { DetachKeys::default() });
    let detached = Arc::new(Notify::new());
    let pump = tokio::spawn(send_input(console.stdin.take(), input, resizes, keys, detached.clone()));
    let ended = tokio::select! {
        ended = receive(client, request, &act, console, signals) => ended.map(Some),
        () = detached.notified() => Ok(None),
    };
    // After a detach it is left alone: an end of the input would be typed.
    if !matches!(ended, Ok(None)) {
        pump.abort();
    }
    // Before anything else is printed.
    drop(raw);
    ended
}

async fn receive(
    client: &mut Client,
    request: Request<ReceiverStream<ExecSandboxInput>>,
    act: &str,
    console: &mut Console,
    signals: &mut Signals,
) -> Result<Ended, CommandError> {
    let opening = client.exec_sandbox_interactive(request);
    let mut events = tokio::select! {
        opened = opening => opened.map_err(|status| lost(act, &status))?.into_inner(),
        signal = signals.next() => return Ok(Ended::Interrupted(signal)),
    };
    loop {
        let event = tokio::select! {
            event = events.message() => event.map_err(|status| lost(act, &status))?,
            signal = signals.next() => return Ok(Ended::Interrupted(signal)),
        };
        match event.map(|event| event.payload) {
            Some(Some(Event::Stdout(chunk))) => console.out(&chunk.data).await.map_err(CommandError::output)?,
            Some(Some(Event::Stderr(chunk))) => console.err(&chunk.data).await.map_err(CommandError::output)?,
            Some(Some(Event::Exit(exit))) => return Ok(Ended::Exited(exit_code(exit.exit_code))),
            Some(None) => {}
            None => {
                let message = format!("failed to {act}: the stream ended without an exit code");
                return Err(CommandError::new(ExitCode::StreamLost, message));
            }
        }
    }
}

/// What a process can end with here. A code that does not fit must not become a success.
pub(crate) fn exit_code(code: i32) -> u8 {
    match u8::try_from(code & 0xff) {
        Ok(0) if code != 0 => 1,
        Ok(code) => code,
        Err(_) => 1,
    }
}

/// The gateway's refusals keep their codes; what only says that a connection broke means a lost stream.
fn lost(act: &str, status: &tonic::Status) -> CommandError {
    let mut error = CommandError::of_status(act, status);
    if matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal | Code::DataLoss) {
        error.code = ExitCode::StreamLost;
    } else {
        error.code = code_of(status);
    }
    error
}

/// Standard input until its end, which closes the command's own, and the sizes of the terminal.
async fn send_input(
    stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    input: mpsc::Sender<ExecSandboxInput>,
    resizes: bool,
    mut keys: Watcher,
    detached: Arc<Notify>,
) {
    let Some(mut stdin) = stdin else { return };
    let mut sizes = if resizes { signal(SignalKind::window_change()).ok() } else { None };
    let mut buffer = vec![0; RELAY_CHUNK];
    loop {
        let resized = async {
            match &mut sizes {
                Some(sizes) => sizes.recv().await,
                None => std::future::pending().await,
            }
        };
        let payload = tokio::select! {
            read = stdin.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => match keys.pass(&buffer[..length]) {
                    (_, true) => {
                        detached.notify_one();
                        return std::future::pending().await;
                    }
                    (passed, false) if passed.is_empty() => continue,
                    (passed, false) => Input::Stdin(passed),
                },
            },
            _ = resized => {
                let (cols, rows) = terminal::size();
                Input::Resize(ExecSandboxWindowResize { cols, rows })
            }
        };
        if input.send(ExecSandboxInput { payload: Some(payload) }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_becomes_a_success() {
        for (from, to) in [(0, 0), (1, 1), (255, 255), (256, 1), (-1, 255), (-256, 1), (137, 137)] {
            assert_eq!(exit_code(from), to, "{from}");
        }
    }
}
