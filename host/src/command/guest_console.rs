//! `openshell sandbox console`

use clap::Args;
use proto::openshell::vm::v1::ReadConsoleRequest;

use super::Named;
use super::connect::{Gateway, answer};
use super::console::Console;
use super::failure::CommandError;

/// On a terminal, escape sequences and other control characters are shown as replacement characters: a guest must not
/// steer the terminal of who looks at it. A pipe or file gets the bytes as they are.
#[derive(Debug, Args)]
pub(crate) struct GuestConsole {
    #[command(flatten)]
    sandbox: Named,
    /// Go on with what comes, until the sandbox is at rest
    #[arg(short, long)]
    follow: bool,
}

impl GuestConsole {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut operator = gateway.operator(console).await?;
        let act = format!("read the console of sandbox `{}`", self.sandbox.name);
        let request = ReadConsoleRequest { sandbox: self.sandbox.name.clone(), follow: self.follow };
        let mut chunks = answer(&act, operator.read_console(request)).await?;
        let mut filter = console.terminals.stdout.then(Filter::default);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.message() => chunk.map_err(|status| CommandError::of_status(&act, &status))?,
                signal = signals.next() => return Ok(signal.code()),
            };
            let Some(chunk) = chunk else { return Ok(0) };
            let written = match &mut filter {
                Some(filter) => console.out(filter.printable(&chunk.data).as_bytes()).await,
                None => console.out(&chunk.data).await,
            };
            written.map_err(CommandError::output)?;
        }
    }
}

/// Text out of bytes that come in pieces.
#[derive(Debug, Default)]
struct Filter {
    /// The beginning of a character.
    rest: Vec<u8>,
}

impl Filter {
    fn printable(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let mut text = String::new();
        let mut bytes = self.rest.as_slice();
        loop {
            match std::str::from_utf8(bytes) {
                Ok(sound) => {
                    text.push_str(sound);
                    bytes = &[];
                    break;
                }
                Err(error) => {
                    let (sound, broken) = bytes.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(sound));
                    let Some(length) = error.error_len() else {
                        bytes = broken;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    bytes = &broken[length..];
                }
            }
        }
        self.rest = bytes.to_vec();
        let shown = text.chars().filter(|c| *c != '\r');
        let keep = |c: char| !c.is_control() || c == '\n' || c == '\t';
        shown.map(|c| if keep(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_steer_the_terminal_and_characters_stay_whole() {
        let mut filter = Filter::default();
        let pieces: [&[u8]; 4] = [b"gr\xc3", b"\xbcn\t\r\n\x1b[2J", b"\xff\xc2", b"\x9bc\x07"];
        let text: String = pieces.iter().map(|piece| filter.printable(piece)).collect();
        assert_eq!(text, "grün\t\n\u{fffd}[2J\u{fffd}\u{fffd}c\u{fffd}");
    }
}
