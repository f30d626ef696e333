//! Execs for users.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use proto::exec::{TAKE_INPUT_KEY, USER_KEY, USER_MAX};
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::exec_sandbox_input::Payload as InputPayload;
use proto::openshell::v1::*;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::lifecycle::workspace;
use super::services::Api;
use crate::sandbox::rules;
use crate::session::exec::{Beside, Exec, Input, Output, start};
use crate::status;

/// What an exec answers.
pub type ExecEvents = Pin<Box<dyn Stream<Item = Result<ExecSandboxEvent, Status>> + Send>>;

/// The exit code of a command that ran out of time, as in timeout(1).
const TIMED_OUT: i32 = 124;
const ARGS_MAX: usize = 1024;
const ARG_MAX: usize = 32 * 1024;
/// Chunks of output or input that wait for a slow reader.
const QUEUE: usize = 16;

impl Api {
    pub(super) async fn exec(&self, mut request: ExecSandboxRequest, beside: Beside) -> Result<ExecEvents, Status> {
        let stdin = std::mem::take(&mut request.stdin);
        let (input, inputs) = mpsc::channel(2);
        // Both fit: the channel is new.
        drop(input.try_send(Input::Stdin(stdin.into())));
        drop(input.try_send(Input::Eof));
        if request.command.is_empty() {
            return Err(status::invalid("command", "command: must not be empty"));
        }
        self.run(request, beside, inputs).await
    }

    pub(super) async fn exec_interactive(
        &self,
        mut inbound: Streaming<ExecSandboxInput>,
        beside: Beside,
    ) -> Result<ExecEvents, Status> {
        let first = timeout(proto::budget::HELLO, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no start within the deadline"))??;
        let Some(InputPayload::Start(request)) = first.and_then(|input| input.payload) else {
            return Err(Status::invalid_argument("the first message of an interactive exec is `start`"));
        };
        let (input, inputs) = mpsc::channel(QUEUE);
        tokio::spawn(forward(inbound, input));
        self.run(request, beside, inputs).await
    }

    async fn run(
        &self,
        request: ExecSandboxRequest,
        beside: Beside,
        input: mpsc::Receiver<Input>,
    ) -> Result<ExecEvents, Status> {
        workspace(request.workspace_scope.as_ref())?;
        check(&request)?;
        let handle = self.find(&request.sandbox)?;
        let limit = time_limit(&request)?;
        let exec = Exec::new(request, beside);
        let host_key = self.host_keys.public(handle.id).map_err(Status::internal)?;
        let running = start(&self.supervisors, &handle, host_key, &exec).await?;
        let (output, outputs) = mpsc::channel(QUEUE);
        let (events, replies) = mpsc::channel(QUEUE);
        let translate = translate(outputs, events.clone());
        tokio::spawn(async move {
            // The sender ends with the exec: that is how the translation learns of an exec that broke.
            let run = async move { running.run(input, &output).await };
            let both = async { tokio::join!(run, translate).0 };
            let ended = match limit {
                None => both.await,
                Some(limit) => match timeout(limit, both).await {
                    Ok(ended) => ended,
                    Err(_elapsed) => {
                        drop(events.send(Ok(event(Output::Exit(TIMED_OUT)))).await);
                        return;
                    }
                },
            };
            if let Err(status) = ended {
                drop(events.send(Err(status)).await);
            }
        });
        Ok(Box::pin(ReceiverStream::new(replies)))
    }
}

/// Ends when the exec's output does, or when the caller has left.
async fn translate(mut outputs: mpsc::Receiver<Output>, events: mpsc::Sender<Result<ExecSandboxEvent, Status>>) {
    loop {
        let output = tokio::select! {
            output = outputs.recv() => output,
            () = events.closed() => None,
        };
        let Some(output) = output else { return };
        let last = matches!(output, Output::Exit(_));
        if events.send(Ok(event(output))).await.is_err() || last {
            return;
        }
    }
}

fn event(output: Output) -> ExecSandboxEvent {
    let payload = match output {
        Output::Stdout(data) => Payload::Stdout(ExecSandboxStdout { data: data.into() }),
        Output::Stderr(data) => Payload::Stderr(ExecSandboxStderr { data: data.into() }),
        Output::Exit(exit_code) => Payload::Exit(ExecSandboxExit { exit_code }),
    };
    ExecSandboxEvent { payload: Some(payload) }
}

async fn forward(mut inbound: Streaming<ExecSandboxInput>, input: mpsc::Sender<Input>) {
    while let Some(message) = inbound.next().await {
        // A caller that vanished has said nothing about the end of its input.
        let Ok(message) = message else { return };
        let next = match message.payload {
            Some(InputPayload::Stdin(bytes)) => Input::Stdin(Bytes::from(bytes)),
            Some(InputPayload::Resize(size)) => Input::Resize(size.cols, size.rows),
            Some(InputPayload::Start(_)) | None => continue,
        };
        if input.send(next).await.is_err() {
            return;
        }
    }
    // The exec may be over.
    drop(input.send(Input::Eof).await);
}

/// What the metadata of an exec say.
pub(super) fn beside(metadata: &MetadataMap) -> Result<Beside, Status> {
    let take_input = metadata.contains_key(TAKE_INPUT_KEY);
    let Some(value) = metadata.get(USER_KEY) else { return Ok(Beside { user: None, take_input }) };
    let name = value.to_str().ok().filter(|name| !name.is_empty() && name.len() <= USER_MAX);
    let message = || format!("{USER_KEY}: a name or uid of at most {USER_MAX} printable characters");
    let name = name.ok_or_else(|| status::invalid(USER_KEY, message()))?;
    Ok(Beside { user: Some(name.to_owned()), take_input })
}

fn check(request: &ExecSandboxRequest) -> Result<(), Status> {
    if request.command.len() > ARGS_MAX || request.command.iter().any(|arg| arg.len() > ARG_MAX) {
        return Err(status::invalid("command", format!("command: at most {ARGS_MAX} arguments of {ARG_MAX} bytes")));
    }
    if request.command.iter().any(|arg| arg.contains('\0')) || request.workdir.contains('\0') {
        return Err(status::invalid("command", "command and workdir may not hold NUL bytes"));
    }
    let variables = request.environment.clone().into_iter().collect();
    rules::environment(&variables, &["OPENSHELL_PYFUNC_B64"]).map_err(|error| status::invalid("environment", error))
}

fn time_limit(request: &ExecSandboxRequest) -> Result<Option<Duration>, Status> {
    let Some(limit) = request.execution_timeout else { return Ok(None) };
    let limit = Duration::try_from(limit)
        .map_err(|_| status::invalid("execution_timeout", "execution_timeout: must not be negative"))?;
    Ok((!limit.is_zero()).then_some(limit))
}
