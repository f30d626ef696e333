//! A sandbox as the public API shows it. Never a token: claims only.

use std::collections::HashMap;
use std::time::{Instant, UNIX_EPOCH};

use prost_types::Timestamp;
use proto::annotation;
use proto::boot::RestartPolicy;
use proto::openshell::datamodel::v1::ObjectMeta;
use proto::openshell::v1::{
    Sandbox, SandboxCondition, SandboxRestartPolicy, SandboxSpec, SandboxStatus, SandboxTemplate,
};

use super::services::Api;
use crate::sandbox::phase::Phase;
use crate::sandbox::record::MainRuns;
use crate::sandbox::task::Handle;
use crate::sandbox::view::View;

/// The one workspace.
pub const WORKSPACE: &str = "default";

impl Api {
    /// The latest snapshot, as a message.
    pub fn sandbox(&self, handle: &Handle) -> Sandbox {
        self.message(&handle.view())
    }

    /// A snapshot as a message.
    pub fn message(&self, view: &View) -> Sandbox {
        let record = &view.record;
        let ready = view.phase() == Phase::Ready;
        let mut annotations: HashMap<String, String> = record.spec.annotations.clone().into_iter().collect();
        annotations.extend(self.token_annotations(view));
        Sandbox {
            metadata: Some(ObjectMeta {
                id: record.id.to_string(),
                name: record.name.clone(),
                labels: record.spec.labels.clone().into_iter().collect(),
                resource_version: record.version,
                annotations,
                workspace: WORKSPACE.into(),
                created_time: Some(timestamp(record.created_ms)),
                deletion_time: (view.phase() == Phase::Deleting).then(|| timestamp(record.phase_since_ms)),
            }),
            spec: Some(SandboxSpec {
                environment: record.spec.environment.clone().into_iter().collect(),
                template: Some(SandboxTemplate {
                    image: record.spec.image.clone(),
                    resources: Some(resources(record.spec.vcpus, record.spec.memory_mib)),
                    ..Default::default()
                }),
                command: record.spec.command.clone(),
                tty: record.spec.tty,
                restart_policy: restart_policy(record.spec.restart).into(),
                providers: record.spec.providers.clone(),
                ..Default::default()
            }),
            status: Some(SandboxStatus {
                conditions: self.conditions(view),
                phase: proto::openshell::v1::SandboxPhase::from(view.phase()).into(),
                main_process_instance_id: record.instance_id.clone(),
                exit_code: view.exit_code(),
                restart_count: record.machine.restarts.saturating_add(record.main.restarts),
                next_restart_time: record.main.next_ms.filter(|_| ready).map(timestamp),
                main_process_started_time: record.main.started_ms.map(timestamp),
            }),
            host_key_fingerprint: self.host_keys.fingerprint(record.id).unwrap_or_default(),
        }
    }

    fn conditions(&self, view: &View) -> Vec<SandboxCondition> {
        let record = &view.record;
        let ready = view.phase() == Phase::Ready;
        let since = timestamp(record.phase_since_ms);
        let mut conditions = vec![SandboxCondition {
            r#type: "Ready".into(),
            status: truth(ready && record.machine.connected),
            reason: reason(view),
            message: record.note.clone(),
            transition_time: Some(since),
        }];
        if ready {
            conditions.push(SandboxCondition {
                r#type: "SessionConnected".into(),
                status: truth(record.machine.connected),
                reason: if record.machine.connected { "SessionUp" } else { "SessionLost" }.into(),
                message: String::new(),
                transition_time: Some(timestamp(view.session_since_ms)),
            });
            conditions.extend(main_condition(&record.main));
            conditions.extend(self.token_condition(view));
            conditions.extend(self.secrets_condition(view));
            conditions.extend(self.services_condition(view));
        }
        conditions.extend(self.trouble_condition(view));
        conditions
    }

    /// Whether the published generation has been presented.
    fn token_condition(&self, view: &View) -> Option<SandboxCondition> {
        let published = self.rotation.published(view.record.id)?;
        let receipt = self.receipts.latest(view.record.id);
        let seen = receipt.and_then(|receipt| receipt.seen).map(|(seen, _)| seen).unwrap_or_default();
        let delivered = seen >= published.generation;
        let waiting = receipt.and_then(|receipt| receipt.unseen_for(Instant::now())).unwrap_or_default();
        let reason = match delivered {
            true => "Presented",
            false if waiting > self.receipt_deadline => "Overdue",
            false => "NotPresentedYet",
        };
        let age = if delivered { String::new() } else { format!(", for {} s", waiting.as_secs()) };
        Some(SandboxCondition {
            r#type: "TokenDelivered".into(),
            status: truth(delivered),
            reason: reason.into(),
            message: format!("published generation {}, presented generation {seen}{age}", published.generation),
            transition_time: Some(timestamp(published.iat * 1000)),
        })
    }

    /// Whether the agent holds the newest secrets.
    fn secrets_condition(&self, view: &View) -> Option<SandboxCondition> {
        let wanted = self.secrets.revision(&view.record.spec.providers);
        if view.record.spec.providers.is_empty() {
            return None;
        }
        let held = self.supervisors.sessions.of(view.record.id).map_or(0, |session| session.secrets());
        let unknown = view.record.spec.providers.iter().find(|name| !self.secrets.knows(name));
        let (reason, message) = match unknown {
            Some(name) => {
                ("ProviderUnknown", format!("provider `{name}` does not exist any more; set its secrets again"))
            }
            None if held == wanted => ("Fetched", format!("the agent holds revision {held}")),
            None => ("NotFetchedYet", format!("newest revision {wanted}, the agent holds {held}")),
        };
        Some(SandboxCondition {
            r#type: "SecretsDelivered".into(),
            status: truth(reason == "Fetched"),
            reason: reason.into(),
            message,
            transition_time: None,
        })
    }

