//! Waits for every process there is: those that were started here, and the orphans that PID 1 inherits.
//!
//! One owner of all waiting, and starting happens under its lock: between a process's start and its entry in the
//! table nobody can take its exit away, and a number in the table cannot have been given to another process.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::fault;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::faults;

/// The exit code of a process, once it has one; for one that a signal ended 128 + its number, as shells say it.
pub type Exit = watch::Receiver<Option<i32>>;

/// Between two looks at processes that others reap.
const LOOK: Duration = Duration::from_millis(250);
/// Ends that are this close together are looked at together.
const TOGETHER: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub struct Reaper {
    running: Mutex<HashMap<i32, watch::Sender<Option<i32>>>>,
    count: watch::Sender<usize>,
}

impl Default for Reaper {
    fn default() -> Self {
        Self { running: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Reaper {
    /// Starts a process that leads a session of its own, and tells when it ends.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Pid, Exit)> {
        let mut running = self.lock();
        let child = command.spawn()?;
        let (sender, exit) = watch::channel(None);
        let pid = Pid::from_child(&child);
        running.insert(pid.as_raw_nonzero().get(), sender);
        self.count.send_replace(running.len());
        Ok((pid, exit))
    }

    /// Signals the process group that `leader` leads, unless it has ended: its number may be another's by now.
    pub fn signal_group(&self, leader: Pid, with: Signal) {
        let running = self.lock();
        if running.contains_key(&leader.as_raw_nonzero().get()) && kill_process_group(leader, with).is_err() {
            // It has not come to make its session yet.
            let _ = kill_process(leader, with);
        }
    }

    /// How many were started and have not ended.
    pub fn running(&self) -> usize {
        *self.count.borrow()
    }

    /// Resolves when `ended` says so, which is asked whenever anything was reaped, orphans too; and now and then, because
    /// nobody here hears of those whose parents reap them.
    pub async fn until(&self, ended: impl Fn() -> bool) {
        let mut reaped = self.count.subscribe();
        while !ended() {
            let _ = timeout(LOOK, reaped.changed()).await;
            // Where thousands end at once, one look is enough for many of them.
            sleep(TOGETHER).await;
        }
    }

    /// Reaps for ever. Fails only where signals cannot be had at all.
    pub async fn run(&self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            // First, then wait: what ended before the handler stood has sent its signal to nobody.
            self.reap();
            faults::reach(fault::REAPER);
            children.recv().await;
        }
    }

    fn reap(&self) {
        let mut running = self.lock();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let (Some(code), Some(sender)) = (code(status), running.remove(&pid.as_raw_nonzero().get())) {
                sender.send_replace(Some(code));
            }
        }
        self.count.send_replace(running.len());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Option<i32>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

/// The code, when there is one.
pub async fn exited(exit: &mut Exit) -> i32 {
    match exit.wait_for(Option::is_some).await {
        Ok(code) => code.unwrap_or(EXIT_UNKNOWN),
        Err(_) => EXIT_UNKNOWN,
    }
}

/// For a process whose end nobody saw.
const EXIT_UNKNOWN: i32 = 255;
