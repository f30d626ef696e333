//! What is done once it has been decided, and what is seen of the compute.

use std::collections::VecDeque;
use std::time::Duration;

use proto::last_words::LastWords;
use proto::layout::SHARE_DIR;
use proto::vmm::ExitRecord;
use uuid::Uuid;

use super::evidence::{describe, failure_reason};
use super::{AGAIN, Owner};
use crate::rotation::error::RotationError;
use crate::rotation::publish::IdentityDirectory;
use crate::sandbox::decide::{Action, Event};
use crate::sandbox::launch::{LaunchError, launch};
use crate::sandbox::phase::Phase;
use crate::sandbox::record::MainRuns;
use crate::sandbox::view::instance_id;

/// A boot that ends sooner than this after its hello counts as a crash.
const EARLY: Duration = Duration::from_secs(30);

impl Owner {
    pub(super) async fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.into();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Launch => {
                    if let Err(error) = self.launch().await {
                        self.record.note = error.message;
                        self.record.reason = error.reason;
                        match self.apply(Event::LaunchFailed).await {
                            Ok(more) => todo.extend(more),
                            Err(refused) => tracing::error!(sandbox = %self.record.id, ?refused, "launch failed"),
                        }
                    }
                }
                Action::OrderStop => {
                    self.publish();
                    self.deps.link.nudge(self.record.id);
                }
                Action::Kill => self.kill().await,
                Action::Withdraw => self.withdraw().await,
                Action::Remove => self.remove().await,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), LaunchError> {
        self.up_since = None;
        self.gone = None;
        let mut record = self.record.clone();
        record.instance_id = instance_id(record.machine.boot, Uuid::new_v4());
        record.main = MainRuns::default();
        // Durable before the compute exists: a gateway that dies here finds a compute that it knows.
        self.save(record)?;
        self.publish();
        let mut record = self.record.clone();
        let launched = launch(&self.deps, &mut record).await;
        let saved = self.save(record);
        launched?;
        saved?;
        self.watch_compute();
        Ok(())
    }

    pub(super) fn watch_compute(&mut self) {
        self.gone = Some(self.deps.driver.wait_gone(self.record.id));
    }

    pub(super) async fn compute_gone(&mut self, exit: Option<ExitRecord>) {
        self.gone = None;
        let early = self.up_since.take().is_some_and(|at| at.elapsed() < EARLY);
        let exit = exit.filter(|exit| exit.instance_id == self.record.instance_id);
        let how = describe(exit.as_ref());
        tracing::info!(sandbox = %self.record.id, early, how, "compute is gone");
        let mut recorded = true;
        if self.record.machine.main_exit.is_none()
            && let Some(LastWords { exit_code, crash_loop }) = self.unreported_end(exit.as_ref())
        {
            self.record.main.crash_loop = crash_loop;
            let event = if crash_loop == 0 { Event::MainExited(exit_code) } else { Event::MainGaveUp(exit_code) };
            recorded = self.happened(event).await;
        }
        // Expected where it was told to end; and the evidence of an `Error` is about what came before.
        if self.record.machine.phase.is_booting() || self.record.machine.phase == Phase::Ready {
            self.record.note = how;
            self.record.reason = exit.as_ref().map(failure_reason).unwrap_or_default();
        }
        if !recorded || !self.happened(Event::Gone { early }).await {
            // It is still gone: that is told again once the store may be back.
            let gone = self.deps.driver.wait_gone(self.record.id);
            self.gone = Some(Box::pin(async {
                tokio::time::sleep(AGAIN).await;
                gone.await
            }));
        }
    }

    async fn kill(&mut self) {
        let id = self.record.id;
        if let Err(error) = self.deps.driver.kill(id).await {
            tracing::error!(sandbox = %id, %error, "failed to end the compute");
            self.record.note = error.to_string();
        }
        if self.gone.is_none() && self.record.machine.phase.has_compute() {
            self.watch_compute();
        }
    }

    pub(super) async fn withdraw(&mut self) {
        let id = self.record.id;
        self.deps.link.close(id);
        match self.deps.rotation.withdraw(id).await {
            Ok(()) => {}
            Err(RotationError::Unknown { .. }) => self.clear_token(),
            Err(error) => tracing::error!(sandbox = %id, %error, "failed to withdraw the token"),
        }
    }

    /// Rotation does not know the sandbox, but an earlier gateway's may have left a token on disk.
    fn clear_token(&self) {
        let id = self.record.id;
        if !self.deps.driver.found().contains(&id) {
            return;
        }
        let cleared = self.deps.driver.prepare(id).map_err(|error| error.to_string()).and_then(|places| {
            if !places.directory.join(SHARE_DIR).exists() {
                return Ok(());
            }
            let directory = IdentityDirectory::open(&places.directory, places.owner);
            directory.and_then(|mut directory| directory.remove_token()).map_err(|error| error.to_string())
        });
        if let Err(error) = cleared {
            tracing::error!(sandbox = %id, error, "failed to remove the token of a sandbox at rest");
        }
    }

    async fn remove(&mut self) {
        let id = self.record.id;
        if self.deps.driver.is_running(id) {
            return;
        }
        self.withdraw().await;
        let removed = match self.deps.driver.remove(id).await {
            Ok(()) => self.deps.store.remove(id).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match removed {
            Ok(()) => self.removed = true,
            // Tried again by the timer of this phase.
            Err(message) => {
                tracing::error!(sandbox = %id, error = %message, "failed to remove a sandbox");
                self.record.note = message;
            }
        }
    }
}