    /// Whether the services of the guest are as they should be. The image's are not known here until one is not.
    fn services_condition(&self, view: &View) -> Option<SandboxCondition> {
        let told = self.supervisors.sessions.of(view.record.id).map(|session| session.services_note())?;
        if view.record.spec.services.is_empty() && told.as_ref().is_none_or(String::is_empty) {
            return None;
        }
        let note = told.unwrap_or_else(|| "the agent has not told of them yet".to_owned());
        Some(SandboxCondition {
            r#type: "ServicesReady".into(),
            status: truth(note.is_empty()),
            reason: if note.is_empty() { "AllReady" } else { "NotReady" }.into(),
            message: note,
            transition_time: None,
        })
    }

    /// What keeps the sandbox from new tokens, while it does.
    fn trouble_condition(&self, view: &View) -> Option<SandboxCondition> {
        let trouble = self.rotation.trouble(view.record.id)?;
        let since = trouble.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(SandboxCondition {
            r#type: "TokenPublished".into(),
            status: truth(false),
            reason: trouble.reason.into(),
            message: trouble.message,
            transition_time: Some(timestamp(since.as_millis() as u64)),
        })
    }

    fn token_annotations(&self, view: &View) -> Vec<(String, String)> {
        let Some(published) = self.rotation.published(view.record.id) else { return vec![] };
        let mut facts = vec![
            (annotation::TOKEN_GENERATION, published.generation.to_string()),
            (annotation::TOKEN_ISSUED, humantime::format_rfc3339_seconds(unix(published.iat)).to_string()),
            (annotation::TOKEN_EXPIRES, humantime::format_rfc3339_seconds(unix(published.exp)).to_string()),
            (annotation::TOKEN_ID, published.jti.to_string()),
            (annotation::TOKEN_KEY, self.kid.clone()),
            (annotation::TOKEN_ISSUER, self.issuer.clone()),
        ];
        if let Some(latest) = self.receipts.latest(view.record.id) {
            facts.extend(latest.seen.map(|(seen, _)| (annotation::TOKEN_SEEN, seen.to_string())));
            facts.extend(latest.last_delay.map(|delay| (annotation::TOKEN_DELAY, delay.as_millis().to_string())));
        }
        facts.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }
}

/// That the main process was started again, and how it stands; nothing while its first run goes on.
fn main_condition(runs: &MainRuns) -> Option<SandboxCondition> {
    let last = runs.last_code.filter(|_| runs.restarts > 0 || runs.next_ms.is_some())?;
    let (reason, since) = match runs.next_ms {
        Some(next) => ("WaitsForRestart", next),
        None => ("Restarted", runs.started_ms.unwrap_or_default()),
    };
    let message = format!("restarted {} times in this boot; the last run ended with code {last}", runs.restarts);
    Some(SandboxCondition {
        r#type: "MainProcessRunning".into(),
        status: truth(runs.next_ms.is_none()),
        reason: reason.into(),
        message,
        transition_time: Some(timestamp(since)),
    })
}

fn restart_policy(policy: RestartPolicy) -> SandboxRestartPolicy {
    match policy {
        RestartPolicy::Never => SandboxRestartPolicy::Never,
        RestartPolicy::OnFailure => SandboxRestartPolicy::OnFailure,
        RestartPolicy::Always => SandboxRestartPolicy::Always,
    }
}

/// The kind of failure where one is known; else the phase.
fn reason(view: &View) -> String {
    let failure = &view.record.reason;
    if view.phase() == Phase::Error && !failure.is_empty() { failure.clone() } else { view.phase().name().into() }
}

fn truth(yes: bool) -> String {
    if yes { "True" } else { "False" }.into()
}

fn unix(seconds: u64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

/// Milliseconds since the epoch as a message.
pub fn timestamp(ms: u64) -> Timestamp {
    Timestamp { seconds: (ms / 1000) as i64, nanos: ((ms % 1000) * 1_000_000) as i32 }
}

/// Milliseconds since the epoch in a message that a guest has sent; nothing where it is no time that a message can hold.
pub(super) fn since_epoch_ms(time: &Timestamp) -> Option<u64> {
    // Until the year 9999.
    let seconds = u64::try_from(time.seconds).ok().filter(|seconds| *seconds < 253_402_300_800)?;
    Some(seconds * 1000 + u64::try_from(time.nanos).ok()? / 1_000_000)
}

/// `{"limits": {"cpu": "2", "memory": "512Mi"}}`
fn resources(vcpus: u8, memory_mib: u32) -> prost_types::Struct {
    use prost_types::{Struct, Value, value::Kind};
    let text = |s: String| Value { kind: Some(Kind::StringValue(s)) };
    let limits = Struct {
        fields: [("cpu".into(), text(vcpus.to_string())), ("memory".into(), text(format!("{memory_mib}Mi")))].into(),
    };
    Struct { fields: [("limits".into(), Value { kind: Some(Kind::StructValue(limits)) })].into() }
}
