//! One service: what was declared, and where it stands.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal as Number;
use proto::service::{Readiness, Service, ServiceState, ServiceStatus, StopSignal};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::timeout;

use super::notify::NotifySocket;
use crate::sys::{clock, image_file};
use crate::workload::Workload;
use crate::workload::command::Command;
use crate::workload::passwd::{self, PASSWD, User};
use crate::workload::process::Family;
use crate::workload::reaper::exited;
use crate::workload::restart::{Next, Restarts};
use crate::workload::ring::{Ring, Stream};

/// What is kept of a service's output for those who ask why it failed, in bytes.
const TAIL: usize = 16 * 1024;
/// How much of it is quoted.
const LAST_LINES: usize = 5;
const LAST_BYTES: usize = 1024;
/// How long a killed program may take to be gone.
pub const KILLED: Duration = Duration::from_secs(1);
/// What counts as its exit code where a program could not be started, as shells say it.
pub(super) const EXIT_NOT_STARTED: i32 = 126;

/// See the module.
pub(super) struct Unit {
    pub(super) spec: Service,
    /// Which others, and whether each has to be ready.
    pub(super) on: Vec<(usize, bool)>,
    /// As its user; nothing where there is no such user.
    pub(super) workload: Result<Workload, String>,
    slot: Mutex<Slot>,
    tail: Mutex<Ring>,
}

/// Where a service stands.
pub(super) struct Slot {
    pub(super) state: ServiceState,
    pub(super) ready: bool,
    pub(super) run: Option<Run>,
    /// When the next run begins, in a pause.
    pub(super) next_run: Option<Instant>,
    pub(super) message: String,
    pub(super) restarts: u32,
    pub(super) last_exit: Option<i32>,
    history: Restarts,
    /// By the guest's clock.
    since: Duration,
}

/// A program that runs.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) family: Family,
    pub(super) began: Instant,
    pub(super) notify: Option<Arc<NotifySocket>>,
    /// Closes when all of its output was read.
    pub(super) output: watch::Receiver<()>,
}

impl Unit {
    /// Not started. `names` are those of all services.
    pub(super) fn new(spec: Service, names: &[String], workload: &Workload) -> Self {
        let index = |name: &String| names.iter().position(|known| known == name);
        let on = spec.dependencies.iter().filter_map(|one| Some((index(&one.on)?, one.required))).collect();
        let workload = match &spec.user {
            None => Ok(workload.clone()),
            Some(user) => find_user(user).map(|user| Workload { user, ..workload.clone() }),
        };
        let slot = Slot {
            state: ServiceState::Waiting,
            ready: false,
            run: None,
            next_run: None,
            message: String::new(),
            restarts: 0,
            last_exit: None,
            history: Restarts::new(spec.restart),
            since: clock::wall(),
        };
        Self { spec, on, workload, slot: Mutex::new(slot), tail: Mutex::new(Ring::new(TAIL)) }
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> ServiceState {
        self.slot().state
    }

    pub(super) fn run(&self) -> Option<Run> {
        self.slot().run.clone()
    }

    /// Whether others may count on it.
    pub(super) fn is_ready(&self) -> bool {
        let slot = self.slot();
        slot.ready || slot.state == ServiceState::Done
    }

    /// Whether it is ready, or will not be.
    pub(super) fn is_settled(&self) -> bool {
        self.is_ready() || self.state() == ServiceState::Failed
    }

    pub(super) fn status(&self) -> ServiceStatus {
        let slot = self.slot();
        ServiceStatus {
            name: self.spec.name.clone(),
            state: slot.state,
            ready: slot.ready,
            pid: slot.run.as_ref().map(|run| run.family.leader.as_raw_nonzero().get()),
            restarts: slot.restarts,
            since_ms: u64::try_from(slot.since.as_millis()).unwrap_or(u64::MAX),
            last_exit: slot.last_exit,
            message: slot.message.clone(),
            file: self.spec.file.clone(),
        }
    }

    pub(super) fn remember(&self, stream: Stream, bytes: &[u8]) {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).write(stream, bytes);
    }

    /// The end of its output, to be put behind a message; nothing where there is none.
    pub(super) fn last_words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut bytes, mut position) = (vec![], 0);
        while let Some((_, piece, next)) = tail.read(position) {
            bytes.extend_from_slice(&piece);
            position = next;
        }
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_BYTES)..]).into_owned();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ");
        if last.is_empty() { last } else { format!("; its last words: {last}") }
    }

    /// What runs.
    pub(super) fn command(&self) -> Command {
        Command { argv: self.spec.command.clone(), arg0: None, workdir: self.spec.workdir.clone() }
    }

    /// What it gets beside the sandbox's environment.
    pub(super) fn environment(&self, notify: Option<&Path>) -> Vec<(String, String)> {
        let own = self.spec.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
        own.chain(notify.map(|socket| ("NOTIFY_SOCKET".to_owned(), socket.display().to_string()))).collect()
    }

    /// Asks a run to end, with all of its session, and kills what has not after `within`.
    pub(super) async fn end(&self, run: &Run, within: Duration) {
        let family = &run.family;
        family.signal(number(self.spec.stop_signal));
        // One that is stopped would not notice.
        family.signal(Signal::CONT);
        let Ok(workload) = &self.workload else { return };
        // All of it: a shell that started the server ends at once, and the server takes its time.
        let ended = workload.reaper.until(|| !family.is_alive());
        if timeout(within, ended).await.is_err() {
            family.signal(Signal::KILL);
            tracing::warn!(service = self.spec.name, ?within, "a service did not end in time and was killed");
        }
        let _ = timeout(KILLED, exited(&mut family.exit.clone())).await;
    }
}

