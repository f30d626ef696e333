//! `openshell sandbox start`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::StartSandboxRequest;
use uuid::Uuid;

use super::Named;
use super::arguments::{duration, workspace};
use super::connect::{Gateway, answer};
use super::console::Console;
use super::create;
use super::failure::CommandError;

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    sandbox: Named,
    /// How long to wait until it is ready
    #[arg(long, value_parser = duration, default_value = "10m")]
    timeout: Duration,
}

impl Start {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = gateway.client(console).await?;
        let name = &self.sandbox.name;
        let act = format!("start sandbox `{name}`");
        let request = StartSandboxRequest {
            name: name.clone(),
            workspace_scope: workspace(),
            request_id: Uuid::new_v4().to_string(),
        };
        let answer = answer(&act, client.start_sandbox(request)).await?;
        let sandbox = answer.sandbox.unwrap_or_default();
        if let Some(signal) = create::ready(&client, console, &mut signals, &sandbox, self.timeout).await? {
            return Ok(signal.code());
        }
        console.line(&format!("Started sandbox {name}")).await.map_err(CommandError::output)?;
        Ok(0)
    }
}
