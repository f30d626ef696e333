//! What the lifecycle needs from the transport on which a sandbox reaches its gateway.

use std::path::Path;

use uuid::Uuid;

/// Implemented by the API's per-VM listeners together with the sessions.
pub trait Link: Send + Sync {
    /// Listens for this sandbox, and for nobody else, on `socket`; replaces a socket that an earlier gateway left.
    fn open(&self, sandbox_id: Uuid, socket: &Path) -> Result<(), String>;

    /// Sends a heartbeat now, so that the agent asks what is new. May be lost.
    fn nudge(&self, sandbox_id: Uuid);

    /// Closes the connections on which nothing from generation `floor` up was presented.
    fn close_below(&self, sandbox_id: Uuid, floor: u64);

    /// Stops listening and closes every connection of this sandbox.
    fn close(&self, sandbox_id: Uuid);

    /// What was refused on this sandbox's transport since its last boot, for people; empty if nothing was.
    fn refusals(&self, sandbox_id: Uuid) -> Vec<String>;
}
