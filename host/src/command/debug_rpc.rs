//! `openshell sandbox debug-rpc`: a call with the sandbox's own identity, made by its agent.

use std::time::Duration;

use clap::{Args, Subcommand};
use proto::openshell::vm::v1::debug_rpc_request::Call;
use proto::openshell::vm::v1::{
    DebugGetSandboxConfig, DebugRefresh, DebugRpcRequest, DebugShowPrincipal, DebugShowToken,
};

use super::Named;
use super::connect::{Gateway, answer_within};
use super::console::Console;
use super::failure::CommandError;
use super::table::printable;

/// The gateway asks the agent, and the agent the gateway.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct DebugRpc {
    #[command(flatten)]
    sandbox: Named,
    #[command(subcommand)]
    call: DebugCall,
}

#[derive(Debug, Subcommand)]
enum DebugCall {
    /// Get the configuration of a sandbox: of another one it is refused
    GetSandboxConfig {
        /// Whose (default: its own)
        #[arg(long, value_name = "ID")]
        sandbox_id: Option<String>,
    },
    /// Ask for a new token by RPC
    Refresh,
    /// Show whom the gateway takes the agent for
    ShowPrincipal,
    /// Show the claims of the token that the agent holds; never its signature
    ShowToken,
}

impl DebugCall {
    fn message(&self) -> Call {
        match self {
            Self::GetSandboxConfig { sandbox_id } => {
                Call::GetSandboxConfig(DebugGetSandboxConfig { sandbox_id: sandbox_id.clone().unwrap_or_default() })
            }
            Self::Refresh => Call::Refresh(DebugRefresh {}),
            Self::ShowPrincipal => Call::ShowPrincipal(DebugShowPrincipal {}),
            Self::ShowToken => Call::ShowToken(DebugShowToken {}),
        }
    }
}

impl DebugRpc {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let name = &self.sandbox.name;
        let mut operator = gateway.operator(console).await?;
        let request = DebugRpcRequest { sandbox: name.clone(), call: Some(self.call.message()) };
        let act = format!("debug sandbox `{name}`");
        let reply = answer_within(ANSWER, &act, operator.debug_rpc(request)).await?;
        if !reply.output.is_empty() {
            // Written by whoever is in the guest.
            let lines: Vec<_> = reply.output.lines().map(printable).collect();
            console.line(&lines.join("\n")).await.map_err(CommandError::output)?;
        }
        if !reply.error.is_empty() {
            console.note(&format!("error: {}", printable(&reply.error))).await;
        }
        Ok(u8::try_from(reply.exit_code).unwrap_or(1))
    }
}
