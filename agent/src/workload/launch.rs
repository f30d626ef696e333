//! `openshell-agent launch`: between the agent and a program of the workload.
//!
//! A process of its own instead of code between fork and exec, so that it may be ordinary safe code. It gives up
//! what the program must not have, step by step, and becomes the program. Whatever cannot be given up is a failure:
//! a program with more than it should have is never started.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use proto::boot::WorkloadUser;
use proto::layout;
use rustix::process::{chdir, ioctl_tiocsctty, setsid};

use crate::sys::{cgroup, privileges, raw, seccomp};

/// The verb.
pub const VERB: &str = "launch";
/// The agent's own binary, wherever a call is made from. Not its path: what leads to a path may be renamed, and root
/// executes what stands there then.
pub const SELF: &str = "/proc/self/exe";
/// The program is not there, as shells say it.
const EXIT_NOT_FOUND: u8 = 127;
/// The program, or its directory, cannot be used.
const EXIT_NOT_USABLE: u8 = 126;
/// The launch itself failed. Not a number that programs use.
const EXIT_LAUNCH: u8 = 125;
/// A workload dies before the agent when memory is short.
const OOM_SCORE: &str = "200";

/// What the agent tells its other self.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// As whom.
    pub user: WorkloadUser,
    /// Standard input is a terminal, to be controlled by it.
    pub terminal: bool,
    /// Where to start; nothing falls back from here.
    pub workdir: Option<PathBuf>,
    /// Where to start otherwise, if it is there.
    pub home: PathBuf,
    /// What it must not see.
    pub identity: PathBuf,
    /// The control group that bounds it; none where the agent has made none.
    pub cgroup: Option<PathBuf>,
    /// Its name for itself.
    pub arg0: Option<String>,
    /// All of the program's environment. The launch itself runs with none: a variable of an exec must not reach what
    /// runs as root.
    pub environment: BTreeMap<String, String>,
    /// Program and arguments.
    pub argv: Vec<OsString>,
}

