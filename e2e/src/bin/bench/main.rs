//! What a sandbox costs, next to the same thing without us: `make bench`.
//!
//! Every number is a ratio of two things that were measured in this run, in turns. Nothing here fails because
//! something was slow: a bar that is missed is printed as missed.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod boot;
mod receipt;
mod report;
mod size;

use std::process::ExitCode;

use e2e::world::World;
use proto::budget;

use report::Report;

/// The size of every VM here.
const VCPUS: &str = "1";
const MEMORY_MIB: &str = "256";

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::new();
    let mut world = World::empty(budget::TTL_MIN)
        .with("OPENSHELL_VM_DEFAULT_CPUS", VCPUS)
        .with("OPENSHELL_VM_DEFAULT_MEMORY", &format!("{MEMORY_MIB}Mi"))
        .without_trial_boot();
    world.up().await;
    boot::measure(&world, &mut report).await;
    let resident_kib = receipt::measure(&world, &mut report).await;
    size::measure(resident_kib, &mut report);
    drop(world);
    match report.close() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
