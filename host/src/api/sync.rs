//! What an agent tells of its boot, and what it hears: with every Sync, and at the end of the main process.

use proto::openshell::v1::ReportMainProcessExitRequest;
use proto::openshell::vm::v1::{MainProcessRuns, StopOrder, SyncReply, SyncRequest};
use tonic::Status;

use super::reply::{since_epoch_ms, timestamp};
use super::services::Api;
use crate::sandbox::decide::Event;
use crate::sandbox::phase::Phase;
use crate::sandbox::record::MainRuns;
use crate::sandbox::task::{AskError, Handle};
use crate::sandbox::view::wall_ms;
use crate::session::supervisor::refused;

impl Api {
    pub(super) async fn report_exit(
        &self,
        handle: &Handle,
        report: ReportMainProcessExitRequest,
    ) -> Result<(), Status> {
        self.own(handle, "ReportMainProcessExit", &report.sandbox_id)?;
        // What the agent knows of its runs comes by Sync, always before this.
        let event = match handle.view().record.main.crash_loop {
            0 => Event::MainExited(report.exit_code),
            _ => Event::MainGaveUp(report.exit_code),
        };
        match handle.told(&report.instance_id, event).await {
            Ok(_) | Err(AskError::AlreadySo) => Ok(()),
            Err(error) => Err(refused(handle, "report the exit of", error)),
        }
    }

    pub(super) async fn sync_reply(&self, handle: &Handle, request: &SyncRequest) -> SyncReply {
        if let Some(session) = self.supervisors.sessions.of(handle.id) {
            session.holds_secrets(request.provider_env_revision);
            session.notes_services(&request.services_note);
            if let Some(runs) = &request.main_process {
                handle.main_runs(&session.instance_id, main_runs(runs)).await;
            }
        }
        let view = handle.view();
        let stopping = view.phase() == Phase::Stopping;
        let stop = stopping.then(|| StopOrder {
            grace: prost_types::Duration::try_from(proto::budget::STOP_GUEST).ok(),
            reason: "stopped by its user".into(),
        });
        let published_generation = self.rotation.published(handle.id).map(|p| p.generation).unwrap_or_default();
        SyncReply {
            wall_time: Some(timestamp(wall_ms(&*self.clock))),
            published_generation,
            stop,
            provider_env_revision: self.secrets.revision(&view.record.spec.providers),
            log_sequence: self.supervisors.logs.sequence(handle.id, &view.record.instance_id),
        }
    }
}

fn main_runs(told: &MainProcessRuns) -> MainRuns {
    MainRuns {
        restarts: told.restarts,
        started_ms: told.started_time.as_ref().and_then(since_epoch_ms),
        next_ms: told.next_start_time.as_ref().and_then(since_epoch_ms),
        last_code: told.last_exit_code,
        crash_loop: told.crash_loop,
    }
}
