//! A VM by libkrun and nothing else, to compare with: no gateway, no keeper, no jail, no agent, no session. The same
//! devices as a sandbox has.
//!
//! ```text
//! bare LIBKRUNFW INIT IMAGE SHARE SOCKET VCPUS MEMORY_MIB     the guest's console is standard output, a pipe or file
//! ```

#![deny(unsafe_code)]

use std::env::ArgsOs;
use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;
use std::str::FromStr;

use proto::vmm::Failure;

use krun::{Firmware, GuestFiles, Machine, VmConfig};

#[path = "../src/failure.rs"]
#[allow(dead_code, reason = "most kinds of failure are those of the jail")]
mod failure;
#[path = "../src/krun.rs"]
#[allow(unsafe_code)]
#[allow(dead_code, reason = "this program inherits no descriptor that it would have to close")]
mod krun;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    arguments.next();
    let failure = match start(&mut arguments) {
        Ok(machine) => machine.enter(),
        Err(failure) => failure,
    };
    eprintln!("bare: {}", failure.message);
    ExitCode::FAILURE
}

fn start(arguments: &mut ArgsOs) -> Result<Machine, Failure> {
    let firmware = Firmware::load(Some(next(arguments, "LIBKRUNFW")?.as_ref()))?;
    let init = next(arguments, "INIT")?;
    let init = std::fs::read(&init).map_err(|error| failure::spec(format!("failed to read {init:?}: {error}")))?;
    let image = path(arguments, "IMAGE")?;
    let (share, socket) = (path(arguments, "SHARE")?, path(arguments, "SOCKET")?);
    let (vcpus, memory_mib) = (number(arguments, "VCPUS")?, number(arguments, "MEMORY_MIB")?);
    let sandbox = Some(GuestFiles { image, share, socket });
    Machine::configure(&firmware, &VmConfig { agent: init.leak(), vcpus, memory_mib, sandbox })
}

fn next(arguments: &mut ArgsOs, what: &str) -> Result<OsString, Failure> {
    arguments.next().ok_or_else(|| failure::spec(format!("{what} is missing")))
}

/// libkrun keeps it for as long as the process lives.
fn path(arguments: &mut ArgsOs, what: &str) -> Result<&'static CStr, Failure> {
    let path = CString::new(next(arguments, what)?.into_vec()).map_err(|error| failure::spec(error))?;
    Ok(Box::leak(path.into_boxed_c_str()))
}

fn number<T: FromStr>(arguments: &mut ArgsOs, what: &str) -> Result<T, Failure> {
    let text = next(arguments, what)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| failure::spec(format!("{what} is a number, not {text:?}")))
}