impl Launch {
    /// As arguments of the agent; [`Launch::parse`] reads them.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            VERB.into(),
            self.user.uid.to_string().into(),
            self.user.gid.to_string().into(),
            if self.terminal { "terminal" } else { "pipes" }.into(),
            self.workdir.clone().unwrap_or_default().into(),
            self.home.clone().into(),
            self.identity.clone().into(),
            self.cgroup.clone().unwrap_or_default().into(),
            self.arg0.clone().unwrap_or_default().into(),
            self.environment.len().to_string().into(),
        ];
        arguments.extend(self.environment.iter().map(|(name, value)| format!("{name}={value}").into()));
        arguments.extend(self.argv.iter().cloned());
        arguments
    }

    /// What stands after the verb.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut next = || arguments.next();
        let id = |text: OsString| text.to_str()?.parse().ok();
        let (uid, gid) = (id(next()?)?, id(next()?)?);
        let terminal = next()? == "terminal";
        let (workdir, home, identity) = (PathBuf::from(next()?), next()?.into(), next()?.into());
        let cgroup = PathBuf::from(next()?);
        let arg0 = next()?.into_string().ok()?;
        let variables: usize = next()?.to_str()?.parse().ok()?;
        let mut environment = BTreeMap::new();
        for _ in 0..variables {
            let pair = next()?.into_string().ok()?;
            let (name, value) = pair.split_once('=')?;
            environment.insert(name.to_owned(), value.to_owned());
        }
        let argv: Vec<OsString> = arguments.collect();
        (!argv.is_empty()).then_some(Self {
            user: WorkloadUser { uid, gid },
            terminal,
            workdir: (!workdir.as_os_str().is_empty()).then_some(workdir),
            home,
            identity,
            cgroup: (!cgroup.as_os_str().is_empty()).then_some(cgroup),
            arg0: (!arg0.is_empty()).then_some(arg0),
            environment,
            argv,
        })
    }

    /// Becomes the program. Returns only if that failed, which standard error has been told.
    pub fn run(&self) -> ExitCode {
        let (code, message) = match self.confine() {
            Err(message) => (EXIT_LAUNCH, message),
            Ok(()) => self.execute(),
        };
        eprintln!("openshell-agent: {message}");
        ExitCode::from(code)
    }

    fn confine(&self) -> Result<(), String> {
        // First of all: whatever it takes from here on is the workload's.
        if let Some(group) = &self.cgroup {
            cgroup::enter(group).map_err(|error| failed("enter the workload's control group", error))?;
        }
        setsid().map_err(|error| failed("start a session", error))?;
        if self.terminal {
            ioctl_tiocsctty(std::io::stdin()).map_err(|error| failed("take the terminal", error))?;
        }
        // They were all opened so; this holds for those that somebody forgets, too.
        raw::close_all_on_exec().map_err(|error| failed("close the descriptors", error))?;
        std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).map_err(|error| failed("raise the OOM score", error))?;
        privileges::leave_identity_directory(&self.identity)
            .map_err(|error| failed("leave the identity directory", error))?;
        let mounted =
            privileges::sees_identity_share().map_err(|error| failed("look for the identity share", error))?;
        if mounted || self.identity.join(layout::TOKEN_FILE).symlink_metadata().is_ok() {
            return Err("failed to leave the identity directory: it can still be seen".to_owned());
        }
        if self.user.uid == 0 {
            privileges::close_kernel_files().map_err(|error| failed("close the kernel's files", error))?;
        }
        privileges::empty_bounding_set().map_err(|error| failed("drop capabilities", error))?;
        // While this process has capabilities nobody can trace it; another program of the same user can from then on.
        seccomp::confine()?;
        privileges::become_user(self.user).map_err(|error| failed("become the sandbox's user", error))
    }

    /// The exit code and the reason why the program does not run.
    fn execute(&self) -> (u8, String) {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        if let Err((directory, error)) = self.enter() {
            return (EXIT_NOT_USABLE, format!("failed to enter {}: {error}", directory.display()));
        }
        let program = &self.argv[0];
        let mut command = Command::new(program);
        command.args(&self.argv[1..]).env_clear().envs(&self.environment);
        command.arg0(self.arg0.as_deref().map_or(program.as_os_str(), OsStr::new));
        let error = command.exec();
        let code = if error.kind() == std::io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_USABLE };
        (code, format!("failed to execute {}: {error}", program.to_string_lossy().escape_debug()))
    }

    fn enter(&self) -> Result<(), (&Path, rustix::io::Errno)> {
        if let Some(workdir) = &self.workdir {
            return chdir(workdir).map_err(|error| (workdir.as_path(), error));
        }
        chdir(&self.home).or_else(|_| chdir("/")).map_err(|error| (Path::new("/"), error))
    }
}

fn failed(act: &str, error: impl Display) -> String {
    format!("failed to {act}: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_they_were_written() {
        let launch = Launch {
            user: WorkloadUser { uid: 7, gid: 8 },
            terminal: true,
            workdir: None,
            home: "/home/me".into(),
            identity: "/etc/openshell/auth".into(),
            cgroup: Some("/sys/fs/cgroup/workload/main".into()),
            arg0: Some("-bash".to_owned()),
            environment: [("A", "b=c d"), ("E", "")].map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
            argv: ["bash", "", "--uid", "a b"].map(OsString::from).to_vec(),
        };
        let other = Launch {
            terminal: false,
            workdir: Some("/w".into()),
            cgroup: None,
            arg0: None,
            environment: BTreeMap::new(),
            ..launch.clone()
        };
        for launch in [launch, other] {
            assert_eq!(Launch::parse(launch.arguments().into_iter().skip(1)), Some(launch));
        }
        assert_eq!(Launch::parse(["1", "2", "pipes"].map(OsString::from).into_iter()), None);
    }
}
