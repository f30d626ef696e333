//! The console of a sandbox, for its user: what a guest prints is passed on as it is.

use std::time::Duration;

use proto::budget::RELAY_CHUNK;
use proto::openshell::vm::v1::{ConsoleChunk, ReadConsoleRequest};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::services::{Api, Replies};
use crate::sandbox::registry::Registry;
use crate::sandbox::task::Handle;

/// How often a followed console is looked at: a ring in a file tells nobody that it has grown.
const LOOK: Duration = Duration::from_millis(200);
/// Chunks that wait for a slow reader.
const QUEUE: usize = 4;

impl Api {
    pub(super) fn read_console(&self, request: &ReadConsoleRequest) -> Result<Replies<ConsoleChunk>, Status> {
        let handle = self.find(&request.sandbox)?;
        let (chunks, replies) = mpsc::channel(QUEUE);
        tokio::spawn(read(self.registry.clone(), handle, request.follow, chunks));
        Ok(Box::pin(ReceiverStream::new(replies)))
    }
}

async fn read(registry: Registry, handle: Handle, follow: bool, chunks: mpsc::Sender<Result<ConsoleChunk, Status>>) {
    let mut seen = 0;
    loop {
        // Before the look, so that what was said until the end is seen.
        let over = registry.get(handle.id).is_none_or(|handle| !handle.view().phase().has_compute());
        let (bytes, total) = registry.console(handle.id, seen);
        seen = total;
        for data in bytes.chunks(RELAY_CHUNK) {
            if chunks.send(Ok(ConsoleChunk { data: data.to_vec() })).await.is_err() {
                return;
            }
        }
        if over || !follow {
            return;
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = chunks.closed() => return,
        }
    }
}
