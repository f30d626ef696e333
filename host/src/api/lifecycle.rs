//! Create, get, list, start, stop, delete, watch.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream;
use prost::Message as _;
use proto::openshell::datamodel::v1::{WorkspaceSelector, workspace_selector::Selection};
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::*;
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use super::reply::WORKSPACE;
use super::services::Api;
use crate::sandbox::decide::Event;
use crate::sandbox::driver::{DriverError, DriverReason};
use crate::sandbox::registry::CreateError;
use crate::sandbox::task::{AskError, Handle};
use crate::session::supervisor::refused;
use crate::status;

/// How long a delete is waited for before it is called accepted instead of completed.
const DELETE_WAIT: Duration = Duration::from_secs(5);
const PAGE_MAX: i32 = 1000;
const PAGE_DEFAULT: i32 = 100;
/// A page ends early beyond this: clients take messages of 4 MiB.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// What `WatchSandbox` answers.
pub type Events = Pin<Box<dyn Stream<Item = Result<SandboxStreamEvent, Status>> + Send>>;

impl Api {
    pub(super) async fn create(&self, request: CreateSandboxRequest) -> Result<SandboxResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        if let Some(spec) = &request.spec {
            self.check_providers(&spec.providers)?;
        }
        let handle = self.registry.create(&request).await.map_err(not_created)?;
        Ok(self.response(&handle))
    }

    pub(super) fn get(&self, request: &GetSandboxRequest) -> Result<SandboxResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        Ok(self.response(&self.find(&request.name)?))
    }

    pub(super) fn list(&self, request: &ListSandboxesRequest) -> Result<ListSandboxesResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let size = match request.page_size {
            0 => PAGE_DEFAULT,
            1..=PAGE_MAX => request.page_size,
            _ => return Err(status::invalid("page_size", format!("page_size must be 1 to {PAGE_MAX}"))),
        } as usize;
        if !request.label_selector.is_empty() {
            return Err(Status::unimplemented("label_selector is not served by this gateway; filter the whole list"));
        }
        // A page token is the last name of the page before: names are sorted, and removals between pages do no harm.
        let mut rest = self.registry.all();
        rest.retain(|handle| handle.name.as_str() > request.page_token.as_str());
        let mut page = ListSandboxesResponse::default();
        let mut bytes = 0;
        for handle in &rest {
            let sandbox = self.sandbox(handle);
            bytes += sandbox.encoded_len();
            if page.sandboxes.len() == size || (bytes > PAGE_BYTES && !page.sandboxes.is_empty()) {
                let last = page.sandboxes.last().and_then(|sandbox| sandbox.metadata.as_ref());
                page.next_page_token = last.map(|metadata| metadata.name.clone()).unwrap_or_default();
                break;
            }
            page.sandboxes.push(sandbox);
        }
        Ok(page)
    }

    pub(super) async fn start(&self, request: &StartSandboxRequest) -> Result<SandboxResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        self.check_providers(&self.find(&request.name)?.view().record.spec.providers)?;
        self.ask(&request.name, Event::Start, "start").await
    }

    pub(super) async fn stop(&self, request: &StopSandboxRequest) -> Result<SandboxResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        self.ask(&request.name, Event::Stop, "stop").await
    }

    /// Start and stop are levels: being so already is success.
    async fn ask(&self, name: &str, event: Event, verb: &str) -> Result<SandboxResponse, Status> {
        let handle = self.find(name)?;
        match handle.ask(event).await {
            Ok(_) | Err(AskError::AlreadySo) => Ok(self.response(&handle)),
            Err(error) => Err(refused(&handle, verb, error)),
        }
    }

    pub(super) async fn delete(&self, request: &DeleteSandboxRequest) -> Result<DeleteSandboxResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let reply =
            |outcome: DeletionOutcome, sandbox_id| DeleteSandboxResponse { outcome: outcome.into(), sandbox_id };
        let handle = match self.find(&request.name) {
            Err(_) if request.allow_missing => return Ok(reply(DeletionOutcome::AlreadyAbsent, String::new())),
            found => found?,
        };
        match handle.ask(Event::Delete).await {
            Ok(_) | Err(AskError::AlreadySo | AskError::Gone) => {}
            Err(error) => return Err(refused(&handle, "delete", error)),
        }
        let mut view = handle.watch();
        let gone = timeout(DELETE_WAIT, async { while view.changed().await.is_ok() {} }).await;
        let outcome = if gone.is_ok() { DeletionOutcome::Completed } else { DeletionOutcome::Accepted };
        Ok(reply(outcome, handle.id.to_string()))
    }

    pub(super) fn watch(&self, request: WatchSandboxRequest) -> Result<Events, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let handle = self.find(&request.sandbox)?;
        if request.follow_logs {
            return self.follow_logs(handle, request);
        }
        let api = self.clone();
        let views = WatchStream::new(handle.watch());
        let events = views.map(move |view| {
            let sandbox = api.message(&view);
            Ok(SandboxStreamEvent { payload: Some(Payload::Sandbox(sandbox)) })
        });
        if !request.stop_on_terminal {
            return Ok(Box::pin(events));
        }
        // Ends with the terminal event, not with the one after it, which may never come.
        let until_terminal = stream::unfold(Some(events), |events| async {
            let mut events = events?;
            let event: Result<SandboxStreamEvent, Status> = events.next().await?;
            let rest = (!event.as_ref().is_ok_and(is_terminal)).then_some(events);
            Some((event, rest))
        });
        Ok(Box::pin(until_terminal))
    }

    pub(super) fn find(&self, reference: &str) -> Result<Handle, Status> {
        self.registry
            .find(reference)
            .ok_or_else(|| Status::not_found(format!("sandbox `{}` does not exist", reference.escape_debug())))
    }

    fn response(&self, handle: &Handle) -> SandboxResponse {
        SandboxResponse { sandbox: Some(self.sandbox(handle)) }
    }
}

