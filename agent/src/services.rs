//! Services: programs that run beside the main process, in the order in which they need each other.
//!
//! ```text
//!  waiting ──► starting ──► ready ──► done        ended well, and is not started again
//!     │         ▲    │        │
//!     │         │    ▼        ▼
//!     │        backoff ◄──────┘                   any of them ──► stopping ──► stopped
//!     ▼         │
//!   failed ◄────┘                                 given up, which ends the sandbox where it is critical
//! ```
//!
//! One task a service ([`keep`]) moves it, and looks at where it stands before each step: a task that panicked is
//! started again and goes on with the program that runs. What others see is the same state.

mod image;
mod keep;
mod notify;
mod probe;
mod stop;
mod unit;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::budget::SERVICES_NOTE_MAX;
use proto::service::{Service, ServiceState, ServiceStatus};
use rustix::process::Pid;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::workload::Workload;
use crate::workload::ring::Stream;
use unit::Unit;

pub use image::read as read_image;
pub use unit::KILLED;

/// Where the notify sockets are.
pub const RUN_DIRECTORY: &str = "/run/openshell/notify";
/// Before the task of a service is started again that panicked.
const RESTART: Duration = Duration::from_secs(1);

/// Takes what a service writes, with the service's name. Never waits: whoever keeps it forgets the oldest.
pub type Sink = Arc<dyn Fn(&str, Stream, &[u8]) + Send + Sync>;

/// All services of this guest.
pub struct Services {
    /// In an order in which they can be started.
    units: Vec<Unit>,
    sink: Sink,
    run_directory: PathBuf,
    /// Rises with every change of any of them.
    changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
}

impl Services {
    /// Of these, of which none runs yet. They are in the order of [`proto::service::order`].
    pub fn new(services: Vec<Service>, workload: &Workload, run_directory: PathBuf, sink: Sink) -> Arc<Self> {
        let names: Vec<String> = services.iter().map(|service| service.name.clone()).collect();
        let units = services.into_iter().map(|service| Unit::new(service, &names, workload)).collect();
        let (changed, stopping) = (watch::Sender::new(0), watch::Sender::new(false));
        Arc::new(Self { units, sink, run_directory, changed, stopping })
    }

    /// Starts them, each once what it depends on is there, and keeps them running.
    pub fn start(self: &Arc<Self>) {
        for index in 0..self.units.len() {
            let services = self.clone();
            tokio::spawn(async move {
                loop {
                    let kept = services.clone();
                    let ended = tokio::spawn(async move { kept.keep(index).await }).await;
                    tracing::error!(service = services.units[index].spec.name, ?ended, "the task of a service ended");
                    sleep(RESTART).await;
                }
            });
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Changes whenever any of them does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when every service that the main process waits for is ready, or will not be.
    ///
    /// # Errors
    /// Those that were not within `deadline`.
    pub async fn settled(&self, deadline: Duration) -> Result<(), Vec<String>> {
        let open = || {
            let waited_for = self.units.iter().filter(|unit| !unit.spec.optional && !unit.is_settled());
            waited_for.map(|unit| unit.spec.name.clone()).collect::<Vec<_>>()
        };
        let mut changes = self.changes();
        let settled = timeout(deadline, changes.wait_for(|_| open().is_empty())).await;
        settled.map(drop).map_err(|_| open())
    }

    /// Resolves when the sandbox is not worth running any more: which service is the reason, and why.
    pub async fn lost(&self) -> String {
        let lost = || {
            let failed = |unit: &&Unit| unit.spec.critical && unit.state() == ServiceState::Failed;
            self.units.iter().find(failed).map(|unit| {
                let ServiceStatus { name, message, .. } = unit.status();
                format!("critical service `{name}` failed: {message}{}", unit.last_words())
            })
        };
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Some(why) = lost() {
                return why;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Those that are not as they should be, in one line; empty where all are.
    pub fn note(&self) -> String {
        let not_well = |status: &ServiceStatus| !status.ready && status.state != ServiceState::Done;
        let statuses = self.report().into_iter().filter(not_well);
        let words = statuses.map(|status| match status.message.as_str() {
            "" => format!("`{}` is {}", status.name, status.state.name()),
            why => format!("`{}` is {}: {why}", status.name, status.state.name()),
        });
        let mut note = words.collect::<Vec<_>>().join("; ");
        note.truncate(note.floor_char_boundary(SERVICES_NOTE_MAX));
        note
    }

    /// How all of them are.
    pub fn report(&self) -> Vec<ServiceStatus> {
        self.units.iter().map(Unit::status).collect()
    }

    /// The sessions of those that run.
    pub fn sessions(&self) -> Vec<Pid> {
        self.units.iter().filter_map(|unit| Some(unit.run()?.family.leader)).collect()
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Told after every change of a unit.
    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Passes on what a service wrote, or what there is to say of it.
    fn say(&self, unit: &Unit, stream: Stream, bytes: &[u8]) {
        unit.remember(stream, bytes);
        (self.sink)(&unit.spec.name, stream, bytes);
    }
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.units.iter().map(|unit| &unit.spec.name)).finish()
    }
}
