//! Execs and attachments: a channel of an SSH connection inside a relay.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::debug::DebugCall;
use proto::exec::{ENCODED_MAX, ExecCommand};
use proto::layout::{ATTACH_SUBSYSTEM, ATTACH_TAKING_INPUT_SUBSYSTEM};
use proto::openshell::v1::relay_open::Target;
use proto::openshell::v1::{ExecSandboxRequest, SshRelayTarget};
use russh::client::Msg;
use russh::keys::PublicKey;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::connection::{Connection, Home};
use super::relay::RelayStream;
use super::sessions::Session;
use super::supervisor::{Supervisors, no_session};
use crate::sandbox::task::Handle;
use crate::status;

/// Terminal size where none is given.
const DEFAULT_SIZE: (u32, u32) = (80, 24);

/// What is at the other end of the channel.
pub enum Program {
    /// A program of the sandbox.
    Command(ExecCommand),
    /// The main process; `take_input`: from whoever has it.
    Attach {
        /// See above.
        take_input: bool,
    },
    /// The agent itself.
    Debug(DebugCall),
}

/// What runs.
pub struct Exec {
    /// Which.
    pub program: Program,
    /// Added to the environment.
    pub environment: BTreeMap<String, String>,
    /// Columns and rows of a terminal.
    pub terminal: Option<(u32, u32)>,
}

/// What a caller sends after the start.
pub enum Input {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// Columns and rows.
    Resize(u32, u32),
    /// No more standard input.
    Eof,
}

/// What a caller gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The end, always last.
    Exit(i32),
}

/// What the published request has no field for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Beside {
    /// Another user than the sandbox's.
    pub user: Option<String>,
    /// From whoever has it, for an attachment.
    pub take_input: bool,
}

impl Exec {
    /// What a request asks for, and what stands beside it.
    pub fn new(request: ExecSandboxRequest, Beside { user, take_input }: Beside) -> Self {
        let size = |given: u32, default: u32| if given == 0 { default } else { given };
        let terminal = request.tty.then(|| (size(request.cols, DEFAULT_SIZE.0), size(request.rows, DEFAULT_SIZE.1)));
        let program = match request.command.is_empty() {
            true => Program::Attach { take_input },
            false => {
                let workdir = (!request.workdir.is_empty()).then_some(request.workdir);
                Program::Command(ExecCommand { argv: request.command, workdir, user, login: false })
            }
        };
        Self { program, environment: request.environment.into_iter().collect(), terminal }
    }
}

/// A running exec.
pub struct Running {
    connection: Connection,
    home: Home,
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
}

/// Starts `exec` on a connection to the sandbox's SSH server: one that its session keeps, else a new one.
///
/// # Errors
/// `Unavailable` without a session or relay, with the reason; `FailedPrecondition` where the agent refuses.
pub async fn start(
    supervisors: &Supervisors,
    handle: &Handle,
    host_key: PublicKey,
    exec: &Exec,
) -> Result<Running, Status> {
    if let Program::Command(command) = &exec.program
        && command.encode().len() > ENCODED_MAX
    {
        return Err(status::invalid("command", format!("command: at most {ENCODED_MAX} bytes, encoded as JSON")));
    }
    let session = supervisors.sessions.of(handle.id).ok_or_else(|| no_session(handle))?;
    let (connection, mut channel) = match session.kept.take().await {
        Some(kept) => kept,
        None => connect(supervisors, handle, &session, host_key).await?,
    };
    timed(handle, request(&channel, exec)).await?;
    confirm(&mut channel).await.map_err(|why| {
        Status::failed_precondition(format!("sandbox {}: the agent refused to run it: {why}", handle.name))
    })?;
    let (read, write) = channel.split();
    Ok(Running { connection, home: session.kept.home(), read, write })
}

/// Opens a relay to a place in the sandbox.
///
/// # Errors
/// `Unavailable` without a session or relay, with the reason.
pub async fn relay(supervisors: &Supervisors, handle: &Handle, target: Target) -> Result<RelayStream, Status> {
    let session = supervisors.sessions.of(handle.id).ok_or_else(|| no_session(handle))?;
    open(supervisors, handle, &session, target).await
}

async fn open(
    supervisors: &Supervisors,
    handle: &Handle,
    session: &Session,
    target: Target,
) -> Result<RelayStream, Status> {
    let opened = supervisors.relays.open(handle.id, session, target).await;
    opened.map_err(|why| unavailable(handle, "no relay", &why))
}

async fn connect(
    supervisors: &Supervisors,
    handle: &Handle,
    session: &Session,
    host_key: PublicKey,
) -> Result<(Connection, Channel<Msg>), Status> {
    let relay = open(supervisors, handle, session, Target::Ssh(SshRelayTarget {})).await?;
    let opened = async {
        let connection = Connection::over(relay, host_key).await?;
        let channel = connection.channel().await?;
        Ok((connection, channel))
    };
    timed(handle, opened).await
}

