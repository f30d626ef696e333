//! A gateway that does as little as a session needs, on a unix socket.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use proto::log::{FIELD_BOOT, FIELD_SEQUENCE};
use proto::openshell::sandbox::v1::{GetSandboxConfigRequest, GetSandboxConfigResponse};
use proto::openshell::v1::open_shell_server::{OpenShell, OpenShellServer};
use proto::openshell::v1::*;
use proto::openshell::vm::v1::vm_server::{Vm, VmServer};
use proto::openshell::vm::v1::{StopOrder, SyncReply, SyncRequest};
use proto::relay::flow::{self, Incoming, Outgoing};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

type Reply<T> = Result<Response<T>, Status>;
/// What comes from the agent, and what goes to it.
pub(crate) type Relay = (Incoming, Outgoing);
type Outbox = mpsc::Sender<Result<GatewayMessage, Status>>;

/// What it was told, and what it is to say.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) hellos: Vec<SupervisorHello>,
    /// By which endpoint each of them came.
    pub(crate) endpoints: Vec<String>,
    /// Connection and bearer of each Sync.
    pub(crate) syncs: Vec<(usize, String)>,
    /// A bearer that is not accepted any more, and what happens when it is refused.
    pub(crate) revoked: Option<(String, Box<dyn Fn() + Send>)>,
    /// What happens in the guest while the next Sync is on its way.
    pub(crate) during_sync: Option<Box<dyn FnOnce() + Send>>,
    /// How many had come by then, and when an exit was reported.
    pub(crate) syncs_meanwhile: usize,
    pub(crate) syncs_at_report: usize,
    pub(crate) agent: Option<(String, String)>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) heartbeats: u32,
    pub(crate) relay_results: Vec<RelayOpenResult>,
    /// Revision of the secrets, and what the agent says to hold.
    pub(crate) secrets: u64,
    pub(crate) held_secrets: u64,
    pub(crate) stop: Option<StopOrder>,
    pub(crate) reject: Option<String>,
    pub(crate) refuse_reports: u32,
    /// Log lines as they came: number and message.
    pub(crate) logs: Vec<(u64, String)>,
    /// Bursts that break after their first batch, and bursts that are taken and not answered.
    pub(crate) break_bursts: u32,
    pub(crate) lose_answers: u32,
    /// With which the last relay began.
    pub(crate) relay_credit: u32,
    session: Option<Outbox>,
    relay: Option<Relay>,
}

#[derive(Clone)]
pub(crate) struct Gateway {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    heartbeat: Duration,
    beats: bool,
}

/// Ends the listener and all of its connections.
pub(crate) struct Running(tokio::task::AbortHandle, watch::Sender<bool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
        self.1.send_replace(true);
    }
}

impl Gateway {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0), heartbeat, beats: true }
    }

    /// Promises heartbeats, and sends none.
    pub(crate) fn silent(heartbeat: Duration) -> Self {
        Self { beats: false, ..Self::new(heartbeat) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Resolves when the state is such.
    pub(crate) async fn until(&self, what: &str, mut such: impl FnMut(&State) -> bool) {
        let deadline = Duration::from_secs(20);
        let mut changed = self.changed.subscribe();
        let waiting = changed.wait_for(|_| such(&self.state()));
        if tokio::time::timeout(deadline, waiting).await.is_err() {
            panic!("not within {deadline:?}: {what}");
        }
    }

    pub(crate) fn listen(&self, socket: &Path) -> Running {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let kill = watch::Sender::new(false);
        let killed = kill.subscribe();
        let number = std::sync::atomic::AtomicUsize::new(0);
        let incoming = async_incoming(listener, killed, number);
        let serving = Server::builder()
            .initial_connection_window_size(proto::budget::VM_CONNECTION_WINDOW)
            .initial_stream_window_size(proto::budget::VM_STREAM_WINDOW)
            .max_frame_size(proto::budget::VM_STREAM_WINDOW)
            .add_service(OpenShellServer::new(self.clone()))
            .add_service(VmServer::new(self.clone()))
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move { drop(serving.await) });
        Running(task.abort_handle(), kill)
    }

    pub(crate) async fn say(&self, payload: gateway_message::Payload) {
        let session = self.state().session.clone().unwrap();
        session.send(Ok(GatewayMessage { payload: Some(payload) })).await.unwrap();
    }

    /// An extra heartbeat.
    pub(crate) async fn nudge(&self) {
        self.say(gateway_message::Payload::Heartbeat(GatewayHeartbeat {})).await;
    }

    /// Asks for a relay, with a credit of so many bytes; 0 is that of a gateway that does not count.
    pub(crate) async fn open_relay(&self, target: relay_open::Target, credit: u32) {
        let open = RelayOpen { channel_id: "relay-1".to_owned(), target: Some(target), credit };
        self.say(gateway_message::Payload::RelayOpen(open)).await;
    }

    /// Opens a relay; both its ends.
    pub(crate) async fn relay(&self, target: relay_open::Target, credit: u32) -> Relay {
        self.open_relay(target, credit).await;
        self.until("a relay is open", |state| state.relay.is_some()).await;
        self.state().relay.take().unwrap()
    }
}

