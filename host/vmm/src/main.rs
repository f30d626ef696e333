//! `openshell-vmm`: one microVM, from its spec to its exit record.
//!
//! | command | who runs it | reads | leaves |
//! |---|---|---|---|
//! | `run` | the gateway's vm driver | a `VmmSpec` on standard input | one `Started` line; then, as the *keeper*, `run.lock`, `console.ring`, `exit.json` |
//! | `jail` | the keeper alone | a `JailSpec` on a socket that is its standard input | a VM, or one `Failed` line on that socket |
//! | `probe` | the driver before the first create, and people | nothing | one line that says whether KVM works |
//!
//! The keeper exists because libkrun leaves by `_exit`, because only a parent can read an exit status, and because
//! a guest could fill the disk through its console. It never loads libkrunfw. The jailed child is the only process
//! that runs libkrun; it gives everything up that the VM does not need before the guest's first instruction.
//!
//! Exit codes are those of `proto::vmm::FailureKind`; 0 when a VM ran, 2 for wrong usage.

#![deny(unsafe_code)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

mod child;
mod failure;
mod jail;
mod keeper;
#[allow(unsafe_code)]
mod krun;
mod probe;
mod spec;

#[derive(Parser)]
#[command(name = "openshell-vmm", version, about = "Keeps one jailed libkrun microVM", max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the VM whose spec stands on standard input, and stay until it ends
    Run,
    /// Build the jail and enter the VM; only `run` and `probe` call this
    #[command(hide = true)]
    Jail {
        /// For people who read a process list
        label: String,
    },
    /// Boot a minimal VM to learn whether KVM works on this machine
    Probe {
        /// The agent's static binary
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// libkrunfw.so.5, where the dynamic linker does not find it by itself
        #[arg(long, value_name = "PATH")]
        libkrunfw: Option<PathBuf>,
        /// How long the guest may take to answer, in seconds
        #[arg(long, value_name = "SECS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
        deadline: u64,
        /// Say why it failed as JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    // Before anything of our own is opened: what a careless parent left open reaches neither keeper nor guest.
    krun::close_descriptors_from(3);
    let outcome = match Arguments::parse().command {
        Command::Run => keeper::run(),
        Command::Jail { .. } => jail::main(),
        Command::Probe { agent, libkrunfw, deadline, json } => {
            probe::run(agent, libkrunfw, Duration::from_secs(deadline), json)
        }
    };
    outcome.map_or_else(|failure| ExitCode::from(failure.kind.exit_code()), |()| ExitCode::SUCCESS)
}
