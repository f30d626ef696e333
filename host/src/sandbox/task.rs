//! The task that owns one sandbox: takes events one at a time, lets [`decide`] say what they mean, does it,
//! and publishes what became of it. Ends when the sandbox is removed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::layout::SHARE_DIR;
use proto::vmm::{Ended, ExitRecord, FailureKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::decide::{Action, Event, Machine, Refusal, Timer, decide, timer};
use super::driver::{ComputeDriver, DriverReason, Task};
use super::launch::{LaunchError, launch};
use super::link::Link;
use super::phase::Phase;
use super::record::{Record, Store};
use super::view::{View, instance_id, wall_ms};
use crate::identity::host_key::HostKeys;
use crate::rotation::clock::Clock;
use crate::rotation::error::RotationError;
use crate::rotation::publish::IdentityDirectory;
use crate::rotation::rotor::Rotation;

/// A boot that ends sooner than this after its hello counts as a crash.
const EARLY: Duration = Duration::from_secs(30);
/// How much of the console goes into the evidence of a failure.
const CONSOLE_LINES: usize = 12;
/// When a removal, or a word to the store, that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// After as many failures to listen for a running sandbox it is restarted.
const LISTEN_TRIES: u32 = 10;

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

/// Why an ask was not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// It is already as asked.
    AlreadySo,
    /// Not from this phase.
    Cannot(Phase),
    /// The word came from an earlier boot, or too late.
    Late,
    /// The sandbox is gone.
    Gone,
    /// The store failed.
    Store(String),
}

enum Command {
    Ask { event: Event, instance: Option<String>, reply: oneshot::Sender<Result<Arc<View>, AskError>> },
}

/// How everybody else holds a sandbox.
#[derive(Clone)]
pub struct Handle {
    /// Identity.
    pub id: Uuid,
    /// Name.
    pub name: String,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
}

impl Handle {
    /// The latest snapshot.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Snapshots as they come; closes when the sandbox is gone.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Start, stop or delete.
    ///
    /// # Errors
    /// Typed; see [`AskError`].
    pub async fn ask(&self, event: Event) -> Result<Arc<View>, AskError> {
        self.send(event, None).await
    }

    /// What the agent of one boot says.
    ///
    /// # Errors
    /// [`AskError::Late`] where `instance` is not the current boot.
    pub async fn told(&self, instance: &str, event: Event) -> Result<Arc<View>, AskError> {
        self.send(event, Some(instance.to_string())).await
    }