/// The number of a connection.
#[derive(Clone, Copy)]
struct Number(usize);

struct Connection {
    stream: UnixStream,
    number: Number,
    killed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

fn async_incoming(
    listener: UnixListener,
    killed: watch::Receiver<bool>,
    next: std::sync::atomic::AtomicUsize,
) -> impl Stream<Item = std::io::Result<Connection>> {
    tokio_stream::wrappers::UnixListenerStream::new(listener).map(move |stream| {
        let mut killed = killed.clone();
        let killed = Box::pin(async move { drop(killed.wait_for(|killed| *killed).await) });
        let number = Number(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        Ok(Connection { stream: stream?, number, killed })
    })
}

impl Connected for Connection {
    type ConnectInfo = Number;

    fn connect_info(&self) -> Number {
        self.number
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.killed.as_mut().poll(cx).is_ready() {
            self.killed = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn header<T>(request: &Request<T>, name: &str) -> String {
    request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

#[tonic::async_trait]
impl Vm for Gateway {
    async fn sync(&self, request: Request<SyncRequest>) -> Reply<SyncReply> {
        let Number(connection) = *request.extensions().get::<Number>().unwrap();
        let bearer = header(&request, "authorization");
        let held_secrets = request.get_ref().provider_env_revision;
        let mut refused = false;
        self.note(|state| {
            if let Some((_, meanwhile)) = state.revoked.as_ref().filter(|(revoked, _)| *revoked == bearer) {
                meanwhile();
                refused = true;
            }
            state.syncs.push((connection, bearer));
            if let Some(happens) = state.during_sync.take() {
                happens();
                state.syncs_meanwhile = state.syncs.len();
            }
            state.held_secrets = held_secrets;
        });
        if refused {
            return Err(Status::unauthenticated("revoked"));
        }
        let (stop, provider_env_revision, log_sequence) = {
            let state = self.state();
            (state.stop.clone(), state.secrets, state.logs.last().map_or(0, |(number, _)| *number))
        };
        let wall_time = Some(SystemTime::now().into());
        Ok(Response::new(SyncReply { wall_time, stop, provider_env_revision, log_sequence, ..Default::default() }))
    }
}

macro_rules! unserved {
    ($($name:ident($request:ty) -> $reply:ty;)*) => {
        $(fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Reply<$reply>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(Status::unimplemented(stringify!($name)))))
        })*
    };
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl OpenShell for Gateway {
    type ConnectSupervisorStream = ReceiverStream<Result<GatewayMessage, Status>>;
    type RelayStreamStream = Pin<Box<dyn Stream<Item = Result<RelayFrame, Status>> + Send>>;
    type WatchSandboxStream = Boxed<SandboxStreamEvent>;
    type ExecSandboxStream = Boxed<ExecSandboxEvent>;
    type ExecSandboxInteractiveStream = Boxed<ExecSandboxEvent>;
    type ForwardTcpStream = Boxed<TcpForwardFrame>;

    async fn connect_supervisor(
        &self,
        request: Request<Streaming<SupervisorMessage>>,
    ) -> Reply<Self::ConnectSupervisorStream> {
        let agent = (header(&request, "x-openshell-agent-version"), header(&request, "x-openshell-protocol"));
        let endpoint = header(&request, proto::version::AGENT_ENDPOINT_KEY);
        let mut inbox = request.into_inner();
        let Some(supervisor_message::Payload::Hello(hello)) = inbox.message().await?.and_then(|m| m.payload) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (outbox, stream) = mpsc::channel(16);
        let reject = self.state().reject.clone();
        let answer = match reject {
            Some(reason) => gateway_message::Payload::SessionRejected(SessionRejected { reason }),
            None => gateway_message::Payload::SessionAccepted(SessionAccepted {
                session_id: "session".to_owned(),
                heartbeat_interval: self.heartbeat.try_into().ok(),
            }),
        };
        let _ = outbox.send(Ok(GatewayMessage { payload: Some(answer) })).await;
        if self.beats {
            tokio::spawn(beat(outbox.clone(), self.heartbeat));
        }
        self.note(|state| {
            state.agent = Some(agent);
            state.hellos.push(hello);
            state.endpoints.push(endpoint);
            state.session = Some(outbox);
        });
        let gateway = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbox.message().await {
                gateway.note(|state| match message.payload {
                    Some(supervisor_message::Payload::Heartbeat(_)) => state.heartbeats += 1,
                    Some(supervisor_message::Payload::RelayOpenResult(result)) => state.relay_results.push(result),
                    _ => {}
                });
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn relay_stream(&self, request: Request<Streaming<RelayFrame>>) -> Reply<Self::RelayStreamStream> {
        let mut frames = request.into_inner();
        let Some(relay_frame::Payload::Init(init)) = frames.message().await?.and_then(|frame| frame.payload) else {
            return Err(Status::invalid_argument("no init"));
        };
        let (sender, receiver) = mpsc::channel(4);
        let (end, incoming, outgoing) = flow::end();
        tokio::spawn(flow::carry(end, frames, sender, init.credit));
        self.note(|state| {
            state.relay = Some((incoming, outgoing));
            state.relay_credit = init.credit;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<ReportMainProcessExitRequest>,
    ) -> Reply<ReportMainProcessExitResponse> {
        let mut refused = false;
        self.note(|state| match state.refuse_reports.checked_sub(1) {
            Some(left) => (state.refuse_reports, refused) = (left, true),
            None => {
                state.exit_code = Some(request.into_inner().exit_code);
                state.syncs_at_report = state.syncs.len();
            }
        });
        if refused { Err(Status::aborted("again")) } else { Ok(Response::new(ReportMainProcessExitResponse {})) }
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<PushSandboxLogsRequest>>,
    ) -> Reply<PushSandboxLogsResponse> {
        let mut batches = request.into_inner();
        let mut broken = false;
        while let Some(batch) = batches.message().await? {
            let numbered = batch.logs.into_iter().map(|line| {
                assert_eq!(line.fields[FIELD_BOOT], "1-boot");
                (line.fields[FIELD_SEQUENCE].parse().unwrap(), line.message)
            });
            self.note(|state| {
                state.logs.extend(numbered);
                broken = state.break_bursts > 0;
                state.break_bursts = state.break_bursts.saturating_sub(1);
            });
            if broken {
                return Err(Status::unavailable("broken"));
            }
        }
        let lost = self.state().lose_answers > 0;
        self.note(|state| state.lose_answers = state.lose_answers.saturating_sub(1));
        if lost { Err(Status::unavailable("lost")) } else { Ok(Response::new(PushSandboxLogsResponse {})) }
    }

    async fn get_sandbox_provider_environment(
        &self,
        request: Request<GetSandboxProviderEnvironmentRequest>,
    ) -> Reply<GetSandboxProviderEnvironmentResponse> {
        let provider_env_revision = self.state().secrets;
        let environment = [("KEY".to_owned(), format!("{} {provider_env_revision}", request.get_ref().sandbox_id))];
        Ok(Response::new(GetSandboxProviderEnvironmentResponse {
            environment: environment.into(),
            provider_env_revision,
        }))
    }

    unserved! {
        get_current_user(GetCurrentUserRequest) -> GetCurrentUserResponse;
        refresh_sandbox_token(RefreshSandboxTokenRequest) -> RefreshSandboxTokenResponse;
        issue_sandbox_token(IssueSandboxTokenRequest) -> IssueSandboxTokenResponse;
        get_sandbox_config(GetSandboxConfigRequest) -> GetSandboxConfigResponse;
        update_config(UpdateConfigRequest) -> UpdateConfigResponse;
        health(HealthRequest) -> HealthResponse;
        get_gateway_info(GetGatewayInfoRequest) -> GetGatewayInfoResponse;
        create_sandbox(CreateSandboxRequest) -> SandboxResponse;
        get_sandbox(GetSandboxRequest) -> SandboxResponse;
        list_sandboxes(ListSandboxesRequest) -> ListSandboxesResponse;
        delete_sandbox(DeleteSandboxRequest) -> DeleteSandboxResponse;
        stop_sandbox(StopSandboxRequest) -> SandboxResponse;
        start_sandbox(StartSandboxRequest) -> SandboxResponse;
        get_sandbox_logs(GetSandboxLogsRequest) -> GetSandboxLogsResponse;
        watch_sandbox(WatchSandboxRequest) -> Self::WatchSandboxStream;
        exec_sandbox(ExecSandboxRequest) -> Self::ExecSandboxStream;
        exec_sandbox_interactive(Streaming<ExecSandboxInput>) -> Self::ExecSandboxInteractiveStream;
        forward_tcp(Streaming<TcpForwardFrame>) -> Self::ForwardTcpStream;
        create_ssh_session(CreateSshSessionRequest) -> CreateSshSessionResponse;
        revoke_ssh_session(RevokeSshSessionRequest) -> RevokeSshSessionResponse;
    }
}

async fn beat(session: Outbox, interval: Duration) {
    let mut interval = tokio::time::interval(interval);
    loop {
        interval.tick().await;
        let heartbeat = gateway_message::Payload::Heartbeat(GatewayHeartbeat {});
        if session.send(Ok(GatewayMessage { payload: Some(heartbeat) })).await.is_err() {
            return;
        }
    }
}
