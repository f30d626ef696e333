//! Tokens, configuration and secrets: what a sandbox gets of its own, what users may do, and nobody else.

use std::time::{Duration, Instant};

use host::sandbox::task::Handle;
use proto::openshell::sandbox::v1::{GetSandboxConfigRequest, SettingValue, setting_value::Value};
use proto::openshell::v1::*;
use proto::openshell::vm::v1::operator_client::OperatorClient;
use proto::openshell::vm::v1::*;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::stage::{Stage, becomes, channel, request, until};

async fn operator(stage: &Stage) -> OperatorClient<tonic::transport::Channel> {
    OperatorClient::new(channel(&stage.socket()).await)
}

async fn refresh(agent: &Agent) -> Result<RefreshSandboxTokenResponse, Status> {
    agent.client().refresh_sandbox_token(agent.request(RefreshSandboxTokenRequest {})).await.map(|r| r.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_is_the_one_in_the_file() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    // One was published just now.
    assert_eq!(refresh(&agent).await.expect("its own token").token, agent.token);
    let rotated = operator(&stage).await.rotate_token(RotateTokenRequest { sandbox: "mine".into() }).await;
    let rotated = rotated.expect("a user may").into_inner();
    let reply = refresh(&agent).await.expect("the earlier token is good");
    assert_eq!(reply.token, stage.token(mine.id));
    assert_ne!(reply.token, agent.token);
    assert_eq!(reply.expiration_time, rotated.expiration_time);
    agent.with_token(reply.token).sync().await.expect("the new one");
    agent.sync().await.expect("and the earlier one, to its own end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_refuses_at_once_and_closes_what_does_not_follow() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let (thief, agent) = (Agent::of(&stage, &mine).await, Agent::of(&stage, &mine).await);
    let mut talk = agent.session(1).await;
    let mut stolen = thief.session(2).await;
    thief.sync().await.expect("good so far");

    let began = Instant::now();
    let revoked = operator(&stage).await.revoke_token(RevokeTokenRequest { sandbox: "mine".into() }).await;
    let revoked = revoked.expect("a user may").into_inner();
    assert_eq!(revoked.floor, revoked.generation);
    assert_eq!(mine.view().record.floor, revoked.floor, "durable before the answer");
    assert_eq!(thief.sync().await.expect_err("revoked").code(), Code::Unauthenticated);
    let honest = agent.with_token(stage.token(mine.id));
    honest.sync().await.expect("the new token");

    while stolen.next().await.is_some() {}
    assert!(began.elapsed() > Duration::from_secs(3), "closed after {:?}: it is told first", began.elapsed());
    // The one that followed is open; its session was superseded by the thief's, which says nothing of the connection.
    honest.sync().await.expect("a connection on which the new token was presented");
    drop(talk.next().await);

    mine.ask(host::sandbox::decide::Event::Stop).await.expect("stop");
    becomes(&mine, "without compute or about to be", |view| view.phase().name() != "Ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_without_compute_has_nothing_to_revoke() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    mine.ask(host::sandbox::decide::Event::Stop).await.expect("stop");
    becomes(&mine, "Stopped", |view| view.phase().name() == "Stopped").await;
    let mut operator = operator(&stage).await;
    let status = operator.revoke_token(RevokeTokenRequest { sandbox: "mine".into() }).await.expect_err("no token");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("mine is Stopped"), "{status:?}");
    let status = operator.rotate_token(RotateTokenRequest { sandbox: "nope".into() }).await.expect_err("nobody");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_issues_tokens_here_and_says_why() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let status = agent.client().issue_sandbox_token(agent.request(IssueSandboxTokenRequest {})).await;
    let status = status.expect_err("no service accounts");
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("no Kubernetes driver"), "{status:?}");
}

fn update(sandbox: &str, policy: &[u8], expected: u64) -> UpdateConfigRequest {
    UpdateConfigRequest {
        sandbox: sandbox.into(),
        policy: Some(policy.to_vec()),
        expected_resource_version: expected,
        ..Default::default()
    }
}

fn get(name: &str) -> GetSandboxConfigRequest {
    GetSandboxConfigRequest { name: name.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_versioned_and_survives() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut user = stage.user().await;
    let agent = Agent::of(&stage, &mine).await;
    // Any encoded message; the bytes come back as they are.
    let policy = [0x08, 0x01, 0xfa, 0x07, 0x03, b'a', b'b', b'c'];
    let first = user.update_config(update("mine", &policy, 0)).await.expect("a document").into_inner();
    assert_eq!(first.version, 1);
    let seen = agent.client().get_sandbox_config(agent.request(get(""))).await.expect("its own").into_inner();
    assert_eq!((seen.version, seen.policy.as_slice(), seen.policy_hash), (1, &policy[..], first.policy_hash));

    let setting = UpdateConfigRequest {
        sandbox: mine.id.to_string(),
        setting_key: "level".into(),
        setting_value: Some(SettingValue { value: Some(Value::IntValue(3)) }),
        expected_resource_version: seen.config_revision,
        ..Default::default()
    };
    let second = agent.client().update_config(agent.request(setting.clone())).await.expect("its own").into_inner();
    assert_eq!((second.version, second.settings_revision), (1, 1));
    let again = agent.client().update_config(agent.request(setting.clone())).await.expect_err("a flood");
    assert_eq!(again.code(), Code::ResourceExhausted, "{again:?}");
    let status = user.update_config(setting).await.expect_err("seen before the last change");
    assert_eq!(status.code(), Code::Aborted, "{status:?}");

    let loaded = host::sandbox::record::Store::load(&*stage.store).expect("the store");
    assert_eq!(loaded[0].configuration.settings.len(), 1);
    let delete = UpdateConfigRequest {
        sandbox: "mine".into(),
        setting_key: "level".into(),
        delete_setting: true,
        ..Default::default()
    };
    assert!(user.update_config(delete).await.expect("deleted").into_inner().deleted);
    let seen = user.get_sandbox_config(get("mine")).await.expect("any").into_inner();
    assert!(seen.settings.is_empty());
    for (bad, code) in [
        (UpdateConfigRequest { sandbox: "mine".into(), ..Default::default() }, Code::InvalidArgument),
        (UpdateConfigRequest { global: true, ..update("mine", b"", 0) }, Code::Unimplemented),
        (UpdateConfigRequest { merge_operations: vec![vec![]], ..update("mine", b"", 0) }, Code::Unimplemented),
        (update("nope", b"", 0), Code::NotFound),
    ] {
        assert_eq!(user.update_config(bad.clone()).await.expect_err("refused").code(), code, "{bad:?}");
    }
}

/// Each RPC that names a sandbox, as a sandbox that names another one by id and by name.
#[tokio::test(flavor = "multi_thread")]
async fn no_sandbox_reaches_another() {
    let stage = Stage::up().await;
    let (mine, other) = (stage.launched("mine").await, stage.launched("other").await);
    let agent = Agent::of(&stage, &mine).await;
    let denied = |what: &str, status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
        assert_eq!(status.message(), "cross-sandbox access denied", "{what}");
    };
    for reference in [other.id.to_string(), "other".to_owned(), "nope".to_owned(), mine.id.simple().to_string()] {
        let mut client = agent.client();
        let asked = client.get_sandbox_config(agent.request(get(&reference))).await;
        denied("GetSandboxConfig", asked.expect_err(&reference));
        let asked = client.update_config(agent.request(update(&reference, b"x", 0))).await;
        denied("UpdateConfig", asked.expect_err(&reference));
        let environment = GetSandboxProviderEnvironmentRequest { sandbox_id: reference.clone() };
        let asked = client.get_sandbox_provider_environment(agent.request(environment)).await;
        denied("GetSandboxProviderEnvironment", asked.expect_err(&reference));
        let report = ReportMainProcessExitRequest { sandbox_id: reference.clone(), ..Default::default() };
        let asked = client.report_main_process_exit(agent.request(report)).await;
        denied("ReportMainProcessExit", asked.expect_err(&reference));
        let hello = SupervisorHello { sandbox_id: reference.clone(), ..Default::default() };
        let opened = agent.open(Some(supervisor_message::Payload::Hello(hello))).await;
        denied("ConnectSupervisor", opened.err().expect("a refusal"));
    }
    assert_eq!(other.view().record.configuration.version, 0);
}

fn secret(provider: &str, key: &str, value: &str) -> SetSecretRequest {
    SetSecretRequest { provider: provider.into(), key: key.into(), value: value.into() }
}

fn condition(sandbox: &Sandbox, name: &str) -> Option<String> {
    let conditions = &sandbox.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.r#type == name).map(|condition| condition.status.clone())
}

async fn shown(stage: &Stage, handle: &Handle) -> Sandbox {
    let request = GetSandboxRequest { name: handle.name.clone(), ..Default::default() };
    stage.user().await.get_sandbox(request).await.expect("it exists").into_inner().sandbox.expect("a sandbox")
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_the_sandboxes_of_their_provider_alone() {
    let stage = Stage::up().await;
    let (mut user, mut operator) = (stage.user().await, operator(&stage).await);
    let with_provider = |name: &str| {
        let mut request = request(name);
        request.spec.get_or_insert_default().providers = vec!["git".into()];
        request
    };
    let status = user.create_sandbox(with_provider("mine")).await.expect_err("no such provider");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("openshell secret set git KEY"), "{status:?}");

    operator.set_secret(secret("git", "TOKEN", "geheim")).await.expect("a secret");
    for bad in [secret("Git!", "A", "b"), secret("git", "OPENSHELL_X", "b"), secret("git", "A=B", "c")] {
        assert_eq!(operator.set_secret(bad.clone()).await.expect_err("bad").code(), Code::InvalidArgument, "{bad:?}");
    }
    let mine = stage.registry.create(&with_provider("mine")).await.expect("create");
    becomes(&mine, "launched", |view| view.record.floor > 0).await;
    let other = stage.launched("other").await;
    let (agent, bystander) = (Agent::of(&stage, &mine).await, Agent::of(&stage, &other).await);
    let ask = async |agent: &Agent| {
        let request = agent.request(GetSandboxProviderEnvironmentRequest::default());
        agent.client().get_sandbox_provider_environment(request).await.expect("its own").into_inner()
    };
    let environment = ask(&agent).await;
    assert_eq!(environment.environment["TOKEN"], "geheim");
    assert!(ask(&bystander).await.environment.is_empty());
    assert_eq!(bystander.sync().await.expect("sync").provider_env_revision, 0);

    let _talk = agent.session(1).await;
    becomes(&mine, "Ready", |view| view.phase().name() == "Ready").await;
    assert_eq!(condition(&shown(&stage, &mine).await, "SecretsDelivered").as_deref(), Some("False"));
    agent.sync_holding(environment.provider_env_revision).await.expect("sync");
    assert_eq!(condition(&shown(&stage, &mine).await, "SecretsDelivered").as_deref(), Some("True"));
    operator.set_secret(secret("git", "TOKEN", "neu")).await.expect("another value");
    let revision = agent.sync().await.expect("sync").provider_env_revision;
    assert!(revision > environment.provider_env_revision, "the agent is told that it holds an old one");
    assert_eq!(ask(&agent).await.environment["TOKEN"], "neu");

    let listed = operator.list_secrets(ListSecretsRequest::default()).await.expect("list").into_inner().secrets;
    assert_eq!((listed[0].key.as_str(), listed[0].sandboxes.as_slice()), ("TOKEN", &["mine".to_owned()][..]));
    let whole = RemoveSecretRequest { provider: "git".into(), key: String::new() };
    let status = operator.remove_secret(whole).await.expect_err("in use");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("mine"), "{status:?}");
    let one = RemoveSecretRequest { provider: "git".into(), key: "TOKEN".into() };
    assert_eq!(operator.remove_secret(one).await.expect("removed").into_inner().removed, 1);
    assert!(ask(&agent).await.environment.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_sandbox_from_new_tokens_is_a_condition() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    assert_eq!(condition(&shown(&stage, &mine).await, "TokenPublished"), None);
    let share = stage.vm_socket(mine.id).ancestors().nth(2).expect("a directory").join(proto::layout::SHARE_DIR);
    let token = share.join(proto::layout::TOKEN_FILE);
    // A rename cannot replace a directory that holds something.
    std::fs::remove_file(&token).expect("remove");
    std::fs::create_dir_all(token.join("in-the-way")).expect("make a directory");
    let rotated = operator(&stage).await.rotate_token(RotateTokenRequest { sandbox: "mine".into() }).await;
    let status = rotated.expect_err("nothing can be put there");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(condition(&shown(&stage, &mine).await, "TokenPublished").as_deref(), Some("False"));
    // The audit may have been faster.
    drop(std::fs::remove_dir_all(&token));
    until("no trouble", || stage.rotation.trouble(mine.id).is_none().then_some(())).await;
    assert_eq!(condition(&shown(&stage, &mine).await, "TokenPublished"), None);
    assert!(stage.token(mine.id).contains('.'), "a token is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_told_who_it_is() {
    let stage = Stage::up().await;
    let user = stage.user().await.get_current_user(GetCurrentUserRequest {}).await.expect("a user").into_inner();
    assert_eq!(user.subject, format!("uid:{}", rustix::process::getuid().as_raw()));
    assert_eq!(user.identity_provider, "local");
}
