//! A running keeper, found by the lock that it holds. Whose child it is does not matter.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use proto::{layout, vmm::ExitRecord};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Flock, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Child,
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

/// What the run directory says about a keeper.
pub(super) enum RunLock {
    /// It runs.
    Held(Keeper),
    /// None holds it.
    Free,
    /// There is no such file: none has run yet, or somebody removed it.
    Missing,
}

impl Keeper {
    /// The process that holds the lock in this directory.
    pub(super) fn find(run_dir: &Path) -> io::Result<RunLock> {
        let lock = match File::open(run_dir.join(layout::RUN_LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RunLock::Missing),
            Err(error) => return Err(error),
        };
        for _ in 0..ATTEMPTS {
            let Some(pid) = holder(&lock)? else { return Ok(RunLock::Free) };
            match Self::open(pid)? {
                // Still the same holder: so the descriptor is that process, and not one that got its number.
                Some(keeper) if holder(&lock)? == Some(pid) => return Ok(RunLock::Held(keeper)),
                _ => {}
            }
        }
        Err(io::Error::other("the holder of the run lock changes all the time"))
    }

    /// A child that nobody has waited for yet: its number is its own.
    pub(super) fn of_child(child: &Child) -> io::Result<Self> {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let keeper = pid.map(Self::open).transpose()?.flatten();
        keeper.ok_or_else(|| io::Error::other("it was waited for already"))
    }

    /// Whatever process has this number now, if any has. The caller makes sure that it is the keeper.
    pub(super) fn open(pid: Pid) -> io::Result<Option<Self>> {
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Ok(Some(Self { pidfd })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pidfd: self.pidfd.try_clone()? })
    }

    /// Whether the process has not ended yet; nobody needs to have waited for it.
    pub(super) fn is_alive(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Who cannot be asked is taken for alive.
        !matches!(poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&now)), Ok(1..))
    }

    // Its successor is an unsafe function, for types whose descriptor changes while they are watched; an `OwnedFd`
    // keeps its own.
    #[allow(deprecated)]
    fn watch(self) -> io::Result<AsyncFd<OwnedFd>> {
        AsyncFd::with_interest(self.pidfd, Interest::READABLE)
    }

    /// Waits until the process is gone, be it a child of this one or not. An error says nothing about the process.
    pub(super) async fn gone(self) -> io::Result<()> {
        // A pidfd becomes readable once, and for ever.
        self.watch()?.readable().await.map(drop)
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
    use super::*;
    use crate::driver::vm::fake::FakeKeeper;

    #[tokio::test]
    async fn a_keeper_is_found_by_its_lock_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Keeper::find(directory.path()).unwrap(), RunLock::Missing));
        let fake = FakeKeeper::start(directory.path(), None);
        let RunLock::Held(keeper) = Keeper::find(directory.path()).unwrap() else { panic!("the lock is held") };
        let other = keeper.try_clone().unwrap();
        assert!(other.is_alive());
        let watched = tokio::spawn(keeper.try_clone().unwrap().gone());
        keeper.end().await.unwrap();
        watched.await.unwrap().unwrap();
        // Gone although nobody has waited for it yet.
        assert!(!other.is_alive());
        assert!(matches!(Keeper::find(directory.path()).unwrap(), RunLock::Free));
        drop(fake);
    }

    #[test]
    fn a_missing_or_broken_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(exit_record(directory.path()), None);
        fs::write(directory.path().join(layout::EXIT_FILE), "{").unwrap();
        assert_eq!(exit_record(directory.path()), None);
    }
}
