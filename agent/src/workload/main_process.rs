//! The process that the sandbox exists for, and those who watch it.
//!
//! ```text
//!  waiting for an attachment ──► running ──► ended (code)
//! ```
//!
//! Its output goes into a ring. Whoever attaches gets what the ring still has, and then what comes. Nobody attached:
//! the ring forgets its beginning. Somebody attached: the process waits for the slowest of them rather than lose a
//! byte, and an attachment whose connection is dead ends with its relay.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use proto::boot::MainProcess as Spec;
use proto::budget::{self, MAIN_OUTPUT_RING};
use proto::log::SOURCE_MAIN;
use rustix::process::{Pid, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::Workload;
use super::command::Command;
use super::output::Output;
use super::process::{Process, Terminal, resize};
use super::reaper::exited;
use super::ring::{Ring, Stream};
use crate::logs::Writer;

/// Pieces of input that wait for the process to read.
const INPUT: usize = 4;
/// End of file, typed on a terminal.
const VEOF: &[u8] = &[4];
/// What shells say of a program that could not be started.
const EXIT_NOT_STARTED: i32 = 126;

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
    terminal: Mutex<Setup>,
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
            terminal: Mutex::new(Setup { wanted, open: None }),
            input,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    /// Starts it, once it may, and carries its streams until it has ended. Returns its exit code.
    pub async fn run(&self) -> i32 {
        if self.spec.await_attachment {
            let attached = |_: &u64| !self.lock_output().readers.is_empty();
            let _ = self.progress.subscribe().wait_for(attached).await;
        }
        let secrets = self.workload.secrets.arrived(budget::SECRETS).await;
        let code = match secrets.and_then(|()| self.start()) {
            Ok(process) => self.carry(process).await,
            Err(message) => {
                tracing::error!("{message}");
                self.write(Stream::Err, format!("openshell-agent: {message}\n").as_bytes());
                EXIT_NOT_STARTED
            }
        };
        self.log.finish();
        self.state.send_replace(State::Ended(code));
        code
    }

    fn start(&self) -> Result<Process, String> {
        let mut setup = lock(&self.terminal);
        let terminal = self.spec.tty.then(|| setup.wanted.clone());
        let mut process = Process::start(&self.workload, &Command::main(&self.spec), &[], terminal.as_ref())?;
        setup.open = process.terminal.take();
        drop(setup);
        self.state.send_replace(State::Running(process.pid));
        tracing::info!(pid = process.pid.as_raw_nonzero(), tty = self.spec.tty, "main process started");
        Ok(process)
    }

    async fn carry(&self, process: Process) -> i32 {
        let Process { mut exit, stdin, stdout, stderr, .. } = process;
        let out = self.record(Stream::Out, Output::new(stdout, exit.clone()));
        let err = async {
            if let Some(stderr) = stderr {
                self.record(Stream::Err, Output::new(stderr, exit.clone())).await;
            }
        };
        let inbox = lock(&self.inbox).take();
        tokio::select! {
            _ = async { tokio::join!(out, err) } => {}
            () = self.feed(inbox, stdin) => {}
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

    /// Input, until it is over; then nothing more, for ever.
    async fn feed(&self, inbox: Option<mpsc::Receiver<Input>>, stdin: pipe::Sender) {
        let mut stdin = Some(stdin);
        if let Some(mut inbox) = inbox {
            while let Some(input) = inbox.recv().await {
                let Some(open) = stdin.as_mut() else { continue };
                let (bytes, last) = match input {
                    Input::Data(bytes) => (bytes, false),
                    Input::End if self.spec.tty => (Bytes::from_static(VEOF), false),
                    Input::End => (Bytes::new(), true),
                };
                if open.write_all(&bytes).await.is_err() || last {
                    stdin = None;
                }
            }
        }
        std::future::pending().await
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.log.write(stream, bytes);
        let mut output = self.lock_output();
        output.ring.write(stream, bytes);
        self.written.send_replace(output.ring.end());
    }

    /// Watches it from here on. `terminal` is that of the watcher.
    pub fn attach(self: &Arc<Self>, terminal: Option<Terminal>) -> Attachment {
        if let Some(terminal) = terminal {
            let size = terminal.size;
            lock(&self.terminal).wanted = terminal;
            self.resize(size);
        }
        let mut output = self.lock_output();
        let reader = output.next_reader;
        output.next_reader += 1;
        output.readers.insert(reader, 0);
        drop(output);
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

    /// Where its input goes.
    pub fn input(&self) -> mpsc::Sender<Input> {
        self.input.clone()
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
        self.main.progress.send_modify(|count| *count += 1);
    }
}
