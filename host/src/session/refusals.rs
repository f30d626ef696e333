//! What was refused on a sandbox's transport: a line in the log, at most one a second and sandbox, and the latest
//! few as evidence for a sandbox that fails to come up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;
use uuid::Uuid;

/// Guests choose when to be refused; a line of log is not theirs to flood with.
const LOG_INTERVAL: Duration = Duration::from_secs(1);
const KEPT: usize = 4;

/// See the module.
#[derive(Default)]
pub struct Refusals {
    sandboxes: Mutex<HashMap<Uuid, Seen>>,
}

#[derive(Default)]
struct Seen {
    latest: VecDeque<String>,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Refusals {
    /// Notes one. `what` names the RPC and the reason; never a token.
    pub fn note(&self, sandbox_id: Uuid, what: String, now: Instant) {
        let mut sandboxes = self.lock();
        let seen = sandboxes.entry(sandbox_id).or_default();
        if seen.logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL) {
            tracing::warn!(sandbox = %sandbox_id, refused = what, unlogged = seen.unlogged, "audit: refused");
            seen.logged = Some(now);
            seen.unlogged = 0;
        } else {
            seen.unlogged += 1;
        }
        if seen.latest.back() != Some(&what) {
            seen.latest.push_back(what);
            if seen.latest.len() > KEPT {
                seen.latest.pop_front();
            }
        }
    }

    /// A sandbox has named another one in a call of `rpc`: notes it, and gives what it hears.
    pub fn cross_sandbox(&self, sandbox_id: Uuid, rpc: &str) -> Status {
        self.note(sandbox_id, format!("{rpc}: names another sandbox"), Instant::now());
        Status::permission_denied("cross-sandbox access denied")
    }

    /// The latest different ones, oldest first.
    pub fn latest(&self, sandbox_id: Uuid) -> Vec<String> {
        self.lock().get(&sandbox_id).map(|seen| seen.latest.iter().cloned().collect()).unwrap_or_default()
    }

    /// Forgets a sandbox.
    pub fn forget(&self, sandbox_id: Uuid) {
        self.lock().remove(&sandbox_id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Seen>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_different_ones_are_kept() {
        let (refusals, id, now) = (Refusals::default(), Uuid::new_v4(), Instant::now());
        for what in ["a", "a", "b", "c", "d", "e", "e"] {
            refusals.note(id, what.into(), now);
        }
        assert_eq!(refusals.latest(id), ["b", "c", "d", "e"]);
        assert_eq!(refusals.lock()[&id].unlogged, 6);
        refusals.forget(id);
        assert!(refusals.latest(id).is_empty());
    }
}
