//! `openshell sandbox wait`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::SandboxPhase;

use super::Named;
use super::arguments::duration;
use super::connect::Gateway;
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::stream::exit_code;
use super::view;
use super::watch::{Wait, Waited};

/// Where nobody names a deadline.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Waits for the end of a sandbox. The exit code is that of its main process; 5 where it was stopped, 3 where it was
/// deleted, and where it is in Error that of the error.
#[derive(Debug, Args)]
pub(crate) struct WaitForEnd {
    #[command(flatten)]
    sandbox: Named,
    /// How long to wait (default: for ever)
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

impl WaitForEnd {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let client = gateway.client(console).await?;
        let name = &self.sandbox.name;
        let what = format!("waiting for sandbox `{name}` to end");
        let wait = Wait { name, what, since: 0, within: self.timeout.unwrap_or(FOREVER) };
        let decided = wait.until(&client, console, &mut signals, |sandbox| match view::phase(sandbox) {
            SandboxPhase::Completed => {
                let code = sandbox.status.as_ref().and_then(|status| status.exit_code).unwrap_or_default();
                Some(Ok(exit_code(code)))
            }
            SandboxPhase::Stopped => {
                let why = format!("sandbox `{name}` was stopped; its main process has no exit code");
                Some(Err(CommandError::new(ExitCode::WrongPhase, why)))
            }
            SandboxPhase::Error => {
                let (code, evidence) = view::evidence(sandbox);
                Some(Err(CommandError::new(code, format!("sandbox `{name}` is in Error:{evidence}"))))
            }
            _ => None,
        });
        match decided.await? {
            Waited::Met(ended) => ended,
            Waited::Gone => {
                let why = format!("sandbox `{name}` does not exist, or was deleted meanwhile");
                Err(CommandError::new(ExitCode::NotFound, why))
            }
            Waited::Interrupted(signal) => Ok(signal.code()),
        }
    }
}
