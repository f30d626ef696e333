//! A workload whose programs are real, on a thread whose mounts are its own, as those of a guest are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::workload::Workload;
use agent::workload::binary::Binary;
use agent::workload::passwd::User;
use agent::workload::reaper::Reaper;
use agent::workload::secrets::Secrets;
use proto::boot::DEFAULT_USER;
use proto::layout;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Nothing in these tests takes longer, on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Programs {
    pub(crate) workload: Arc<Workload>,
    runtime: Handle,
}

impl Programs {
    /// One for all tests of a process: there can be only one reaper. An error where the machine does not let us.
    pub(crate) fn new(environment: &[(&str, &str)]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("starting a workload needs root".to_owned());
        }
        let identity = std::env::temp_dir().join(format!("openshell-agent-test-{}", std::process::id()));
        let (ready, started) = std::sync::mpsc::channel();
        let directory = identity.clone();
        let reaper = Arc::new(Reaper::default());
        let reaping = reaper.clone();
        // All programs are started from this thread.
        std::thread::spawn(move || {
            let mounted = mount_identity(&directory);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(mounted.map(|()| runtime.handle().clone())).unwrap();
            runtime.block_on(reaping.run()).unwrap();
        });
        let runtime = started.recv().unwrap().map_err(|error| format!("no mount namespace: {error}"))?;
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let workload = Workload {
            user: User::find("sandbox:x:1000:1000::/:/bin/sh", DEFAULT_USER),
            environment: environment.collect::<BTreeMap<_, _>>(),
            workdir: None,
            secrets: Arc::new(Secrets::new(false)),
            agent: Arc::new(Binary::new(env!("CARGO_BIN_EXE_openshell-agent").into())),
            identity,
            cgroup: None,
            reaper,
            logs: Default::default(),
        };
        Ok(Self { workload: Arc::new(workload), runtime })
    }

    /// Runs a test with a deadline. What it spawns runs on the thread that owns the mounts.
    pub(crate) fn run(&self, test: impl Future<Output = ()>) {
        let outcome = self.runtime.block_on(async { timeout(DEADLINE, test).await });
        outcome.expect("the test took too long");
    }

    /// Runs beside the tests, on the thread that owns the mounts.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

/// What `made` holds; where it is a reason, it is said, and the test does not run.
pub(crate) fn or_skip<T>(made: &'static Result<T, String>) -> Option<&'static T> {
    made.as_ref().inspect_err(|reason| eprintln!("skipped: {reason}")).ok()
}

fn mount_identity(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), None)?;
    fs::write(directory.join(layout::TOKEN_FILE), "a token")
}
