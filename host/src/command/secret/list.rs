//! `openshell secret list`

use clap::Args;
use proto::openshell::vm::v1::{ListSecretsRequest, Secret};
use serde::Serialize;

use crate::command::arguments::{Format, Output};
use crate::command::connect::{Gateway, answer};
use crate::command::console::Console;
use crate::command::failure::CommandError;
use crate::command::{table, view};

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this provider
    provider: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
struct SecretView {
    provider: String,
    key: String,
    updated: Option<String>,
    sandboxes: Vec<String>,
}

impl From<Secret> for SecretView {
    fn from(secret: Secret) -> Self {
        Self {
            provider: secret.provider,
            key: secret.key,
            updated: secret.updated_time.as_ref().and_then(view::rfc3339),
            sandboxes: secret.sandboxes,
        }
    }
}

impl List {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut operator = gateway.operator(console).await?;
        let request = ListSecretsRequest { provider: self.provider.clone().unwrap_or_default() };
        let reply = answer("list secrets", operator.list_secrets(request)).await?;
        let views: Vec<_> = reply.secrets.into_iter().map(SecretView::from).collect();
        let text = match self.output.output {
            Format::Json => view::json(&views),
            Format::Table => {
                let row = |view: &SecretView| {
                    let updated = view.updated.clone().unwrap_or_default();
                    vec![view.provider.clone(), view.key.clone(), updated, view.sandboxes.join(", ")]
                };
                table::columns(&["PROVIDER", "KEY", "UPDATED", "SANDBOXES"], &views.iter().map(row).collect::<Vec<_>>())
            }
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}
