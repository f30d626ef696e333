//! `openshell sandbox create`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::openshell::datamodel::v1::ObjectMeta;
use proto::openshell::v1::{
    CreateSandboxRequest, ExecSandboxRequest, Sandbox, SandboxPhase, SandboxRestartPolicy, SandboxSpec, SandboxTemplate,
};
use tonic::Code;
use uuid::Uuid;

use super::arguments::{Detach, Tty, Variables, duration, workspace};
use super::attach::detached;
use super::connect::{Client, Gateway};
use super::console::Console;
use super::delete;
use super::detach::DetachKeys;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::name;
use super::services;
use super::signals::Signals;
use super::stream::{self, Ended};
use super::view;
use super::watch::{Wait, Waited};

/// How long the gateway may take at least to accept a sandbox. The first one of a machine's boot may have to wait for
/// the trial boot that tells whether KVM works.
const ACCEPT: Duration = Duration::from_secs(30);
/// Names that are tried where none was given.
const NAMES: u32 = 5;

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name: a DNS label of at most 19 characters (default: one is made up)
    #[arg(long)]
    name: Option<String>,
    /// Image: a name in the image directory, or an absolute path (default: the gateway's)
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    /// Virtual CPUs (default: the gateway's)
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Memory, such as 512Mi or 2Gi (default: the gateway's)
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    #[command(flatten)]
    tty: Tty,
    /// Delete the sandbox when the command ends, however it ends
    #[arg(long, requires = "command")]
    no_keep: bool,
    /// Whether the main process is started again when it has ended
    #[arg(long, value_enum, value_name = "POLICY", default_value = "never", conflicts_with = "no_keep")]
    restart: Restart,
    #[command(flatten)]
    detach: Detach,
    #[command(flatten)]
    env: Variables,
    /// Provider whose secrets the workload gets (see `openshell secret`); may be repeated
    #[arg(long = "provider", value_name = "PROVIDER")]
    providers: Vec<String>,
    /// File that declares a service, which has the file's name (see docs/services.md); may be repeated
    #[arg(long = "service", value_name = "FILE.toml")]
    services: Vec<PathBuf>,
    /// How long to wait until the sandbox is ready
    #[arg(long, value_parser = duration, default_value = "10m")]
    timeout: Duration,
    /// Main process of the sandbox; its exit code becomes that of this program
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Create {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let annotations = services::declared(&self.services)?;
        let mut signals = console.signals()?;
        let mut client = tokio::select! {
            client = gateway.client(console) => client?,
            signal = signals.next() => return Ok(signal.code()),
        };
        // A signal is looked at after the answer: what was created has to be known to be deleted.
        let request = CreateSandboxRequest { annotations, ..self.request(console) };
        let sandbox = self.create(&mut client, request).await?;
        let ObjectMeta { name, id, .. } = sandbox.metadata.clone().unwrap_or_default();
        let used = self.use_it(&mut client, console, &mut signals, &name, &sandbox).await;
        if !self.no_keep {
            return self.keep(used, &name, console).await;
        }
        // From here on no signal is looked at any more: deleting goes on to its end.
        let deleted = delete::to_the_end(gateway, console, &name, &id).await;
        match (used, deleted) {
            (Ok(used), Ok(())) => Ok(used.code()),
            (Ok(Use::Ended(0)), Err(error)) | (Err(error), Ok(())) => Err(error),
            (Ok(used), Err(error)) => {
                console.note(&format!("error: {error}")).await;
                Ok(used.code())
            }
            (Err(first), Err(second)) => {
                Err(CommandError::new(first.code, format!("{}\nerror: {}", first.message, second.message)))
            }
        }
    }

    async fn keep(
        &self,
        used: Result<Use, CommandError>,
        name: &str,
        console: &mut Console,
    ) -> Result<u8, CommandError> {
        match used {
            Ok(Use::Ended(code)) => Ok(code),
            Ok(Use::Interrupted(signal)) => {
                let remedy = format!("`openshell sandbox delete {name}` deletes it");
                console.note(&format!("sandbox `{name}` is kept; {remedy}")).await;
                Ok(signal.code())
            }
            Err(error) => {
                let remedy =
                    format!("sandbox `{name}` is kept for inspection; `openshell sandbox delete {name}` deletes it");
                Err(CommandError::new(error.code, format!("{error}\n{remedy}")))
            }
        }
    }

    fn request(&self, console: &Console) -> CreateSandboxRequest {
        let text = |text: &String| Value { kind: Some(Kind::StringValue(text.clone())) };
        let limits = [("cpu", &self.cpus), ("memory", &self.memory)];
        let limits = limits.into_iter().filter_map(|(name, value)| Some((name.to_owned(), text(value.as_ref()?))));
        let limits = limits.collect::<BTreeMap<_, _>>();
        let resources = (!limits.is_empty()).then(|| {
            let limits = Value { kind: Some(Kind::StructValue(Struct { fields: limits })) };
            Struct { fields: BTreeMap::from([("limits".to_owned(), limits)]) }
        });
        let template =
            SandboxTemplate { image: self.from.clone().unwrap_or_default(), resources, ..SandboxTemplate::default() };
        let spec = SandboxSpec {
            environment: self.env.to_map(),
            template: Some(template),
            // Nobody attaches to a command of the image's own.
            tty: if self.command.is_empty() { self.tty.asked() } else { self.tty.wanted(console.terminals) },
            command: self.command.clone(),
            providers: self.providers.clone(),
            restart_policy: SandboxRestartPolicy::from(self.restart).into(),
            ..SandboxSpec::default()
        };
        CreateSandboxRequest {
            spec: Some(spec),
            await_main_process_attachment: !self.command.is_empty(),
            workspace_scope: workspace(),
            ..CreateSandboxRequest::default()
        }
    }

    async fn create(&self, client: &mut Client, mut request: CreateSandboxRequest) -> Result<Sandbox, CommandError> {
        let mut tries = 0;
        loop {
            tries += 1;
            request.name = self.name.clone().unwrap_or_else(|| name::of_bits(rand::random()));
            request.request_id = Uuid::new_v4().to_string();
            let act = format!("create sandbox `{}`", request.name);
            let accept = self.timeout.max(ACCEPT);
            let answer = tokio::time::timeout(accept, client.create_sandbox(request.clone())).await;
            let status = match answer {
                Ok(Ok(answer)) => match answer.into_inner().sandbox {
                    Some(sandbox) => return Ok(sandbox),
                    None => tonic::Status::internal("the gateway's answer holds no sandbox"),
                },
                Ok(Err(status)) => status,
                Err(_) => {
                    let cause =
                        format!("no answer within {accept:?}; `openshell sandbox list` tells whether it exists");
                    return Err(CommandError::new(ExitCode::Timeout, format!("failed to {act}: {cause}")));
                }
            };
            let taken = status.code() == Code::AlreadyExists && self.name.is_none();
            if !taken || tries == NAMES {
                return Err(CommandError::of_status(&act, &status));
            }
        }
    }

    /// Until it is ready, then until its command ends.
    async fn use_it(
        &self,
        client: &mut Client,
        console: &mut Console,
        signals: &mut Signals,
        name: &str,
        sandbox: &Sandbox,
    ) -> Result<Use, CommandError> {
        console.line(&format!("Created sandbox: {name}")).await.map_err(CommandError::output)?;
        if let Some(signal) = ready(client, console, signals, sandbox, self.timeout).await? {
            return Ok(Use::Interrupted(signal));
        }
        if self.command.is_empty() {
            return Ok(Use::Ended(0));
        }
        let tty = sandbox.spec.as_ref().map_or_else(|| self.tty.wanted(console.terminals), |spec| spec.tty);
        let attach =
            ExecSandboxRequest { sandbox: name.to_owned(), tty, workspace_scope: workspace(), ..Default::default() };
        // Nobody would be left to delete it.
        let keys = if self.no_keep { DetachKeys::default() } else { self.detach.keys.clone() };
        Ok(match stream::run_until_detached(client, attach, false, keys, console, signals).await? {
            Some(Ended::Exited(code)) => Use::Ended(code),
            Some(Ended::Interrupted(signal)) => Use::Interrupted(signal),
            None => {
                console.note(&detached(name)).await;
                Use::Ended(0)
            }
        })
    }
}

