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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::boot::MainProcess as Spec;
use proto::budget::{self, MAIN_OUTPUT_RING};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Workload;
use super::command::Command;
use super::output::Output;
use super::process::{Process, Terminal, resize};
use super::reaper::exited;
use super::restart::{Next, Restarts};
use super::ring::{Ring, Stream};
use crate::sys::{clock, processes};

mod lease;
mod runs;

use lease::Lease;
pub use runs::{Finished, Runs};

/// Pieces of input that wait for the process to read.
const INPUT: usize = 4;
/// End of file, typed on a terminal.
const VEOF: &[u8] = &[4];
/// What shells say of a program that could not be started.
const EXIT_NOT_STARTED: i32 = 126;
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
        let mut feeder = Feeder { inbox: lock(&self.inbox).take(), over: false, tty: self.spec.tty };
        let mut restarts = Restarts::new(self.spec.restart);
        let finished = loop {
            let began = Instant::now();
            let code = self.run_once(&mut feeder).await;
            self.runs.send_modify(|runs| runs.last_code = Some(code));
            let next = if *self.ending.borrow() { Next::Ended } else { restarts.ended(code, began.elapsed()) };
            match next {
                Next::Ended => break Finished { code, crash_loop: 0 },
                Next::CrashLoop { runs } => break Finished { code, crash_loop: runs },
                Next::Restart(delay) => {
                    tracing::info!(code, ?delay, "main process ended; it is started again after a delay");
                    if !self.rest(delay).await {
                        break Finished { code, crash_loop: 0 };
                    }
                }
            }
        };
        self.runs.send_modify(|runs| runs.crash_loop = finished.crash_loop);
        self.state.send_replace(State::Ended(finished.code));
        finished
    }

    /// One run, to its exit code.
    async fn run_once(&self, feeder: &mut Feeder) -> i32 {
        let secrets = self.workload.secrets.arrived(budget::SECRETS).await;
        match secrets.and_then(|()| self.start()) {
            Ok(process) => {
                let pid = process.pid;
                let code = self.carry(process, feeder).await;
                lock(&self.terminal).open = None;
                self.state.send_replace(State::Resting);
                processes::signal_session(pid, Signal::TERM);
                if *self.ending.borrow() || !processes::session_alive(pid) {
                    return code;
                }
                sleep(LEFT_BEHIND).await;
                processes::signal_session(pid, Signal::KILL);
                code
            }
            Err(message) => {
                tracing::error!("{message}");
                self.write(Stream::Err, format!("openshell-agent: {message}\n").as_bytes());
                EXIT_NOT_STARTED
            }
        }
    }

    /// The time between two runs. False where no other run is wanted any more.
    async fn rest(&self, delay: Duration) -> bool {
        self.runs.send_modify(|runs| runs.next = Some(clock::wall() + delay));
        let mut ending = self.ending.subscribe();
        tokio::select! {
            () = sleep(delay) => true,
            _ = ending.wait_for(|ending| *ending) => false,
        }
    }

    fn start(&self) -> Result<Process, String> {
        let mut setup = lock(&self.terminal);
        let terminal = self.spec.tty.then(|| setup.wanted.clone());
        let mut process = Process::start(&self.workload, &Command::main(&self.spec), &[], terminal.as_ref())?;
        setup.open = process.terminal.take();
        drop(setup);
        self.state.send_replace(State::Running(process.pid));
        self.runs.send_modify(|runs| runs.begin(clock::wall()));
        tracing::info!(pid = process.pid.as_raw_nonzero(), tty = self.spec.tty, "main process started");
        Ok(process)
    }

    async fn carry(&self, process: Process, feeder: &mut Feeder) -> i32 {
        let Process { mut exit, stdin, stdout, stderr, .. } = process;
        let out = self.record(Stream::Out, Output::new(stdout, exit.clone()));
        let err = async {
            if let Some(stderr) = stderr {
                self.record(Stream::Err, Output::new(stderr, exit.clone())).await;
            }
        };
        tokio::select! {
            _ = async { tokio::join!(out, err) } => {}
            () = feeder.feed(stdin) => {}
        }
        exited(&mut exit).await
    }

    async fn record(&self, stream: Stream, mut output: Output) {
        let mut progress = self.progress.subscribe();
        while let Some(bytes) = output.next().await {
            let room = |_: &u64| {
                let output = self.lock_output();
                !output.readers.values().any(|position| output.ring.would_lose(bytes.len(), *position))
            };
            let _ = progress.wait_for(room).await;
            self.write(stream, &bytes);
        }
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
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

/// Carries input to one run after the other.
struct Feeder {
    inbox: Option<mpsc::Receiver<Input>>,
    /// Whoever typed last has said that nothing more comes: the next run finds the end of its input, too.
    over: bool,
    tty: bool,
}

impl Feeder {
    /// Input, until it is over; then nothing more, for ever.
    async fn feed(&mut self, stdin: pipe::Sender) {
        let mut stdin = Some(stdin).filter(|_| !self.over);
        while let Some(inbox) = &mut self.inbox {
            let Some(input) = inbox.recv().await else { break };
            self.over = matches!(input, Input::End) && !self.tty;
            let Some(open) = stdin.as_mut() else { continue };
            let bytes = match input {
                Input::Data(bytes) => bytes,
                Input::End if self.tty => Bytes::from_static(VEOF),
                Input::End => Bytes::new(),
            };
            if open.write_all(&bytes).await.is_err() || self.over {
                stdin = None;
            }
        }
        std::future::pending().await
    }
}

/// One who watches.
#[derive(Debug)]
pub struct Attachment {
    main: Arc<MainProcess>,
    reader: u64,
    written: watch::Receiver<u64>,
    state: watch::Receiver<State>,
}

/// What there is to see.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Output.
    Output(Stream, Bytes),
    /// It has ended, and all of its output was seen.
    Ended(i32),
}

