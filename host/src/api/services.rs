//! The services: each RPC hands over to the file that holds its verb.

use std::pin::Pin;
use std::sync::Arc;

use proto::openshell::v1::open_shell_server::{OpenShell, OpenShellServer};
use proto::openshell::v1::*;
use proto::openshell::vm::v1::vm_server::{Vm, VmServer};
use proto::openshell::vm::v1::{StopOrder, SyncReply, SyncRequest};
use proto::version::VERSION;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::exec::ExecEvents;
use super::lifecycle::Events;
use super::reply::timestamp;
use crate::identity::host_key::HostKeys;
use crate::identity::principal::Principal;
use crate::rotation::clock::Clock;
use crate::rotation::receipts::Receipts;
use crate::rotation::rotor::Rotation;
use crate::sandbox::decide::Event;
use crate::sandbox::phase::Phase;
use crate::sandbox::registry::Registry;
use crate::sandbox::task::{AskError, Handle};
use crate::sandbox::view::wall_ms;
use crate::session::agent::AgentVersion;
use crate::session::supervisor::{Supervisors, refused};

/// A stream of messages towards a caller.
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
    /// Both services, ready to be served behind the guard, with messages of at most `largest` bytes.
    pub fn routes(&self, largest: usize) -> Routes {
        let openshell = OpenShellServer::new(self.clone()).max_decoding_message_size(largest);
        let vm = VmServer::new(self.clone()).max_decoding_message_size(largest);
        Routes::new(openshell).add_service(vm).prepare()
    }

    /// The sandbox that a request comes from. The guard lets nobody else this far.
    fn caller<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        match request.extensions().get::<Principal>() {
            Some(Principal::Sandbox { id, .. }) => {
                self.registry.get(*id).ok_or_else(|| Status::not_found("the sandbox is gone"))
            }
            _ => Err(Status::permission_denied("only a sandbox may call this")),
        }
    }

    async fn report_exit(&self, handle: &Handle, report: ReportMainProcessExitRequest) -> Result<(), Status> {
        if report.sandbox_id != handle.id.to_string() {
            let what = "ReportMainProcessExit: names another sandbox".to_string();
            self.supervisors.refusals.note(handle.id, what, std::time::Instant::now());
            return Err(Status::permission_denied("cross-sandbox access denied"));
        }
        match handle.told(&report.instance_id, Event::MainExited(report.exit_code)).await {
            Ok(_) | Err(AskError::AlreadySo) => Ok(()),
            Err(error) => Err(refused(handle, "report the exit of", error)),
        }
    }

    fn sync_reply(&self, handle: &Handle) -> SyncReply {
        let stopping = handle.view().phase() == Phase::Stopping;
        let stop = stopping.then(|| StopOrder {
            grace: prost_types::Duration::try_from(proto::budget::STOP_GUEST).ok(),
            reason: "stopped by its user".into(),
        });
        let published_generation = self.rotation.published(handle.id).map(|p| p.generation).unwrap_or_default();
        SyncReply { wall_time: Some(timestamp(wall_ms(&*self.clock))), published_generation, stop }
    }
}

#[tonic::async_trait]
impl OpenShell for Api {
    type WatchSandboxStream = Events;
    type ExecSandboxStream = ExecEvents;
    type ExecSandboxInteractiveStream = ExecEvents;
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
        self.watch(request.get_ref()).map(Response::new)
    }

    async fn exec_sandbox(&self, request: Request<ExecSandboxRequest>) -> Result<Response<ExecEvents>, Status> {
        self.exec(request.into_inner()).await.map(Response::new)
    }

    async fn exec_sandbox_interactive(
        &self,
        request: Request<Streaming<ExecSandboxInput>>,
    ) -> Result<Response<ExecEvents>, Status> {
        self.exec_interactive(request.into_inner()).await.map(Response::new)
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
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<ReportMainProcessExitRequest>,
    ) -> Result<Response<ReportMainProcessExitResponse>, Status> {
        let handle = self.caller(&request)?;
        self.report_exit(&handle, request.into_inner()).await?;
        Ok(Response::new(ReportMainProcessExitResponse {}))
    }
}

#[tonic::async_trait]
impl Vm for Api {
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncReply>, Status> {
        let handle = self.caller(&request)?;
        Ok(Response::new(self.sync_reply(&handle)))
    }
}
