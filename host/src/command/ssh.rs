//! `openshell sandbox ssh`

use std::ffi::OsString;

use clap::Args;

use super::Named;
use super::connect::Gateway;
use super::console::Console;
use super::failure::CommandError;
use super::openssh;

#[derive(Debug, Args)]
pub(crate) struct Ssh {
    #[command(flatten)]
    sandbox: Named,
    /// For ssh: its options, or a command
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

impl Ssh {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let name = &self.sandbox.name;
        openssh::know(gateway, name, console).await?;
        let mut arguments = openssh::arguments(&gateway.ssh, name);
        arguments.push(openssh::host(name).into());
        arguments.extend(self.arguments.iter().cloned());
        Err(openssh::become_client("ssh", arguments))
    }
}
