//! The jailed child, as a list of steps. What is given up is given up before the guest's first instruction, and
//! every step that fails ends the process: there is no VM outside a jail.

use std::{convert::Infallible, fs, io, path::Path};

use nix::sys::stat::{Mode, umask};
use proto::vmm::Failure;

use crate::{
    child::Status,
    failure,
    jail::privileges::Caller,
    krun::{self, Firmware, VmConfig},
    spec::{self, JailSpec},
};

mod mounts;
mod privileges;

/// `openshell-vmm jail`. Its standard input is a socket to the keeper, its standard output the console.
pub(crate) fn main() -> Result<(), Failure> {
    let outcome = spec::read_to_end(io::stdin())
        .and_then(|document| {
            serde_json::from_slice(&document)
                .map_err(|error| failure::spec(format!("the jail's spec is not valid: {error}")))
        })
        .and_then(|spec| enter(&spec));
    match outcome {
        Ok(never) => match never {},
        Err(failure) => {
            tell(&Status::Failed(failure.clone()));
            Err(failure)
        }
    }
}

fn enter(spec: &JailSpec) -> Result<Infallible, Failure> {
    // The keeper's is narrower, but the jail's own uid must find its way in the jail.
    umask(Mode::from_bits_truncate(0o022));
    // While the host's files are still in sight: the agent's bytes become a file in the guest's memory-backed root,
    // and libkrunfw stays mapped.
    let agent = read_agent(&spec.agent)?;
    let firmware = Firmware::load(spec.libkrunfw.as_deref())?;

    // The limits first, because raising a hard one needs root.
    privileges::set_limits()?;
    // Root becomes `spec.uid`; anybody else stays who they are, in a user namespace that allows the steps below.
    let caller = Caller::unshare(spec.uid)?;
    // A root that holds nothing but this sandbox's own things; the host's mounts are gone after it.
    mounts::enter_root(spec.sandbox.as_ref(), &caller)?;
    // libkrun opens the console anew by its path in /proc/self/fd, with the rights that are left below.
    caller.own_console()?;
    // Ids, groups, capabilities of all five sets, the way back by a set-uid program, core dumps and ptrace.
    caller.drop_privileges()?;
    // After the ids changed, because that clears the request: whatever ends the keeper ends the VM.
    privileges::die_with(spec.keeper_pid)?;
    // libkrun would panic on it much later, with less to say.
    check_kvm()?;

    let config = VmConfig {
        agent,
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        sandbox: spec.sandbox.is_some().then_some(mounts::GUEST_FILES),
    };
    let machine = krun::Machine::configure(&firmware, &config)?;
    tell(&Status::Ready);
    // Leaves by `_exit` with the guest's exit code; what it returns is a reason.
    Err(machine.enter())
}

fn read_agent(path: &Path) -> Result<&'static [u8], Failure> {
    let bytes = fs::read(path)
        .map_err(|error| failure::spec(format!("failed to read the agent {}: {error}", path.display())))?;
    // libkrun serves them to the guest until the process ends.
    Ok(Box::leak(bytes.into_boxed_slice()))
}

fn check_kvm() -> Result<(), Failure> {
    fs::File::options().read(true).write(true).open(mounts::KVM).map(drop).map_err(|error| {
        failure::kvm(
            format!("failed to open {}: {error}", mounts::KVM),
            "give the user access to /dev/kvm (group kvm), or run the gateway as root",
        )
    })
}

/// Standard input is a socket: what is written to it reaches the keeper. A keeper that is gone has taken this process
/// with it, so that nobody misses what cannot be written.
fn tell(status: &Status) {
    let Ok(mut line) = serde_json::to_vec(status) else { return };
    line.push(b'\n');
    let mut rest = line.as_slice();
    while let Ok(written @ 1..) = rustix::io::write(rustix::stdio::stdin(), rest) {
        rest = &rest[written..];
    }
}
