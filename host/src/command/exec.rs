//! `openshell sandbox exec`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::ExecSandboxRequest;

use super::arguments::{Tty, Variables, duration, workspace};
use super::connect::Gateway;
use super::console::Console;
use super::failure::CommandError;
use super::stream::{self, Ended};

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Name of the sandbox
    name: String,
    #[command(flatten)]
    tty: Tty,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR", default_value = "")]
    workdir: String,
    #[command(flatten)]
    env: Variables,
    /// End the command after this time, with exit code 124
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Program and arguments; no shell in between
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = tokio::select! {
            client = gateway.client(console) => client?,
            signal = signals.next() => return Ok(signal.code()),
        };
        let start = ExecSandboxRequest {
            sandbox: self.name.clone(),
            command: self.command.clone(),
            workdir: self.workdir.clone(),
            environment: self.env.to_map(),
            tty: self.tty.wanted(console.terminals),
            workspace_scope: workspace(),
            execution_timeout: self.timeout.and_then(|timeout| timeout.try_into().ok()),
            ..ExecSandboxRequest::default()
        };
        Ok(match stream::run(&mut client, start, console, &mut signals).await? {
            Ended::Exited(code) => code,
            Ended::Interrupted(signal) => signal.code(),
        })
    }
}
