//! The input of a main process, on its way from those attached.

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::Input;

/// End of file, typed on a terminal.
const VEOF: &[u8] = &[4];

/// Carries input to one run after the other.
pub(super) struct Feeder {
    inbox: Option<mpsc::Receiver<Input>>,
    /// Whoever typed last has said that nothing more comes: the next run finds the end of its input, too.
    over: bool,
    tty: bool,
}

impl Feeder {
    pub(super) fn new(inbox: Option<mpsc::Receiver<Input>>, tty: bool) -> Self {
        Self { inbox, over: false, tty }
    }

    /// Input, until it is over; then nothing more, for ever.
    pub(super) async fn feed(&mut self, stdin: pipe::Sender) {
        let mut stdin = Some(stdin).filter(|_| !self.over);
        while let Some(inbox) = &mut self.inbox {
            let Some(input) = inbox.recv().await else { break };
            self.over = matches!(input, Input::End) && !self.tty;
            let Some(open) = stdin.as_mut() else { continue };
            let bytes = match input {
                Input::Data(bytes) => bytes,
                Input::End if self.tty => Bytes::from_static(VEOF),
                Input::End => Bytes::new(),
            };
            if open.write_all(&bytes).await.is_err() || self.over {
                stdin = None;
            }
        }
        std::future::pending().await
    }
}
