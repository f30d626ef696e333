//! `openshell token revoke`

use clap::Args;
use proto::openshell::vm::v1::RevokeTokenRequest;

use super::refresh::Published;
use crate::command::Named;
use crate::command::arguments::Output;
use crate::command::connect::{Gateway, answer};
use crate::command::console::Console;
use crate::command::failure::CommandError;

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    sandbox: Named,
    #[command(flatten)]
    output: Output,
}

impl Revoke {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut operator = gateway.operator(console).await?;
        let name = &self.sandbox.name;
        let request = RevokeTokenRequest { sandbox: name.clone() };
        let reply = answer(&format!("revoke the tokens of `{name}`"), operator.revoke_token(request)).await?;
        let told = format!("Revoked the tokens of sandbox {name}; it goes on with a new one");
        Published::of(name, reply).print(&told, &self.output, console).await
    }
}