impl Slot {
    /// Stands somewhere else from now on.
    pub(super) fn enter(&mut self, state: ServiceState, message: impl Into<String>) {
        if self.state != state {
            self.since = clock::wall();
        }
        (self.state, self.message) = (state, message.into());
    }

    /// A run has ended; what that means. `why` is what ended it, where it was not the program itself.
    pub(super) fn ended(&mut self, ready_by: &Readiness, code: i32, why: Option<String>) {
        let ran = self.run.take().map_or(Duration::ZERO, |run| run.began.elapsed());
        self.last_exit = Some(code);
        let was_ready = std::mem::take(&mut self.ready);
        if *ready_by == Readiness::Exit && code == 0 && why.is_none() {
            self.ready = true;
            return self.enter(ServiceState::Done, "");
        }
        let why = why.unwrap_or_else(|| match was_ready {
            true => format!("ended with code {code}"),
            false => format!("ended with code {code} before it was ready"),
        });
        // Whatever its code, a program that has never served has not done what it is there for.
        let next = match was_ready {
            true => self.history.ended(code, ran),
            false => self.history.ended(code.max(1), Duration::ZERO),
        };
        match next {
            Next::Ended if was_ready && code == 0 => self.enter(ServiceState::Done, ""),
            Next::Ended => self.enter(ServiceState::Failed, why),
            Next::Restart(delay) => {
                self.next_run = Some(Instant::now() + delay);
                self.enter(ServiceState::Backoff, format!("{why}; next start after {delay:?}"));
            }
            Next::CrashLoop { runs } => {
                self.enter(ServiceState::Failed, format!("crash loop: {runs} short runs in a row; the last one {why}"));
            }
        }
    }
}

/// A user of the image, who is not root.
fn find_user(who: &str) -> Result<User, String> {
    let passwd = image_file::read(Path::new(PASSWD), image_file::MAX).unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let ids = passwd::ids(&passwd, who)?;
    if ids.uid == 0 || ids.gid == 0 {
        return Err(format!("user `{who}` is root, but must not be"));
    }
    Ok(User::find(&passwd, ids))
}

fn number(signal: StopSignal) -> Signal {
    let number = match signal {
        StopSignal::Hup => Number::SIGHUP,
        StopSignal::Int => Number::SIGINT,
        StopSignal::Quit => Number::SIGQUIT,
        StopSignal::Kill => Number::SIGKILL,
        StopSignal::Usr1 => Number::SIGUSR1,
        StopSignal::Usr2 => Number::SIGUSR2,
        StopSignal::Term => Number::SIGTERM,
        StopSignal::Winch => Number::SIGWINCH,
    };
    Signal::from_named_raw(number as i32).unwrap_or(Signal::TERM)
}

#[cfg(test)]
mod tests {
    use proto::boot::RestartPolicy;

    use super::*;

    fn slot(policy: RestartPolicy) -> Slot {
        Slot {
            state: ServiceState::Starting,
            ready: false,
            run: None,
            next_run: None,
            message: String::new(),
            restarts: 0,
            last_exit: None,
            history: Restarts::new(policy),
            since: Duration::ZERO,
        }
    }

    #[test]
    fn the_end_of_a_run_means_what_policy_and_readiness_say() {
        use RestartPolicy::{Always, Never, OnFailure};
        use ServiceState::{Backoff, Done, Failed};
        for (policy, by, ready, code, state) in [
            (OnFailure, Readiness::Exit, false, 0, Done),
            (OnFailure, Readiness::Exit, false, 1, Backoff),
            (Never, Readiness::Exit, false, 1, Failed),
            (OnFailure, Readiness::Started, true, 0, Done),
            (OnFailure, Readiness::Started, true, 137, Backoff),
            (Always, Readiness::Started, true, 0, Backoff),
            (Never, Readiness::Started, true, 0, Done),
            (Never, Readiness::Started, true, 1, Failed),
            (Never, Readiness::Notify, false, 0, Failed),
            (OnFailure, Readiness::Notify, false, 0, Backoff),
        ] {
            let mut slot = slot(policy);
            slot.ready = ready;
            slot.ended(&by, code, None);
            assert_eq!(slot.state, state, "{policy:?} {by:?} {ready} {code}: {}", slot.message);
            assert_eq!(slot.ready, by == Readiness::Exit && state == Done);
            assert_eq!(slot.last_exit, Some(code));
        }
    }

    #[test]
    fn one_that_never_becomes_ready_is_a_crash_loop_however_long_it_tries() {
        let mut slot = slot(RestartPolicy::Always);
        let mut runs = 1;
        slot.ended(&Readiness::Notify, 143, Some("was not ready within 60s".to_owned()));
        while slot.state == ServiceState::Backoff {
            assert!(slot.message.starts_with("was not ready within 60s; next start after"), "{}", slot.message);
            slot.ended(&Readiness::Notify, 143, Some("was not ready within 60s".to_owned()));
            runs += 1;
        }
        assert_eq!((slot.state, runs), (ServiceState::Failed, 8));
        assert!(slot.message.contains("crash loop: 8 short runs"), "{}", slot.message);
    }
}
