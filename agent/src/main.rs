//! `openshell-agent`: PID 1 of a sandbox.
//!
//! ```text
//! openshell-agent             as PID 1: boots and supervises
//! openshell-agent launch …    starts one program of the workload (by the agent itself)
//! openshell-agent sftp-server serves files on its standard streams (by the agent itself, through `launch`)
//! openshell-agent debug-rpc   refuses: only the running agent has an identity
//! openshell-agent --version   version and protocol range
//! ```

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use agent::boot::{Booted, Machine};
use agent::logs::Logs;
use agent::power::{EXIT_AGENT_FAULT, EXIT_BOOT_FAILED};
use agent::sys::clock;
use agent::workload::launch::{Launch, VERB};
use agent::{console, sftp, supervise};
use proto::debug::{EXIT_REFUSED, NO_IDENTITY};
use proto::log::SOURCE_AGENT;
use proto::version::{PROTOCOL, VERSION};
use proto::vmm::{PROBE_EXIT, PROBE_LINE};

/// `EX_USAGE` of sysexits.
const EXIT_USAGE: u8 = 64;
/// Exit code of a guest that had nothing to boot: the answer to "does KVM work here".
const EXIT_PROBE: u8 = PROBE_EXIT as u8;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(verb) if verb == VERB => match Launch::parse(arguments) {
            Some(launch) => launch.run(),
            None => usage(),
        },
        Some(verb) if verb == sftp::VERB => sftp::serve(),
        Some(flag) if flag == "--version" => {
            version();
            ExitCode::SUCCESS
        }
        // A program of the workload, root or not: what the agent itself holds is not to be had this way.
        Some(verb) if verb == "debug-rpc" => {
            eprintln!("openshell-agent: {NO_IDENTITY}; the gateway's user asks with `openshell sandbox debug-rpc`");
            ExitCode::from(EXIT_REFUSED as u8)
        }
        // Whatever the kernel passes on.
        _ if std::process::id() == 1 => ExitCode::from(init()),
        _ => usage(),
    }
}

#[allow(clippy::print_stdout, reason = "this is what was asked for")]
fn version() {
    println!("openshell-agent {VERSION} (protocol {PROTOCOL})");
}

fn usage() -> ExitCode {
    eprintln!("openshell-agent: this program is PID 1 of a sandbox; the gateway puts it there. It knows --version.");
    ExitCode::from(EXIT_USAGE)
}

/// Ends the machine; returns only where that failed.
fn init() -> u8 {
    let logs = Logs::default();
    console::install(logs.writer(SOURCE_AGENT));
    let mut machine = Machine::new();
    let code = catch_unwind(AssertUnwindSafe(|| live(&mut machine, logs))).unwrap_or(EXIT_AGENT_FAULT);
    machine.power.off(code);
    code
}

#[allow(clippy::print_stdout, reason = "the console is standard output")]
fn live(machine: &mut Machine, logs: Logs) -> u8 {
    let began = clock::since_boot();
    let spec = match machine.boot() {
        Ok(Booted::Sandbox(spec)) => *spec,
        Ok(Booted::Probe) => {
            println!("{PROBE_LINE}");
            return EXIT_PROBE;
        }
        Err(error) => {
            tracing::error!("{error}");
            return EXIT_BOOT_FAILED;
        }
    };
    let (sandbox, instance) = (spec.sandbox_id, &spec.instance_id);
    let (kernel_us, uptime_us) = (began.as_micros(), clock::since_boot().as_micros());
    tracing::info!(%sandbox, instance, version = VERSION, kernel_us, uptime_us, "booted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(supervise::supervise(spec, logs)),
        Err(error) => Err(format!("failed to make the runtime: {error}")),
    };
    outcome.unwrap_or_else(|error| {
        tracing::error!("{error}");
        EXIT_AGENT_FAULT
    })
}
