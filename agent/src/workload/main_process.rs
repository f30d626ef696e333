//! The process that the sandbox exists for, and those who watch it.
//!
//! ```text
//!  waiting for an attachment ──► running ──► ended (code, crash loop)
//!                                 ▲   │
//!                                 └───┘ by its restart policy, after a delay
//! ```
//!
//! Its output goes into a ring, that of all its runs without a line between, as one log. Whoever attaches gets what the
//! ring still has, and then what comes, across restarts. Nobody attached: the ring forgets its beginning. Somebody
//! attached: the process waits for the slowest of them rather than lose a byte, and an attachment whose connection is
//! dead ends with its relay. One of them has the input ([`lease`]).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::boot::MainProcess as Spec;
use proto::budget::{self, MAIN_OUTPUT_RING};
use proto::log::SOURCE_MAIN;
use rustix::process::{Pid, Signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Workload;
use super::command::Command;
use super::output::Output;
use super::process::{Family, Process, Terminal, resize};
use super::reaper::{Exit, exited};
use super::restart::{Next, Restarts};
use super::ring::{Ring, Stream};
use crate::logs::Writer;
use crate::sys::clock;

mod attachment;
mod feeder;
mod lease;
mod runs;

pub use attachment::{Attachment, Seen, Typist};
use feeder::Feeder;
use lease::Lease;
pub use runs::{Finished, Runs};

/// Pieces of input that wait for the process to read.
const INPUT: usize = 4;
/// What shells say of a program that could not be started.
const EXIT_NOT_STARTED: i32 = 126;
/// After its end, how long those attached may keep back what is left of its output, and with it that it has ended.
const LINGER: Duration = Duration::from_secs(10);
/// What a run has left behind may hold a port or a lock that the next one needs: it gets this long after TERM. Not more
/// than the shortest delay before a restart.
const LEFT_BEHIND: Duration = Duration::from_millis(300);

/// See the module.
#[derive(Debug)]
pub struct MainProcess {
    spec: Spec,
    workload: Arc<Workload>,
    output: Mutex<Watched>,
    /// The position behind the last byte, and whether any may follow.
    written: watch::Sender<u64>,
    /// Rises when an attachment has read, came or went.
    progress: watch::Sender<u64>,
    state: watch::Sender<State>,
    runs: watch::Sender<Runs>,
    /// The sandbox ends: no other run begins.
    ending: watch::Sender<bool>,
    terminal: Mutex<Setup>,
    lease: Lease,
    input: mpsc::Sender<Input>,
    inbox: Mutex<Option<mpsc::Receiver<Input>>>,
    log: Writer,
}

#[derive(Debug)]
struct Watched {
    ring: Ring,
    readers: HashMap<u64, u64>,
    next_reader: u64,
}

#[derive(Debug)]
struct Setup {
    wanted: Terminal,
    open: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running(Pid),
    /// Between two runs.
    Resting,
    Ended(i32),
}

/// What an attachment sends.
#[derive(Debug)]
pub enum Input {
    /// Bytes for its standard input.
    Data(Bytes),
    /// No more of them.
    End,
}

impl MainProcess {
    /// Not started yet.
    pub fn new(spec: Spec, workload: Arc<Workload>) -> Self {
        let (input, inbox) = mpsc::channel(INPUT);
        let wanted = Terminal { kind: "xterm-256color".to_owned(), size: (80, 24) };
        Self {
            log: workload.logs.writer(SOURCE_MAIN),
            spec,
            workload,
            output: Mutex::new(Watched { ring: Ring::new(MAIN_OUTPUT_RING), readers: HashMap::new(), next_reader: 0 }),
            written: watch::Sender::new(0),
            progress: watch::Sender::new(0),
            state: watch::Sender::new(State::Waiting),
            runs: watch::Sender::new(Runs::default()),
            ending: watch::Sender::new(false),
            lease: Lease::default(),
            terminal: Mutex::new(Setup { wanted, open: None }),
            input,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    /// Starts it, once it may, carries its streams until it has ended, and again where its policy says so. Returns how it
    /// ended for good.
    pub async fn run(&self) -> Finished {
        if self.spec.await_attachment {
            let attached = |_: &u64| !self.lock_output().readers.is_empty();
            let _ = self.progress.subscribe().wait_for(attached).await;
        }
        let mut feeder = Feeder::new(lock(&self.inbox).take(), self.spec.tty);
        let mut restarts = Restarts::new(self.spec.restart);
        let finished = loop {
            let (code, ran, family) = self.run_once(&mut feeder).await;
            self.log.finish();
            self.runs.send_modify(|runs| runs.last_code = Some(code));
            let next = if *self.ending.borrow() { Next::Ended } else { restarts.ended(code, ran) };
            match next {
                Next::Ended => break Finished { code, crash_loop: 0 },
                Next::CrashLoop { runs } => break Finished { code, crash_loop: runs },
                Next::Restart(delay) => {
                    tracing::info!(code, ?delay, "main process ended; it is started again after a delay");
                    if !self.rest(delay, family).await {
                        break Finished { code, crash_loop: 0 };
                    }
                }
            }
        };
        self.runs.send_modify(|runs| runs.crash_loop = finished.crash_loop);
        self.state.send_replace(State::Ended(finished.code));
        finished
    }

    /// One run, to its exit code; how long it ran, and what it may have left behind.
    async fn run_once(&self, feeder: &mut Feeder) -> (i32, Duration, Option<Family>) {
        let secrets = self.workload.secrets.arrived(budget::SECRETS).await;
        match secrets.and_then(|()| self.start()) {
            Ok(process) => {
                let family = process.family.clone();
                let (code, ran) = self.carry(process, feeder).await;
                lock(&self.terminal).open = None;
                self.state.send_replace(State::Resting);
                (code, ran, Some(family))
            }
            Err(message) => {
                tracing::error!("{message}");
                self.write(Stream::Err, format!("openshell-agent: {message}\n").as_bytes());
                (EXIT_NOT_STARTED, Duration::ZERO, None)
            }
        }
    }

    /// The time between two runs. False where no other run is wanted any more.
    async fn rest(&self, delay: Duration, left: Option<Family>) -> bool {
        self.runs.send_modify(|runs| runs.next = Some(clock::wall() + delay));
        let cleared = async {
            if let Some(left) = left.filter(Family::is_alive) {
                left.signal(Signal::TERM);
                sleep(LEFT_BEHIND).await;
                left.signal(Signal::KILL);
            }
        };
        let mut ending = self.ending.subscribe();
        tokio::select! {
            _ = async { tokio::join!(sleep(delay), cleared) } => true,
            _ = ending.wait_for(|ending| *ending) => false,
        }
    }

    fn start(&self) -> Result<Process, String> {
        let mut setup = lock(&self.terminal);
        let terminal = self.spec.tty.then(|| setup.wanted.clone());
        let mut process = Process::start(&self.workload, &Command::main(&self.spec), &[], terminal.as_ref())?;
        setup.open = process.terminal.take();
        drop(setup);
        self.state.send_replace(State::Running(process.family.leader));
        self.runs.send_modify(|runs| runs.begin(clock::wall()));
        tracing::info!(pid = process.family.leader.as_raw_nonzero(), tty = self.spec.tty, "main process started");
        Ok(process)
    }

    /// Its code, and how long it ran; both when all of its output was carried, which may take longer.
    async fn carry(&self, process: Process, feeder: &mut Feeder) -> (i32, Duration) {
        let began = Instant::now();
        let Process { family: Family { exit, .. }, stdin, stdout, stderr, .. } = process;
        let out = self.record(Stream::Out, Output::new(stdout, exit.clone()), exit.clone());
        let err = async {
            if let Some(stderr) = stderr {
                self.record(Stream::Err, Output::new(stderr, exit.clone()), exit.clone()).await;
            }
        };
        let streams = async {
            tokio::select! {
                _ = async { tokio::join!(out, err) } => {}
                () = feeder.feed(stdin) => {}
            }
        };
        let ended = async { (exited(&mut exit.clone()).await, began.elapsed()) };
        tokio::join!(streams, ended).1
    }

    async fn record(&self, stream: Stream, mut output: Output, mut exit: Exit) {
        let mut progress = self.progress.subscribe();
        let lingered = async {
            exited(&mut exit).await;
            sleep(LINGER).await;
        };
        let mut lingered = pin!(lingered);
        let mut waits = true;
        while let Some(bytes) = output.next().await {
            let room = |_: &u64| {
                let output = self.lock_output();
                !output.readers.values().any(|position| output.ring.would_lose(bytes.len(), *position))
            };
            // Who is attached and does not read loses what comes then; nobody waits for it any longer.
            if waits {
                tokio::select! {
                    _ = progress.wait_for(room) => {}
                    () = &mut lingered => waits = false,
                }
            }
            self.write(stream, &bytes);
        }
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.log.write(stream, bytes);
        let mut output = self.lock_output();
        output.ring.write(stream, bytes);
        self.written.send_replace(output.ring.end());
    }

    /// Watches it from here on. `terminal` is that of the watcher: who has one means to type, and gets the input where it
    /// is free, or, with `take`, whoever has it.
    pub fn attach(self: &Arc<Self>, terminal: Option<Terminal>, take: bool) -> Attachment {
        let mut output = self.lock_output();
        let reader = output.next_reader;
        output.next_reader += 1;
        output.readers.insert(reader, 0);
        drop(output);
        if take {
            self.lease.take(reader);
        }
        if let Some(terminal) = terminal
            && self.lease.claim(reader)
        {
            let size = terminal.size;
            lock(&self.terminal).wanted = terminal;
            self.resize(size);
        }
        self.progress.send_modify(|count| *count += 1);
        Attachment { main: self.clone(), reader, written: self.written.subscribe(), state: self.state.subscribe() }
    }

    /// Tells its terminal, if it has one.
    pub fn resize(&self, size: (u16, u16)) {
        let mut setup = lock(&self.terminal);
        setup.wanted.size = size;
        if let Some(terminal) = &setup.open {
            let _ = resize(terminal, size);
        }
    }

    /// Signals its process group.
    pub fn signal(&self, signal: Signal) {
        if let State::Running(pid) = *self.state.borrow() {
            self.workload.reaper.signal_group(pid, signal);
        }
    }

    /// Whether it runs or has run.
    pub fn has_started(&self) -> bool {
        *self.state.borrow() != State::Waiting
    }

    /// Its runs, as they come.
    pub fn runs(&self) -> watch::Sender<Runs> {
        self.runs.clone()
    }

    /// The sandbox ends: what runs is the last run, and between two runs there is no other.
    pub fn start_no_more(&self) {
        self.ending.send_replace(true);
    }

    /// Resolves when nobody is attached: after the end, when all have been told.
    pub async fn detached(&self) {
        let nobody = |_: &u64| self.lock_output().readers.is_empty();
        let _ = self.progress.subscribe().wait_for(nobody).await;
    }

    fn lock_output(&self) -> MutexGuard<'_, Watched> {
        lock(&self.output)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
