//! The services of a guest: how its agent says they are, and that it gives up for want of one.

use proto::debug::DebugCall;
use proto::openshell::vm::v1::{ListServicesReply, ServiceStatus as Message};
use proto::service::{SERVICES_MAX, ServiceStatus};
use tonic::Status;

use super::reply::timestamp;
use super::services::Api;
use crate::sandbox::task::Handle;

/// Of what an agent says about a fault: enough for a cause and some last words.
const FAULT_MAX: usize = 2048;

impl Api {
    pub(super) async fn list_services(&self, sandbox: &str, who: &str) -> Result<ListServicesReply, Status> {
        let handle = self.find(sandbox)?;
        let reply = self.ask_agent(&handle, DebugCall::ListServices, who).await?;
        let failed = |why: &str| Status::failed_precondition(format!("sandbox {}: {why}", handle.name));
        if reply.exit_code != 0 {
            // One that does not know the question refuses it.
            return Err(failed(&format!(
                "its agent does not tell of services: {}; stop and start it to give it this gateway's agent",
                reply.error
            )));
        }
        let services: Vec<ServiceStatus> = serde_json::from_str(&reply.output)
            .map_err(|error| failed(&format!("its agent's answer about services cannot be read: {error}")))?;
        Ok(ListServicesReply { services: services.into_iter().take(SERVICES_MAX).map(message).collect() })
    }

    /// Level-triggered: the agent says it with every Sync, until the machine is ended.
    pub(super) async fn heed_fault(&self, handle: &Handle, fault: &str) {
        let Some(session) = self.supervisors.sessions.of(handle.id).filter(|_| !fault.is_empty()) else { return };
        let why = fault[..fault.floor_char_boundary(FAULT_MAX)].to_owned();
        // Refused where it is known already.
        if handle.given_up(&session.instance_id, why).await.is_ok() {
            tracing::warn!(sandbox = %handle.id, "its agent gave the sandbox up");
        }
    }
}

fn message(status: ServiceStatus) -> Message {
    Message {
        name: status.name,
        state: status.state.name().into(),
        ready: status.ready,
        pid: status.pid.unwrap_or_default(),
        restarts: status.restarts,
        since_time: Some(timestamp(status.since_ms)),
        last_exit: status.last_exit,
        message: status.message,
        declared_in: status.file,
    }
}
