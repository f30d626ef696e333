//! The end of all services: those first that nobody else depends on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::service::ServiceState;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::Services;
use super::unit::Unit;

impl Services {
    /// Stops them in the reverse of the order in which they started, each by its signal and within its time, and all
    /// of them within `budget`: what is left then is killed.
    pub async fn stop(self: &Arc<Self>, budget: Duration) {
        let deadline = Instant::now() + budget;
        self.stopping.send_replace(true);
        for unit in &self.units {
            let mut slot = unit.slot();
            match slot.run {
                Some(_) => slot.enter(ServiceState::Stopping, ""),
                None if matches!(slot.state, ServiceState::Done | ServiceState::Failed) => {}
                None => slot.enter(ServiceState::Stopped, ""),
            }
        }
        self.touch();
        let mut stopping = JoinSet::new();
        for index in 0..self.units.len() {
            let services = self.clone();
            stopping.spawn(async move { services.stop_one(index, deadline).await });
        }
        while stopping.join_next().await.is_some() {}
    }

    async fn stop_one(&self, index: usize, deadline: Instant) {
        let unit = &self.units[index];
        let dependents: Vec<&Unit> =
            self.units.iter().filter(|other| other.on.iter().any(|(on, _)| *on == index)).collect();
        let over = |_: &u64| dependents.iter().all(|other| other.run().is_none());
        // They have deadlines of their own; a fault in one of them must not keep the others.
        let _ = timeout_at(deadline.into(), self.changes().wait_for(over)).await;
        let Some(run) = unit.run() else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        unit.end(&run, left.min(unit.spec.stop_timeout)).await;
        let code = *run.family.exit.borrow();
        let mut slot = unit.slot();
        slot.run = None;
        slot.ready = false;
        slot.last_exit = code.or(slot.last_exit);
        slot.enter(ServiceState::Stopped, "");
        drop(slot);
        tracing::info!(service = unit.spec.name, code, "service stopped");
        self.touch();
    }
}
