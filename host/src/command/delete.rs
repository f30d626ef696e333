//! `openshell sandbox delete`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::{DeleteSandboxRequest, DeletionOutcome, GetSandboxRequest, Sandbox, SandboxPhase};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use uuid::Uuid;

use super::arguments::{duration, workspace};
use super::connect::{Client, Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::signals::Signals;
use super::view;
use super::watch::{Wait, Waited};

/// How long a deletion after a command may take: longer than a guest may take to stop, and a gateway to start.
const TO_THE_END: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// Those that do not exist are no error
    #[arg(long)]
    if_exists: bool,
    /// How long to wait for each
    #[arg(long, value_parser = duration, default_value = "1m")]
    timeout: Duration,
}

impl Delete {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut client = gateway.client(console).await?;
        let mut first_failure = None;
        for name in &self.names {
            match self.one(&mut client, console, &mut signals, name).await {
                Ok(None) => {}
                Ok(Some(signal)) => return Ok(signal.code()),
                Err(error) => {
                    if let Some(earlier) = first_failure.replace(error) {
                        console.note(&format!("error: {earlier}")).await;
                        first_failure = first_failure.map(|last| CommandError { code: earlier.code, ..last });
                    }
                }
            }
        }
        first_failure.map_or(Ok(0), Err)
    }

    async fn one(
        &self,
        client: &mut Client,
        console: &mut Console,
        signals: &mut Signals,
        name: &str,
    ) -> Result<Option<ExitCode>, CommandError> {
        let (outcome, id) = ask(client, name, self.if_exists).await?;
        let told = match outcome {
            DeletionOutcome::AlreadyAbsent => format!("Sandbox {name} does not exist"),
            DeletionOutcome::Completed => format!("Deleted sandbox {name}"),
            _ => {
                let what = format!("waiting for sandbox `{name}` to be deleted");
                let wait = Wait { name, what, since: 0, within: self.timeout };
                // A name may be taken again at once.
                let decide = |sandbox: &Sandbox| (!is(sandbox, &id)).then_some(());
                match wait.until(client, console, signals, decide).await? {
                    Waited::Interrupted(signal) => return Ok(Some(signal)),
                    Waited::Gone | Waited::Met(()) => format!("Deleted sandbox {name}"),
                }
            }
        };
        console.line(&told).await.map_err(CommandError::output)?;
        Ok(None)
    }
}

fn is(sandbox: &Sandbox, id: &str) -> bool {
    sandbox.metadata.as_ref().is_some_and(|metadata| metadata.id == id)
}

fn request(name: &str, allow_missing: bool) -> DeleteSandboxRequest {
    let request_id = Uuid::new_v4().to_string();
    DeleteSandboxRequest { name: name.to_owned(), workspace_scope: workspace(), allow_missing, request_id }
}

/// What became of it, and the id of what is being deleted.
async fn ask(client: &mut Client, name: &str, missing: bool) -> Result<(DeletionOutcome, String), CommandError> {
    let act = format!("delete sandbox `{name}`");
    let answer = answer(&act, client.delete_sandbox(request(name, missing))).await?;
    Ok((answer.outcome(), answer.sandbox_id))
}

/// Deletes a sandbox whatever happens meanwhile: signals are not looked at, a gateway that went away is waited for
/// (or started again), and standard output may be closed.
pub(crate) async fn to_the_end(
    gateway: &Gateway,
    console: &mut Console,
    name: &str,
    id: &str,
) -> Result<(), CommandError> {
    let deadline = Instant::now() + TO_THE_END;
    let mut last = String::new();
    let gone = async {
        loop {
            match attempt(gateway, console, name, id).await {
                Ok(true) => return Ok(()),
                Ok(false) => last = "it is still being deleted".to_owned(),
                Err(error) if error.code == ExitCode::GatewayUnavailable => last = error.message,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    match timeout_at(deadline, gone).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            let message = format!("failed to delete sandbox `{name}` within {TO_THE_END:?}: {last}");
            return Err(CommandError::new(ExitCode::Timeout, message));
        }
    }
    let _ = console.line(&format!("Deleted sandbox {name}")).await;
    Ok(())
}

/// Whether the sandbox is gone, which includes that its name is somebody else's by now.
async fn attempt(gateway: &Gateway, console: &mut Console, name: &str, id: &str) -> Result<bool, CommandError> {
    let broken = |status: &Status| {
        matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted | Code::Unavailable)
    };
    let failed = |status: Status| match broken(&status) {
        true => CommandError::new(ExitCode::GatewayUnavailable, status.message()),
        false => CommandError::of_status(&format!("delete sandbox `{name}`"), &status),
    };
    let mut client = gateway.client(console).await?;
    let asked = GetSandboxRequest { name: name.to_owned(), workspace_scope: workspace() };
    let sandbox = match client.get_sandbox(asked).await {
        Ok(answer) => answer.into_inner().sandbox.unwrap_or_default(),
        Err(status) if status.code() == Code::NotFound => return Ok(true),
        Err(status) => return Err(failed(status)),
    };
    if !is(&sandbox, id) {
        return Ok(true);
    }
    if view::phase(&sandbox) == SandboxPhase::Deleting {
        return Ok(false);
    }
    match client.delete_sandbox(request(name, true)).await {
        Ok(answer) => Ok(answer.into_inner().outcome() != DeletionOutcome::Accepted),
        Err(status) => Err(failed(status)),
    }
}
