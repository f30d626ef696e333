//! A workload whose programs are real, and a place where they leave word.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent::services::{Services, Sink, read_image};
use agent::workload::Workload;
use agent::workload::passwd::User;
use agent::workload::reaper::Reaper;
use agent::workload::secrets::Secrets;
use proto::boot::DEFAULT_USER;
use proto::layout;
use proto::service::{ServiceState, ServiceStatus};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use tokio::time::timeout;

/// Nothing in these tests takes longer, on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    runtime: tokio::runtime::Handle,
    workload: Workload,
}

/// One for all tests of this process: there can be only one reaper. Nothing where the machine does not let us.
pub(crate) fn workload_or_skip() -> Option<&'static Fixture> {
    static FIXTURE: OnceLock<Result<Fixture, String>> = OnceLock::new();
    match FIXTURE.get_or_init(Fixture::new) {
        Ok(fixture) => Some(fixture),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

impl Fixture {
    fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("starting a workload needs root".to_owned());
        }
        let identity = std::env::temp_dir().join(format!("openshell-services-test-{}", std::process::id()));
        let (ready, started) = std::sync::mpsc::channel();
        let directory = identity.clone();
        let reaper = Arc::new(Reaper::default());
        let reaping = reaper.clone();
        // All programs are started from this thread, whose mounts are its own, as those of a guest are.
        std::thread::spawn(move || {
            let mounted = mount_identity(&directory);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            ready.send(mounted.map(|()| runtime.handle().clone())).unwrap();
            runtime.block_on(reaping.run()).unwrap();
        });
        let runtime = started.recv().unwrap().map_err(|error| format!("no mount namespace: {error}"))?;
        let workload = Workload {
            user: User::find("sandbox:x:1000:1000::/:/bin/sh", DEFAULT_USER),
            environment: Default::default(),
            workdir: None,
            secrets: Arc::new(Secrets::new(false)),
            agent: env!("CARGO_BIN_EXE_openshell-agent").into(),
            identity,
            cgroup: None,
            reaper,
            logs: Default::default(),
        };
        Ok(Self { runtime, workload })
    }

    /// Runs a test with a deadline.
    pub(crate) fn run(&'static self, test: impl AsyncFnOnce(&'static Self)) {
        let outcome = self.runtime.block_on(async { timeout(DEADLINE, test(self)).await });
        outcome.expect("the test took too long");
    }
}

fn mount_identity(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), None)?;
    fs::write(directory.join(layout::TOKEN_FILE), "a token")
}

/// Services that run, and the directory in which they leave word.
pub(crate) struct Running {
    pub(crate) services: Arc<Services>,
    directory: tempfile::TempDir,
}

/// Appends a line to the log of all.
const SAY: &str = "say() { echo \"$*\" >> @/log; }";

impl Running {
    /// Starts services that are given as names and declarations. In each `@` stands for the directory, and `sh` begins
    /// a command that can `say` something to the log.
    pub(crate) fn start(fixture: &'static Fixture, declarations: &[(&str, &str)], sink: Sink) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let image = directory.path().join("services.d");
        fs::create_dir(&image).unwrap();
        for (name, text) in declarations {
            let text = text.replace("sh = '", &format!("command = [\"/bin/sh\", \"-c\", '{SAY}; "));
            let text = text.replace("END'", "']").replace('@', &directory.path().display().to_string());
            fs::write(image.join(format!("{name}.toml")), text).unwrap();
        }
        let read = read_image(&image, vec![]).unwrap();
        let services = Services::new(read, &fixture.workload, directory.path().join("notify"), sink);
        let started = services.clone();
        // On the thread that owns the mounts.
        fixture.runtime.spawn(async move { started.start() });
        Self { services, directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub(crate) fn status(&self, name: &str) -> ServiceStatus {
        self.services.report().into_iter().find(|status| status.name == name).unwrap()
    }

    /// Waits for a state.
    pub(crate) async fn reaches(&self, name: &str, state: ServiceState) -> ServiceStatus {
        self.until(name, |status| status.state == state).await
    }

    pub(crate) async fn until(&self, name: &str, holds: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
        let mut changes = self.services.changes();
        let reached = timeout(DEADLINE / 2, changes.wait_for(|_| holds(&self.status(name)))).await;
        let status = self.status(name);
        assert!(reached.is_ok(), "{status:?}; log: {:?}", self.log());
        drop(reached);
        status
    }
}

/// A sink that keeps nothing.
pub(crate) fn nowhere() -> Sink {
    Arc::new(|_, _, _| {})
}

/// A copy of this test program that every user may run.
pub(crate) fn own_program(running_in: &Path) -> PathBuf {
    let copy = running_in.join("speaker");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}
