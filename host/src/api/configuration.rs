//! Configuration: the versioned document and the settings of a sandbox, for itself and for users.

use std::time::Instant;

use proto::openshell::sandbox::v1::{
    EffectiveSetting, GetSandboxConfigRequest, GetSandboxConfigResponse, PolicySource, SettingScope, SettingValue,
    setting_value::Value,
};
use proto::openshell::v1::{UpdateConfigRequest, UpdateConfigResponse};
use tonic::{Code, Status};

use super::lifecycle::workspace;
use super::reply::WORKSPACE;
use super::services::Api;
use crate::identity::principal::Principal;
use crate::sandbox::document::{Configuration, Setting, Update, UpdateError};
use crate::sandbox::task::{ConfigureError, Handle};
use crate::session::supervisor::refused;
use crate::session::throttle::INTERVAL;
use crate::status;

impl Api {
    pub(super) fn configuration(
        &self,
        handle: &Handle,
        request: &GetSandboxConfigRequest,
    ) -> Result<GetSandboxConfigResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        let view = handle.view();
        let Configuration { version, document, settings, settings_revision, changed_in } = &view.record.configuration;
        let source = if *version == 0 { PolicySource::Unspecified } else { PolicySource::Sandbox };
        let effective =
            |setting| EffectiveSetting { value: Some(message(setting)), scope: SettingScope::Sandbox.into() };
        Ok(GetSandboxConfigResponse {
            policy: document.clone(),
            version: *version,
            policy_hash: view.record.configuration.document_hash(),
            settings: settings.iter().map(|(key, setting)| (key.clone(), effective(setting))).collect(),
            config_revision: *changed_in,
            policy_source: source.into(),
            provider_env_revision: self.secrets.revision(&view.record.spec.providers),
            workspace: WORKSPACE.into(),
            settings_revision: *settings_revision,
        })
    }

    pub(super) async fn configure(
        &self,
        handle: &Handle,
        request: UpdateConfigRequest,
        caller: &Principal,
    ) -> Result<UpdateConfigResponse, Status> {
        workspace(request.workspace_scope.as_ref())?;
        // Each change is a durable write, and guests ask as often as they like.
        if matches!(caller, Principal::Sandbox { .. }) && !self.throttle.admit(handle.id, Instant::now()) {
            let message =
                format!("UpdateConfig: a sandbox may change its configuration once in {INTERVAL:?}; try again");
            return Err(status::not_now(Code::ResourceExhausted, message));
        }
        let deleted = request.delete_setting;
        let configuration = match handle.configure(update(request)?).await {
            Ok(configuration) => configuration,
            Err(ConfigureError::Refused(UpdateError::Invalid(invalid))) => {
                return Err(status::invalid(invalid.field, invalid.message));
            }
            Err(ConfigureError::Refused(conflict)) => return Err(status::not_now(Code::Aborted, conflict.to_string())),
            Err(ConfigureError::Failed(error)) => return Err(refused(handle, "configure", error)),
        };
        if let Principal::User { uid } = caller {
            tracing::info!(sandbox = %handle.id, uid, version = configuration.version,
                settings_revision = configuration.settings_revision, "audit: configured");
        }
        Ok(UpdateConfigResponse {
            version: configuration.version,
            policy_hash: configuration.document_hash(),
            settings_revision: configuration.settings_revision,
            deleted,
        })
    }
}

fn update(request: UpdateConfigRequest) -> Result<Update, Status> {
    if request.global {
        return Err(Status::unimplemented("global: this gateway has settings of sandboxes only; name a sandbox"));
    }
    if !request.merge_operations.is_empty() {
        return Err(Status::unimplemented("merge_operations are not served by this gateway; send the whole policy"));
    }
    let setting = match (request.setting_key.is_empty(), request.setting_value, request.delete_setting) {
        (true, None, false) => None,
        (true, ..) => return Err(status::invalid("setting_key", "setting_key: name the setting")),
        (false, None, true) => Some((request.setting_key, None)),
        (false, Some(value), false) => Some((request.setting_key, Some(setting(value)?))),
        (false, ..) => {
            return Err(status::invalid("setting_key", "setting_key: give either a setting_value or delete_setting"));
        }
    };
    Ok(Update { document: request.policy, setting, expected: request.expected_resource_version })
}

fn setting(value: SettingValue) -> Result<Setting, Status> {
    match value.value {
        Some(Value::StringValue(text)) => Ok(Setting::Text(text)),
        Some(Value::BoolValue(flag)) => Ok(Setting::Flag(flag)),
        Some(Value::IntValue(number)) => Ok(Setting::Number(number)),
        Some(Value::BytesValue(bytes)) => Ok(Setting::Bytes(bytes)),
        None => Err(status::invalid("setting_value", "setting_value: it holds no value")),
    }
}

fn message(setting: &Setting) -> SettingValue {
    let value = match setting {
        Setting::Text(text) => Value::StringValue(text.clone()),
        Setting::Flag(flag) => Value::BoolValue(*flag),
        Setting::Number(number) => Value::IntValue(*number),
        Setting::Bytes(bytes) => Value::BytesValue(bytes.clone()),
    };
    SettingValue { value: Some(value) }
}
