//! `openshell sandbox attach`

use clap::Args;
use proto::openshell::v1::ExecSandboxRequest;

use super::Named;
use super::arguments::{Detach, workspace};
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
    /// Take the input from whoever has it; one attachment at a time may type
    #[arg(long)]
    take_input: bool,
    #[command(flatten)]
    detach: Detach,
}

impl Attach {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = gateway.client(console).await?;
        let name = &self.sandbox.name;
        let sandbox = get::sandbox(&mut client, name).await?;
        let (spec, status) = (sandbox.spec.unwrap_or_default(), sandbox.status.unwrap_or_default());
        // The image may have brought one.
        if spec.command.is_empty() && status.main_process_started_time.is_none() {
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
        let keys = self.detach.keys.clone();
        Ok(
            match stream::run_until_detached(&mut client, attach, self.take_input, keys, console, &mut signals).await? {
                Some(Ended::Exited(code)) => code,
                Some(Ended::Interrupted(signal)) => signal.code(),
                None => {
                    console.note(&detached(name)).await;
                    0
                }
            },
        )
    }
}

/// What whoever detached is told.
pub(super) fn detached(name: &str) -> String {
    format!("\ndetached from sandbox `{name}`, which goes on; `openshell sandbox attach {name}` comes back")
}