fn is_terminal(event: &SandboxStreamEvent) -> bool {
    let Some(Payload::Sandbox(sandbox)) = &event.payload else { return false };
    let phase = sandbox.status.as_ref().map(SandboxStatus::phase);
    matches!(phase, Some(SandboxPhase::Stopped | SandboxPhase::Completed | SandboxPhase::Error))
}

/// There is one workspace.
pub(super) fn workspace(selector: Option<&WorkspaceSelector>) -> Result<(), Status> {
    match selector.and_then(|selector| selector.selection.as_ref()) {
        None | Some(Selection::AllWorkspaces(_)) => Ok(()),
        Some(Selection::Workspace(name)) if name.is_empty() || name == WORKSPACE => Ok(()),
        Some(Selection::Workspace(name)) => Err(Status::not_found(format!(
            "workspace `{}` does not exist; there is only `{WORKSPACE}`",
            name.escape_debug()
        ))),
    }
}

fn not_created(error: CreateError) -> Status {
    match error {
        CreateError::Invalid(invalid) => status::invalid(invalid.field, invalid.message),
        CreateError::NameTaken(name) => {
            Status::already_exists(format!("a sandbox named {name} exists; delete it or choose another name"))
        }
        CreateError::Driver(error) => refused_by_driver(&error),
        CreateError::Store(message) => Status::internal(message),
    }
}

/// The reason goes along for programs: a status code says less.
fn refused_by_driver(error: &DriverError) -> Status {
    let code = match error.reason {
        DriverReason::UnknownImage => Code::NotFound,
        DriverReason::InvalidImage | DriverReason::OutOfRange => Code::InvalidArgument,
        DriverReason::Internal | DriverReason::Runtime | DriverReason::ProgramMissing => Code::Internal,
        _ => Code::FailedPrecondition,
    };
    status::because(code, &error.reason.name(), error.to_string())
}