    async fn send(&self, event: Event, instance: Option<String>) -> Result<Arc<View>, AskError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask { event, instance, reply }).await.map_err(|_| AskError::Gone)?;
        answer.await.map_err(|_| AskError::Gone)?
    }
}

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
    let handle = Handle { id: record.id, name: record.name.clone(), commands, view };
    let owner =
        Owner { deps, record, publisher, session_since_ms, gone: None, deadline: None, up_since: None, removed: false };
    tokio::spawn(async move {
        let outcome = tokio::spawn(owner.run(inbox, beginning)).await;
        ended(if outcome.is_ok() { Ending::Removed } else { Ending::Panicked });
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
                Next::Command(Some(Command::Ask { event, instance, reply })) => {
                    let decided = self.ask(event, instance).await;
                    self.publish();
                    let (answer, actions) = match decided {
                        Ok(actions) => (Ok(Arc::new(self.snapshot())), actions),
                        Err(error) => (Err(error), vec![]),
                    };
                    // Decided and durable: that is the answer. The asker may have left.
                    drop(reply.send(answer));
                    self.carry_out(actions).await;
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

    /// A new gateway finds a sandbox as an earlier one left it: compares with what is, and goes on from there.
    async fn resume(&mut self) {
        let (id, phase) = (self.record.id, self.record.machine.phase);
        let running = self.deps.driver.is_running(id);
        if !phase.has_compute() {
            if running {
                self.carry_out(vec![Action::Kill]).await;
            }
            // The earlier gateway may have ended before it did this.
            self.withdraw().await;
            return;
        }
        if running {
            self.watch_compute();
            self.adopt().await;
            return;
        }
        let exit = self.deps.driver.wait_gone(id).await;
        let of_this_boot = exit.as_ref().is_some_and(|exit| exit.instance_id == self.record.instance_id);
        if phase.is_booting() && !of_this_boot {
            // The earlier gateway ended between its decision and the compute: that is no failed boot.
            self.carry_out(vec![Action::Launch]).await;
        } else {
            self.compute_gone(exit).await;
        }
    }

    /// Takes over running compute: a fresh token first, then the listener, so that a session finds one behind it.
    async fn adopt(&mut self) {
        let id = self.record.id;
        let places = match self.deps.driver.prepare(id) {
            Ok(places) => places,
            Err(error) => return self.lost(error.to_string()).await,
        };
        match self.deps.rotation.adopt(id, places.directory, places.owner).await {
            Ok(_) | Err(RotationError::AlreadyEnrolled { .. }) => {}
            Err(error @ RotationError::Directory { .. }) => return self.lost(error.to_string()).await,
            // Its attempts go on; the token that is there stays.
            Err(error) => tracing::error!(sandbox = %id, %error, "failed to publish a token of a running sandbox"),
        }
        for _ in 0..LISTEN_TRIES {
            let Err(error) = self.deps.link.open(id, &places.socket) else { return };
            tracing::error!(sandbox = %id, error, "failed to listen for a running sandbox; trying again");
            tokio::time::sleep(AGAIN).await;
        }
        self.lost(format!("no listener at {}", places.socket.display())).await;
    }

    /// What the guest holds on to is gone: only a restart brings it back.
    async fn lost(&mut self, why: String) {
        tracing::error!(sandbox = %self.record.id, why, "failed to adopt a running sandbox");
        self.record.note = why;
        self.happened(Event::DirectoryLost).await;
    }

    fn token_is_over(&self) -> bool {
        let now = self.deps.clock.now().unix();
        self.deps.rotation.published(self.record.id).is_none_or(|token| token.exp <= now)
    }

    async fn ask(&mut self, event: Event, instance: Option<String>) -> Result<Vec<Action>, AskError> {
        if instance.is_some_and(|instance| instance != self.record.instance_id) {
            return Err(AskError::Late);
        }
        let phase = self.record.machine.phase;
        match self.apply(event).await {
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
            (Phase::Error, _) => record.note = self.evidence(event),
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

    async fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.into();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Launch => {
                    if let Err(error) = self.launch().await {
                        self.record.note = error.message;
                        self.record.reason = error.reason;
                        match self.apply(Event::LaunchFailed).await {
                            Ok(more) => todo.extend(more),
                            Err(refused) => tracing::error!(sandbox = %self.record.id, ?refused, "launch failed"),
                        }
                    }
                }
                Action::OrderStop => {
                    self.publish();
                    self.deps.link.nudge(self.record.id);
                }
                Action::Kill => self.kill().await,
                Action::Withdraw => self.withdraw().await,
                Action::Remove => self.remove().await,
            }
        }
    }

    async fn launch(&mut self) -> Result<(), LaunchError> {
        self.up_since = None;
        self.gone = None;
        let mut record = self.record.clone();
        record.instance_id = instance_id(record.machine.boot, Uuid::new_v4());
        // Durable before the compute exists: a gateway that dies here finds a compute that it knows.
        self.save(record)?;
        self.publish();
        let mut record = self.record.clone();
        let launched = launch(&self.deps, &mut record).await;
        let saved = self.save(record);
        launched?;
        saved?;
        self.watch_compute();
        Ok(())
    }

    fn watch_compute(&mut self) {
        self.gone = Some(self.deps.driver.wait_gone(self.record.id));
    }

    async fn compute_gone(&mut self, exit: Option<ExitRecord>) {
        self.gone = None;
        let early = self.up_since.take().is_some_and(|at| at.elapsed() < EARLY);
        let exit = exit.filter(|exit| exit.instance_id == self.record.instance_id);
        let how = describe(exit.as_ref());
        tracing::info!(sandbox = %self.record.id, early, how, "compute is gone");
        // Expected where it was told to end; and the evidence of an `Error` is about what came before.
        if self.record.machine.phase.is_booting() || self.record.machine.phase == Phase::Ready {
            self.record.note = how;
            self.record.reason = exit.as_ref().map(failure_reason).unwrap_or_default();
        }
        if !self.happened(Event::Gone { early }).await {
            // It is still gone: that is told again once the store may be back.
            let gone = self.deps.driver.wait_gone(self.record.id);
            self.gone = Some(Box::pin(async {
                tokio::time::sleep(AGAIN).await;
                gone.await
            }));
        }
    }

    async fn kill(&mut self) {
        let id = self.record.id;
        if let Err(error) = self.deps.driver.kill(id).await {
            tracing::error!(sandbox = %id, %error, "failed to end the compute");
            self.record.note = error.to_string();
        }
        if self.gone.is_none() && self.record.machine.phase.has_compute() {
            self.watch_compute();
        }
    }

    async fn withdraw(&mut self) {
        let id = self.record.id;
        self.deps.link.close(id);
        match self.deps.rotation.withdraw(id).await {
            Ok(()) => {}
            Err(RotationError::Unknown { .. }) => self.clear_token(),
            Err(error) => tracing::error!(sandbox = %id, %error, "failed to withdraw the token"),
        }
    }

    /// Rotation does not know the sandbox, but an earlier gateway's may have left a token on disk.
    fn clear_token(&self) {
        let id = self.record.id;
        if !self.deps.driver.found().contains(&id) {
            return;
        }
        let cleared = self.deps.driver.prepare(id).map_err(|error| error.to_string()).and_then(|places| {
            if !places.directory.join(SHARE_DIR).exists() {
                return Ok(());
            }
            let directory = IdentityDirectory::open(&places.directory, places.owner);
            directory.and_then(|mut directory| directory.remove_token()).map_err(|error| error.to_string())
        });
        if let Err(error) = cleared {
            tracing::error!(sandbox = %id, error, "failed to remove the token of a sandbox at rest");
        }
    }

    async fn remove(&mut self) {
        let id = self.record.id;
        if self.deps.driver.is_running(id) {
            return;
        }
        self.withdraw().await;
        let removed = match self.deps.driver.remove(id).await {
            Ok(()) => self.deps.store.remove(id).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match removed {
            Ok(()) => self.removed = true,
            // Tried again by the timer of this phase.
            Err(message) => {
                tracing::error!(sandbox = %id, error = %message, "failed to remove a sandbox");
                self.record.note = message;
            }
        }
    }

    /// Why the sandbox is given up, in one text for people.
    fn evidence(&self, event: Event) -> String {
        let mut parts = vec![];
        if event == Event::TimeUp {
            parts.push(format!("no hello from the agent within {:?}", self.deps.times.boot));
        }
        if !self.record.note.is_empty() {
            parts.push(self.record.note.clone());
        }
        let id = self.record.id;
        parts.extend(self.deps.link.refusals(id).iter().map(|refused| format!("refused: {refused}")));
        let console = self.deps.driver.console_tail(id, CONSOLE_LINES);
        if console.is_empty() {
            parts.push("the console is empty".into());
        } else {
            parts.push(format!("console:\n{console}"));
        }
        parts.join("; ")
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

/// What kept the vmm from starting, for programs.
fn failure_reason(exit: &ExitRecord) -> String {
    let Ended::Failed(failure) = &exit.ended else { return String::new() };
    let reason = match failure.kind {
        FailureKind::Spec => DriverReason::VmmSpec,
        FailureKind::AlreadyRunning => DriverReason::VmmAlreadyRunning,
        FailureKind::Libkrunfw => DriverReason::Libkrunfw,
        FailureKind::Kvm => DriverReason::Kvm,
        FailureKind::Jail => DriverReason::Jail,
        FailureKind::Libkrun => DriverReason::Libkrun,
    };
    reason.name()
}

/// How a vmm ended, for people. A record of another boot says nothing about this one.
fn describe(exit: Option<&ExitRecord>) -> String {
    let Some(exit) = exit else {
        return "the vmm ended and left no exit record (keeper killed, or host restarted)".into();
    };
    let how = match &exit.ended {
        Ended::Exited(code) => format!("the vmm exited with code {code}"),
        Ended::Signalled(signal) => format!("the vmm was killed by signal {signal}"),
        Ended::Killed => "the vmm was ended by the gateway".into(),
        Ended::Failed(failure) => format!("the vmm did not start: {}; {}", failure.message, failure.remedy),
    };
    match exit.stderr.trim() {
        "" => how,
        words => format!("{how}; its last words: {words}"),
    }
}
