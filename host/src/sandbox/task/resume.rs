//! What a new gateway does with a sandbox that an earlier one left.

use super::{AGAIN, Owner};
use crate::rotation::error::RotationError;
use crate::sandbox::decide::{Action, Event};

/// More moves of a session than one gateway sees.
const UNSAVED_VERSIONS: u64 = 1 << 32;
/// After as many failures to listen for a running sandbox it is restarted.
const LISTEN_TRIES: u32 = 10;

impl Owner {
    /// A new gateway finds a sandbox as an earlier one left it: compares with what is, and goes on from there.
    pub(super) async fn resume(&mut self) {
        // Sessions move the version without the disk: the next one is beyond all that anybody has seen.
        let mut record = self.record.clone();
        record.version += UNSAVED_VERSIONS;
        if let Err(error) = self.save(record) {
            tracing::error!(sandbox = %self.record.id, error, "failed to record a new version");
        }
        let (id, phase) = (self.record.id, self.record.machine.phase);
        let running = self.deps.driver.is_running(id);
        if !phase.has_compute() {
            if running {
                self.carry_out(vec![Action::Kill]).await;
            }
            // The earlier gateway may have ended before it did this.
            self.withdraw().await;
            return;
        }
        if running {
            self.watch_compute();
            self.adopt().await;
            return;
        }
        let exit = self.deps.driver.wait_gone(id).await;
        let of_this_boot = exit.as_ref().is_some_and(|exit| exit.instance_id == self.record.instance_id);
        if phase.is_booting() && !of_this_boot {
            // The earlier gateway ended between its decision and the compute: that is no failed boot.
            self.carry_out(vec![Action::Launch]).await;
        } else {
            self.compute_gone(exit).await;
        }
    }

    /// Takes over running compute: a fresh token first, then the listener, so that a session finds one behind it.
    async fn adopt(&mut self) {
        let id = self.record.id;
        let places = match self.deps.driver.prepare(id) {
            Ok(places) => places,
            Err(error) => return self.lost(error.to_string()).await,
        };
        match self.deps.rotation.adopt(id, places.directory, places.owner).await {
            Ok(_) | Err(RotationError::AlreadyEnrolled { .. }) => {}
            Err(error @ RotationError::Directory { .. }) => return self.lost(error.to_string()).await,
            // Its attempts go on; the token that is there stays.
            Err(error) => tracing::error!(sandbox = %id, %error, "failed to publish a token of a running sandbox"),
        }
        for _ in 0..LISTEN_TRIES {
            let Err(error) = self.deps.link.open(id, &places.socket) else { return };
            tracing::error!(sandbox = %id, error, "failed to listen for a running sandbox; trying again");
            tokio::time::sleep(AGAIN).await;
        }
        self.lost(format!("no listener at {}", places.socket.display())).await;
    }

    /// What the guest holds on to is gone: only a restart brings it back.
    async fn lost(&mut self, why: String) {
        tracing::error!(sandbox = %self.record.id, why, "failed to adopt a running sandbox");
        self.record.note = why;
        self.happened(Event::DirectoryLost).await;
    }
}
