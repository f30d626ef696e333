//! Calls with this sandbox's identity that its gateway's user asks for, on a connection of their own: what works and
//! what does not is seen as the session would see it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::budget;
use proto::debug::{DebugCall, EXIT_FAILED, EXIT_REFUSED};
use proto::openshell::sandbox::v1::{GetSandboxConfigRequest, setting_value::Value as Setting};
use proto::openshell::v1::RefreshSandboxTokenRequest;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::Session;
use super::connection::{Client, Pings, open};
use super::control::brief;
use super::endpoint::{Endpoint, Endpoints};
use crate::services::Services;

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebugError {
    /// Code and message.
    pub message: String,
    /// For the exit of the channel.
    pub exit_code: i32,
}

impl From<Status> for DebugError {
    fn from(status: Status) -> Self {
        let refused = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
        Self { message: brief(&status), exit_code: if refused { EXIT_REFUSED } else { EXIT_FAILED } }
    }
}

impl From<String> for DebugError {
    fn from(message: String) -> Self {
        Self { message, exit_code: EXIT_FAILED }
    }
}

/// Makes one call; the answer is JSON.
pub async fn call(
    session: Arc<Session>,
    endpoints: Endpoints,
    services: Arc<Services>,
    call: DebugCall,
) -> Result<String, DebugError> {
    let answer = timeout(2 * budget::UNARY, answer(&session, endpoints.current(), &services, call)).await;
    let late = |_| DebugError::from(format!("no answer within {:?}", 2 * budget::UNARY));
    answer.map_err(late)?.map(|answer| format!("{answer:#}\n"))
}

async fn answer(
    session: &Arc<Session>,
    endpoint: &Endpoint,
    services: &Services,
    call: DebugCall,
) -> Result<Value, DebugError> {
    match call {
        DebugCall::ShowToken => return claims(session),
        DebugCall::ListServices => return Ok(json!(services.report())),
        _ => {}
    }
    let (client, _closed) = open(endpoint, session, Pings::Never).await?;
    match call {
        DebugCall::GetSandboxConfig { sandbox_id } => configuration(client, sandbox_id.unwrap_or_default()).await,
        DebugCall::Refresh => refresh(client).await,
        DebugCall::ShowPrincipal | DebugCall::ShowToken | DebugCall::ListServices => principal(client, session).await,
    }
}

async fn configuration(mut client: Client, name: String) -> Result<Value, DebugError> {
    let request = GetSandboxConfigRequest { name, ..Default::default() };
    let config = client.openshell.get_sandbox_config(request).await?.into_inner();
    let settings = config.settings.into_iter().map(|(key, setting)| {
        let value = match setting.value.and_then(|value| value.value) {
            Some(Setting::StringValue(text)) => json!(text),
            Some(Setting::BoolValue(flag)) => json!(flag),
            Some(Setting::IntValue(number)) => json!(number),
            Some(Setting::BytesValue(bytes)) => json!({ "bytes": URL_SAFE_NO_PAD.encode(bytes) }),
            None => Value::Null,
        };
        (key, value)
    });
    Ok(json!({
        "version": config.version,
        "policy_hash": config.policy_hash,
        "policy_bytes": config.policy.len(),
        "settings": settings.collect::<serde_json::Map<_, _>>(),
        "config_revision": config.config_revision,
        "settings_revision": config.settings_revision,
        "provider_env_revision": config.provider_env_revision,
        "workspace": config.workspace,
    }))
}

/// Says when the new token ends. The token itself is taken from the file, like every other.
async fn refresh(mut client: Client) -> Result<Value, DebugError> {
    let reply = client.openshell.refresh_sandbox_token(RefreshSandboxTokenRequest {}).await?.into_inner();
    Ok(json!({ "expires": reply.expiration_time.map(|time| time.seconds) }))
}

/// A Sync that is answered shows that the gateway takes this agent for that sandbox.
async fn principal(mut client: Client, session: &Session) -> Result<Value, DebugError> {
    let request = session.sync_request();
    let reply = client.vm.sync(request).await?.into_inner();
    Ok(json!({
        "principal": format!("sandbox {}", session.spec.sandbox_id),
        "sandbox_id": session.spec.sandbox_id,
        "instance_id": session.spec.instance_id,
        "generation": session.tokens.generation(),
        "published_generation": reply.published_generation,
    }))
}

/// What the token says and by which hash it is known; never the token, which is good for whoever has it.
fn claims(session: &Session) -> Result<Value, DebugError> {
    let shown = session.tokens.shown().ok_or_else(|| DebugError::from("no token is held".to_owned()))?;
    let part = |encoded: &str| {
        let decoded = URL_SAFE_NO_PAD.decode(encoded).unwrap_or_default();
        serde_json::from_slice::<Value>(&decoded).unwrap_or(Value::Null)
    };
    Ok(json!({ "header": part(&shown.header), "claims": part(&shown.claims), "signature": "not shown" }))
}