/// What the agent's SSH server answers, in time.
async fn timed<T>(handle: &Handle, answer: impl Future<Output = Result<T, russh::Error>>) -> Result<T, Status> {
    let deadline = proto::budget::RELAY_OPEN;
    let late =
        |_| unavailable(handle, "no exec", &format!("the agent's SSH server did not answer within {deadline:?}"));
    let answer = timeout(deadline, answer).await.map_err(late)?;
    answer.map_err(|error| unavailable(handle, "no exec", &error.to_string()))
}

/// There is no relay, or nothing at its other end.
fn unavailable(handle: &Handle, what: &str, why: &str) -> Status {
    status::not_now(Code::Unavailable, format!("sandbox {}: {what}: {why}", handle.name))
}

async fn request(channel: &Channel<Msg>, exec: &Exec) -> Result<(), russh::Error> {
    if let Some((cols, rows)) = exec.terminal {
        channel.request_pty(false, "xterm-256color", cols, rows, 0, 0, &[]).await?;
    }
    for (key, value) in &exec.environment {
        channel.set_env(false, key.as_str(), value.as_str()).await?;
    }
    match &exec.program {
        Program::Command(command) => channel.exec(true, command.encode()).await,
        Program::Attach { take_input: false } => channel.request_subsystem(true, ATTACH_SUBSYSTEM).await,
        Program::Attach { take_input: true } => channel.request_subsystem(true, ATTACH_TAKING_INPUT_SUBSYSTEM).await,
        Program::Debug(call) => channel.request_subsystem(true, call.encode()).await,
    }
}

/// Waits for the answer to the one request that wanted one.
async fn confirm(channel: &mut Channel<Msg>) -> Result<(), String> {
    loop {
        let answer = timeout(proto::budget::RELAY_OPEN, channel.wait()).await.map_err(|_| "no answer in time")?;
        match answer {
            Some(ChannelMsg::Success) => return Ok(()),
            Some(ChannelMsg::Failure) => return Err("see the console of the sandbox".into()),
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            other => return Err(format!("unexpected answer {other:?}")),
        }
    }
}

impl Running {
    /// Moves bytes both ways until the exec ends or the caller leaves. The last output is [`Output::Exit`].
    ///
    /// # Errors
    /// `DataLoss` where the relay ended before the exec did.
    pub async fn run(mut self, input: mpsc::Receiver<Input>, output: &mpsc::Sender<Output>) -> Result<(), Status> {
        let (flow, may_send) = watch::channel(true);
        let feeding = feed(self.write, input, may_send);
        tokio::pin!(feeding);
        let mut fed = false;
        let mut exit = None;
        let ended = loop {
            let message = tokio::select! {
                message = self.read.wait() => message,
                () = &mut feeding, if !fed => { fed = true; continue; }
                // The caller left: dropping the connection ends what runs.
                () = output.closed() => break Err(Status::cancelled("the caller left")),
            };
            let sent = match message {
                Some(ChannelMsg::Data { data }) => output.send(Output::Stdout(data)).await,
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => output.send(Output::Stderr(data)).await,
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    exit = Some(exit_status as i32);
                    Ok(())
                }
                // The agent asks for a pause while what it feeds does not read.
                Some(ChannelMsg::XonXoff { client_can_do }) => {
                    flow.send_replace(client_can_do);
                    Ok(())
                }
                Some(ChannelMsg::Close) | None => break Ok(()),
                Some(_) => Ok(()),
            };
            if sent.is_err() {
                break Err(Status::cancelled("the caller left"));
            }
        };
        // Only after an end in order is nothing of this exec on the connection any more.
        match (&ended, exit) {
            (Ok(()), Some(_)) => self.home.give_back(self.connection).await,
            _ => self.connection.end().await,
        }
        ended?;
        let code = exit.ok_or_else(|| Status::data_loss("the relay ended before the command did"))?;
        output.send(Output::Exit(code)).await.map_err(|_| Status::cancelled("the caller left"))
    }
}

/// Carries input until there is no more of it.
async fn feed(write: ChannelWriteHalf<Msg>, mut input: mpsc::Receiver<Input>, mut may_send: watch::Receiver<bool>) {
    while let Some(input) = input.recv().await {
        if may_send.wait_for(|may| *may).await.is_err() {
            return;
        }
        let sent = match input {
            Input::Stdin(bytes) => write.data_bytes(bytes).await,
            Input::Resize(cols, rows) => write.window_change(cols, rows, 0, 0).await,
            Input::Eof => write.eof().await,
        };
        if sent.is_err() {
            // The channel is closing; its reader says why.
            return;
        }
    }
}
