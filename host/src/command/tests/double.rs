//! A gateway that follows a script.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use proto::openshell::datamodel::v1::ObjectMeta;
use proto::openshell::sandbox::v1::{GetSandboxConfigRequest, GetSandboxConfigResponse};
use proto::openshell::v1::exec_sandbox_event::Payload as Event;
use proto::openshell::v1::exec_sandbox_input::Payload as Input;
use proto::openshell::v1::open_shell_server::{OpenShell, OpenShellServer};
use proto::openshell::v1::sandbox_stream_event::Payload as Watched;
use proto::openshell::v1::*;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// What every command does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Script {
    pub(super) output: &'static str,
    /// Writes its output so many times.
    pub(super) repeats: usize,
    pub(super) code: i32,
    /// Repeats its input until that ends.
    pub(super) echoes: bool,
    /// Goes on for ever after its output.
    pub(super) hangs: bool,
    /// Its stream ends without an exit code.
    pub(super) breaks: bool,
    /// Sandboxes end in Error, for this reason.
    pub(super) boot_fails: Option<&'static str>,
}

#[derive(Default)]
struct State {
    sandboxes: HashMap<String, Sandbox>,
    created: Option<CreateSandboxRequest>,
    started: Option<ExecSandboxRequest>,
    /// As whom the last command was to run.
    user: Option<String>,
    version: u64,
}

#[derive(Clone)]
struct Service {
    script: Script,
    state: Arc<Mutex<State>>,
    /// Rises with every change.
    changes: watch::Sender<u64>,
    attached: watch::Sender<bool>,
}

/// See the module.
pub(super) struct Double {
    pub(super) socket: PathBuf,
    service: Service,
    _dir: tempfile::TempDir,
}

impl Double {
    /// A socket on which nobody listens.
    pub(super) fn nowhere() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service {
            script: Script::default(),
            state: Arc::default(),
            changes: watch::Sender::new(0),
            attached: watch::Sender::new(false),
        };
        Self { socket: dir.path().join("gateway.sock"), service, _dir: dir }
    }

    pub(super) async fn serve(script: Script) -> Self {
        let mut double = Self::nowhere();
        double.service.script = script;
        let incoming = UnixListenerStream::new(UnixListener::bind(&double.socket).unwrap());
        let server = OpenShellServer::new(double.service.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming));
        double
    }

    pub(super) fn created(&self) -> Option<CreateSandboxRequest> {
        self.service.lock().created.clone()
    }

    pub(super) fn started(&self) -> Option<ExecSandboxRequest> {
        self.service.lock().started.clone()
    }

    pub(super) fn user(&self) -> Option<String> {
        self.service.lock().user.clone()
    }

    pub(super) fn phase(&self, name: &str) -> Option<SandboxPhase> {
        self.service.lock().sandboxes.get(name).map(|sandbox| sandbox.status.as_ref().unwrap().phase())
    }

    /// Until a command has written its output.
    pub(super) async fn attached(&self) {
        self.service.attached.subscribe().wait_for(|attached| *attached).await.unwrap();
    }
}

impl Service {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn get(&self, name: &str) -> Result<Sandbox, Status> {
        let missing = || Status::not_found(format!("no sandbox `{name}`"));
        self.lock().sandboxes.get(name).cloned().ok_or_else(missing)
    }

    fn enter(&self, name: &str, phase: SandboxPhase) -> Result<Response<SandboxResponse>, Status> {
        let mut sandbox = self.get(name)?;
        let mut state = self.lock();
        state.version += 1;
        sandbox.metadata.as_mut().unwrap().resource_version = state.version;
        let status = sandbox.status.get_or_insert_default();
        status.set_phase(phase);
        if phase == SandboxPhase::Error {
            status.conditions = vec![SandboxCondition {
                r#type: "Provisioned".to_owned(),
                reason: self.script.boot_fails.unwrap_or_default().to_owned(),
                message: "no usable KVM\nlast line of the console".to_owned(),
                ..SandboxCondition::default()
            }];
        }
        state.sandboxes.insert(name.to_owned(), sandbox.clone());
        self.changes.send_replace(state.version);
        Ok(Response::new(SandboxResponse { sandbox: Some(sandbox) }))
    }

