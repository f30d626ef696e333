//! `openshell secret`: variables for the workloads of sandboxes that are created with a provider. Values go in only.

use clap::Subcommand;

use super::connect::Gateway;
use super::console::Console;
use super::failure::CommandError;

mod list;
mod remove;
mod set;

#[derive(Debug, Subcommand)]
pub(crate) enum SecretVerb {
    /// Set a secret of a provider; its value is read from standard input
    Set(set::Set),
    /// List the secrets, without their values
    List(list::List),
    /// Remove a secret, or a provider with all of them
    Remove(remove::Remove),
}

impl SecretVerb {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        match self {
            Self::Set(verb) => verb.run(gateway, console).await,
            Self::List(verb) => verb.run(gateway, console).await,
            Self::Remove(verb) => verb.run(gateway, console).await,
        }
    }
}
