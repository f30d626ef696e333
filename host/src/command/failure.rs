//! Why a verb failed: one message for people, one exit code for programs.

use std::fmt;
use std::io;

use tonic::{Code, Status};

use super::exit::ExitCode;
use crate::config::ConfigError;
use crate::config::directories::DirectoryError;
use crate::status;

/// See the module.
#[derive(Debug)]
pub struct CommandError {
    /// What the process ends with.
    pub code: ExitCode,
    /// Act, object, cause and remedy.
    pub message: String,
}

impl CommandError {
    /// One with this code and message.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The gateway answered `status` when asked to `act`, which names its object.
    pub(crate) fn of_status(act: &str, status: &Status) -> Self {
        let code = code_of(status);
        let cause = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        let remedy = match code {
            ExitCode::NotFound => "; `openshell sandbox list` shows what there is",
            ExitCode::AlreadyExists => "; choose another name, or delete that one",
            ExitCode::GatewayUnavailable => "; `openshell gateway status` tells whether the gateway runs",
            _ => "",
        };
        // A message of the gateway that names its remedy already needs no second one.
        let remedy = if cause.contains("; ") { "" } else { remedy };
        Self::new(code, format!("failed to {act}: {cause}{remedy}"))
    }

    /// What was written could not be written.
    pub(crate) fn output(cause: io::Error) -> Self {
        Self::new(ExitCode::Failed, format!("failed to write to standard output: {cause}"))
    }
}

/// The exit code for an answer of the gateway.
pub(crate) fn code_of(status: &Status) -> ExitCode {
    let reason = status::reason(status);
    if let Some(exit) = reason.as_deref().and_then(ExitCode::of_reason) {
        return exit;
    }
    match status.code() {
        Code::Ok => ExitCode::Ok,
        Code::InvalidArgument | Code::OutOfRange => ExitCode::Usage,
        Code::NotFound => ExitCode::NotFound,
        Code::AlreadyExists => ExitCode::AlreadyExists,
        Code::PermissionDenied | Code::Unauthenticated => ExitCode::Refused,
        Code::FailedPrecondition | Code::Aborted => ExitCode::WrongPhase,
        Code::Unavailable => ExitCode::GatewayUnavailable,
        Code::DataLoss => ExitCode::StreamLost,
        Code::Unimplemented => ExitCode::VersionMismatch,
        Code::DeadlineExceeded => ExitCode::Timeout,
        Code::Cancelled | Code::Unknown | Code::ResourceExhausted | Code::Internal => ExitCode::Failed,
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CommandError {}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self::new(ExitCode::Usage, error.to_string())
    }
}

/// The code of a directory that cannot be used.
pub fn code_of_directory(error: &DirectoryError) -> ExitCode {
    if error.is_runtime_dir() { ExitCode::RuntimeDir } else { ExitCode::StateDir }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_codes_and_reasons_are_stronger() {
        for (code, exit) in [
            (Code::NotFound, ExitCode::NotFound),
            (Code::AlreadyExists, ExitCode::AlreadyExists),
            (Code::InvalidArgument, ExitCode::Usage),
            (Code::PermissionDenied, ExitCode::Refused),
            (Code::Unauthenticated, ExitCode::Refused),
            (Code::FailedPrecondition, ExitCode::WrongPhase),
            (Code::Unavailable, ExitCode::GatewayUnavailable),
            (Code::DeadlineExceeded, ExitCode::Timeout),
            (Code::Internal, ExitCode::Failed),
        ] {
            assert_eq!(code_of(&Status::new(code, "x")), exit, "{code:?}");
            assert_eq!(code_of(&status::because(code, "Kvm", "x")), ExitCode::Kvm);
        }
    }

    #[test]
    fn one_line_names_act_cause_and_remedy_once() {
        let said = |status| CommandError::of_status("stop sandbox `a`", &status).to_string();
        assert_eq!(
            said(Status::not_found("no sandbox `a`")),
            "failed to stop sandbox `a`: no sandbox `a`; `openshell sandbox list` shows what there is"
        );
        assert_eq!(said(Status::not_found("no `a`; make it")), "failed to stop sandbox `a`: no `a`; make it");
        assert!(!said(Status::unknown("")).ends_with(": "));
    }
}
