//! The three standard streams, and signals, as an argument.

use std::io;
use std::io::IsTerminal as _;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::failure::CommandError;
use super::signals::Signals;

/// Which of the standard streams are terminals.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terminals {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// See the module.
pub(crate) struct Console {
    /// Taken by the first stream that sends it.
    pub(crate) stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) stdout: Box<dyn AsyncWrite + Send + Unpin>,
    stderr: Box<dyn AsyncWrite + Send + Unpin>,
    pub(crate) terminals: Terminals,
    line_started: bool,
    signals: Option<Signals>,
}

impl Console {
    pub(crate) fn of_process() -> Self {
        let terminals = Terminals {
            stdin: io::stdin().is_terminal(),
            stdout: io::stdout().is_terminal(),
            stderr: io::stderr().is_terminal(),
        };
        Self::new(tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr(), terminals)
    }

    pub(crate) fn new(
        stdin: impl AsyncRead + Send + Unpin + 'static,
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: impl AsyncWrite + Send + Unpin + 'static,
        terminals: Terminals,
    ) -> Self {
        let (stdin, stdout, stderr) = (Some(Box::new(stdin) as _), Box::new(stdout), Box::new(stderr));
        Self { stdin, stdout, stderr, terminals, line_started: false, signals: None }
    }

    /// Signals to this process; handled from the first call on.
    pub(crate) fn signals(&mut self) -> Result<Signals, CommandError> {
        self.signals.take().map_or_else(Signals::listen, Ok)
    }

    /// With signals from elsewhere.
    #[cfg(test)]
    pub(crate) fn with_signals(self, signals: Signals) -> Self {
        Self { signals: Some(signals), ..self }
    }

    /// Bytes of a command on standard output.
    pub(crate) async fn out(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(last) = bytes.last() {
            self.line_started = *last != b'\n';
        }
        self.stdout.write_all(bytes).await?;
        self.stdout.flush().await
    }

    /// Bytes of a command on standard error.
    pub(crate) async fn err(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stderr.write_all(bytes).await?;
        self.stderr.flush().await
    }

    /// A line of our own on standard output; it begins a line even after a command that did not end its last.
    pub(crate) async fn line(&mut self, text: &str) -> io::Result<()> {
        let lead = if self.line_started { "\n" } else { "" };
        let end = if text.ends_with('\n') { "" } else { "\n" };
        self.out(format!("{lead}{text}{end}").as_bytes()).await
    }

    /// A line for people on standard error; a closed one stops nothing.
    pub(crate) async fn note(&mut self, text: &str) {
        let _ = self.err(format!("{text}\n").as_bytes()).await;
    }
}
