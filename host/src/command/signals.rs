//! What ends a verb from outside.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::ExitCode;
use super::failure::CommandError;

/// From here on Ctrl-C, SIGTERM and SIGHUP end nothing by themselves: whoever cleans up finishes cleaning up.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, CommandError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|cause| CommandError::new(ExitCode::Failed, format!("failed to listen to signals: {cause}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next one, as the exit code it leads to.
    pub(crate) async fn next(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.interrupt.recv() => ExitCode::Interrupted,
            _ = self.terminate.recv() => ExitCode::Terminated,
            _ = self.hangup.recv() => ExitCode::HungUp,
        }
    }
}
