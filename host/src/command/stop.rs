//! `openshell sandbox stop`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::{SandboxPhase, StopSandboxRequest};
use uuid::Uuid;

use super::Named;
use super::arguments::{duration, workspace};
use super::connect::{Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::view;
use super::watch::{Wait, Waited};

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    sandbox: Named,
    /// How long to wait until it is stopped
    #[arg(long, value_parser = duration, default_value = "1m")]
    timeout: Duration,
}

impl Stop {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = gateway.client(console).await?;
        let name = &self.sandbox.name;
        let act = format!("stop sandbox `{name}`");
        let request = StopSandboxRequest {
            name: name.clone(),
            workspace_scope: workspace(),
            request_id: Uuid::new_v4().to_string(),
        };
        let answer = answer(&act, client.stop_sandbox(request)).await?;
        let metadata = answer.sandbox.and_then(|sandbox| sandbox.metadata).unwrap_or_default();
        let what = format!("waiting for sandbox `{name}` to stop");
        let wait = Wait { name, what, since: metadata.resource_version, within: self.timeout };
        let decided = wait.until(&client, console, &mut signals, |sandbox| match view::phase(sandbox) {
            SandboxPhase::Stopped => Some(Ok(format!("Stopped sandbox {name}"))),
            SandboxPhase::Completed => Some(Ok(format!("Sandbox {name} has completed"))),
            SandboxPhase::Error => Some(Err(view::evidence(sandbox))),
            _ => None,
        });
        let told = match decided.await? {
            Waited::Met(Ok(told)) => told,
            Waited::Met(Err((code, evidence))) => {
                return Err(CommandError::new(code, format!("sandbox `{name}` did not stop in order:{evidence}")));
            }
            Waited::Gone => {
                let message = format!("failed to {act}: it was deleted meanwhile");
                return Err(CommandError::new(ExitCode::NotFound, message));
            }
            Waited::Interrupted(signal) => return Ok(signal.code()),
        };
        console.line(&told).await.map_err(CommandError::output)?;
        Ok(0)
    }
}
