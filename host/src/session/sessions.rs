//! Who has a session now, and how to reach it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proto::budget::SERVICES_NOTE_MAX;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::{GatewayHeartbeat, GatewayMessage};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::connection::Kept;

/// One live session, as others see it.
#[derive(Clone)]
pub struct Session {
    /// Unique.
    pub session_id: Uuid,
    /// The boot it belongs to.
    pub instance_id: String,
    /// Rises with every connection of one boot.
    pub epoch: u64,
    /// Of the secrets that the agent said to hold.
    secrets: Arc<AtomicU64>,
    /// Services that are not as they should be, in the agent's words; nothing before it has told of them.
    services_note: Arc<Mutex<Option<String>>>,
    outbound: mpsc::Sender<GatewayMessage>,
    superseded: Arc<Notify>,
    /// Its SSH connections that wait for the next exec.
    pub(super) kept: Kept,
}

/// Why a hello was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Superseded {
    /// Another connection of the same boot has an epoch at least as high.
    #[error("its connection epoch is not above {current}, which is in force")]
    ByEpoch {
        /// The epoch in force.
        current: u64,
    },
}

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sessions {
    live: Arc<Mutex<HashMap<Uuid, Session>>>,
}

impl Session {
    /// A session that speaks through `outbound`.
    pub fn new(instance_id: String, epoch: u64, outbound: mpsc::Sender<GatewayMessage>) -> Self {
        let session_id = Uuid::new_v4();
        Self {
            session_id,
            instance_id,
            epoch,
            secrets: Arc::default(),
            services_note: Arc::default(),
            outbound,
            superseded: Arc::default(),
            kept: Kept::default(),
        }
    }

    /// Sends a message; waits while the agent reads slowly.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn send(&self, payload: Payload) -> Result<(), String> {
        let message = GatewayMessage { payload: Some(payload) };
        self.outbound.send(message).await.map_err(|_| "the session has just ended".into())
    }

    /// Sends a heartbeat if there is room; where there is none, enough is on its way.
    pub fn heartbeat(&self) {
        let payload = Payload::Heartbeat(GatewayHeartbeat {});
        drop(self.outbound.try_send(GatewayMessage { payload: Some(payload) }));
    }

    /// The revision of the secrets that the agent has said to hold; 0 for none.
    pub fn secrets(&self) -> u64 {
        self.secrets.load(Ordering::Relaxed)
    }

    /// The agent says what it holds.
    pub fn holds_secrets(&self, revision: u64) {
        self.secrets.store(revision, Ordering::Relaxed);
    }

    /// Services that are not as they should be; empty where all are, nothing where the agent has not told yet.
    pub fn services_note(&self) -> Option<String> {
        self.services_note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The agent says how they are.
    pub fn notes_services(&self, note: &str) {
        let note = &note[..note.floor_char_boundary(SERVICES_NOTE_MAX)];
        let mut known = self.services_note.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(note) {
            *known = Some(note.to_owned());
        }
    }

    /// Ends when a newer session took this one's place.
    pub async fn superseded(&self) {
        self.superseded.notified().await;
    }
}

impl Sessions {
    /// Makes `session` the one of its sandbox, if its epoch is higher than that of a live one of the same boot.
    ///
    /// # Errors
    /// [`Superseded`]: an equal or higher epoch is in force, so that two agents with one token cannot take turns.
    pub fn enter(&self, sandbox_id: Uuid, session: Session) -> Result<(), Superseded> {
        let mut live = self.lock();
        if let Some(current) = live.get(&sandbox_id) {
            if current.instance_id == session.instance_id && current.epoch >= session.epoch {
                return Err(Superseded::ByEpoch { current: current.epoch });
            }
            current.superseded.notify_one();
        }
        live.insert(sandbox_id, session);
        Ok(())
    }

    /// Removes a session that ended. `false` if a newer one has its place already.
    pub fn leave(&self, sandbox_id: Uuid, session_id: Uuid) -> bool {
        let mut live = self.lock();
        let current = live.get(&sandbox_id).is_some_and(|session| session.session_id == session_id);
        if current {
            live.remove(&sandbox_id);
        }
        current
    }

    /// The live session of a sandbox.
    pub fn of(&self, sandbox_id: Uuid) -> Option<Session> {
        self.lock().get(&sandbox_id).cloned()
    }

    /// An extra heartbeat, so that the agent asks what is new. May be lost.
    pub fn nudge(&self, sandbox_id: Uuid) {
        if let Some(session) = self.of(sandbox_id) {
            session.heartbeat();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Session>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(instance: &str, epoch: u64) -> Session {
        Session::new(instance.into(), epoch, mpsc::channel(1).0)
    }

    #[test]
    fn the_higher_epoch_supersedes_and_an_equal_one_does_not() {
        let (sessions, sandbox) = (Sessions::default(), Uuid::new_v4());
        let first = session("1-a", 1);
        sessions.enter(sandbox, first.clone()).unwrap();
        assert_eq!(sessions.enter(sandbox, session("1-a", 1)), Err(Superseded::ByEpoch { current: 1 }));
        let second = session("1-a", 2);
        sessions.enter(sandbox, second.clone()).unwrap();
        assert_eq!(sessions.enter(sandbox, session("1-a", 1)), Err(Superseded::ByEpoch { current: 2 }));
        // The superseded one leaves without taking the newer one along.
        assert!(!sessions.leave(sandbox, first.session_id));
        assert!(sessions.of(sandbox).is_some());
        assert!(sessions.leave(sandbox, second.session_id));
        assert!(sessions.of(sandbox).is_none());
        // A new boot starts at its own first epoch.
        sessions.enter(sandbox, session("1-a", 9)).unwrap();
        sessions.enter(sandbox, session("2-b", 1)).unwrap();
    }
}
