//! A started program and its streams.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::Workload;
use super::command::Command;
use super::launch::Launch;
use super::reaper::{Exit, Reaper};
use crate::sys::processes;

/// How long a process may take after HUP, and again after TERM.
const HANGUP_GRACE: Duration = Duration::from_secs(1);
const TERM_GRACE: Duration = Duration::from_secs(2);

/// The terminal that a program is to have.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// `TERM`.
    pub kind: String,
    /// Columns and rows.
    pub size: (u16, u16),
}

/// A program that runs.
#[derive(Debug)]
pub struct Process {
    /// It leads a session and a group of its own.
    pub family: Family,
    /// Where its input goes.
    pub stdin: pipe::Sender,
    /// Its output; all of it where it has a terminal.
    pub stdout: pipe::Receiver,
    /// Its errors, where it has no terminal.
    pub stderr: Option<pipe::Receiver>,
    /// Its terminal, to tell it of a new size.
    pub terminal: Option<OwnedFd>,
}

/// A program with all that it has started and that has stayed in its session.
#[derive(Debug, Clone)]
pub struct Family {
    /// The program itself, which leads it.
    pub leader: Pid,
    /// Its exit code, once there is one.
    pub exit: Exit,
}

impl Family {
    /// To each of them. One that has ended meanwhile is no failure.
    pub fn signal(&self, signal: Signal) {
        for member in self.members() {
            let _ = kill_process(member, signal);
        }
    }

    /// Whether any of them is alive.
    pub fn is_alive(&self) -> bool {
        !self.members().is_empty()
    }

    fn members(&self) -> Vec<Pid> {
        processes::session_members(self.leader, self.exit.borrow().is_some())
    }
}

/// The ends of the streams that a program gets.
struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// The ends that stay here.
struct Ours {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    terminal: Option<OwnedFd>,
}

impl Process {
    /// Starts `command` with the environment that [`super::environment::build`] makes.
    pub fn start(
        workload: &Workload,
        command: &Command,
        exec_environment: &[(String, String)],
        terminal: Option<&Terminal>,
    ) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("failed to start {}: {error}", command.argv.first().map_or("", String::as_str).escape_debug())
        };
        let (theirs, ours) = match terminal {
            Some(terminal) => terminal_streams(terminal, workload.ids().uid),
            None => pipe_streams(),
        }
        .map_err(failed)?;
        let kind = terminal.map(|terminal| terminal.kind.as_str());
        let secrets = workload.secrets.environment();
        let environment =
            super::environment::build(&workload.user, &workload.environment, &secrets, exec_environment, kind);
        let mut launch = launch(workload, command, terminal.is_some(), environment);
        launch.stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
        let (pid, exit) = workload.reaper.spawn(&mut launch).map_err(failed)?;
        let Ours { stdin, stdout, stderr, terminal } = ours;
        Ok(Self { family: Family { leader: pid, exit }, stdin, stdout, stderr, terminal })
    }
}

fn launch(
    workload: &Workload,
    command: &Command,
    terminal: bool,
    environment: BTreeMap<String, String>,
) -> std::process::Command {
    let launch = Launch {
        user: workload.ids(),
        terminal,
        workdir: command.workdir.clone().or_else(|| workload.workdir.clone()).map(Into::into),
        home: workload.user.home.clone().into(),
        identity: workload.identity.clone(),
        cgroup: workload.cgroup.clone(),
        arg0: command.arg0.clone(),
        environment,
        argv: command.argv.iter().map(Into::into).collect(),
    };
    let mut process = std::process::Command::new(workload.agent.path());
    process.arg0("openshell-agent").args(launch.arguments()).env_clear().current_dir("/");
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process
}

fn pipe_streams() -> io::Result<(Theirs, Ours)> {
    let (stdin, our_stdin) = io::pipe()?;
    let (our_stdout, stdout) = io::pipe()?;
    let (our_stderr, stderr) = io::pipe()?;
    let theirs = Theirs { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
    let ours = Ours {
        stdin: pipe::Sender::from_owned_fd(our_stdin.into())?,
        stdout: pipe::Receiver::from_owned_fd(our_stdout.into())?,
        stderr: Some(pipe::Receiver::from_owned_fd(our_stderr.into())?),
        terminal: None,
    };
    Ok((theirs, ours))
}

fn terminal_streams(terminal: &Terminal, uid: u32) -> io::Result<(Theirs, Ours)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    // Programs open their terminal by its name, too.
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    resize(&ours, terminal.size)?;
    fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
    let streams = Theirs { stdin: theirs.try_clone()?, stdout: theirs.try_clone()?, stderr: theirs };
    let ours = Ours {
        stdin: pipe::Sender::from_owned_fd_unchecked(ours.try_clone()?)?,
        stdout: pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?,
        stderr: None,
        terminal: Some(ours),
    };
    Ok((streams, ours))
}

/// Tells a terminal its size.
pub fn resize(terminal: &OwnedFd, (columns, rows): (u16, u16)) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// Ends a program whose user has gone, with all of its family: HUP, TERM, KILL.
pub async fn hang_up(reaper: &Reaper, family: &Family) {
    let ended = || reaper.until(|| !family.is_alive());
    family.signal(Signal::HUP);
    family.signal(Signal::CONT);
    if timeout(HANGUP_GRACE, ended()).await.is_err() {
        family.signal(Signal::TERM);
        let _ = timeout(TERM_GRACE, ended()).await;
        family.signal(Signal::KILL);
    }
}
