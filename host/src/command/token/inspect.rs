//! `openshell token inspect`

use std::collections::HashMap;
use std::time::SystemTime;

use clap::Args;
use proto::annotation;
use serde::Serialize;

use crate::command::arguments::{Format, Output};
use crate::command::connect::Gateway;
use crate::command::console::Console;
use crate::command::failure::CommandError;
use crate::command::{Named, get, table, view};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    sandbox: Named,
    #[command(flatten)]
    output: Output,
}

/// Field names are stable: scripts read them.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct TokenView {
    sandbox: String,
    phase: &'static str,
    token: Option<Claims>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Claims {
    generation: u64,
    issued: Option<String>,
    expires: Option<String>,
    id: Option<String>,
    key: Option<String>,
    issuer: Option<String>,
    seen_generation: Option<u64>,
    last_delay_ms: Option<u64>,
}

impl Claims {
    fn of(annotations: &HashMap<String, String>) -> Option<Self> {
        let text = |name: &str| annotations.get(name).cloned();
        let number = |name: &str| annotations.get(name).and_then(|value| value.parse().ok());
        Some(Self {
            generation: number(annotation::TOKEN_GENERATION)?,
            issued: text(annotation::TOKEN_ISSUED),
            expires: text(annotation::TOKEN_EXPIRES),
            id: text(annotation::TOKEN_ID),
            key: text(annotation::TOKEN_KEY),
            issuer: text(annotation::TOKEN_ISSUER),
            seen_generation: number(annotation::TOKEN_SEEN),
            last_delay_ms: number(annotation::TOKEN_DELAY),
        })
    }
}

impl TokenView {
    fn to_text(&self, now: SystemTime) -> String {
        let Some(token) = &self.token else {
            return format!("no token: sandbox {} is {}\n", self.sandbox, self.phase);
        };
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let time = |value: &Option<String>| value.as_deref().map(|value| relative(value, now)).unwrap_or_default();
        let delay = token.last_delay_ms.map(|delay| format!(" (after {delay} ms)")).unwrap_or_default();
        let seen = token.seen_generation.map(|seen| format!("{seen}{delay}"));
        table::pairs(&[
            ("Sandbox", format!("{} ({})", self.sandbox, self.phase)),
            ("Generation", token.generation.to_string()),
            ("Seen", seen.unwrap_or_else(|| "not yet".to_owned())),
            ("Issued", time(&token.issued)),
            ("Expires", time(&token.expires)),
            ("Token id", text(&token.id)),
            ("Key", text(&token.key)),
            ("Issuer", text(&token.issuer)),
        ])
    }
}

/// A time as it was told, and how far it is.
fn relative(text: &str, now: SystemTime) -> String {
    let Ok(time) = humantime::parse_rfc3339_weak(text) else { return text.to_owned() };
    match time.duration_since(now) {
        Ok(ahead) => format!("{text} (in {})", view::coarse(ahead)),
        Err(behind) => format!("{text} ({} ago)", view::coarse(behind.duration())),
    }
}

impl Inspect {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut client = gateway.client(console).await?;
        let sandbox = get::sandbox(&mut client, &self.sandbox.name).await?;
        let metadata = sandbox.metadata.clone().unwrap_or_default();
        let phase = view::phase_name(view::phase(&sandbox));
        let token = TokenView { sandbox: metadata.name, phase, token: Claims::of(&metadata.annotations) };
        let text = match self.output.output {
            Format::Table => token.to_text(SystemTime::now()),
            Format::Json => view::json(&token),
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_told_with_their_distance() {
        let annotations = [
            (annotation::TOKEN_GENERATION, "7"),
            (annotation::TOKEN_ISSUED, "2026-08-01T10:00:00Z"),
            (annotation::TOKEN_EXPIRES, "2026-08-01T10:10:00Z"),
            (annotation::TOKEN_SEEN, "7"),
            (annotation::TOKEN_DELAY, "41"),
        ];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let view = TokenView { sandbox: "a".into(), phase: "Ready", token: Claims::of(&annotations) };
        let now = humantime::parse_rfc3339("2026-08-01T10:04:00Z").unwrap();
        let text = view.to_text(now);
        for line in [
            "Sandbox:     a (Ready)",
            "Seen:        7 (after 41 ms)",
            "Issued:      2026-08-01T10:00:00Z (4m ago)",
            "Expires:     2026-08-01T10:10:00Z (in 6m)",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }

    #[test]
    fn a_stopped_sandbox_has_none() {
        let view = TokenView { sandbox: "a".into(), phase: "Stopped", token: Claims::of(&HashMap::new()) };
        assert_eq!(view.to_text(SystemTime::UNIX_EPOCH), "no token: sandbox a is Stopped\n");
        assert_eq!(view::json(&view), "{\n  \"sandbox\": \"a\",\n  \"phase\": \"Stopped\",\n  \"token\": null\n}\n");
    }
}
