//! Starting a gateway in the background, and telling why it did not stay.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::exit::ExitCode;
use super::failure::{CommandError, code_of_directory};
use super::table::indented;
use crate::config::directories::{LOG_FILE, prepare_state_dir};

/// The last words of a gateway that are repeated.
const LAST_LINES: usize = 10;
const LAST_BYTES: u64 = 8 * 1024;

/// How a gateway is started.
#[derive(Debug)]
pub(crate) struct Starter {
    pub(crate) program: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) uid: u32,
}

/// A gateway that was started. It outlives this process.
pub(crate) struct Starting {
    child: Child,
    log: PathBuf,
    /// Where its own words begin in the log.
    from: u64,
    pub(crate) began: Instant,
}

impl Starter {
    pub(crate) fn start(&self) -> Result<Starting, CommandError> {
        let failed = |code, act: &str, object: &Path, cause: &io::Error| {
            CommandError::new(code, format!("failed to {act} {}: {cause}", object.display()))
        };
        prepare_state_dir(&self.state_dir, self.uid)
            .map_err(|error| CommandError::new(code_of_directory(&error), error.to_string()))?;
        let log = self.state_dir.join(LOG_FILE);
        let open = || -> io::Result<(File, File, u64)> {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&log)?;
            let from = file.metadata()?.len();
            Ok((file.try_clone()?, file, from))
        };
        let (out, err, from) =
            open().map_err(|cause| failed(ExitCode::StateDir, "open the gateway's log", &log, &cause))?;
        // The gateway leaves this session by itself; the environment carries the configuration.
        let child = Command::new(&self.program)
            .arg("--detached")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|cause| failed(ExitCode::ProgramMissing, "start the gateway", &self.program, &cause))?;
        Ok(Starting { child, log, from, began: Instant::now() })
    }
}

impl Starting {
    /// Whether it ended already.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, CommandError> {
        self.child.try_wait().map_err(|cause| {
            CommandError::new(ExitCode::GatewayUnavailable, format!("failed to wait for the gateway: {cause}"))
        })
    }

    /// It ended without ever answering.
    pub(crate) fn failure(&self, ended: ExitStatus) -> CommandError {
        let code = ended.code().and_then(ExitCode::of_code).filter(|code| *code != ExitCode::Ok);
        let code = code.unwrap_or(ExitCode::GatewayUnavailable);
        CommandError::new(code, format!("the gateway that was started ended with {ended}{}", self.last_words()))
    }

    /// It neither ended nor answered, or another one is in its way.
    pub(crate) fn late(&self, waited: String) -> CommandError {
        CommandError::new(ExitCode::Timeout, format!("{waited}{}", self.last_words()))
    }

    fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.from.max(end.saturating_sub(LAST_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(LAST_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let log = self.log.display();
        match read() {
            Ok(text) if !text.trim().is_empty() => {
                let lines = text.trim_end().lines().collect::<Vec<_>>();
                let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
                format!("; its last words in {log}:{}", indented(&last, "  "))
            }
            Ok(_) => format!("; it wrote nothing to {log}"),
            Err(cause) => format!("; {log} cannot be read: {cause}"),
        }
    }
}
