//! Everything that runs in the sandbox for its user: the main process and what is executed beside it.

pub mod binary;
pub mod command;
pub mod environment;
pub mod image;
pub mod launch;
pub mod locale;
pub mod main_process;
pub mod output;
pub mod passwd;
pub mod process;
pub mod reaper;
pub mod restart;
pub mod ring;
pub mod secrets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use proto::boot::{BootSpec, WorkloadUser};
use rustix::process::{Pid, Signal as Sent};
use tokio::time::timeout;

use crate::logs::Logs;
use crate::sys::{image_file, processes};
use binary::Binary;
use passwd::{PASSWD, User};
use reaper::Reaper;
use secrets::Secrets;

/// As whom, with what, and how programs are started.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The user, looked up in the image.
    pub user: User,
    /// From the image's locale and time zone, and from the boot spec, which wins.
    pub environment: BTreeMap<String, String>,
    /// Where programs start that say nothing themselves; the user's home where this says nothing either.
    pub workdir: Option<String>,
    /// From the gateway.
    pub secrets: Arc<Secrets>,
    /// The agent's own binary: every program is started through its `launch`.
    pub agent: Arc<Binary>,
    /// What no program may see.
    pub identity: PathBuf,
    /// The control group of what is started with this.
    pub cgroup: Option<PathBuf>,
    /// Who waits for them.
    pub reaper: Arc<Reaper>,
    /// Where their output is written down.
    pub logs: Logs,
}

impl Workload {
    /// For the user of this spec, as the image's `/etc/passwd` describes it.
    pub fn new(spec: &BootSpec, agent: PathBuf, identity: PathBuf, reaper: Arc<Reaper>) -> Self {
        let passwd = image_file::read(Path::new(PASSWD), image_file::MAX).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to read {PASSWD}: the user's home and shell are not known");
            Vec::new()
        });
        let user = User::find(&String::from_utf8_lossy(&passwd), spec.user);
        let secrets = Arc::new(Secrets::new(spec.needs_session));
        let mut environment = locale::of_image(Path::new("/"));
        environment.extend(spec.environment.clone());
        let workdir = spec.workdir.clone();
        let agent = Arc::new(Binary::new(agent));
        Self { user, environment, workdir, secrets, agent, identity, cgroup: None, reaper, logs: Logs::default() }
    }

    /// The same, started in this control group.
    #[must_use]
    pub fn within(&self, cgroup: &str) -> Self {
        Self { cgroup: Some(cgroup.into()), ..self.clone() }
    }

    /// The ids.
    pub fn ids(&self) -> WorkloadUser {
        self.user.ids
    }

    /// Ends every process of the machine, daemons that have left their session too: HUP and TERM, CONT for those that
    /// are stopped and would not notice, and KILL after the grace. True if all of them ended in time.
    pub async fn stop(&self, grace: Duration) -> bool {
        for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGCONT] {
            processes::signal_everything(signal);
        }
        // Whatever dies last is reaped here, because PID 1 inherits it.
        let ended = timeout(grace, self.reaper.until(|| !processes::programs_alive())).await.is_ok();
        processes::signal_everything(Signal::SIGKILL);
        ended
    }

    /// Ends every program but those of the sessions in `spared`, which are to end after them.
    pub async fn stop_beside(&self, spared: &[Pid], grace: Duration) {
        for signal in [Sent::HUP, Sent::TERM, Sent::CONT] {
            processes::signal_beside(spared, signal);
        }
        let _ = timeout(grace, self.reaper.until(|| !processes::alive_beside(spared))).await;
        processes::signal_beside(spared, Sent::KILL);
    }
}