impl Attachment {
    /// The next thing; call it again only after the last one was passed on.
    pub async fn next(&mut self) -> Seen {
        loop {
            // Before the look, so that what comes between look and wait is not missed.
            self.written.mark_unchanged();
            let state = *self.state.borrow_and_update();
            if let Some((stream, bytes)) = self.take() {
                return Seen::Output(stream, bytes);
            }
            if let State::Ended(code) = state {
                return Seen::Ended(code);
            }
            tokio::select! {
                _ = self.written.changed() => {}
                _ = self.state.changed() => {}
            }
        }
    }

    /// The right to type that this one may have.
    pub fn typist(&self) -> Typist {
        Typist { main: self.main.clone(), reader: self.reader }
    }

    fn take(&self) -> Option<(Stream, Bytes)> {
        let mut output = self.main.lock_output();
        let position = *output.readers.get(&self.reader)?;
        let (stream, bytes, next) = output.ring.read(position)?;
        output.readers.insert(self.reader, next);
        drop(output);
        self.main.progress.send_modify(|count| *count += 1);
        Some((stream, bytes))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.main.lock_output().readers.remove(&self.reader);
        self.main.lease.leave(self.reader);
        self.main.progress.send_modify(|count| *count += 1);
    }
}

/// One attachment, as far as it types.
#[derive(Debug, Clone)]
pub struct Typist {
    main: Arc<MainProcess>,
    reader: u64,
}

impl Typist {
    /// Whether it may type: it has the input, or gets it now because nobody has.
    pub fn may_type(&self) -> bool {
        self.main.lease.claim(self.reader)
    }

    /// Whether it has the input.
    pub fn has_input(&self) -> bool {
        self.main.lease.is_held_by(self.reader)
    }

    /// Resolves when this one has it.
    pub async fn got_input(&self) {
        self.main.lease.got(self.reader).await;
    }

    /// Resolves when somebody took the input from this one, which has it.
    pub async fn lost_input(&self) {
        self.main.lease.lost(self.reader).await;
    }

    /// Types, once there is room.
    pub async fn send(&self, input: Input) {
        // The receiving end lives as long as the main process's runs; after them nobody misses it.
        let _ = self.main.input.send(input).await;
    }
}
