//! Does KVM work here? That `/dev/kvm` opens says little: there are machines where it answers every call and no guest
//! ever runs. So a VM with nothing but the agent is booted, with a deadline.

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use proto::vmm::{Failure, PROBE_EXIT, PROBE_LINE};

use crate::{
    child::{Event, JailedChild, Status},
    failure,
    spec::JailSpec,
};

/// Nobody's: just below the range that sandboxes use.
const PROBE_UID: u32 = 0x7eff_ffff;
const CONSOLE_KEPT: usize = 64 * 1024;
const REMEDY: &str = "use a machine with hardware virtualisation (in a virtual machine: switch nested virtualisation \
                      on at its host), or allow a slow machine more time with a longer deadline";

/// `openshell-vmm probe`.
pub(crate) fn run(agent: PathBuf, libkrunfw: Option<PathBuf>, deadline: Duration, json: bool) -> Result<(), Failure> {
    let begin = Instant::now();
    let outcome = boot(agent, libkrunfw, begin + deadline, deadline);
    let line = match &outcome {
        Ok(()) => format!("KVM works: a guest answered after {:.1} s", begin.elapsed().as_secs_f64()),
        Err(failure) if json => serde_json::to_string(failure).unwrap_or_default(),
        Err(failure) => format!("openshell-vmm: {}; {}", failure.message, failure.remedy),
    };
    let _ = writeln!(std::io::stdout(), "{line}");
    outcome
}

fn boot(agent: PathBuf, libkrunfw: Option<PathBuf>, until: Instant, allowed: Duration) -> Result<(), Failure> {
    let agent =
        std::path::absolute(agent).map_err(|error| failure::spec(format!("failed to name the agent: {error}")))?;
    let keeper_pid = std::process::id() as i32;
    let spec = JailSpec { keeper_pid, agent, libkrunfw, vcpus: 1, memory_mib: 128, uid: PROBE_UID, sandbox: None };
    let mut child = JailedChild::spawn(&spec, "probe")?;
    let mut console = Vec::new();
    let mut failed = None;
    loop {
        match child.next(None, Some(until)) {
            Ok(Event::Console(bytes)) if console.len() < CONSOLE_KEPT => console.extend(bytes),
            Ok(Event::Status(Status::Failed(failure))) => failed = Some(failure),
            Ok(Event::Ended(status)) => {
                return match failed {
                    Some(failure) => Err(failure),
                    None => judge(status.code(), &console)
                        .map_err(|failure| add_evidence(failure, &status.to_string(), &child.stderr())),
                };
            }
            Ok(Event::Deadline) => {
                child.kill();
                let message = format!("KVM does not work: no guest answered within {} s", allowed.as_secs());
                return Err(failure::kvm(message, REMEDY));
            }
            Ok(_) => {}
            Err(error) => {
                child.kill();
                return Err(failure::jail("watch the jailed child", error));
            }
        }
    }
}

/// Only the agent's own word counts, never an exit code alone: libkrun leaves with 0 for guests that never started.
fn judge(code: Option<i32>, console: &[u8]) -> Result<(), Failure> {
    let said = String::from_utf8_lossy(console).lines().any(|line| line.trim() == PROBE_LINE);
    match (said, code) {
        (true, Some(PROBE_EXIT)) => Ok(()),
        (true, _) => Err(failure::kvm("KVM does not work: the guest answered but did not end in order", REMEDY)),
        (false, _) => Err(failure::kvm("KVM does not work: the guest ended without an answer", REMEDY)),
    }
}

fn add_evidence(mut failure: Failure, status: &str, stderr: &str) -> Failure {
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    failure.message = format!("{} ({status}; it wrote: {})", failure.message, last.trim());
    failure
}

#[cfg(test)]
mod tests {
    use proto::vmm::FailureKind;

    use super::*;

    #[test]
    fn only_the_line_with_its_exit_code_is_success() {
        let line = format!("[ 1.0] kernel\r\n{PROBE_LINE}\r\n");
        assert!(judge(Some(PROBE_EXIT), line.as_bytes()).is_ok());
        for (code, console) in [
            (Some(0), line.as_str()),
            (None, line.as_str()),
            (Some(PROBE_EXIT), ""),
            (Some(PROBE_EXIT), "xopenshell-agent: kvm works\n"),
            (Some(0), ""),
        ] {
            assert_eq!(judge(code, console.as_bytes()).unwrap_err().kind, FailureKind::Kvm);
        }
    }
}
