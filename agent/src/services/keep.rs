//! The task of one service. Each turn looks at where the service stands and makes the one step that follows; a task
//! that is started anew does the same, and a program that runs is not started a second time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::budget;
use proto::service::{Readiness, ServiceState};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::notify::{NotifySocket, Word};
use super::unit::{EXIT_NOT_STARTED, Run, Unit};
use super::{Services, probe};
use crate::workload::output::Output;
use crate::workload::process::Process;
use crate::workload::reaper::{Exit, exited};
use crate::workload::ring::Stream;

/// How long the output of a run that has ended may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What was just started, for those who read its output.
struct Begun {
    exit: Exit,
    out: pipe::Receiver,
    err: Option<pipe::Receiver>,
    open: watch::Sender<()>,
}

/// The step that is next.
enum Step {
    Wait,
    Start,
    Watch(Run),
    Pause(Instant),
    Rest,
}

/// How what a service depends on is.
enum Dependencies {
    Met,
    Open(String),
    Lost(String),
}

impl Services {
    /// Keeps one service running. Ends only with its task.
    pub(super) async fn keep(self: Arc<Self>, index: usize) {
        let unit = &self.units[index];
        loop {
            match self.step(unit) {
                Step::Wait => self.wait(unit).await,
                Step::Start => self.start_run(index).await,
                Step::Watch(run) => self.watch(index, run).await,
                Step::Pause(until) => {
                    sleep_until(until.into()).await;
                    let mut slot = unit.slot();
                    if slot.state == ServiceState::Backoff {
                        slot.restarts += 1;
                        slot.enter(ServiceState::Starting, "");
                    }
                }
                Step::Rest => return std::future::pending().await,
            }
        }
    }

    fn step(&self, unit: &Unit) -> Step {
        let slot = unit.slot();
        // Whoever stops them moves them from then on.
        if self.is_stopping() {
            return Step::Rest;
        }
        match (slot.state, &slot.run) {
            (ServiceState::Waiting, _) => Step::Wait,
            (ServiceState::Starting | ServiceState::Ready, Some(run)) => Step::Watch(run.clone()),
            (ServiceState::Starting | ServiceState::Ready, None) => Step::Start,
            (ServiceState::Backoff, _) => Step::Pause(slot.next_run.unwrap_or_else(Instant::now)),
            _ => Step::Rest,
        }
    }