    /// Later, as a real boot does it.
    fn enter_soon(&self, name: &str, phase: SandboxPhase) {
        let (service, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move { service.enter(&name, phase).map(|_| ()) });
    }

    async fn play(
        self,
        mut input: Streaming<ExecSandboxInput>,
        events: mpsc::Sender<Result<ExecSandboxEvent, Status>>,
    ) {
        let script = self.script;
        let out = |data: Vec<u8>| Ok(ExecSandboxEvent { payload: Some(Event::Stdout(ExecSandboxStdout { data })) });
        events.send(out(script.output.as_bytes().to_vec())).await.unwrap();
        self.attached.send_replace(true);
        for _ in 1..script.repeats {
            events.send(out(script.output.as_bytes().to_vec())).await.unwrap();
        }
        while script.echoes
            && let Some(Ok(message)) = input.next().await
        {
            if let Some(Input::Stdin(data)) = message.payload {
                events.send(out(data)).await.unwrap();
            }
        }
        if script.hangs {
            events.closed().await;
        } else if !script.breaks {
            let exit = Event::Exit(ExecSandboxExit { exit_code: script.code });
            let _ = events.send(Ok(ExecSandboxEvent { payload: Some(exit) })).await;
        }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! not_played {
    ($($name:ident($request:ty) -> $reply:ty;)*) => {
        $(fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$reply>, Status>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(Status::unimplemented(stringify!($name)))))
        })*
    };
}

