//! The keeper: one small process per VM that outlives the gateway.
//!
//! ```text
//! spec ──► lock ──► jailed child ──► Ready ──► "Started" line ──► console into the ring … ──► exit.json
//!            │            │                                             ▲
//!            │            └─ Failed ──► exit.json and "Failed" line      └─ SIGTERM: kill the child
//!            └─ held by another ──► "Failed" line, nothing touched
//! ```
//!
//! It holds nothing of its caller: a session of its own, `/` as its directory, no environment used, and after the
//! line no descriptor that leads outside the sandbox's `run/`.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    stat::{Mode, umask},
};
use proto::{
    layout,
    vmm::{Ended, Failure, Started, VmmSpec},
};

use crate::{
    child::{Event, JailedChild, Status},
    failure,
    keeper::{console::ConsoleRing, lock::RunLock},
    spec::{self, JailSpec, SandboxFiles},
};

mod console;
mod exit;
mod lock;

/// From the start of the child to its `Ready`. The jail takes milliseconds; reading the agent and libkrunfw from a
/// cold disk may take seconds.
const READY: Duration = Duration::from_secs(20);

/// `openshell-vmm run`.
pub(crate) fn run() -> Result<(), Failure> {
    let prepared = detach().and_then(|signals| {
        let spec = spec::parse(&spec::read_to_end(io::stdin())?)?;
        // From here to the end of the process.
        let lock = RunLock::take(&spec.runtime_dir.join(layout::RUN_DIR))?;
        Ok((signals, spec, lock))
    });
    let (signals, spec, lock) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            answer(&Started::Failed(failure.clone()));
            return Err(failure);
        }
    };
    let run_dir = spec.runtime_dir.join(layout::RUN_DIR);
    let outcome = keep(&spec, &run_dir, &signals);
    drop(lock);
    outcome
}

/// Leaves the caller's session and turns signals into something to poll. Interrupt and hang-up are for the people
/// at the caller's terminal, not for a VM.
fn detach() -> Result<SignalFd, Failure> {
    let prepare = || -> nix::Result<SignalFd> {
        let mut blocked = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            blocked.add(signal);
        }
        blocked.thread_block()?;
        // Fails where the caller made it a session leader already, which is what is wanted.
        let _ = nix::unistd::setsid();
        nix::unistd::chdir("/")?;
        umask(Mode::from_bits_truncate(0o077));
        let mut asked = SigSet::empty();
        asked.add(Signal::SIGTERM);
        SignalFd::with_flags(&asked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
    };
    prepare().map_err(|error| failure::jail("detach the keeper from its caller", error))
}

