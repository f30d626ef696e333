//! `openshell token refresh`

use clap::Args;
use proto::openshell::vm::v1::{RotateTokenRequest, TokenReply};
use serde::Serialize;

use crate::command::Named;
use crate::command::arguments::{Format, Output};
use crate::command::connect::{Gateway, answer};
use crate::command::console::Console;
use crate::command::failure::CommandError;
use crate::command::view;

#[derive(Debug, Args)]
pub(crate) struct Refresh {
    #[command(flatten)]
    sandbox: Named,
    #[command(flatten)]
    output: Output,
}

/// Field names are stable: scripts read them.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Published {
    sandbox: String,
    generation: u64,
    floor: u64,
    expires: Option<String>,
    id: String,
}

impl Published {
    pub(super) fn of(name: &str, reply: TokenReply) -> Self {
        Self {
            sandbox: name.to_owned(),
            generation: reply.generation,
            floor: reply.floor,
            expires: reply.expiration_time.as_ref().and_then(view::rfc3339),
            id: reply.token_id,
        }
    }

    pub(super) async fn print(&self, told: &str, output: &Output, console: &mut Console) -> Result<u8, CommandError> {
        let text = match output.output {
            Format::Table => format!("{told}, generation {}", self.generation),
            Format::Json => view::json(self),
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}

impl Refresh {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut operator = gateway.operator(console).await?;
        let name = &self.sandbox.name;
        let request = RotateTokenRequest { sandbox: name.clone() };
        let reply = answer(&format!("refresh the token of `{name}`"), operator.rotate_token(request)).await?;
        let told = format!("Published a new token for sandbox {name}");
        Published::of(name, reply).print(&told, &self.output, console).await
    }
}
