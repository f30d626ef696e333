//! Waiting for a sandbox to become something.

use std::time::Duration;

use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::{Sandbox, WatchSandboxRequest};
use tokio::time::{Instant, interval, sleep_until, timeout_at};
use tonic::Code;

use super::arguments::workspace;
use super::connect::Client;
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::progress::Progress;
use super::signals::Signals;
use super::view;

/// Before a broken watch is opened again: a gateway may restart while somebody waits.
const AGAIN: Duration = Duration::from_millis(200);

/// How a wait ended, if not by an error.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    Met(T),
    /// There is no such sandbox (any more).
    Gone,
    Interrupted(ExitCode),
}

/// One wait.
pub(crate) struct Wait<'a> {
    pub(crate) name: &'a str,
    /// For people: what is waited for.
    pub(crate) what: String,
    /// Nothing older counts.
    pub(crate) since: u64,
    pub(crate) within: Duration,
}

impl Wait<'_> {
    /// Until `decide` says so of a state of the sandbox, the sandbox is gone, a signal arrives, or time is up.
    pub(crate) async fn until<T>(
        &self,
        client: &Client,
        console: &mut Console,
        signals: &mut Signals,
        mut decide: impl FnMut(&Sandbox) -> Option<T>,
    ) -> Result<Waited<T>, CommandError> {
        let deadline = Instant::now() + self.within;
        let mut progress = Progress::new(self.what.clone(), console);
        let mut tick = interval(Duration::from_secs(1));
        let (states, mut seen) = tokio::sync::mpsc::channel(1);
        let watch = follow(client.clone(), self.name, states);
        tokio::pin!(watch);
        loop {
            tokio::select! {
                Some(sandbox) = seen.recv() => {
                    let version = sandbox.metadata.as_ref().map_or(0, |metadata| metadata.resource_version);
                    if version < self.since {
                        continue;
                    }
                    if let Some(met) = decide(&sandbox) {
                        return Ok(Waited::Met(met));
                    }
                    progress.state(view::phase_name(view::phase(&sandbox)));
                }
                ended = &mut watch => return ended.map(|()| Waited::Gone),
                signal = signals.next() => return Ok(Waited::Interrupted(signal)),
                _ = tick.tick() => progress.tick(console).await,
                () = sleep_until(deadline) => {
                    let message = format!("gave up after {} ({})", humantime::format_duration(self.within), self.what);
                    return Err(CommandError::new(ExitCode::Timeout, message));
                }
            }
        }
    }
}

/// Sends every state that the gateway tells, across restarts of the gateway; ends when there is no sandbox.
async fn follow(
    mut client: Client,
    name: &str,
    states: tokio::sync::mpsc::Sender<Sandbox>,
) -> Result<(), CommandError> {
    loop {
        let request = WatchSandboxRequest {
            sandbox: name.to_owned(),
            follow_status: true,
            workspace_scope: workspace(),
            ..WatchSandboxRequest::default()
        };
        // A gateway that accepts and says nothing is asked again; the caller has the deadline of the whole.
        let asked = timeout_at(Instant::now() + Duration::from_secs(10), client.watch_sandbox(request)).await;
        let mut failure = None;
        match asked {
            Ok(Ok(stream)) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => {
                            if let Some(Payload::Sandbox(sandbox)) = event.payload {
                                let _ = states.send(sandbox).await;
                            }
                        }
                        Ok(None) => break,
                        Err(status) => {
                            failure = Some(status);
                            break;
                        }
                    }
                }
            }
            Ok(Err(status)) => failure = Some(status),
            Err(_) => {}
        }
        match failure {
            Some(status) if status.code() == Code::NotFound => return Ok(()),
            // A broken connection is Unknown or Cancelled to a client, a closing gateway Unavailable.
            Some(status)
                if !matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted
                ) =>
            {
                return Err(CommandError::of_status(&format!("watch sandbox `{name}`"), &status));
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }
}
