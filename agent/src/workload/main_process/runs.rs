//! What is known of the runs of a main process: for the gateway, and at last for the console.

use std::time::Duration;

use prost_types::Timestamp;
use proto::last_words::LastWords;
use proto::openshell::vm::v1::MainProcessRuns;

/// Of this boot. Times are since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs {
    /// After the first.
    pub restarts: u32,
    /// When the newest one began.
    pub started: Option<Duration>,
    /// When the next one begins, while it is waited for.
    pub next: Option<Duration>,
    /// Of the newest one that ended.
    pub last_code: Option<i32>,
    /// Not 0: so many in a row ended too soon, and there is no other.
    pub crash_loop: u32,
}

impl Runs {
    /// A run begins.
    pub(super) fn begin(&mut self, now: Duration) {
        self.restarts += u32::from(self.started.is_some());
        self.started = Some(now);
        self.next = None;
    }

    /// As the gateway is told.
    pub fn message(&self) -> MainProcessRuns {
        MainProcessRuns {
            restarts: self.restarts,
            started_time: self.started.map(timestamp),
            next_start_time: self.next.map(timestamp),
            last_exit_code: self.last_code,
            crash_loop: self.crash_loop,
        }
    }
}

fn timestamp(since_epoch: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since_epoch.subsec_nanos()).unwrap_or_default(),
    }
}

/// How it ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Exit code of the last run.
    pub code: i32,
    /// See [`Runs::crash_loop`].
    pub crash_loop: u32,
}

impl Finished {
    /// For the console.
    pub fn last_words(self) -> LastWords {
        LastWords { exit_code: self.code, crash_loop: self.crash_loop }
    }
}
