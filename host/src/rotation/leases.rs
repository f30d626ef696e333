//! For how long a connection may carry streams: until the end of the newest token that was presented on it.
//!
//! The end is counted on the monotonic clock from the moment of presentation, so that a wall clock that is set does
//! not cut connections; it is never further away than the token's own life and the leeway. Time for which the host
//! is suspended does not count: the guest was not running either.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::budget::{CONNECTIONS_PER_VM, FIRST_RPC, FLOOD_PAUSE, REFUSALS_PER_CONNECTION};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::identity::claims::Claims;

/// Why a connection is closed before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// Its generation is below the floor.
    Revoked,
    /// Too many of its requests were refused.
    Flooded,
    /// The sandbox has stopped.
    Stopped,
    /// The sandbox was deleted.
    Deleted,
    /// The gateway ends.
    Shutdown,
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEnd {
    /// No valid request came in time.
    NeverUsed,
    /// The newest token presented on it is over.
    Expired,
    /// It was closed.
    Closed(CloseReason),
}

/// Why a sandbox gets no further connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    /// More connections than one VM may have.
    #[error("sandbox {0} already has {CONNECTIONS_PER_VM} connections, and that is the most it may have")]
    TooMany(Uuid),
    /// One was closed just now because of refusals.
    #[error("sandbox {0} had {REFUSALS_PER_CONNECTION} requests refused on a connection, and has to wait")]
    Flooded(Uuid),
}

/// The lease of one connection; clones are the same lease. The connection counts as open until the last is dropped.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    sandbox_id: Uuid,
    /// Highest generation presented; 0 before the first.
    generation: AtomicU64,
    refused: AtomicU32,
    term: watch::Sender<Term>,
    registry: Weak<Registry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    deadline: Instant,
    used: bool,
    closed: Option<CloseReason>,
}

impl Lease {
    /// A verified token was presented on this connection. `wall` is the time since the epoch now.
    pub fn extend(&self, claims: &Claims, leeway: Duration, wall: Duration) {
        self.0.generation.fetch_max(claims.generation, Ordering::AcqRel);
        let deadline = Instant::now() + term(claims, leeway, wall);
        self.0.term.send_if_modified(|term| {
            let further = !term.used || deadline > term.deadline;
            if further {
                term.deadline = deadline;
            }
            term.used = true;
            further
        });
    }

    /// A request on this connection was refused. Too many end it, and keep the sandbox waiting.
    pub fn refused(&self) {
        if self.0.refused.fetch_add(1, Ordering::Relaxed) + 1 == REFUSALS_PER_CONNECTION {
            if let Some(registry) = self.0.registry.upgrade() {
                registry.pause(self.0.sandbox_id, Instant::now() + FLOOD_PAUSE);
            }
            self.close(CloseReason::Flooded);
        }
    }

    /// Ends the lease now; the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        self.0.term.send_if_modified(|term| {
            let open = term.closed.is_none();
            term.closed.get_or_insert(reason);
            open
        });
    }

    /// Waits until the connection has to be closed, and says why.
    pub async fn ended(&self) -> LeaseEnd {
        let mut changes = self.0.term.subscribe();
        loop {
            let term = *changes.borrow_and_update();
            if let Some(reason) = term.closed {
                return LeaseEnd::Closed(reason);
            }
            tokio::select! {
                // A change that is there already is looked at before a deadline that it may have moved.
                biased;
                // This lease holds the sender: the channel cannot close.
                _ = changes.changed() => {}
                () = sleep_until(term.deadline) => {
                    return if term.used { LeaseEnd::Expired } else { LeaseEnd::NeverUsed };
                }
            }
        }
    }

    /// Whose connection it is.
    pub fn sandbox_id(&self) -> Uuid {
        self.0.sandbox_id
    }

    /// The highest generation that was presented on it; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

/// How long a token is good for from now. A wall clock that was set back must not make it longer than its life.
fn term(claims: &Claims, leeway: Duration, wall: Duration) -> Duration {
    let remaining = Duration::from_secs(claims.exp).saturating_sub(wall.saturating_sub(leeway));
    let life = Duration::from_secs(claims.exp.saturating_sub(claims.iat)) + leeway;
    remaining.min(life)
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.remove(self.sandbox_id, self.id);
        }
    }
}

/// The open connections of all sandboxes; clones are the same registry.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Registry>);

#[derive(Debug, Default)]
struct Registry {
    next: AtomicU64,
    open: Mutex<HashMap<Uuid, HashMap<u64, Weak<Inner>>>>,
    /// Until when sandboxes wait for their next connection.
    paused: Mutex<HashMap<Uuid, Instant>>,
}

impl Connections {
    /// No connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection came in on a sandbox's transport. It has [`FIRST_RPC`] to make a valid request.
    pub fn open(&self, sandbox_id: Uuid) -> Result<Lease, NotOpened> {
        if self.0.is_paused(sandbox_id, Instant::now()) {
            return Err(NotOpened::Flooded(sandbox_id));
        }
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = open.entry(sandbox_id).or_default();
        if connections.len() >= CONNECTIONS_PER_VM {
            return Err(NotOpened::TooMany(sandbox_id));
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let first = Term { deadline: Instant::now() + FIRST_RPC, used: false, closed: None };
        let inner = Arc::new(Inner {
            id,
            sandbox_id,
            generation: AtomicU64::new(0),
            refused: AtomicU32::new(0),
            term: watch::Sender::new(first),
            registry: Arc::downgrade(&self.0),
        });
        connections.insert(id, Arc::downgrade(&inner));
        Ok(Lease(inner))
    }

    /// Closes all connections of a sandbox.
    pub fn close_all(&self, sandbox_id: Uuid, reason: CloseReason) {
        for lease in self.of(sandbox_id) {
            lease.close(reason);
        }
    }

    /// Closes the connections on which nothing from the floor up was presented.
    pub fn close_below(&self, sandbox_id: Uuid, floor: u64) {
        for lease in self.of(sandbox_id).iter().filter(|lease| lease.generation() < floor) {
            lease.close(CloseReason::Revoked);
        }
    }

    /// Taken out of the lock: dropping a lease takes it, too.
    fn of(&self, sandbox_id: Uuid) -> Vec<Lease> {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = open.get(&sandbox_id).into_iter().flat_map(HashMap::values);
        connections.filter_map(Weak::upgrade).map(Lease).collect()
    }
}

impl Registry {
    fn pause(&self, sandbox_id: Uuid, until: Instant) {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox_id, until);
    }

    fn is_paused(&self, sandbox_id: Uuid, now: Instant) -> bool {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        // Few, if any: a sandbox that is deleted meanwhile is forgotten with the next connection of any.
        paused.retain(|_, until| *until > now);
        paused.contains_key(&sandbox_id)
    }

    fn remove(&self, sandbox_id: Uuid, id: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = open.get_mut(&sandbox_id) {
            connections.remove(&id);
            if connections.is_empty() {
                open.remove(&sandbox_id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
