//! `openshell sandbox ssh-config`

use clap::Args;

use super::connect::Gateway;
use super::console::Console;
use super::failure::CommandError;
use super::{list, openssh};

#[derive(Debug, Args)]
pub(crate) struct SshConfig {
    /// Names of sandboxes (default: all)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

impl SshConfig {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let names = match self.names.is_empty() {
            false => self.names.clone(),
            true => list::names(&mut gateway.client(console).await?).await?,
        };
        for (position, name) in names.iter().enumerate() {
            // Refuses what does not exist, and makes the file that the block names.
            openssh::know(gateway, name, console).await?;
            let lead = if position == 0 { "" } else { "\n" };
            let block = block(&openssh::host(name), &openssh::options(&gateway.ssh, name));
            console.out(format!("{lead}{block}").as_bytes()).await.map_err(CommandError::output)?;
        }
        Ok(0)
    }
}

fn block(host: &str, options: &[(&str, String)]) -> String {
    let lines = options.iter().map(|(key, value)| format!("    {key} {value}\n"));
    format!("Host {host}\n") + &lines.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_one_host() {
        let options = [("User", "sandbox".to_owned()), ("BatchMode", "yes".to_owned())];
        assert_eq!(block("openshell-a", &options), "Host openshell-a\n    User sandbox\n    BatchMode yes\n");
    }
}
