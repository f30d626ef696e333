//! The verbs of the command line, one file each: load, act, translate the error.
//!
//! `vm` is `sandbox` with the driver fixed, and there is one driver: one set of verbs serves both.

use std::ffi::OsString;
use std::io::Write as _;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::Environment;

pub mod exit;
pub mod failure;
pub(crate) mod table;
pub(crate) mod view;

mod arguments;
mod attach;
mod connect;
mod console;
mod cp;
mod create;
mod debug_rpc;
mod delete;
mod detach;
mod env_file;
mod exec;
mod forward;
mod gateway;
mod get;
mod guest_console;
mod list;
mod logs;
mod name;
mod openssh;
mod progress;
mod secret;
mod services;
mod signals;
mod ssh;
mod ssh_config;
mod ssh_proxy;
mod start;
mod starter;
mod stop;
mod stream;
mod terminal;
mod token;
mod tunnel;
mod wait;
mod watch;

pub use exit::ExitCode;
pub use failure::CommandError;
pub use gateway::InitFlags;

use connect::Gateway;
use console::Console;

/// Sandboxes for coding agents, each a microVM with a token that is always fresh.
#[derive(Debug, Parser)]
#[command(name = "openshell", version = proto::version::VERSION)]
struct CommandLine {
    /// Socket of a running gateway; none is started then [env: OPENSHELL_GATEWAY_SOCKET]
    #[arg(long, global = true, value_name = "SOCKET")]
    gateway_socket: Option<std::path::PathBuf>,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Create, use and delete sandboxes
    #[command(subcommand)]
    Sandbox(SandboxVerb),
    /// The same, with microVMs as the driver
    #[command(subcommand)]
    Vm(SandboxVerb),
    /// Run the gateway, make its keys, or ask how it is
    #[command(subcommand)]
    Gateway(gateway::GatewayVerb),
    /// What a sandbox's token claims, and new ones; never the token
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// Secrets for the workloads of sandboxes
    #[command(subcommand)]
    Secret(secret::SecretVerb),
}

#[derive(Debug, Subcommand)]
enum SandboxVerb {
    /// Create a sandbox, wait until it is ready, and run a command in it
    Create(create::Create),
    /// List the sandboxes
    List(list::List),
    /// Show one sandbox
    Get(get::Get),
    /// Run a command in a sandbox
    Exec(exec::Exec),
    /// Show what a sandbox has said
    Logs(logs::Logs),
    /// Open a shell in a sandbox, or run a command, with OpenSSH's client
    Ssh(ssh::Ssh),
    /// Print how SSH clients reach sandboxes, for ~/.ssh/config
    SshConfig(ssh_config::SshConfig),
    /// Carry an SSH client's connection on standard input and output
    #[command(hide = true)]
    SshProxy(ssh_proxy::SshProxy),
    /// Copy files and directories to or from a sandbox
    Cp(cp::Cp),
    /// Make ports of a sandbox reachable here, or ports of this machine there
    Forward(forward::Forward),
    /// Attach to the main process of a sandbox
    Attach(attach::Attach),
    /// Wait for the end of a sandbox; ends with the exit code of its main process
    Wait(wait::WaitForEnd),
    /// Print what a sandbox has said on its console, while it boots and after its end
    Console(guest_console::GuestConsole),
    /// Stop a sandbox
    Stop(stop::Stop),
    /// Start a stopped sandbox
    Start(start::Start),
    /// Delete sandboxes
    Delete(delete::Delete),
    /// List the services that run in a sandbox
    Services(services::Services),
    /// Have a sandbox's agent make a call with its own identity, to find a fault
    DebugRpc(debug_rpc::DebugRpc),
}

/// A sandbox as an argument.
#[derive(Debug, Args)]
struct Named {
    /// Name of the sandbox
    name: String,
}

/// Runs one command line; the result is the exit code of the process.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let matches = match CommandLine::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are errors to clap, on standard output and with code 0.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(ExitCode::Usage.code());
        }
    };
    let outcome = CommandLine::from_arg_matches(&matches)
        .map_err(|error| CommandError::new(ExitCode::Usage, error.to_string()))
        .and_then(prepare);
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error}");
        error.code.code()
    })
}

fn prepare(line: CommandLine) -> Result<u8, CommandError> {
    let failed = |act: &'static str| {
        move |cause: std::io::Error| CommandError::new(ExitCode::Failed, format!("failed to {act}: {cause}"))
    };
    let environment = Environment::of_process().map_err(failed("inspect this process"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let mut console = Console::of_process();
    let outcome = runtime.block_on(run(line, &environment, &mut console));
    // A read of standard input cannot be cancelled and must not be waited for.
    runtime.shutdown_background();
    outcome
}

async fn run(line: CommandLine, environment: &Environment, console: &mut Console) -> Result<u8, CommandError> {
    // Only for verbs that talk to one: `gateway run` has a configuration of its own.
    let gateway = || Gateway::find(line.gateway_socket.clone(), environment);
    match &line.noun {
        Noun::Sandbox(verb) | Noun::Vm(verb) => verb.run(&gateway()?, console).await,
        Noun::Gateway(gateway::GatewayVerb::Run(verb)) => verb.run(environment),
        Noun::Gateway(gateway::GatewayVerb::Init(verb)) => verb.run(environment),
        Noun::Gateway(gateway::GatewayVerb::Status(verb)) => verb.run(&gateway()?, console).await,
        Noun::Token(verb) => verb.run(&gateway()?, console).await,
        Noun::Secret(verb) => verb.run(&gateway()?, console).await,
    }
}

impl SandboxVerb {
    async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        match self {
            Self::Create(verb) => verb.run(gateway, console).await,
            Self::List(verb) => verb.run(gateway, console).await,
            Self::Get(verb) => verb.run(gateway, console).await,
            Self::Exec(verb) => verb.run(gateway, console).await,
            Self::Logs(verb) => verb.run(gateway, console).await,
            Self::Ssh(verb) => verb.run(gateway, console).await,
            Self::SshConfig(verb) => verb.run(gateway, console).await,
            Self::SshProxy(verb) => verb.run(gateway, console).await,
            Self::Cp(verb) => verb.run(gateway, console).await,
            Self::Forward(verb) => verb.run(gateway, console).await,
            Self::Attach(verb) => verb.run(gateway, console).await,
            Self::Wait(verb) => verb.run(gateway, console).await,
            Self::Console(verb) => verb.run(gateway, console).await,
            Self::Stop(verb) => verb.run(gateway, console).await,
            Self::Start(verb) => verb.run(gateway, console).await,
            Self::Delete(verb) => verb.run(gateway, console).await,
            Self::Services(verb) => verb.run(gateway, console).await,
            Self::DebugRpc(verb) => verb.run(gateway, console).await,
        }
    }
}

#[cfg(test)]
mod tests;
