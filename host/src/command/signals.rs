//! What ends a verb from outside.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::exit::ExitCode;
use super::failure::CommandError;

/// Signals that arrived, as the exit codes they lead to.
pub(crate) struct Signals {
    arrived: mpsc::UnboundedReceiver<ExitCode>,
}

impl Signals {
    /// From here on Ctrl-C, SIGTERM and SIGHUP end nothing by themselves: whoever cleans up finishes cleaning up.
    pub(crate) fn listen() -> Result<Self, CommandError> {
        let (sender, signals) = Self::channel();
        for (kind, exit) in [
            (SignalKind::interrupt(), ExitCode::Interrupted),
            (SignalKind::terminate(), ExitCode::Terminated),
            (SignalKind::hangup(), ExitCode::HungUp),
        ] {
            let listened = signal(kind).map_err(|cause| {
                CommandError::new(ExitCode::Failed, format!("failed to listen to signals: {cause}"))
            })?;
            tokio::spawn(forward(listened, exit, sender.clone()));
        }
        Ok(signals)
    }

    /// Some that come from elsewhere.
    pub(crate) fn channel() -> (mpsc::UnboundedSender<ExitCode>, Self) {
        let (sender, arrived) = mpsc::unbounded_channel();
        (sender, Self { arrived })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> ExitCode {
        match self.arrived.recv().await {
            Some(exit) => exit,
            None => std::future::pending().await,
        }
    }
}

async fn forward(mut signal: Signal, exit: ExitCode, sender: mpsc::UnboundedSender<ExitCode>) {
    while signal.recv().await.is_some() && sender.send(exit).is_ok() {}
}
