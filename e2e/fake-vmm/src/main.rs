//! `fake-vmm`: stands in for `openshell-vmm` where there is no KVM, or where hundreds of boots must cost nothing.
//!
//! The gateway finds it by `vmm_bin` and cannot tell the difference: same verbs, same documents, same lock, same exit
//! record. What runs in it is a guest without a VM: a process of the host that holds its sandbox's session with the
//! agent's own code, reads the identity directory directly, and connects to the socket that a VM's vsock leads to.
//!
//! Not faked, because there is nothing to fake it with: workloads, consoles, a clock of the guest's own.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the answer to `probe`")]

use std::process::ExitCode;

mod guest;
mod keeper;

/// `EX_USAGE` of sysexits.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run"] => match keeper::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ExitCode::from(failure.kind.exit_code()),
        },
        // The label is for whoever reads a process list.
        ["jail", _] => match guest::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fake-vmm: {error}");
                ExitCode::FAILURE
            }
        },
        ["probe", ..] => {
            println!("KVM is not needed: the guests of this vmm are processes");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: fake-vmm run | jail LABEL | probe");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