#[tonic::async_trait]
impl OpenShell for Service {
    type WatchSandboxStream = Streamed<SandboxStreamEvent>;
    type ExecSandboxStream = Streamed<ExecSandboxEvent>;
    type ExecSandboxInteractiveStream = ReceiverStream<Result<ExecSandboxEvent, Status>>;
    type ForwardTcpStream = Streamed<TcpForwardFrame>;
    type ConnectSupervisorStream = Streamed<GatewayMessage>;
    type RelayStreamStream = Streamed<RelayFrame>;

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        let status = ServiceStatus::Healthy.into();
        Ok(Response::new(HealthResponse { status, version: proto::version::VERSION.to_owned() }))
    }

    async fn get_gateway_info(
        &self,
        _: Request<GetGatewayInfoRequest>,
    ) -> Result<Response<GetGatewayInfoResponse>, Status> {
        let status = ServiceStatus::Healthy.into();
        Ok(Response::new(GetGatewayInfoResponse { status, ..GetGatewayInfoResponse::default() }))
    }

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<SandboxResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        if self.get(&name).is_ok() {
            return Err(Status::already_exists(format!("there is a sandbox `{name}`")));
        }
        let metadata = ObjectMeta { id: format!("id-of-{name}"), name: name.clone(), ..ObjectMeta::default() };
        let sandbox = Sandbox { metadata: Some(metadata), spec: request.spec.clone(), ..Sandbox::default() };
        self.lock().sandboxes.insert(name.clone(), sandbox);
        self.lock().created = Some(request);
        let answer = self.enter(&name, SandboxPhase::Provisioning);
        let then = if self.script.boot_fails.is_some() { SandboxPhase::Error } else { SandboxPhase::Ready };
        self.enter_soon(&name, then);
        answer
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        let sandbox = Some(self.get(&request.into_inner().name)?);
        Ok(Response::new(SandboxResponse { sandbox }))
    }

    async fn list_sandboxes(
        &self,
        _: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        let sandboxes = self.lock().sandboxes.values().cloned().collect();
        Ok(Response::new(ListSandboxesResponse { sandboxes, ..ListSandboxesResponse::default() }))
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        let DeleteSandboxRequest { name, allow_missing, .. } = request.into_inner();
        let mut answer = DeleteSandboxResponse::default();
        match self.get(&name) {
            Err(_) if allow_missing => answer.set_outcome(DeletionOutcome::AlreadyAbsent),
            Err(status) => return Err(status),
            Ok(sandbox) => {
                answer.sandbox_id = sandbox.metadata.unwrap().id;
                answer.set_outcome(DeletionOutcome::Accepted);
                self.enter(&name, SandboxPhase::Deleting)?;
                let service = self.clone();
                tokio::spawn(async move {
                    service.lock().sandboxes.remove(&name);
                    service.changes.send_modify(|version| *version += 1);
                });
            }
        }
        Ok(Response::new(answer))
    }

    async fn stop_sandbox(&self, request: Request<StopSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        let name = request.into_inner().name;
        self.enter_soon(&name, SandboxPhase::Stopped);
        self.enter(&name, SandboxPhase::Stopping)
    }

    async fn start_sandbox(&self, request: Request<StartSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        let name = request.into_inner().name;
        self.enter_soon(&name, SandboxPhase::Ready);
        self.enter(&name, SandboxPhase::Starting)
    }

    async fn watch_sandbox(
        &self,
        request: Request<WatchSandboxRequest>,
    ) -> Result<Response<Self::WatchSandboxStream>, Status> {
        let name = request.into_inner().sandbox;
        self.get(&name)?;
        let service = self.clone();
        let changes = tokio_stream::wrappers::WatchStream::new(self.changes.subscribe());
        let states = changes.map(move |_| {
            let sandbox = service.get(&name)?;
            Ok(SandboxStreamEvent { payload: Some(Watched::Sandbox(sandbox)) })
        });
        Ok(Response::new(Box::pin(states)))
    }

    async fn exec_sandbox_interactive(
        &self,
        request: Request<Streaming<ExecSandboxInput>>,
    ) -> Result<Response<Self::ExecSandboxInteractiveStream>, Status> {
        let user = request.metadata().get(proto::exec::USER_KEY).map(|user| user.to_str().unwrap().to_owned());
        self.lock().user = user;
        let mut input = request.into_inner();
        let Some(ExecSandboxInput { payload: Some(Input::Start(start)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message is not `start`"));
        };
        self.get(&start.sandbox)?;
        self.lock().started = Some(start);
        let (events, played) = mpsc::channel(4);
        tokio::spawn(self.clone().play(input, events));
        Ok(Response::new(ReceiverStream::new(played)))
    }

    not_played! {
        exec_sandbox(ExecSandboxRequest) -> Self::ExecSandboxStream;
        forward_tcp(Streaming<TcpForwardFrame>) -> Self::ForwardTcpStream;
        create_ssh_session(CreateSshSessionRequest) -> CreateSshSessionResponse;
        revoke_ssh_session(RevokeSshSessionRequest) -> RevokeSshSessionResponse;
        connect_supervisor(Streaming<SupervisorMessage>) -> Self::ConnectSupervisorStream;
        relay_stream(Streaming<RelayFrame>) -> Self::RelayStreamStream;
        report_main_process_exit(ReportMainProcessExitRequest) -> ReportMainProcessExitResponse;
        get_sandbox_logs(GetSandboxLogsRequest) -> GetSandboxLogsResponse;
        push_sandbox_logs(Streaming<PushSandboxLogsRequest>) -> PushSandboxLogsResponse;
        get_current_user(GetCurrentUserRequest) -> GetCurrentUserResponse;
        refresh_sandbox_token(RefreshSandboxTokenRequest) -> RefreshSandboxTokenResponse;
        issue_sandbox_token(IssueSandboxTokenRequest) -> IssueSandboxTokenResponse;
        get_sandbox_provider_environment(GetSandboxProviderEnvironmentRequest) -> GetSandboxProviderEnvironmentResponse;
        get_sandbox_config(GetSandboxConfigRequest) -> GetSandboxConfigResponse;
        update_config(UpdateConfigRequest) -> UpdateConfigResponse;
    }
}
