//! `openshell secret set`

use clap::Args;
use proto::budget::VARIABLE_VALUE_MAX;
use proto::openshell::vm::v1::SetSecretRequest;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::command::connect::{Gateway, answer};
use crate::command::console::Console;
use crate::command::exit::ExitCode;
use crate::command::failure::CommandError;
use crate::command::terminal::Hidden;

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Provider: made with its first secret; sandboxes name it with `create --provider`
    provider: String,
    /// Variable that the workload gets
    key: String,
}

impl Set {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let Self { provider, key } = self;
        let act = format!("set secret `{key}` of provider `{provider}`");
        let failed = |cause: String| CommandError::new(ExitCode::Usage, format!("failed to {act}: {cause}"));
        let value = self.value(console).await.map_err(failed)?;
        let mut operator = gateway.operator(console).await?;
        let request =
            SetSecretRequest { provider: provider.clone(), key: key.clone(), value: value.expose_secret().to_owned() };
        let reply = answer(&act, operator.set_secret(request)).await?;
        let told = format!("Set {key} of provider {provider}; stored in {}, mode 0600, not encrypted", reply.stored_in);
        console.line(&told).await.map_err(CommandError::output)?;
        Ok(0)
    }

    /// Never an argument: those are seen by everybody on the machine, and kept by shells.
    async fn value(&self, console: &mut Console) -> Result<SecretString, String> {
        let mut stdin = console.stdin.take().ok_or("there is no standard input to read the value from")?;
        if !console.terminals.stdin {
            return read(&mut stdin, Until::End).await;
        }
        let mut signals = console.signals().map_err(|error| error.to_string())?;
        let hidden = Hidden::enter().map_err(|error| format!("cannot hide what is typed: {error}"))?;
        let _ = console.err(format!("value of {} (not shown): ", self.key).as_bytes()).await;
        // Not by default: the terminal would stay without echo.
        let value = tokio::select! {
            value = read(&mut stdin, Until::Line) => value,
            _ = signals.next() => Err("interrupted".to_owned()),
        };
        drop(hidden);
        console.note("").await;
        value
    }
}

/// How much of the input is the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// A line that is typed.
    Line,
    /// All of it.
    End,
}

/// The last line's end is no part of a value.
async fn read(input: &mut (impl AsyncRead + Unpin), until: Until) -> Result<SecretString, String> {
    let mut bytes = Vec::with_capacity(VARIABLE_VALUE_MAX + 2);
    let mut chunk = [0; 4096];
    loop {
        let count = input.read(&mut chunk).await.map_err(|error| format!("cannot read the value: {error}"))?;
        bytes.extend_from_slice(&chunk[..count]);
        let complete = count == 0 || (until == Until::Line && bytes.ends_with(b"\n"));
        if bytes.len() > VARIABLE_VALUE_MAX + 1 {
            return Err(format!("the value has more than {VARIABLE_VALUE_MAX} bytes"));
        }
        if complete {
            break;
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| "the value is not UTF-8".to_owned())?;
    let value = text.strip_suffix('\n').unwrap_or(&text);
    match value.is_empty() {
        true => Err("no value came on standard input".to_owned()),
        false => Ok(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_value_of_several_lines_is_read_to_its_end() {
        let (mut writer, mut reader) = tokio::io::duplex(64);
        let writing = async move {
            for part in ["-----BEGIN\n", "abc\n", "-----END\n"] {
                writer.write_all(part.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (value, ()) = tokio::join!(read(&mut reader, Until::End), writing);
        assert_eq!(value.unwrap().expose_secret(), "-----BEGIN\nabc\n-----END");
        let typed = read(&mut &b"secret\n"[..], Until::Line).await.unwrap();
        assert_eq!(typed.expose_secret(), "secret");
        assert!(read(&mut &b"\n"[..], Until::End).await.is_err());
        assert!(read(&mut vec![b'x'; VARIABLE_VALUE_MAX + 2].as_slice(), Until::End).await.is_err());
    }
}
