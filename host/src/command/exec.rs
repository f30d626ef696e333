//! `openshell sandbox exec`

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use proto::exec::USER_MAX;
use proto::openshell::v1::ExecSandboxRequest;
use tonic::metadata::{Ascii, MetadataValue};

use super::arguments::{Tty, Variables, duration, workspace};
use super::connect::Gateway;
use super::console::Console;
use super::env_file;
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
    /// User to run as, by name or uid of the sandbox's /etc/passwd; root, too, but without any capability
    #[arg(short, long, value_name = "USER", value_parser = user)]
    user: Option<MetadataValue<Ascii>>,
    #[command(flatten)]
    env: Variables,
    /// File of environment variables, a line KEY=VALUE each; may be repeated, and --env is stronger
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
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
            environment: self.environment()?,
            tty: self.tty.wanted(console.terminals),
            workspace_scope: workspace(),
            execution_timeout: self.timeout.and_then(|timeout| timeout.try_into().ok()),
            ..ExecSandboxRequest::default()
        };
        Ok(match stream::run_as(&mut client, start, self.user.clone(), console, &mut signals).await? {
            Ended::Exited(code) => code,
            Ended::Interrupted(signal) => signal.code(),
        })
    }
    fn environment(&self) -> Result<HashMap<String, String>, CommandError> {
        let mut environment = HashMap::new();
        for file in &self.env_file {
            environment.extend(env_file::read(file)?);
        }
        environment.extend(self.env.to_map());
        Ok(environment)
    }
}

/// It travels beside the request, as a header.
fn user(text: &str) -> Result<MetadataValue<Ascii>, String> {
    let fits = text.is_ascii() && (1..=USER_MAX).contains(&text.len());
    let fits = fits.then(|| text.parse().ok()).flatten();
    fits.ok_or_else(|| "write a name of at most 256 ASCII characters, or a uid".to_owned())
}
