//! The keeper's protocol: spec in, lock, child, `Started` line, and in the end the exit record.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use proto::vmm::{Ended, ExitRecord, Failure, FailureKind, Started, VmmSpec};
use proto::{console, layout};
use rustix::fs::{FlockOperation, fcntl_lock};

/// `fake-vmm run`.
pub(crate) fn run() -> Result<(), Failure> {
    let started = detach().and_then(|signals| {
        let mut document = vec![];
        io::stdin().read_to_end(&mut document).map_err(|error| failed("read the spec", error))?;
        let spec: VmmSpec = serde_json::from_slice(&document).map_err(|error| failed("understand the spec", error))?;
        let run_dir = spec.runtime_dir.join(layout::RUN_DIR);
        // From here to the end of the process.
        let lock = lock(&run_dir)?;
        let child = start(&spec, &run_dir).map_err(|error| failed("start the guest", error))?;
        Ok((signals, spec, lock, child))
    });
    let (signals, spec, _lock, mut child) = match started {
        Ok(started) => started,
        Err(failure) => {
            answer(&Started::Failed(failure.clone()));
            return Err(failure);
        }
    };
    answer(&Started::Running { keeper_pid: std::process::id(), child_pid: child.id() });
    let ended = wait_end(&signals, &mut child).map_err(|error| failed("wait for the guest", error))?;
    record(&spec, ended, &mut child);
    Ok(())
}

/// Leaves the caller's session. Signals are waited for from here on; those for a terminal's people are ignored.
fn detach() -> Result<SigSet, Failure> {
    let prepare = || -> nix::Result<SigSet> {
        let mut blocked = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            blocked.add(signal);
        }
        blocked.thread_block()?;
        // Fails where the caller made it a session leader already, which is what is wanted.
        let _ = nix::unistd::setsid();
        nix::unistd::chdir("/")?;
        umask(Mode::from_bits_truncate(0o077));
        let mut awaited = SigSet::empty();
        awaited.add(Signal::SIGTERM);
        awaited.add(Signal::SIGCHLD);
        Ok(awaited)
    };
    prepare().map_err(|error| failed("detach the keeper from its caller", error))
}

/// A record lock like the real keeper's: the gateway asks the kernel who holds it.
fn lock(run_dir: &Path) -> Result<File, Failure> {
    let path = run_dir.join(layout::RUN_LOCK);
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| failed("open the run lock", error))?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) => Err(Failure { kind: FailureKind::AlreadyRunning, ..failed("take the run lock", error) }),
    }
}

/// The child dies with this process, and is named like a real one: gateways and people look for that name.
fn start(spec: &VmmSpec, run_dir: &Path) -> io::Result<Child> {
    match fs::remove_file(run_dir.join(layout::EXIT_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(run_dir.join(layout::CONSOLE_FILE), console::header(0))?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("openshell-vmm")
        .args(["jail", &spec.sandbox_id.to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let document = serde_json::to_vec(&(std::process::id(), spec))?;
    // One that ended already says so by its status.
    let _ = child.stdin.take().map(|mut input| input.write_all(&document));
    Ok(child)
}

/// Writes the one line of output, then lets go of all that came from the caller.
fn answer(started: &Started) {
    if let Ok(line) = serde_json::to_string(started) {
        // A caller that died meanwhile finds this keeper by its lock.
        let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// A child that is stopped or continued is no end.
fn wait_end(signals: &SigSet, child: &mut Child) -> io::Result<Ended> {
    let mut stopping = false;
    loop {
        if signals.wait()? == Signal::SIGTERM {
            stopping = true;
            child.kill()?;
        }
        if let Some(status) = child.try_wait()? {
            return Ok(ended(status, stopping));
        }
    }
}

fn ended(status: ExitStatus, stopping: bool) -> Ended {
    match status.signal() {
        Some(signal) if stopping && signal == Signal::SIGKILL as i32 => Ended::Killed,
        Some(signal) => Ended::Signalled(signal),
        None => Ended::Exited(status.code().unwrap_or_default()),
    }
}

/// As one step: a reader sees all of it or none.
fn record(spec: &VmmSpec, ended: Ended, child: &mut Child) {
    let mut stderr = vec![];
    // It has ended, and whatever it said is short.
    let _ = child.stderr.take().map(|mut words| words.read_to_end(&mut stderr));
    let record = ExitRecord {
        sandbox_id: spec.sandbox_id,
        instance_id: spec.instance_id.clone(),
        ended,
        at_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    };
    let Ok(document) = serde_json::to_vec(&record) else { return };
    let path = spec.runtime_dir.join(layout::RUN_DIR).join(layout::EXIT_FILE);
    let stage = path.with_extension("new");
    // Nobody is left to tell: a free lock without a record says "ended, unknown how".
    let _ = fs::write(&stage, document).and_then(|()| fs::rename(&stage, &path));
}

fn failed(act: &str, cause: impl std::fmt::Display) -> Failure {
    Failure {
        kind: FailureKind::Spec,
        message: format!("failed to {act}: {cause}"),
        remedy: "this is the tests' own vmm: see what they gave it".to_owned(),
    }
}
