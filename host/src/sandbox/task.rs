//! The task that owns one sandbox: takes events one at a time, lets [`decide`] say what they mean, does it,
//! and publishes what became of it. Ends when the sandbox is removed.

use std::sync::Arc;
use std::time::Duration;

use proto::vmm::ExitRecord;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::decide::{Action, Event, Machine, Refusal, Timer, decide, timer};
use super::driver::{ComputeDriver, DriverReason, Task};
use super::link::Link;
use super::phase::Phase;
use super::record::{MainRuns, Record, Store};
use super::view::{View, wall_ms};
use crate::identity::host_key::HostKeys;
use crate::rotation::clock::Clock;
use crate::rotation::rotor::Rotation;

mod actions;
mod evidence;
mod handle;
mod requests;
mod resume;

use evidence::{CRASH_LOOP, crash_loop};
use handle::Command;
pub use handle::{AskError, Handle};
pub use requests::{ConfigureError, RevokeError};

/// When a removal, or a word to the store, that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What every sandbox task works with.
pub struct Deps {
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// What makes compute.
    pub driver: Arc<dyn ComputeDriver>,
    /// What keeps tokens fresh.
    pub rotation: Rotation,
    /// How the sandbox reaches the gateway.
    pub link: Arc<dyn Link>,
    /// SSH host keys.
    pub host_keys: Arc<HostKeys>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Deadlines.
    pub times: Times,
}

/// The deadlines of [`Timer`].
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From launch to hello.
    pub boot: Duration,
    /// From stop order to kill.
    pub stop: Duration,
    /// Without a session until a restart.
    pub disconnected: Duration,
}

impl Times {
    fn of(&self, timer: Timer) -> Duration {
        match timer {
            Timer::Boot => self.boot,
            Timer::Stop | Timer::PowerOff => self.stop,
            Timer::Disconnected => self.disconnected,
            Timer::Remove => AGAIN,
        }
    }
}

/// Reason of a sandbox that its agent gave up.
const SERVICE_FAILED: &str = "ServiceFailed";

/// How a task begins.
pub enum Beginning {
    /// Just created: launch its first boot.
    Created,
    /// Found in the store by a new gateway; told once it has been compared with what is.
    Found(oneshot::Sender<()>),
}

/// How a task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The sandbox is removed.
    Removed,
    /// A defect: the sandbox is as the store knows it.
    Panicked,
}

/// Starts the task of `record`; `ended` runs when it ends.
pub fn spawn(
    deps: Arc<Deps>,
    mut record: Record,
    beginning: Beginning,
    ended: impl FnOnce(Ending) + Send + 'static,
) -> Handle {
    // Of an earlier gateway's session nothing is left.
    record.machine.connected = false;
    let (commands, inbox) = mpsc::channel(32);
    let session_since_ms = wall_ms(&*deps.clock);
    let (publisher, view) = watch::channel(Arc::new(View { record: record.clone(), session_since_ms }));
    // Who sees the last view close must not find the sandbox any more.
    let open = publisher.clone();
    let handle = Handle::new(&record, commands, view);
    let owner =
        Owner { deps, record, publisher, session_since_ms, gone: None, deadline: None, up_since: None, removed: false };
    tokio::spawn(async move {
        let outcome = tokio::spawn(owner.run(inbox, beginning)).await;
        ended(if outcome.is_ok() { Ending::Removed } else { Ending::Panicked });
        drop(open);
    });
    handle
}

struct Owner {
    deps: Arc<Deps>,
    record: Record,
    publisher: watch::Sender<Arc<View>>,
    session_since_ms: u64,
    gone: Option<Task<'static, Option<ExitRecord>>>,
    deadline: Option<(Timer, Instant)>,
    up_since: Option<Instant>,
    removed: bool,
}