    async fn wait(&self, unit: &Unit) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let dependencies = match &unit.workload {
                Ok(_) => self.dependencies(unit),
                Err(no_user) => Dependencies::Lost(no_user.clone()),
            };
            if self.is_stopping() {
                return;
            }
            match dependencies {
                Dependencies::Met => return unit.slot().enter(ServiceState::Starting, ""),
                Dependencies::Lost(why) => return self.fail(unit, why),
                Dependencies::Open(what) => unit.slot().message = what,
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn dependencies(&self, unit: &Unit) -> Dependencies {
        let mut open = vec![];
        for (index, required) in &unit.on {
            let other = &self.units[*index];
            match other.state() {
                ServiceState::Failed if *required => {
                    return Dependencies::Lost(format!("requires `{}`, which failed", other.spec.name));
                }
                ServiceState::Failed => {}
                _ if other.is_ready() => {}
                _ => open.push(format!("`{}`", other.spec.name)),
            }
        }
        match open.is_empty() {
            true => Dependencies::Met,
            false => Dependencies::Open(format!("waits for {}", open.join(", "))),
        }
    }

    fn fail(&self, unit: &Unit, why: String) {
        tracing::error!(service = unit.spec.name, "a service failed: {why}");
        unit.slot().enter(ServiceState::Failed, why);
        self.touch();
    }

    async fn start_run(self: &Arc<Self>, index: usize) {
        let unit = &self.units[index];
        let Ok(workload) = &unit.workload else { return };
        if let Err(late) = workload.secrets.arrived(budget::SECRETS).await {
            return self.fail(unit, late);
        }
        let started = self.begin(unit);
        match started {
            Ok(Some(Begun { exit, out, err, open })) => {
                tokio::spawn(self.clone().carry(index, Stream::Out, Output::new(out, exit.clone()), open.clone()));
                if let Some(err) = err {
                    tokio::spawn(self.clone().carry(index, Stream::Err, Output::new(err, exit), open));
                }
            }
            Ok(None) => return,
            Err(why) => self.over(unit, EXIT_NOT_STARTED, Some(why)),
        }
        self.touch();
    }

    /// Starts the program, unless all are to stop: under the slot's lock, so that whoever stops finds it.
    fn begin(&self, unit: &Unit) -> Result<Option<Begun>, String> {
        let workload = unit.workload.as_ref().map_err(Clone::clone)?;
        let notify = match unit.spec.ready {
            Readiness::Notify => {
                let socket = NotifySocket::bind(&self.run_directory, &unit.spec.name, workload.ids().uid);
                Some(Arc::new(socket.map_err(|error| format!("failed to make its notify socket: {error}"))?))
            }
            _ => None,
        };
        let environment = unit.environment(notify.as_ref().map(|socket| socket.path()));
        let mut slot = unit.slot();
        if self.is_stopping() {
            return Ok(None);
        }
        let process = Process::start(workload, &unit.command(), &environment, None)?;
        let (open, output) = watch::channel(());
        let begun = Begun { exit: process.family.exit.clone(), out: process.stdout, err: process.stderr, open };
        let pid = process.family.leader.as_raw_nonzero();
        slot.run = Some(Run { family: process.family, began: Instant::now(), notify, output });
        tracing::info!(service = unit.spec.name, %pid, "service started");
        if unit.spec.ready == Readiness::Started {
            slot.ready = true;
            slot.enter(ServiceState::Ready, "");
        }
        Ok(Some(begun))
    }

    /// Output, until it ends: always read, so that no service waits for anybody who reads it.
    async fn carry(self: Arc<Self>, index: usize, stream: Stream, mut output: Output, open: watch::Sender<()>) {
        while let Some(bytes) = output.next().await {
            // A fault of whoever keeps the log must not close the pipe of a service.
            let said = catch_unwind(AssertUnwindSafe(|| self.say(&self.units[index], stream, &bytes)));
            drop(said);
        }
        drop(open);
    }

    /// From a running program to its end, or to the end of the time that it has to become ready.
    async fn watch(self: &Arc<Self>, index: usize, run: Run) {
        let unit = &self.units[index];
        let mut exit = run.family.exit.clone();
        let deadline = run.began + unit.spec.start_timeout;
        let mut probe = pin!(probe::succeeds(self.clone(), index));
        loop {
            let waits = !unit.slot().ready;
            let probes = waits && matches!(unit.spec.ready, Readiness::Command(_));
            tokio::select! {
                // First: a probe that has ended is not asked again.
                biased;
                () = self.stopped() => return,
                code = exited(&mut exit) => {
                    // Its last words are often the reason.
                    let _ = timeout(LAST_WORDS, run.output.clone().changed()).await;
                    return self.over(unit, code, None);
                }
                word = next_word(&run) => self.heard(unit, word),
                () = &mut probe, if probes => self.ready(unit),
                () = sleep_until(deadline.into()), if waits => {
                    unit.end(&run, unit.spec.stop_timeout).await;
                    let code = exit.borrow().unwrap_or(EXIT_NOT_STARTED);
                    let why = format!("was not ready within {:?}", unit.spec.start_timeout);
                    return self.over(unit, code, Some(why));
                }
            }
        }
    }

    async fn stopped(&self) {
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    fn heard(&self, unit: &Unit, word: Word) {
        if word.ready {
            self.ready(unit);
        }
        if let Some(status) = word.status {
            // Not a change that anybody waits for.
            unit.slot().message = status;
        }
    }

    fn ready(&self, unit: &Unit) {
        let mut slot = unit.slot();
        if slot.state != ServiceState::Starting || slot.run.is_none() {
            return;
        }
        slot.ready = true;
        slot.enter(ServiceState::Ready, "");
        drop(slot);
        tracing::info!(service = unit.spec.name, "service is ready");
        self.touch();
    }

    /// A run has ended.
    fn over(&self, unit: &Unit, code: i32, why: Option<String>) {
        let mut slot = unit.slot();
        if self.is_stopping() {
            return;
        }
        let family = slot.run.as_ref().map(|run| run.family.clone());
        slot.ended(&unit.spec.ready, code, why);
        let (state, message) = (slot.state, slot.message.clone());
        drop(slot);
        // What it left behind would be in the way of the next run. A oneshot may leave something on purpose.
        if let Some(family) = family.filter(|_| state != ServiceState::Done) {
            family.signal(Signal::KILL);
        }
        let name = &unit.spec.name;
        match state {
            ServiceState::Failed => tracing::error!(service = name, "a service failed: {message}{}", unit.last_words()),
            ServiceState::Done => tracing::info!(service = name, "service is done"),
            _ => tracing::warn!(service = name, "a service {message}"),
        }
        self.touch();
        if !message.is_empty() {
            self.say(unit, Stream::Err, format!("openshell-agent: {name}: {message}\n").as_bytes());
        }
    }
}

/// What the service says on its socket; nothing, for ever, where it has none.
async fn next_word(run: &Run) -> Word {
    match &run.notify {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}
