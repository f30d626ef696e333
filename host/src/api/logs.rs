//! What sandboxes have said, to users: at once, and as it comes.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::*;
use tokio::sync::watch;
use tonic::Status;

use super::lifecycle::{Events, workspace};
use super::services::Api;
use crate::sandbox::phase::Phase;
use crate::sandbox::task::Handle;
use crate::sandbox::view::View;
use crate::session::logs::{Filter, Ring};
use crate::status;

/// Lines that are taken out of a ring at a time.
const AT_ONCE: usize = 100;

impl Api {
    pub(super) fn logs(&self, request: GetSandboxLogsRequest) -> Result<GetSandboxLogsResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let handle = self.find(&request.sandbox)?;
        let filter = Filter::new(request.sources, &request.min_level, request.since_time);
        let filter = filter.map_err(|error| status::invalid("min_level", error))?;
        let ring = self.supervisors.logs.of(&self.registry, &handle);
        let from = match request.lines {
            0 => 0,
            lines => ring.tail(&filter, lines as usize),
        };
        let lines = ring.read(from, &filter, usize::MAX).lines;
        let logs = lines.iter().map(|line| SandboxLogLine::clone(line)).collect();
        Ok(GetSandboxLogsResponse { logs, buffer_total: u32::try_from(ring.total()).unwrap_or(u32::MAX) })
    }

    /// Lines as they come, and states of the sandbox where those are wanted, too.
    pub(super) fn follow_logs(&self, handle: Handle, request: WatchSandboxRequest) -> Result<Events, Status> {
        let from_the_first = request.log_tail_lines == 0 && request.since_time.is_some();
        let filter = Filter::new(request.log_sources, &request.log_min_level, request.since_time);
        let filter = filter.map_err(|error| status::invalid("log_min_level", error))?;
        let ring = self.supervisors.logs.of(&self.registry, &handle);
        let position = if from_the_first { 0 } else { ring.tail(&filter, request.log_tail_lines as usize) };
        let mut views = handle.watch();
        views.mark_changed();
        let follower = Follower {
            api: self.clone(),
            end: ring.end(),
            ring,
            filter,
            position,
            views: Some(views),
            states: request.follow_status,
            stop_on_terminal: request.stop_on_terminal,
            ready: VecDeque::new(),
        };
        Ok(Box::pin(stream::unfold(follower, |mut follower: Follower| async move {
            let event = follower.next().await?;
            Some((Ok::<_, Status>(SandboxStreamEvent { payload: Some(event) }), follower))
        })))
    }
}

/// One who follows. It takes from the ring what its caller has room for: nobody waits for it.
struct Follower {
    api: Api,
    ring: Arc<Ring>,
    end: watch::Receiver<u64>,
    filter: Filter,
    position: u64,
    /// Nothing any more once the sandbox is gone, or as far as it was to be followed.
    views: Option<watch::Receiver<Arc<View>>>,
    states: bool,
    stop_on_terminal: bool,
    ready: VecDeque<Payload>,
}

impl Follower {
    async fn next(&mut self) -> Option<Payload> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Before the look, so that what comes between look and wait is not missed.
            self.end.mark_unchanged();
            if self.read() {
                continue;
            }
            let views = self.views.as_mut()?;
            tokio::select! {
                _ = self.end.changed() => {}
                changed = views.changed() => match changed {
                    Ok(()) => {
                        let view = views.borrow_and_update().clone();
                        self.look(&view);
                    }
                    Err(_) => self.views = None,
                },
            }
        }
    }

    /// Whether there was anything to read.
    fn read(&mut self) -> bool {
        let read = self.ring.read(self.position, &self.filter, AT_ONCE);
        if read.missed > 0 {
            let message = format!("{} log lines came faster than they were read, and are gone", read.missed);
            self.ready.push_back(Payload::Warning(SandboxStreamWarning { message }));
        }
        self.ready.extend(read.lines.iter().map(|line| Payload::Log(SandboxLogLine::clone(line))));
        let progress = read.next != self.position;
        self.position = read.next;
        progress
    }

    fn look(&mut self, view: &View) {
        let ended = matches!(view.phase(), Phase::Stopped | Phase::Completed | Phase::Error);
        if self.stop_on_terminal && ended {
            // What was said until then comes before the end.
            while self.read() {}
            self.views = None;
        }
        if self.states {
            self.ready.push_back(Payload::Sandbox(self.api.message(view)));
        }
    }
}
