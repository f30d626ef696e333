//! `openshell sandbox ssh-proxy`, which OpenSSH's clients run.

use clap::Args;
use proto::openshell::v1::SshRelayTarget;
use proto::openshell::v1::tcp_forward_init::Target;

use super::Named;
use super::connect::Gateway;
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::{openssh, tunnel};

#[derive(Debug, Args)]
pub(crate) struct SshProxy {
    #[command(flatten)]
    sandbox: Named,
}

impl SshProxy {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let name = &self.sandbox.name;
        // Before the first byte of the server: the client reads its file after that.
        openssh::know(gateway, name, console).await?;
        let mut client = gateway.client(console).await?;
        let Some(stdin) = console.stdin.take() else {
            return Err(CommandError::new(ExitCode::Usage, "failed to read from standard input: it is taken"));
        };
        let target = Target::Ssh(SshRelayTarget {});
        tunnel::carry(&mut client, name, target, stdin, &mut console.stdout).await.map(|()| 0)
    }
}
