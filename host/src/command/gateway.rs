//! `openshell gateway run`, `openshell gateway init` and `openshell gateway status`

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use clap::{Args, Subcommand};
use proto::openshell::v1::{GetGatewayInfoRequest, ServiceStatus};
use serde::Serialize;

use super::arguments::{Format, Output};
use super::connect::{Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::table;
use super::view;
use crate::config::{Environment, GatewayFlags};

#[derive(Debug, Subcommand)]
pub(crate) enum GatewayVerb {
    /// Run a gateway in the foreground
    Run(Run),
    /// Make keys, certificates and the store in the state directory, without starting a gateway
    Init(InitFlags),
    /// Tell whether a gateway runs, and which
    Status(Status),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    flags: GatewayFlags,
}

impl Run {
    /// Becomes the gateway: same process, same terminal, same signals.
    pub(crate) fn run(&self, environment: &Environment) -> Result<u8, CommandError> {
        become_gateway(environment, self.flags.to_arguments())
    }
}

fn become_gateway(environment: &Environment, arguments: Vec<OsString>) -> Result<u8, CommandError> {
    let program = environment.executable_dir.join("openshell-gateway");
    let cause = std::process::Command::new(&program).args(arguments).exec();
    let message = format!("failed to run the gateway {}: {cause}; it belongs beside this program", program.display());
    Err(CommandError::new(ExitCode::ProgramMissing, message))
}

/// Of `openshell gateway init`, and of `openshell-gateway init`, which does it.
#[derive(Debug, Args)]
pub struct InitFlags {
    /// As for a gateway that runs.
    #[command(flatten)]
    pub flags: GatewayFlags,
    /// Replace the signing keys; tokens of the old ones count until they are over, where those could be read
    #[arg(long)]
    pub new_keys: bool,
    #[command(flatten)]
    output: Output,
}

impl InitFlags {
    /// Whether the result is for a script.
    pub fn is_json(&self) -> bool {
        self.output.output == Format::Json
    }

    pub(crate) fn run(&self, environment: &Environment) -> Result<u8, CommandError> {
        let mut arguments = vec!["init".into()];
        arguments.extend(self.flags.to_arguments());
        arguments.extend(self.new_keys.then(|| "--new-keys".into()));
        arguments.extend(self.is_json().then(|| "--output=json".into()));
        become_gateway(environment, arguments)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    output: Output,
}

/// Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
struct StatusView {
    status: &'static str,
    version: String,
    socket: String,
    drivers: Vec<String>,
}

impl Status {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let act = "ask the gateway about itself";
        let (mut client, _) = gateway.running().await?;
        let answer = answer(act, client.get_gateway_info(GetGatewayInfoRequest {})).await?;
        let info = answer;
        let (status, code) = match info.status() {
            ServiceStatus::Healthy => ("healthy", ExitCode::Ok),
            ServiceStatus::Degraded => ("degraded", ExitCode::Ok),
            ServiceStatus::Unhealthy => ("unhealthy", ExitCode::Failed),
            ServiceStatus::Unspecified => ("unknown", ExitCode::Failed),
        };
        let view = StatusView {
            status,
            version: info.gateway_version,
            socket: gateway.socket.display().to_string(),
            drivers: info.compute_drivers.into_iter().map(|driver| driver.name).collect(),
        };
        let text = match self.output.output {
            Format::Json => view::json(&view),
            Format::Table => table::pairs(&[
                ("Gateway", view.status.to_owned()),
                ("Version", view.version),
                ("Socket", view.socket),
                ("Drivers", view.drivers.join(", ")),
            ]),
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(code.code())
    }
}
