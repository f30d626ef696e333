//! `openshell secret remove`

use clap::Args;
use proto::openshell::vm::v1::RemoveSecretRequest;

use crate::command::connect::{Gateway, answer};
use crate::command::console::Console;
use crate::command::failure::CommandError;

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Provider
    provider: String,
    /// Variable; without one the provider is removed, which no sandbox may have then
    key: Option<String>,
}

impl Remove {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let provider = &self.provider;
        let what = match &self.key {
            Some(key) => format!("secret `{key}` of provider `{provider}`"),
            None => format!("provider `{provider}`"),
        };
        let mut operator = gateway.operator(console).await?;
        let request = RemoveSecretRequest { provider: provider.clone(), key: self.key.clone().unwrap_or_default() };
        let reply = answer(&format!("remove {what}"), operator.remove_secret(request)).await?;
        let told = match self.key {
            Some(_) => format!("Removed {what}; programs that run keep what they were given"),
            None => format!("Removed {what} with {} secrets", reply.removed),
        };
        console.line(&told).await.map_err(CommandError::output)?;
        Ok(0)
    }
}
