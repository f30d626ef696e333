//! `openshell sandbox get`

use clap::Args;
use proto::openshell::v1::{GetSandboxRequest, Sandbox};

use super::Named;
use super::arguments::{Format, Output, workspace};
use super::connect::{Client, Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::view::{self, SandboxView};

#[derive(Debug, Args)]
pub(crate) struct Get {
    #[command(flatten)]
    sandbox: Named,
    #[command(flatten)]
    output: Output,
}

impl Get {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut client = gateway.client(console).await?;
        let view = SandboxView::from(&sandbox(&mut client, &self.sandbox.name).await?);
        let text = match self.output.output {
            Format::Table => view.to_text(),
            Format::Json => view::json(&view),
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}

/// A sandbox by name.
pub(crate) async fn sandbox(client: &mut Client, name: &str) -> Result<Sandbox, CommandError> {
    let act = format!("get sandbox `{name}`");
    let request = GetSandboxRequest { name: name.to_owned(), workspace_scope: workspace() };
    let answer = answer(&act, client.get_sandbox(request)).await?;
    let missing = || CommandError::new(ExitCode::Failed, format!("failed to {act}: the answer holds no sandbox"));
    answer.sandbox.ok_or_else(missing)
}
