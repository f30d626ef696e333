//! The services: each RPC hands over to the file that holds its verb.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use proto::openshell::sandbox::v1::{GetSandboxConfigRequest, GetSandboxConfigResponse};
use proto::openshell::v1::open_shell_server::{OpenShell, OpenShellServer};
use proto::openshell::v1::{ServiceStatus, *};
use proto::openshell::vm::v1::operator_server::{Operator, OperatorServer};
use proto::openshell::vm::v1::vm_server::{Vm, VmServer};
use proto::openshell::vm::v1::*;
use proto::version::VERSION;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

use super::caller::{way, who};
use super::exec::{ExecEvents, beside};
use super::forward::ForwardFrames;
use super::lifecycle::Events;
use crate::identity::host_key::HostKeys;
use crate::identity::principal::Principal;
use crate::rotation::clock::Clock;
use crate::rotation::receipts::Receipts;
use crate::rotation::rotor::Rotation;
use crate::sandbox::registry::Registry;
use crate::secrets::Secrets;
use crate::session::agent::AgentVersion;
use crate::session::ssh_tokens::SshTokens;
use crate::session::supervisor::Supervisors;
use crate::session::throttle::Throttle;

/// The public service, by name.
const SERVICE: &str = "openshell.v1.OpenShell";

/// A stream of messages towards a caller.
pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// The sandboxes.
    pub registry: Registry,
    /// Their sessions.
    pub supervisors: Supervisors,
    /// Their tokens.
    pub rotation: Rotation,
    /// What they presented.
    pub receipts: Arc<Receipts>,
    /// After which a token that was not presented is overdue.
    pub receipt_deadline: Duration,
    /// How often sandboxes may change their configuration.
    pub throttle: Arc<Throttle>,
    /// Secrets of providers.
    pub secrets: Arc<Secrets>,
    /// Tokens of SSH sessions.
    pub ssh_tokens: Arc<SshTokens>,
    /// Their SSH host keys.
    pub host_keys: Arc<HostKeys>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Names of the drivers, for `GetGatewayInfo`.
    pub drivers: Vec<String>,
    /// Id of the signing key, for people.
    pub kid: String,
    /// Issuer of the tokens, for people.
    pub issuer: String,
}

impl Api {
    /// The services, ready to be served behind the guard, with messages of at most `largest` bytes.
    pub fn routes(&self, largest: usize) -> Routes {
        let openshell = OpenShellServer::new(self.clone()).max_decoding_message_size(largest);
        let vm = VmServer::new(self.clone()).max_decoding_message_size(largest);
        let operator = OperatorServer::new(self.clone()).max_decoding_message_size(largest);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(SERVICE)
            .with_service_name("openshell.vm.v1.Operator")
            .build_v1()
            // Compiled in, and tested.
            .expect("descriptors of our own");
        // Whoever hears this is served.
        let (health, served) = tonic_health::server::health_reporter();
        let reported = async move { health.set_service_status(SERVICE, ServingStatus::Serving).await };
        reported.now_or_never();
        Routes::new(openshell)
            .add_service(vm)
            .add_service(operator)
            .add_service(reflection)
            .add_service(served)
            .prepare()
    }

    fn current_user<T>(&self, request: &Request<T>) -> Result<GetCurrentUserResponse, Status> {
        let Some(Principal::User { uid }) = request.extensions().get() else {
            return Err(Status::permission_denied("only a user may call this"));
        };
        Ok(GetCurrentUserResponse {
            subject: format!("uid:{uid}"),
            display_name: format!("uid {uid} of this machine"),
            // Whoever comes this far may do everything.
            roles: vec!["admin".into()],
            identity_provider: way(request).into(),
        })
    }
}

