//! Asks, by a command, whether a service serves.

use std::sync::Arc;
use std::time::Duration;

use proto::service::Readiness;
use rustix::process::{Pid, Signal};
use tokio::time::{sleep, timeout};

use super::Services;
use crate::workload::command::Command;
use crate::workload::output::Output;
use crate::workload::process::{Family, Process};
use crate::workload::reaper::{Exit, Reaper, exited};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A command that runs, and does not outlive the question.
struct Asked<'a> {
    reaper: &'a Reaper,
    pid: Pid,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.reaper.signal_group(self.pid, Signal::KILL);
    }
}

/// Resolves when the command of this service has exited with 0; never where it has none.
pub(super) async fn succeeds(services: Arc<Services>, index: usize) {
    let unit = &services.units[index];
    let (Readiness::Command(argv), Ok(workload)) = (&unit.spec.ready, &unit.workload) else {
        return std::future::pending().await;
    };
    let command = Command { argv: argv.clone(), arg0: None, workdir: unit.spec.workdir.clone() };
    loop {
        if let Ok(process) = Process::start(workload, &command, &unit.environment(None), None) {
            let _asked = Asked { reaper: &workload.reaper, pid: process.family.leader };
            if timeout(ANSWER, answer(process)).await == Ok(0) {
                return;
            }
        }
        sleep(PAUSE).await;
    }
}

/// What it writes says nothing to anybody: it fails as a matter of course.
async fn answer(process: Process) -> i32 {
    let Process { family: Family { mut exit, .. }, stdout, stderr, .. } = process;
    let drain = |from, exit: &Exit| {
        let mut output = Output::new(from, exit.clone());
        async move { while output.next().await.is_some() {} }
    };
    let out = drain(stdout, &exit);
    let err = stderr.map(|stderr| drain(stderr, &exit));
    let drained = async {
        tokio::join!(out, async {
            if let Some(err) = err {
                err.await;
            }
        });
        std::future::pending::<()>().await;
    };
    tokio::select! {
        code = exited(&mut exit) => code,
        () = drained => 1,
    }
}
