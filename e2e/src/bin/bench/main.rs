//! What a sandbox costs, next to the same thing without us: `make bench`.
//!
//! Every number is a ratio of two things that were measured in this run, in turns. Nothing here fails because
//! something was slow: a bar that is missed is printed as missed.
//!
//! ```text
//! bench            rows that need microVMs: in the lab where KVM is not usable
//! bench vm         some of them
//! bench native     all others, on the machine itself
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod bare;
mod boot;
mod exec;
mod fakes;
mod flood;
mod footprint;
mod forgery;
mod identity;
mod probe;
mod receipt;
mod relay;
mod report;
mod size;
mod wakeups;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use e2e::world::World;
use proto::budget;

use report::Report;

/// The size of every VM here.
const VCPUS: &str = "1";
const MEMORY_MIB: &str = "256";

#[derive(Parser)]
#[command(name = "bench", about = "Measures what a sandbox costs", max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Some of the rows that need microVMs
    Vm {
        /// Measure these alone; may be repeated
        #[arg(long, value_name = "PART", required = true)]
        only: Vec<VmPart>,
    },
    /// The rows that need no microVM
    Native {
        /// For how long tokens are forged
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        flood: u64,
        /// Measure these alone; may be repeated
        #[arg(long, value_name = "PART")]
        only: Vec<NativePart>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VmPart {
    Boot,
    Exec,
    Relay,
    Receipt,
    Wakeups,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NativePart {
    Identity,
    Relay,
    Footprint,
    Flood,
}

#[tokio::main]
async fn main() -> ExitCode {
    let measured = match Arguments::parse().part {
        None => Ok(microvms(&[], Report::with(vec![])).await),
        Some(Part::Vm { only }) => match report::written() {
            Ok(rows) => Ok(microvms(&only, Report::with(rows)).await),
            Err(error) => Err(error),
        },
        Some(Part::Native { flood, only }) => native(Duration::from_secs(flood), &only).await,
    };
    match measured.and_then(Report::close) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn microvms(only: &[VmPart], mut report: Report) -> Report {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let world = world_of(budget::TTL_MIN).await;
    if wanted(VmPart::Boot) {
        boot::measure(&world, &mut report).await;
    }
    if wanted(VmPart::Exec) {
        exec::measure(&world, &mut report).await;
    }
    if wanted(VmPart::Relay) {
        relay::measure(&world, &mut report).await;
    }
    if wanted(VmPart::Receipt) {
        let resident_kib = receipt::measure(&world, &mut report).await;
        size::measure(resident_kib, &mut report);
    }
    if wanted(VmPart::Wakeups) {
        wakeups::measure(&mut report).await;
    }
    report
}

async fn world_of(ttl: Duration) -> World {
    let mut world = World::empty(ttl)
        .with("OPENSHELL_VM_DEFAULT_CPUS", VCPUS)
        .with("OPENSHELL_VM_DEFAULT_MEMORY", &format!("{MEMORY_MIB}Mi"))
        .without_trial_boot();
    world.up().await;
    world
}

/// The value of `name=` in a line.
fn number(line: &str, name: &str) -> Option<f64> {
    let value = line.split(&[' ', '\r'][..]).find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    value.parse().ok()
}

async fn native(flood: Duration, only: &[NativePart]) -> Result<Report, String> {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let mut report = Report::with(report::written()?);
    if wanted(NativePart::Identity) {
        identity::measure(&mut report).await?;
    }
    if wanted(NativePart::Relay) {
        relay::measure_native(&mut report).await;
    }
    if wanted(NativePart::Footprint) {
        footprint::measure(&mut report).await;
    }
    if wanted(NativePart::Flood) {
        flood::measure(flood, &mut report).await;
    }
    Ok(report)
}
