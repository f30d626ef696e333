//! `openshell sandbox attach`

use clap::Args;
use proto::openshell::v1::ExecSandboxRequest;

use super::Named;
use super::arguments::workspace;
use super::connect::Gateway;
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::get;
use super::stream::{self, Ended};

#[derive(Debug, Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    sandbox: Named,
}

impl Attach {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = gateway.client(console).await?;
        let name = &self.sandbox.name;
        let spec = get::sandbox(&mut client, name).await?.spec.unwrap_or_default();
        if spec.command.is_empty() {
            let remedy = format!("`openshell sandbox exec {name} -- CMD` runs a command in it");
            let message = format!("failed to attach to sandbox `{name}`: it has no main process; {remedy}");
            return Err(CommandError::new(ExitCode::WrongPhase, message));
        }
        let attach = ExecSandboxRequest {
            sandbox: name.clone(),
            tty: spec.tty,
            workspace_scope: workspace(),
            ..ExecSandboxRequest::default()
        };
        Ok(match stream::run(&mut client, attach, console, &mut signals).await? {
            Ended::Exited(code) => code,
            Ended::Interrupted(signal) => signal.code(),
        })
    }
}
