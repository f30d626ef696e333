//! `openshell token`: what the gateway tells about a token, and two ways to a new one. The token never comes this far.

use clap::Subcommand;

use super::connect::Gateway;
use super::console::Console;
use super::failure::CommandError;

mod inspect;
mod refresh;
mod revoke;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Show the claims of a sandbox's newest token, and whether it was seen
    Inspect(inspect::Inspect),
    /// Publish a new token now; the one before stays good until it ends
    Refresh(refresh::Refresh),
    /// Publish a new token, and refuse every one before it
    Revoke(revoke::Revoke),
}

impl TokenVerb {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        match self {
            Self::Inspect(verb) => verb.run(gateway, console).await,
            Self::Refresh(verb) => verb.run(gateway, console).await,
            Self::Revoke(verb) => verb.run(gateway, console).await,
        }
    }
}