/// Everything under the lock.
fn keep(spec: &VmmSpec, run_dir: &Path, signals: &SignalFd) -> Result<(), Failure> {
    let mut machine = match start(spec, run_dir, signals) {
        Ok(machine) => machine,
        Err(failure) => {
            exit::record(run_dir, spec, Ended::Failed(failure.clone()), String::new());
            answer(&Started::Failed(failure.clone()));
            return Err(failure);
        }
    };
    answer(&Started::Running { keeper_pid: std::process::id(), child_pid: machine.child.pid() });
    let ended = machine.wait_end(signals);
    exit::record(run_dir, spec, ended.clone(), machine.child.stderr());
    match ended {
        Ended::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}

/// To the moment in which the guest begins to run.
fn start(spec: &VmmSpec, run_dir: &Path, signals: &SignalFd) -> Result<Machine, Failure> {
    exit::forget(run_dir)?;
    let ring = ConsoleRing::create(run_dir)?;
    let child = JailedChild::spawn(&jail_spec(spec), &spec.sandbox_id.to_string())?;
    let mut machine = Machine { child, ring, stopping: false };
    match machine.wait_ready(signals) {
        Ok(()) => Ok(machine),
        Err(failure) => Err(with_stderr(failure, &machine.child.stderr())),
    }
}

/// The last line that the child wrote often says more than its exit status does.
fn with_stderr(mut failure: Failure, stderr: &str) -> Failure {
    if let Some(line) = stderr.lines().rev().find(|line| !line.trim().is_empty()) {
        failure.message = format!("{} (it wrote: {})", failure.message, line.trim());
    }
    failure
}

fn jail_spec(spec: &VmmSpec) -> JailSpec {
    JailSpec {
        keeper_pid: std::process::id() as i32,
        agent: spec.agent.clone(),
        libkrunfw: spec.libkrunfw.clone(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        uid: spec.jail_uid,
        sandbox: Some(SandboxFiles {
            image: spec.image.clone(),
            share: spec.runtime_dir.join(layout::SHARE_DIR),
            ctl: spec.runtime_dir.join(layout::CTL_DIR),
        }),
    }
}

/// Writes the one line of output, then lets go of all that came from the caller.
fn answer(started: &Started) {
    if let Ok(mut line) = serde_json::to_vec(started) {
        line.push(b'\n');
        // A caller that died meanwhile finds this VM by its lock.
        let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

struct Machine {
    child: JailedChild,
    ring: ConsoleRing,
    /// SIGTERM came.
    stopping: bool,
}

impl Machine {
    fn wait_ready(&mut self, signals: &SignalFd) -> Result<(), Failure> {
        let deadline = Instant::now() + READY;
        loop {
            match self.child.next(Some(signals.as_fd()), Some(deadline)) {
                Ok(Event::Console(bytes)) => self.ring.write(&bytes),
                Ok(Event::Status(Status::Ready)) => return Ok(()),
                Ok(Event::Status(Status::Failed(failure))) => {
                    self.reap();
                    return Err(failure);
                }
                Ok(Event::Ended(status)) => {
                    let cause = match self.stopping {
                        true => "a SIGTERM came first".to_owned(),
                        false => format!("the child ended before: {status}"),
                    };
                    return Err(failure::jail("enter the jail", cause));
                }
                Ok(Event::Interrupt) => self.stop(signals),
                Ok(Event::Deadline) => {
                    self.reap();
                    let cause = format!("the child was not ready within {} s", READY.as_secs());
                    return Err(failure::jail("enter the jail", cause));
                }
                Err(error) => {
                    self.reap();
                    return Err(failure::jail("watch the jailed child", error));
                }
            }
        }
    }

    /// Until nothing of the VM is left.
    fn wait_end(&mut self, signals: &SignalFd) -> Ended {
        let mut failed = None;
        loop {
            match self.child.next(Some(signals.as_fd()), None) {
                Ok(Event::Console(bytes)) => self.ring.write(&bytes),
                Ok(Event::Status(Status::Failed(failure))) => failed = Some(failure),
                Ok(Event::Ended(status)) => return ended(status, self.stopping, failed),
                Ok(Event::Interrupt) => self.stop(signals),
                Ok(Event::Status(Status::Ready) | Event::Deadline) => {}
                Err(error) => {
                    // Whatever it is, a VM that nobody keeps must not live on.
                    self.reap();
                    return Ended::Failed(failure::jail("watch the jailed child", error));
                }
            }
        }
    }

    fn stop(&mut self, signals: &SignalFd) {
        while let Ok(Some(_)) = signals.read_signal() {
            self.stopping = true;
        }
        if self.stopping {
            self.child.kill();
        }
    }

    fn reap(&mut self) {
        self.child.kill();
        while let Ok(event) = self.child.next(None, None) {
            if matches!(event, Event::Ended(_)) {
                break;
            }
        }
    }
}

fn ended(status: ExitStatus, stopping: bool, failed: Option<Failure>) -> Ended {
    match (failed, status.code(), status.signal()) {
        (Some(failure), ..) => Ended::Failed(failure),
        (None, _, Some(signal)) if stopping && signal == Signal::SIGKILL as i32 => Ended::Killed,
        (None, _, Some(signal)) => Ended::Signalled(signal),
        (None, code, None) => Ended::Exited(code.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_named_after_its_cause() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let signalled = ExitStatus::from_raw;
        let refused = failure::libkrun("start", "EINVAL");
        let table = [
            (exited(0), false, None, Ended::Exited(0)),
            (exited(42), false, None, Ended::Exited(42)),
            // It left by itself just before the kill arrived.
            (exited(42), true, None, Ended::Exited(42)),
            (signalled(9), true, None, Ended::Killed),
            (signalled(9), false, None, Ended::Signalled(9)),
            (signalled(6), true, None, Ended::Signalled(6)),
            (exited(15), false, Some(refused.clone()), Ended::Failed(refused)),
        ];
        for (status, stopping, failed, expected) in table {
            assert_eq!(ended(status, stopping, failed), expected);
        }
    }
}
