//! Agents that this gateway cannot speak with: a sandbox that comes up with one is given up at once, not at a deadline.

use std::sync::Arc;

use host::sandbox::driver::DriverReason;
use host::sandbox::phase::Phase;
use host::sandbox::task::Handle;
use host::sandbox::view::View;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::supervisor_message::Payload as Said;
use proto::openshell::v1::{SupervisorHeartbeat, SupervisorMessage};
use proto::version::{PROTOCOL, VERSION};
use tonic::{Code, Request, Status};

use crate::agent::Agent;
use crate::driver::Call;
use crate::stage::{Stage, channel, reaches, until};

/// It is in `Error` with what people need, nothing runs, and no token is left.
async fn given_up(stage: &Stage, handle: &Handle, words: &[&str]) -> Arc<View> {
    let view = reaches(handle, Phase::Error).await;
    let note = &view.record.note;
    let always = [
        &*format!("gateway {VERSION} speaks {PROTOCOL}"),
        "replace the agent binary (agent_bin)",
        "guests get the agent /fake/agent (version 3.0.0, protocol 3-4, sha256 d1e5)",
        "the last words of a guest",
    ];
    for word in words.iter().chain(&always) {
        assert!(note.contains(word), "`{word}` is not in: {note}");
    }
    assert_eq!(view.record.reason, DriverReason::Agent.name());
    assert_eq!(view.record.machine.boot, 1, "the same agent would come again");
    until("its end on the host", || {
        let left = stage.rotation.published(handle.id).is_some() || stage.vm_socket(handle.id).exists();
        (stage.driver.count(Call::Kill) > 0 && !left).then_some(())
    })
    .await;
    view
}

/// Asks for a session as an agent that has no token would.
async fn without_token(stage: &Stage, handle: &Handle, metadata: &[(&'static str, &'static str)]) -> Status {
    let mut client = OpenShellClient::new(channel(&stage.vm_socket(handle.id)).await);
    let heartbeat = SupervisorMessage { payload: Some(Said::Heartbeat(SupervisorHeartbeat {})) };
    let mut request = Request::new(tokio_stream::once(heartbeat));
    for (key, value) in metadata {
        request.metadata_mut().insert(*key, value.parse().expect("ASCII"));
    }
    client.connect_supervisor(request).await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_ends_a_boot_in_one_connect() {
    let stage = Stage::up().await;
    for (number, (protocol, said)) in
        [(Some("9-12"), "9-12"), (None, "unknown"), (Some("soon"), "unknown")].into_iter().enumerate()
    {
        let mine = stage.launched(&format!("mine-{number}")).await;
        let mut agent = Agent::of(&stage, &mine).await;
        agent.protocol = protocol.map(str::to_string);
        // Of another protocol there need not be a hello.
        let first = (number == 0).then(|| agent.hello(1));
        drop(agent.open(first).await);
        given_up(&stage, &mine, &[&format!("agent {VERSION} (build unknown) speaks protocol {said}, ")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_ends_a_boot_in_one_connect() {
    let stage = Stage::up().await;
    for (name, metadata, words) in [
        ("none", vec![], "with no token: agent unknown (build unknown) speaks protocol unknown"),
        ("former", vec![("x-sandbox-secret", "s3cret")], "with a shared secret, which is accepted no more"),
        (
            "versions",
            vec![("x-openshell-agent-version", "0.0.9")],
            "agent 0.0.9 (build unknown) speaks protocol unknown",
        ),
    ] {
        let mine = stage.launched(name).await;
        let status = without_token(&stage, &mine, &metadata).await;
        assert!([Code::Unauthenticated, Code::Unavailable, Code::Unknown].contains(&status.code()), "{status:?}");
        let view = given_up(&stage, &mine, &[words]).await;
        assert!(!view.record.note.contains("s3cret"), "{}", view.record.note);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_up_has_no_switch_that_turns_it_off() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    reaches(&mine, Phase::Ready).await;
    let status = without_token(&stage, &mine, &[("x-sandbox-secret", "s3cret")]).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    agent.protocol = Some("9-12".into());
    let reason = agent.rejected(2).await;
    assert!(reason.contains("speaks protocol 9-12, ") && reason.contains("agent_bin"), "{reason}");
    // Told to the task, it would have come before this answer.
    let instance = mine.view().record.instance_id.clone();
    assert!(mine.agent_refused(&instance, "as before".into()).await.is_err());
    let view = mine.view();
    assert_eq!((view.phase(), view.record.machine.connected), (Phase::Ready, true));
    assert_eq!((view.record.note.as_str(), view.record.reason.as_str()), ("", ""));
    agent.protocol = Some(PROTOCOL.to_string());
    agent.session(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_a_token_of_another_rpc_ends_nothing() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut client = proto::openshell::vm::v1::vm_client::VmClient::new(channel(&stage.vm_socket(mine.id)).await);
    let status = client.sync(proto::openshell::vm::v1::SyncRequest::default()).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    Agent::of(&stage, &mine).await.session(1).await;
    reaches(&mine, Phase::Ready).await;
}
