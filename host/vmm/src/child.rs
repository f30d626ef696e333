//! The jailed child, seen from the process that keeps it.
//!
//! Four descriptors tell everything: the console (its standard output), its standard error, a socket (its standard
//! input: the spec goes in, [`Status`] lines come out) and its pidfd. One thread polls them all.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use proto::vmm::Failure;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::{failure, spec::JailSpec};

/// The longest status line that is waited for.
const STATUS_MAX: usize = 64 * 1024;
/// How much of the standard error is kept.
const STDERR_KEPT: usize = 4096;

/// What a jailed child says about itself, one JSON line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The jail stands and libkrun is about to be entered.
    Ready,
    /// It ends, and this is why. Comes instead of `Ready`, or after it where libkrun returns.
    Failed(Failure),
}

/// What happened next.
pub(crate) enum Event {
    /// The guest wrote to its console.
    Console(Vec<u8>),
    Status(Status),
    /// All of its output was handed out before.
    Ended(ExitStatus),
    /// The caller's own descriptor is readable.
    Interrupt,
    Deadline,
}

pub(crate) struct JailedChild {
    child: Child,
    pidfd: OwnedFd,
    console: Option<File>,
    stderr: Option<File>,
    status: Option<File>,
    status_line: Vec<u8>,
    stderr_tail: Vec<u8>,
}

impl JailedChild {
    /// Starts `openshell-vmm jail`. It dies with the calling thread.
    pub(crate) fn spawn(spec: &JailSpec, label: &str) -> Result<Self, Failure> {
        let start = || -> io::Result<Self> {
            let (mut ours, theirs) = UnixStream::pair()?;
            let mut child = Command::new("/proc/self/exe")
                .arg0("openshell-vmm")
                .args(["jail", label])
                .env_clear()
                .current_dir("/")
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            ours.write_all(&serde_json::to_vec(spec)?)?;
            ours.shutdown(Shutdown::Write)?;
            let pid = Pid::from_child(&child);
            Ok(Self {
                pidfd: pidfd_open(pid, PidfdFlags::empty())?,
                console: child.stdout.take().map(|out| non_blocking(out.into())).transpose()?,
                stderr: child.stderr.take().map(|err| non_blocking(err.into())).transpose()?,
                status: Some(non_blocking(ours.into())?),
                child,
                status_line: Vec::new(),
                stderr_tail: Vec::new(),
            })
        };
        start().map_err(|error| failure::jail("start the jailed child", error))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it wrote to its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr_tail).into_owned()
    }

    /// Kills it. That it ended is told by [`Self::next`].
    pub(crate) fn kill(&mut self) {
        // Fails only when it was waited for, and then there is nothing to kill.
        let _ = self.child.kill();
    }

    /// Waits for what happens next, output always before the end.
    pub(crate) fn next(&mut self, interrupt: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> io::Result<Event> {
        loop {
            let Some(ready) = self.wait(interrupt, deadline)? else { return Ok(Event::Deadline) };
            if ready.interrupt {
                return Ok(Event::Interrupt);
            }
            if ready.stderr {
                let bytes = read_some(&mut self.stderr)?;
                keep_tail(&mut self.stderr_tail, &bytes);
            }
            if ready.status
                && let Some(status) = self.read_status()?
            {
                return Ok(Event::Status(status));
            }
            if ready.console {
                let bytes = read_some(&mut self.console)?;
                if !bytes.is_empty() {
                    return Ok(Event::Console(bytes));
                }
            }
            if ready.ended && !(ready.console || ready.stderr || ready.status) {
                return Ok(Event::Ended(self.child.wait()?));
            }
        }
    }

    fn read_status(&mut self) -> io::Result<Option<Status>> {
        let bytes = read_some(&mut self.status)?;
        self.status_line.extend(bytes);
        if self.status_line.len() > STATUS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its status is longer than any failure"));
        }
        let Some(end) = self.status_line.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.status_line.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }

    fn wait(&self, interrupt: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> io::Result<Option<Readiness>> {
        let sources = [
            Some(self.pidfd.as_fd()),
            self.console.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
            self.status.as_ref().map(AsFd::as_fd),
            interrupt,
        ];
        let mut polled: Vec<_> =
            sources.iter().flatten().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN)).collect();
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        loop {
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut answers = polled.iter().map(|source| !source.revents().is_empty());
        let [ended, console, stderr, status, interrupt] =
            sources.map(|source| source.is_some() && answers.next().unwrap_or(false));
        Ok(Some(Readiness { ended, console, stderr, status, interrupt }))
    }
}

struct Readiness {
    ended: bool,
    console: bool,
    stderr: bool,
    status: bool,
    interrupt: bool,
}

fn non_blocking(descriptor: OwnedFd) -> io::Result<File> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    Ok(File::from(descriptor))
}

/// Reads what is there; at the end of the stream it is closed, so that it is not polled for ever.
fn read_some(source: &mut Option<File>) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 32 * 1024];
    let Some(file) = source else { return Ok(Vec::new()) };
    match file.read(&mut buffer) {
        Ok(0) => *source = None,
        Ok(n) => return Ok(buffer[..n].to_vec()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        // A socket whose other end died with unread data in it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => *source = None,
        Err(error) => return Err(error),
    }
    Ok(Vec::new())
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    tail.drain(..tail.len().saturating_sub(STDERR_KEPT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_standard_error_is_kept() {
        let mut tail = Vec::new();
        for line in 0..2000 {
            keep_tail(&mut tail, format!("line {line}\n").as_bytes());
        }
        assert_eq!(tail.len(), STDERR_KEPT);
        assert!(tail.ends_with(b"line 1999\n"));
        keep_tail(&mut tail, &[b'x'; 3 * STDERR_KEPT]);
        assert_eq!(tail, [b'x'; STDERR_KEPT]);
    }
}
