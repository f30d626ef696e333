//! Everything that runs in the sandbox for its user: the main process and what is executed beside it.

pub mod command;
pub mod environment;
pub mod launch;
pub mod main_process;
pub mod output;
pub mod passwd;
pub mod process;
pub mod reaper;
pub mod ring;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::boot::{BootSpec, WorkloadUser};
use tokio::time::timeout;

use crate::sys::processes;
use passwd::User;
use reaper::Reaper;

/// As whom, with what, and how programs are started.
#[derive(Debug)]
pub struct Workload {
    /// The user, looked up in the image.
    pub user: User,
    /// From the boot spec.
    pub environment: BTreeMap<String, String>,
    /// The agent's own binary: every program is started through its `launch`.
    pub agent: PathBuf,
    /// What no program may see.
    pub identity: PathBuf,
    /// Who waits for them.
    pub reaper: Arc<Reaper>,
}

impl Workload {
    /// For the user of this spec, as the image's `/etc/passwd` describes it.
    pub fn new(spec: &BootSpec, agent: PathBuf, identity: PathBuf, reaper: Arc<Reaper>) -> Self {
        let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
        let user = User::find(&String::from_utf8_lossy(&passwd), spec.user);
        Self { user, environment: spec.environment.clone(), agent, identity, reaper }
    }

    /// The ids.
    pub fn ids(&self) -> WorkloadUser {
        self.user.ids
    }

    /// Ends every process that was started and still runs: HUP and TERM first. True if all of them ended in time.
    pub async fn stop(&self, grace: Duration) -> bool {
        for pid in self.reaper.running() {
            process::ask_to_end(pid);
        }
        let ended = timeout(grace, self.reaper.all_ended()).await.is_ok();
        for pid in self.reaper.running() {
            processes::signal_session(pid, rustix::process::Signal::KILL);
        }
        ended
    }
}
