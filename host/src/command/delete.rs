//! `openshell sandbox delete`

use std::time::Duration;

use clap::Args;
use proto::openshell::v1::{DeleteSandboxRequest, DeletionOutcome, SandboxPhase};
use tokio::time::{Instant, timeout_at};
use tonic::Code;
use uuid::Uuid;

use super::arguments::{duration, workspace};
use super::connect::{Client, Gateway};
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
        let mut signals = Signals::listen()?;
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
        let told = match ask(client, name, self.if_exists).await? {
            DeletionOutcome::AlreadyAbsent => format!("Sandbox {name} does not exist"),
            DeletionOutcome::Completed => format!("Deleted sandbox {name}"),
            _ => {
                let what = format!("waiting for sandbox `{name}` to be deleted");
                let wait = Wait { name, what, since: 0, within: self.timeout };
                // A name may be taken again at once: what is not being deleted is another one.
                let another = |phase| !matches!(phase, SandboxPhase::Deleting | SandboxPhase::Error);
                let decide = |sandbox: &_| another(view::phase(sandbox)).then_some(());
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

async fn ask(client: &mut Client, name: &str, allow_missing: bool) -> Result<DeletionOutcome, CommandError> {
    let act = format!("delete sandbox `{name}`");
    let request = DeleteSandboxRequest {
        name: name.to_owned(),
        workspace_scope: workspace(),
        allow_missing,
        request_id: Uuid::new_v4().to_string(),
    };
    match tokio::time::timeout(TO_THE_END, client.delete_sandbox(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().outcome()),
        Ok(Err(status)) => Err(CommandError::of_status(&act, &status)),
        Err(_) => {
            Err(CommandError::new(ExitCode::Timeout, format!("failed to {act}: no answer within {TO_THE_END:?}")))
        }
    }
}

/// Deletes a sandbox whatever happens meanwhile: signals are not looked at, a gateway that went away is waited for
/// (or started again), and standard output may be closed.
pub(crate) async fn to_the_end(gateway: &Gateway, console: &mut Console, name: &str) -> Result<(), CommandError> {
    let deadline = Instant::now() + TO_THE_END;
    let mut last = String::new();
    let gone = async {
        loop {
            match attempt(gateway, console, name).await {
                Ok(true) => return Ok(()),
                Ok(false) => last = "it is still being deleted".to_owned(),
                Err(error) if error.code == ExitCode::GatewayUnavailable => last = error.message,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    let outcome = timeout_at(deadline, gone).await;
    match outcome {
        Ok(outcome) => outcome?,
        Err(_) => {
            let message = format!("failed to delete sandbox `{name}` within {TO_THE_END:?}: {last}");
            return Err(CommandError::new(ExitCode::Timeout, message));
        }
    }
    let _ = console.line(&format!("Deleted sandbox {name}")).await;
    Ok(())
}

/// Whether the sandbox is gone; deleting is asked for again each time, which changes nothing once it is going on.
async fn attempt(gateway: &Gateway, console: &mut Console, name: &str) -> Result<bool, CommandError> {
    let mut client = gateway.client(console).await?;
    let request = DeleteSandboxRequest {
        name: name.to_owned(),
        workspace_scope: workspace(),
        allow_missing: true,
        request_id: Uuid::new_v4().to_string(),
    };
    match client.delete_sandbox(request).await {
        Ok(answer) => Ok(matches!(
            answer.into_inner().outcome(),
            DeletionOutcome::Completed | DeletionOutcome::AlreadyAbsent
        )),
        Err(status) if matches!(status.code(), Code::NotFound) => Ok(true),
        Err(status) if matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted) => {
            Err(CommandError::new(ExitCode::GatewayUnavailable, status.message()))
        }
        Err(status) => Err(CommandError::of_status(&format!("delete sandbox `{name}`"), &status)),
    }
}