/// When the main process is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Restart {
    /// It is not: the sandbox is completed then
    Never,
    /// Where its exit code is not 0
    OnFailure,
    /// However it ended
    Always,
}

impl From<Restart> for SandboxRestartPolicy {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::Never => Self::Never,
            Restart::OnFailure => Self::OnFailure,
            Restart::Always => Self::Always,
        }
    }
}

/// How the use of a new sandbox ended, if not by an error.
enum Use {
    Ended(u8),
    Interrupted(ExitCode),
}

impl Use {
    fn code(&self) -> u8 {
        match self {
            Self::Ended(code) => *code,
            Self::Interrupted(signal) => signal.code(),
        }
    }
}

/// Waits until a sandbox that was created or started is up; `Some` is the signal that came before.
pub(crate) async fn ready(
    client: &Client,
    console: &mut Console,
    signals: &mut Signals,
    sandbox: &Sandbox,
    within: Duration,
) -> Result<Option<ExitCode>, CommandError> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let name = &metadata.name;
    let what = format!("waiting for sandbox `{name}` to be ready");
    let wait = Wait { name, what, since: metadata.resource_version, within };
    let failed =
        |code, cause: &str| Err(CommandError::new(code, format!("sandbox `{name}` did not become ready: {cause}")));
    let decided = wait.until(client, console, signals, |sandbox| match view::phase(sandbox) {
        SandboxPhase::Ready | SandboxPhase::Completed => Some(Ok(())),
        SandboxPhase::Error => Some(Err(view::evidence(sandbox))),
        SandboxPhase::Stopping | SandboxPhase::Stopped => {
            Some(Err((ExitCode::WrongPhase, " it was stopped meanwhile".to_owned())))
        }
        _ => None,
    });
    match decided.await? {
        Waited::Met(Ok(())) => Ok(None),
        Waited::Met(Err((code, evidence))) if evidence.is_empty() => failed(code, "the gateway tells no reason"),
        Waited::Met(Err((code, evidence))) => failed(code, evidence.trim_start_matches(' ')),
        Waited::Gone => failed(ExitCode::NotFound, "it was deleted meanwhile"),
        Waited::Interrupted(signal) => Ok(Some(signal)),
    }
}
