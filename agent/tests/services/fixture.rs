//! Services whose programs are real, and a place where they leave word.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use agent::services::{Services, Sink, read_image};
use proto::service::{ServiceState, ServiceStatus};
use tokio::time::timeout;

#[path = "../workload/programs.rs"]
mod programs;

use programs::{DEADLINE, Programs, or_skip};

pub(crate) struct Fixture(Programs);

pub(crate) fn workload_or_skip() -> Option<&'static Fixture> {
    static FIXTURE: OnceLock<Result<Fixture, String>> = OnceLock::new();
    or_skip(FIXTURE.get_or_init(|| Programs::new(&[]).map(Fixture)))
}

impl Fixture {
    /// Runs a test with a deadline.
    pub(crate) fn run(&'static self, test: impl AsyncFnOnce(&'static Self)) {
        self.0.run(test(self));
    }
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
        let services = Services::new(read, &fixture.0.workload, directory.path().join("notify"), sink);
        let started = services.clone();
        // On the thread that owns the mounts.
        fixture.0.spawn(async move { started.start() });
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
