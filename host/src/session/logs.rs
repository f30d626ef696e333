//! What sandboxes have said, as far as it is kept.
//!
//! A ring of lines for each sandbox, in memory: forgotten with the sandbox, kept while it is stopped, and lost with
//! the gateway, to which the agents of running sandboxes then send again what they still have. An agent numbers its
//! lines, so that what comes twice is kept once. Whatever an agent sends, it changes its own ring alone.

mod check;
mod filter;
mod ring;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use proto::openshell::v1::PushSandboxLogsRequest;
use tonic::{Status, Streaming};
use uuid::Uuid;

pub use filter::Filter;
pub use ring::{Read, Ring};

use super::supervisor::Supervisors;
use crate::sandbox::registry::Registry;
use crate::sandbox::task::Handle;
use crate::status;

/// The rings of all sandboxes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Logs {
    rings: Arc<Mutex<HashMap<Uuid, Arc<Ring>>>>,
}

impl Logs {
    /// The ring of a sandbox, until that is deleted.
    pub fn of(&self, registry: &Registry, handle: &Handle) -> Arc<Ring> {
        let mut rings = self.lock();
        if let Some(ring) = rings.get(&handle.id) {
            return ring.clone();
        }
        let ring = Arc::new(Ring::default());
        rings.insert(handle.id, ring.clone());
        tokio::spawn(forget(self.clone(), registry.clone(), handle.clone()));
        ring
    }

    /// The number of the last line of this boot; 0 for none.
    pub fn sequence(&self, sandbox_id: Uuid, boot: &str) -> u64 {
        let ring = self.lock().get(&sandbox_id).cloned();
        ring.map_or(0, |ring| ring.sequence(boot))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<Ring>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Once the sandbox is gone. The end of its task alone is not that: one that panicked is started again.
async fn forget(logs: Logs, registry: Registry, handle: Handle) {
    let id = handle.id;
    let mut current = Some(handle);
    while let Some(handle) = current {
        let mut views = handle.watch();
        while views.changed().await.is_ok() {}
        current = registry.get(id);
    }
    logs.lock().remove(&id);
}

impl Supervisors {
    /// Takes the lines of a `PushSandboxLogs` stream until its end. The answer says that all were taken; the guard
    /// bounds the time until then.
    ///
    /// # Errors
    /// Names another sandbox, is out of bounds, or comes too fast. What came before is kept.
    pub async fn push_logs(
        &self,
        handle: &Handle,
        mut inbound: Streaming<PushSandboxLogsRequest>,
    ) -> Result<(), Status> {
        let own = handle.id.to_string();
        let mut pinned = None;
        while let Some(batch) = inbound.message().await? {
            if batch.logs.is_empty() && pinned.is_none() {
                continue;
            }
            if batch.sandbox_id != own || batch.logs.iter().any(|line| !["", &own].contains(&&*line.sandbox_id)) {
                return Err(self.refusals.cross_sandbox(handle.id, "PushSandboxLogs"));
            }
            let ring = match &pinned {
                Some(ring) => ring,
                None => {
                    let known = self.registry.get(handle.id).ok_or_else(|| Status::not_found("the sandbox is gone"))?;
                    &*pinned.insert(self.logs.of(&self.registry, &known))
                }
            };
            let view = handle.view();
            let boot = &view.record.instance_id;
            let numbered = check::batch(batch.logs, &own, boot).map_err(|why| status::invalid("logs", why))?;
            if !ring.take(boot, numbered, Instant::now()) {
                let message = format!("more than {} bytes of log lines a second; send them later", ring::RATE);
                return Err(Status::resource_exhausted(message));
            }
        }
        Ok(())
    }
}