enum Next {
    Command(Option<Command>),
    Gone(Option<ExitRecord>),
    TimeUp,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, beginning: Beginning) {
        match beginning {
            Beginning::Created => self.carry_out(vec![Action::Launch]).await,
            Beginning::Found(resumed) => {
                self.resume().await;
                self.publish();
                // Whoever starts the gateway waits only so long.
                let _nobody_waits = resumed.send(());
            }
        }
        while !self.removed {
            self.arm();
            self.publish();
            match self.next(&mut inbox).await {
                Next::Command(Some(Command::Ask { event, instance, why, reply })) => {
                    let decided = self.ask(event, instance, why).await;
                    self.publish();
                    let (answer, actions) = match decided {
                        Ok(actions) => (Ok(Arc::new(self.snapshot())), actions),
                        Err(error) => (Err(error), vec![]),
                    };
                    // Decided and durable: that is the answer. The asker may have left.
                    drop(reply.send(answer));
                    self.carry_out(actions).await;
                }
                // Whoever asked may have left; it is done all the same.
                Next::Command(Some(Command::Revoke(reply))) => drop(reply.send(self.revoke().await)),
                Next::Command(Some(Command::Configure(update, reply))) => drop(reply.send(self.configure(update))),
                Next::Command(Some(Command::MainRuns { instance, runs, reply })) => {
                    self.main_runs(&instance, runs);
                    let _agent_left = reply.send(());
                }
                Next::Command(None) => return,
                Next::Gone(exit) => self.compute_gone(exit).await,
                Next::TimeUp => {
                    let timer = self.deadline.take().map(|(timer, _)| timer);
                    if timer == Some(Timer::Disconnected) && self.token_is_over() {
                        tracing::error!(sandbox = %self.record.id, "no session, and no token can be published: a restart would not help");
                        continue;
                    }
                    self.happened(Event::TimeUp).await;
                }
            }
        }
    }

    async fn next(&mut self, inbox: &mut mpsc::Receiver<Command>) -> Next {
        let deadline = self.deadline.map(|(_, at)| at);
        let gone = self.gone.as_mut();
        tokio::select! {
            command = inbox.recv() => Next::Command(command),
            exit = async { gone.expect("guarded").await }, if gone.is_some() => Next::Gone(exit),
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Next::TimeUp,
        }
    }

    fn token_is_over(&self) -> bool {
        let now = self.deps.clock.now().unix();
        self.deps.rotation.published(self.record.id).is_none_or(|token| token.exp <= now)
    }

    async fn ask(
        &mut self,
        event: Event,
        instance: Option<String>,
        why: Option<String>,
    ) -> Result<Vec<Action>, AskError> {
        if instance.is_some_and(|instance| instance != self.record.instance_id) {
            return Err(AskError::Late);
        }
        let phase = self.record.machine.phase;
        let note = why.map(|why| std::mem::replace(&mut self.record.note, why));
        let decided = self.apply(event).await;
        if let (Err(_), Some(note)) = (&decided, note) {
            self.record.note = note;
        }
        match decided {
            Ok(actions) => Ok(actions),
            Err(Ok(Refusal::AlreadySo)) => Err(AskError::AlreadySo),
            Err(Ok(Refusal::Cannot)) => Err(AskError::Cannot(phase)),
            Err(Ok(Refusal::Late)) => Err(AskError::Late),
            Err(Err(message)) => Err(AskError::Store(message)),
        }
    }

    /// An event that nobody asked for; `false` where it could not be recorded, and so was not decided about.
    async fn happened(&mut self, event: Event) -> bool {
        match self.apply(event).await {
            Ok(actions) => self.carry_out(actions).await,
            Err(Ok(_refusal)) => {}
            Err(Err(message)) => {
                tracing::error!(sandbox = %self.record.id, error = %message, "failed to record what happened");
                return false;
            }
        }
        true
    }

    /// Decides, and makes the decision durable before anything is done about it.
    async fn apply(&mut self, event: Event) -> Result<Vec<Action>, Result<Refusal, String>> {
        let before = &self.record.machine;
        let (machine, actions) = decide(before, event).map_err(Ok)?;
        let mut record = self.record.clone();
        if machine.phase != before.phase {
            record.phase_since_ms = wall_ms(&*self.deps.clock);
        }
        if machine.boot != before.boot {
            record.note.clear();
            record.reason.clear();
        }
        match (machine.phase, before.phase) {
            (Phase::Error, Phase::Error) => {}
            (Phase::Error, _) => {
                record.note = self.evidence(event);
                if event == Event::AgentRefused {
                    record.reason = DriverReason::Agent.name();
                } else if machine.crash_loop {
                    (record.note, record.reason) = (crash_loop(&record), CRASH_LOOP.into());
                }
                if event == Event::GivenUp {
                    record.reason = SERVICE_FAILED.into();
                }
            }
            (Phase::Ready, phase) if phase.is_booting() => {
                record.note.clear();
                record.reason.clear();
            }
            _ => {}
        }
        let now = Instant::now();
        if machine.connected != before.connected {
            self.session_since_ms = wall_ms(&*self.deps.clock);
        }
        if machine.connected && self.up_since.is_none() {
            self.up_since = Some(now);
        }
        // Sessions come and go without the disk: of theirs, nothing is left after a restart anyway.
        let passing = Machine { connected: before.connected, epoch: before.epoch, ..machine.clone() } == *before;
        record.machine = machine;
        if passing {
            record.version += 1;
            self.record = record;
            return Ok(actions);
        }
        self.save(record).map_err(Err)?;
        tracing::info!(sandbox = %self.record.id, name = %self.record.name, ?event, phase = self.record.machine.phase.name(),
            boot = self.record.machine.boot, "sandbox moved");
        Ok(actions)
    }

    fn save(&mut self, mut record: Record) -> Result<(), String> {
        record.version += 1;
        self.deps.store.update(&record).map_err(|e| e.to_string())?;
        self.record = record;
        Ok(())
    }

    /// Arms the deadline of the state that we are in; keeps the one that runs if it is the same.
    fn arm(&mut self) {
        let machine = &self.record.machine;
        match (timer(machine), self.deadline) {
            // The deadline of a start is for all of its boots.
            (Some(wanted), Some((running, _))) if wanted == running => {}
            (Some(wanted), _) => self.deadline = Some((wanted, Instant::now() + self.deps.times.of(wanted))),
            (None, _) => self.deadline = None,
        }
    }

    /// The agent of one boot tells of its main process. Without the disk, as for sessions: it tells again.
    fn main_runs(&mut self, instance: &str, runs: MainRuns) {
        // By two connections, one of which may overtake the other.
        let late = runs.restarts < self.record.main.restarts || runs.crash_loop < self.record.main.crash_loop;
        if instance == self.record.instance_id && runs != self.record.main && !late {
            self.record.main = runs;
            self.record.version += 1;
            self.publish();
        }
    }

    fn snapshot(&self) -> View {
        View { record: self.record.clone(), session_since_ms: self.session_since_ms }
    }

    fn publish(&self) {
        let view = self.snapshot();
        self.publisher.send_if_modified(|old| {
            let changed = **old != view;
            if changed {
                *old = Arc::new(view);
            }
            changed
        });
    }
}
