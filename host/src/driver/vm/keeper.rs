//! A running keeper, found by the lock that it holds. Whose child it is does not matter.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use proto::{layout, vmm::ExitRecord};
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

/// From SIGTERM to the exit record. The keeper kills its child at once; what takes time is giving memory back.
const TERMINATION: Duration = Duration::from_secs(10);
/// From SIGKILL to the end of the process.
const KILL: Duration = Duration::from_secs(5);
/// A keeper that ends while it is looked for may be replaced by the next one; this often at most.
const ATTEMPTS: usize = 8;

pub(super) struct Keeper {
    pidfd: OwnedFd,
}

impl Keeper {
    /// The process that holds the lock in this directory.
    pub(super) fn find(run_dir: &Path) -> io::Result<Option<Self>> {
        let lock = match File::open(run_dir.join(layout::RUN_LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for _ in 0..ATTEMPTS {
            let Some(pid) = holder(&lock)? else { return Ok(None) };
            match pidfd_open(pid, PidfdFlags::NONBLOCK) {
                // Still the same holder: so the descriptor is that process, and not one that got its number.
                Ok(pidfd) if holder(&lock)? == Some(pid) => return Ok(Some(Self { pidfd })),
                Ok(_) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("the holder of the run lock changes all the time"))
    }

    // Its successor is an unsafe function, for types whose descriptor changes while they are watched; an `OwnedFd`
    // keeps its own.
    #[allow(deprecated)]
    fn watch(self) -> io::Result<AsyncFd<OwnedFd>> {
        AsyncFd::with_interest(self.pidfd, Interest::READABLE)
    }

    /// Waits until the process is gone, be it a child of this one or not.
    pub(super) async fn gone(self) {
        match self.watch() {
            // A pidfd becomes readable once, and for ever.
            Ok(pidfd) => drop(pidfd.readable().await),
            Err(error) => tracing::error!(%error, "failed to watch a keeper"),
        }
    }

    /// Has the VM ended by its keeper, and ends the keeper itself if that takes too long; its child dies with it.
    pub(super) async fn end(self) -> io::Result<()> {
        let pidfd = self.watch()?;
        for (signal, patience) in [(Signal::TERM, TERMINATION), (Signal::KILL, KILL)] {
            match pidfd_send_signal(&pidfd, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if timeout(patience, pidfd.readable()).await.is_ok() {
                return Ok(());
            }
        }
        let waited = (TERMINATION + KILL).as_secs();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("its keeper did not end within {waited} s")))
    }
}

fn holder(lock: &File) -> io::Result<Option<Pid>> {
    match fcntl_getlk(lock, &Flock::from(FlockType::WriteLock))? {
        None => Ok(None),
        Some(Flock { pid: Some(pid), .. }) => Ok(Some(pid)),
        Some(_) => Err(io::Error::other("the run lock is held by a process outside this PID namespace")),
    }
}

/// The record that the last keeper left, if it came to that.
pub(super) fn exit_record(run_dir: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&fs::read(run_dir.join(layout::EXIT_FILE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// Another process that holds a lock, as a keeper does: POSIX locks never conflict within one process.
    fn hold(path: &Path, on_term: &str) -> Child {
        let script = "import fcntl,signal,sys\nf=open(sys.argv[1],'w')\nfcntl.lockf(f,fcntl.LOCK_EX)\n\
                      if sys.argv[2]=='ignore': signal.signal(signal.SIGTERM,signal.SIG_IGN)\n\
                      print('locked',flush=True)\nsys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script, path.to_str().unwrap(), on_term])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        child
    }

    #[tokio::test]
    async fn a_keeper_is_found_by_its_lock_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Keeper::find(directory.path()).unwrap().is_none());
        let mut child = hold(&directory.path().join(layout::RUN_LOCK), "die");
        let keeper = Keeper::find(directory.path()).unwrap().unwrap();
        let watched = tokio::spawn(Keeper::find(directory.path()).unwrap().unwrap().gone());
        keeper.end().await.unwrap();
        watched.await.unwrap();
        // Gone although nobody has waited for it yet.
        assert!(Keeper::find(directory.path()).unwrap().is_none());
        child.wait().unwrap();
    }

    #[test]
    fn a_missing_or_broken_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(exit_record(directory.path()), None);
        fs::write(directory.path().join(layout::EXIT_FILE), "{").unwrap();
        assert_eq!(exit_record(directory.path()), None);
    }
}
