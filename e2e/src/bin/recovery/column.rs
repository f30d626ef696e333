//! One runtime: a world of its own with the sandboxes that all of its cases share.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use e2e::programs::{guest_probe, probe_as_agent, program};
use e2e::world::World;
use proto::budget;
use proto::openshell::v1::Sandbox;
use tokio::sync::Semaphore;

use crate::cases::Case;
use crate::table::Cell;
use crate::{Runtime, Shared};

/// How much longer than a token lives an outage lasts.
pub(crate) const BEYOND: Duration = Duration::from_secs(5);

/// Only runs, and is stopped and started once.
pub(crate) const STEADY: &str = "steady";
/// Is stopped for long.
pub(crate) const RESTED: &str = "rested";
/// Its vmm is killed; later its guest's clock is set.
pub(crate) const KILLED: &str = "killed";
/// Its vmm stands still.
pub(crate) const FROZEN: &str = "frozen";
/// All of them: as many as fit a small machine at once.
pub(crate) const SANDBOXES: [&str; 4] = [STEADY, RESTED, KILLED, FROZEN];

/// See the module.
pub(crate) struct Column {
    pub(crate) runtime: Runtime,
    pub(crate) world: World,
    pub(crate) ttl: Duration,
    /// As they were created, and when.
    pub(crate) sandboxes: HashMap<&'static str, (Sandbox, Instant)>,
    /// From create to Ready, at worst.
    set_up: Duration,
    /// The bound allows one set-up: a machine with one processor is asked for one at a time.
    pub(crate) starts: Semaphore,
    shared: Shared,
}

impl Column {
    /// A gateway and its sandboxes.
    pub(crate) async fn open(runtime: Runtime, ttl: Duration, shared: Shared) -> Self {
        let mut world = match runtime {
            Runtime::Vm => with_guest_root(World::empty(ttl).without_trial_boot()),
            Runtime::Fake => World::empty(ttl).with_fake_vmm(),
        };
        world.up().await;
        let (mut sandboxes, mut set_up) = (HashMap::new(), Duration::ZERO);
        for name in SANDBOXES {
            let began = Instant::now();
            let sandbox = world.ready(name, &[]).await;
            set_up = set_up.max(began.elapsed());
            sandboxes.insert(name, (sandbox, Instant::now()));
        }
        let column = Self { runtime, world, ttl, sandboxes, set_up, starts: Semaphore::new(1), shared };
        column.say(&format!(
            "one set-up takes {:.1} s, every case at most {:.1} s",
            set_up.as_secs_f64(),
            column.bound().as_secs_f64()
        ));
        column
    }

    /// In which time everything has to be back: three heartbeats, the longest pause of the agent, one set-up.
    pub(crate) fn bound(&self) -> Duration {
        budget::HEARTBEATS_MISSED * budget::heartbeat(self.ttl) + budget::RECONNECT_MAX + self.set_up
    }

    /// An outage that no token outlives.
    pub(crate) fn past_ttl(&self) -> Duration {
        self.ttl + BEYOND
    }

    /// The jailed children of these sandboxes.
    pub(crate) fn children(&self, names: &[&str]) -> Vec<u32> {
        names.iter().map(|name| self.world.vmm(&self.sandboxes[name].0).child).collect()
    }

    /// Runs a case and takes down what it gives: how long it took, or why it failed.
    pub(crate) async fn case(&self, case: Case, run: impl Future<Output = Result<Duration, String>>) {
        if self.begin(case) {
            let outcome = run.await;
            self.end(case, outcome);
        }
    }

    /// Whether the case is to be run here.
    pub(crate) fn begin(&self, case: Case) -> bool {
        let mut table = self.shared.borrow_mut();
        let wanted = table.is_open(self.runtime, case);
        if wanted {
            table.begin(self.runtime, case);
        }
        wanted
    }

    /// See [`Self::case`].
    pub(crate) fn end(&self, case: Case, outcome: Result<Duration, String>) {
        let bound = self.bound();
        let cell = match outcome {
            Ok(took) if took <= bound => Cell::Ok { took, bound },
            Ok(took) => Cell::Failed(format!("back after {:.1} of {:.1} s", took.as_secs_f64(), bound.as_secs_f64())),
            Err(why) => Cell::Failed(why),
        };
        self.say(&format!("{}: {cell}", case.name()));
        self.shared.borrow_mut().put(self.runtime, case, cell);
    }

    fn say(&self, what: &str) {
        println!("{:<4}  {what}", self.runtime.name());
    }

    /// What one wants to see where anything failed.
    pub(crate) fn say_evidence(&self) {
        if self.shared.borrow().has_failed(self.runtime) {
            eprintln!("{}", self.world.last_words());
        }
    }
}

/// Somebody in the guest has to be root to set its clock, which no workload is: an agent with root beside it.
fn with_guest_root(world: World) -> World {
    let agent = fs::read(program("openshell-agent")).expect("read the agent");
    let last_line = format!("\nagent {}\n", fs::metadata(guest_probe()).expect("the probe").len());
    let path = world.log().with_file_name("agent-and-root");
    probe_as_agent(&path, &[&agent[..], last_line.as_bytes()].concat());
    world.with("OPENSHELL_GATEWAY_AGENT_BIN", &path.display().to_string())
}
