//! A sandbox as it is shown: one shape for tables and for JSON.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use prost_types::value::Kind;
use proto::openshell::v1::{Sandbox, SandboxPhase, SandboxRestartPolicy};
use serde::Serialize;

use super::exit::ExitCode;
use super::table;

/// Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
pub(crate) struct SandboxView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) phase: &'static str,
    pub(crate) image: Option<String>,
    pub(crate) cpus: Option<String>,
    pub(crate) memory: Option<String>,
    pub(crate) command: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) exit_code: Option<i32>,
    pub(crate) restart_policy: &'static str,
    pub(crate) restarts: u32,
    pub(crate) next_restart: Option<String>,
    pub(crate) main_started: Option<String>,
    pub(crate) boot: Option<String>,
    pub(crate) created: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) resource_version: u64,
    pub(crate) host_key_fingerprint: Option<String>,
    pub(crate) conditions: Vec<ConditionView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ConditionView {
    r#type: String,
    status: String,
    reason: String,
    message: String,
    since: Option<String>,
}

/// The phase of a sandbox; `Unspecified` where the gateway says nothing.
pub(crate) fn phase(sandbox: &Sandbox) -> SandboxPhase {
    sandbox.status.as_ref().map_or(SandboxPhase::Unspecified, |status| status.phase())
}

pub(crate) fn phase_name(phase: SandboxPhase) -> &'static str {
    match phase {
        SandboxPhase::Unspecified => "Unspecified",
        SandboxPhase::Provisioning => "Provisioning",
        SandboxPhase::Ready => "Ready",
        SandboxPhase::Error => "Error",
        SandboxPhase::Deleting => "Deleting",
        SandboxPhase::Unknown => "Unknown",
        SandboxPhase::Stopping => "Stopping",
        SandboxPhase::Stopped => "Stopped",
        SandboxPhase::Starting => "Starting",
        SandboxPhase::Completed => "Completed",
    }
}

/// Why a sandbox is in Error, for people, and the exit code for programs.
pub(crate) fn evidence(sandbox: &Sandbox) -> (ExitCode, String) {
    let conditions = sandbox.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let code = conditions.iter().find_map(|condition| ExitCode::of_reason(&condition.reason));
    let lines = conditions.iter().filter(|condition| !condition.message.is_empty()).map(|condition| {
        let (kind, reason) = (table::printable(&condition.r#type), table::printable(&condition.reason));
        format!("\n  {kind} {reason}:{}", table::indented(&condition.message, "    "))
    });
    (code.unwrap_or(ExitCode::SandboxError), lines.collect())
}

/// RFC 3339 in seconds.
pub(crate) fn rfc3339(time: &Timestamp) -> Option<String> {
    Some(humantime::format_rfc3339_seconds(system_time(time)?).to_string())
}

fn system_time(time: &Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, u32::try_from(time.nanos).ok()?))
}

/// The two largest units of a duration, such as `2h 5m`.
pub(crate) fn coarse(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// How long ago a sandbox was created.
pub(crate) fn age(sandbox: &Sandbox, now: SystemTime) -> String {
    let created = sandbox.metadata.as_ref().and_then(|metadata| metadata.created_time.as_ref()).and_then(system_time);
    created.and_then(|created| now.duration_since(created).ok()).map(coarse).unwrap_or_default()
}

fn present(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn limit(sandbox: &Sandbox, name: &str) -> Option<String> {
    let resources = sandbox.spec.as_ref()?.template.as_ref()?.resources.as_ref()?;
    match resources.fields.get("limits")?.kind.as_ref()? {
        Kind::StructValue(limits) => match limits.fields.get(name)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.clone()),
            Kind::NumberValue(number) => Some(number.to_string()),
            _ => None,
        },
        _ => None,
    }
}

impl From<&Sandbox> for SandboxView {
    fn from(sandbox: &Sandbox) -> Self {
        let metadata = sandbox.metadata.clone().unwrap_or_default();
        let spec = sandbox.spec.clone().unwrap_or_default();
        let status = sandbox.status.clone().unwrap_or_default();
        let restart_policy = spec.restart_policy();
        let condition = |condition: &proto::openshell::v1::SandboxCondition| ConditionView {
            r#type: condition.r#type.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            since: condition.transition_time.as_ref().and_then(rfc3339),
        };
        Self {
            id: metadata.id,
            name: metadata.name,
            phase: phase_name(phase(sandbox)),
            image: spec.template.as_ref().and_then(|template| present(&template.image)),
            cpus: limit(sandbox, "cpu"),
            memory: limit(sandbox, "memory"),
            command: spec.command,
            tty: spec.tty,
            exit_code: status.exit_code,
            restart_policy: match restart_policy {
                SandboxRestartPolicy::Unspecified | SandboxRestartPolicy::Never => "never",
                SandboxRestartPolicy::OnFailure => "on-failure",
                SandboxRestartPolicy::Always => "always",
            },
            restarts: status.restart_count,
            next_restart: status.next_restart_time.as_ref().and_then(rfc3339),
            main_started: status.main_process_started_time.as_ref().and_then(rfc3339),
            boot: present(&status.main_process_instance_id),
            created: metadata.created_time.as_ref().and_then(rfc3339),
            labels: metadata.labels.into_iter().collect(),
            resource_version: metadata.resource_version,
            host_key_fingerprint: present(&sandbox.host_key_fingerprint),
            conditions: status.conditions.iter().map(condition).collect(),
        }
    }
}

impl SandboxView {
    /// All of it, for people.
    pub(crate) fn to_text(&self) -> String {
        let or_none = |value: &Option<String>| value.clone().unwrap_or_default();
        let mut text = table::pairs(&[
            ("Name", self.name.clone()),
            ("Id", self.id.clone()),
            ("Phase", self.phase.to_owned()),
            ("Image", or_none(&self.image)),
            ("CPUs", or_none(&self.cpus)),
            ("Memory", or_none(&self.memory)),
            ("Command", self.command.join(" ")),
            ("Exit code", self.exit_code.map(|code| code.to_string()).unwrap_or_default()),
            ("Restart policy", self.restart_policy.to_owned()),
            ("Restarts", self.restarts.to_string()),
            ("Next restart", or_none(&self.next_restart)),
            ("Main started", or_none(&self.main_started)),
            ("Boot", or_none(&self.boot)),
            ("Created", or_none(&self.created)),
            ("Host key", or_none(&self.host_key_fingerprint)),
        ]);
        for condition in &self.conditions {
            let words = [&condition.r#type, &condition.status, &condition.reason].map(|word| table::printable(word));
            let since = condition.since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
            text.push_str(format!("{} = {} {}{since}", words[0], words[1], words[2]).trim_end());
            text.push_str(&table::indented(&condition.message, "  "));
            text.push('\n');
        }
        text
    }
}

/// JSON for scripts, indented, with a final newline.
pub(crate) fn json(value: &impl Serialize) -> String {
    // These shapes have string keys and no failing serializer.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