#[tonic::async_trait]
impl OpenShell for Api {
    type WatchSandboxStream = Events;
    type ExecSandboxStream = ExecEvents;
    type ExecSandboxInteractiveStream = ExecEvents;
    type ForwardTcpStream = ForwardFrames;
    type ConnectSupervisorStream = Replies<GatewayMessage>;
    type RelayStreamStream = Replies<RelayFrame>;

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        Ok(Response::new(HealthResponse { status: ServiceStatus::Healthy.into(), version: VERSION.into() }))
    }

    async fn get_gateway_info(
        &self,
        _: Request<GetGatewayInfoRequest>,
    ) -> Result<Response<GetGatewayInfoResponse>, Status> {
        Ok(Response::new(GetGatewayInfoResponse {
            status: ServiceStatus::Healthy.into(),
            gateway_version: VERSION.into(),
            compute_drivers: self.drivers.iter().map(|name| ComputeDriverInfo { name: name.clone() }).collect(),
        }))
    }

    async fn get_current_user(
        &self,
        request: Request<GetCurrentUserRequest>,
    ) -> Result<Response<GetCurrentUserResponse>, Status> {
        self.current_user(&request).map(Response::new)
    }

    async fn create_sandbox(
        &self,
        request: Request<CreateSandboxRequest>,
    ) -> Result<Response<SandboxResponse>, Status> {
        self.create(request.into_inner()).await.map(Response::new)
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        self.get(request.get_ref()).map(Response::new)
    }

    async fn list_sandboxes(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        self.list(request.get_ref()).map(Response::new)
    }

    async fn delete_sandbox(
        &self,
        request: Request<DeleteSandboxRequest>,
    ) -> Result<Response<DeleteSandboxResponse>, Status> {
        self.delete(request.get_ref()).await.map(Response::new)
    }

    async fn stop_sandbox(&self, request: Request<StopSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        self.stop(request.get_ref()).await.map(Response::new)
    }

    async fn start_sandbox(&self, request: Request<StartSandboxRequest>) -> Result<Response<SandboxResponse>, Status> {
        self.start(request.get_ref()).await.map(Response::new)
    }

    async fn watch_sandbox(&self, request: Request<WatchSandboxRequest>) -> Result<Response<Events>, Status> {
        self.watch(request.into_inner()).map(Response::new)
    }

    async fn exec_sandbox(&self, request: Request<ExecSandboxRequest>) -> Result<Response<ExecEvents>, Status> {
        let beside = beside(request.metadata())?;
        self.exec(request.into_inner(), beside).await.map(Response::new)
    }

    async fn exec_sandbox_interactive(
        &self,
        request: Request<Streaming<ExecSandboxInput>>,
    ) -> Result<Response<ExecEvents>, Status> {
        let beside = beside(request.metadata())?;
        self.exec_interactive(request.into_inner(), beside).await.map(Response::new)
    }

    async fn forward_tcp(
        &self,
        request: Request<Streaming<TcpForwardFrame>>,
    ) -> Result<Response<ForwardFrames>, Status> {
        self.forward(request.into_inner()).await.map(Response::new)
    }

    async fn create_ssh_session(
        &self,
        request: Request<CreateSshSessionRequest>,
    ) -> Result<Response<CreateSshSessionResponse>, Status> {
        self.create_ssh(request.get_ref()).map(Response::new)
    }

    async fn revoke_ssh_session(
        &self,
        request: Request<RevokeSshSessionRequest>,
    ) -> Result<Response<RevokeSshSessionResponse>, Status> {
        self.revoke_ssh(request.get_ref()).map(Response::new)
    }

    async fn connect_supervisor(
        &self,
        request: Request<Streaming<SupervisorMessage>>,
    ) -> Result<Response<Self::ConnectSupervisorStream>, Status> {
        let handle = self.caller(&request)?;
        let agent = AgentVersion::read(|key| request.metadata().get(key)?.to_str().ok());
        let outbound = self.supervisors.connect(handle.id, agent, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound).map(Ok))))
    }

    async fn relay_stream(
        &self,
        request: Request<Streaming<RelayFrame>>,
    ) -> Result<Response<Self::RelayStreamStream>, Status> {
        let handle = self.caller(&request)?;
        let outbound = self.supervisors.relays.opened(handle.id, request.into_inner()).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound).map(Ok))))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<ReportMainProcessExitRequest>,
    ) -> Result<Response<ReportMainProcessExitResponse>, Status> {
        let handle = self.caller(&request)?;
        self.report_exit(&handle, request.into_inner()).await?;
        Ok(Response::new(ReportMainProcessExitResponse {}))
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<PushSandboxLogsRequest>>,
    ) -> Result<Response<PushSandboxLogsResponse>, Status> {
        let handle = self.caller(&request)?;
        self.supervisors.push_logs(&handle, request.into_inner()).await?;
        Ok(Response::new(PushSandboxLogsResponse {}))
    }

    async fn get_sandbox_logs(
        &self,
        request: Request<GetSandboxLogsRequest>,
    ) -> Result<Response<GetSandboxLogsResponse>, Status> {
        self.logs(request.into_inner()).map(Response::new)
    }

    async fn refresh_sandbox_token(
        &self,
        request: Request<RefreshSandboxTokenRequest>,
    ) -> Result<Response<RefreshSandboxTokenResponse>, Status> {
        self.refresh_token(&self.caller(&request)?).await.map(Response::new)
    }

    async fn issue_sandbox_token(
        &self,
        _: Request<IssueSandboxTokenRequest>,
    ) -> Result<Response<IssueSandboxTokenResponse>, Status> {
        Err(Status::permission_denied(
            "IssueSandboxToken is for service accounts of a cluster, and this gateway has no Kubernetes driver; \
             the token of this sandbox is in its identity directory",
        ))
    }

    async fn get_sandbox_provider_environment(
        &self,
        request: Request<GetSandboxProviderEnvironmentRequest>,
    ) -> Result<Response<GetSandboxProviderEnvironmentResponse>, Status> {
        let caller = self.caller(&request)?;
        self.own(&caller, "GetSandboxProviderEnvironment", &request.get_ref().sandbox_id)?;
        Ok(Response::new(self.provider_environment(&caller)))
    }

    async fn get_sandbox_config(
        &self,
        request: Request<GetSandboxConfigRequest>,
    ) -> Result<Response<GetSandboxConfigResponse>, Status> {
        let handle = self.subject(&request, "GetSandboxConfig", &request.get_ref().name)?;
        self.configuration(&handle, request.get_ref()).map(Response::new)
    }

    async fn update_config(
        &self,
        request: Request<UpdateConfigRequest>,
    ) -> Result<Response<UpdateConfigResponse>, Status> {
        let handle = self.subject(&request, "UpdateConfig", &request.get_ref().sandbox)?;
        let caller = request.extensions().get::<Principal>().cloned().unwrap_or(Principal::Anonymous);
        self.configure(&handle, request.into_inner(), &caller).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Operator for Api {
    type ReadConsoleStream = Replies<ConsoleChunk>;

    async fn read_console(
        &self,
        request: Request<ReadConsoleRequest>,
    ) -> Result<Response<Self::ReadConsoleStream>, Status> {
        Api::read_console(self, request.get_ref()).map(Response::new)
    }

    async fn rotate_token(&self, request: Request<RotateTokenRequest>) -> Result<Response<TokenReply>, Status> {
        Api::rotate_token(self, &request.get_ref().sandbox, &who(&request)).await.map(Response::new)
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Result<Response<TokenReply>, Status> {
        Api::revoke_token(self, &request.get_ref().sandbox, &who(&request)).await.map(Response::new)
    }

    async fn debug_rpc(&self, request: Request<DebugRpcRequest>) -> Result<Response<DebugRpcReply>, Status> {
        let who = who(&request);
        Api::debug_rpc(self, request.into_inner(), &who).await.map(Response::new)
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesReply>, Status> {
        let who = who(&request);
        Api::list_services(self, &request.get_ref().sandbox, &who).await.map(Response::new)
    }

    async fn get_ssh_host_key(
        &self,
        request: Request<GetSshHostKeyRequest>,
    ) -> Result<Response<GetSshHostKeyReply>, Status> {
        self.ssh_host_key(request.get_ref()).map(Response::new)
    }

    async fn set_secret(&self, request: Request<SetSecretRequest>) -> Result<Response<SetSecretReply>, Status> {
        let who = who(&request);
        Api::set_secret(self, request.into_inner(), &who).map(Response::new)
    }

    async fn list_secrets(&self, request: Request<ListSecretsRequest>) -> Result<Response<ListSecretsReply>, Status> {
        Api::list_secrets(self, request.get_ref()).map(Response::new)
    }

    async fn remove_secret(
        &self,
        request: Request<RemoveSecretRequest>,
    ) -> Result<Response<RemoveSecretReply>, Status> {
        Api::remove_secret(self, request.get_ref(), &who(&request)).map(Response::new)
    }
}

#[tonic::async_trait]
impl Vm for Api {
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        let handle = self.caller(&request)?;
        self.heed_fault(&handle, &request.get_ref().fault).await;
        Ok(Response::new(self.sync_reply(&handle, request.get_ref()).await))
    }
}
