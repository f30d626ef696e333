//! A process that holds a run lock, as a keeper does: POSIX locks never conflict within one process.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use proto::layout;
use uuid::Uuid;

/// Ends at SIGTERM, or at the end of its input; its child ends with it.
const SCRIPT: &str = "\
import fcntl, subprocess, sys
lock = open(sys.argv[1], 'w')
fcntl.lockf(lock, fcntl.LOCK_EX)
if len(sys.argv) > 2:
    child = subprocess.Popen(['openshell-vmm', 'jail', sys.argv[2]], executable='/bin/sh', cwd=sys.argv[3],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
print('locked', flush=True)
sys.stdin.read()
";

pub(super) struct FakeKeeper {
    process: Child,
    /// Where its child finds a script by the name of `jail`.
    _programs: tempfile::TempDir,
}

impl FakeKeeper {
    /// With the lock in this directory held, and, where one is named, the jailed child of a sandbox running.
    pub(super) fn start(run_dir: &Path, jailed: Option<Uuid>) -> Self {
        let programs = tempfile::tempdir().unwrap();
        fs::write(programs.path().join("jail"), "echo jailed; read end").unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).arg(run_dir.join(layout::RUN_LOCK));
        if let Some(id) = jailed {
            command.arg(id.to_string()).arg(programs.path());
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Self { process, _programs: programs }
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl Drop for FakeKeeper {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
