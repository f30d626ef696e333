//! The main process of a sandbox, as its gateway hears of it: runs, restarts, one end, and the console.

use host::sandbox::decide::Event;
use host::sandbox::phase::Phase;
use host::sandbox::task::Handle;
use prost_types::Timestamp;
use proto::last_words::LastWords;
use proto::openshell::v1::*;
use proto::openshell::vm::v1::operator_client::OperatorClient;
use proto::openshell::vm::v1::{MainProcessRuns, ReadConsoleRequest, SyncRequest};
use proto::vmm::Ended;
use tonic::Code;

use crate::agent::Agent;
use crate::stage::{Stage, becomes, channel, reaches, request};

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 500_000_000 })
}

/// A sandbox with this policy and a session.
async fn with_policy(stage: &Stage, policy: SandboxRestartPolicy) -> Handle {
    let mut request = request("mine");
    request.spec.as_mut().expect("a spec").restart_policy = policy.into();
    let handle = stage.registry.create(&request).await.expect("create");
    becomes(&handle, "launched", |view| view.record.floor > 0).await;
    handle
}

async fn tell(agent: &Agent, runs: MainProcessRuns) {
    let told = SyncRequest { main_process: Some(runs), ..Default::default() };
    agent.sync_telling(told).await.expect("sync");
}

async fn seen(stage: &Stage) -> Sandbox {
    let request = GetSandboxRequest { name: "mine".into(), ..Default::default() };
    stage.user().await.get_sandbox(request).await.expect("get").into_inner().sandbox.expect("a sandbox")
}

fn condition(sandbox: &Sandbox, kind: &str) -> Option<SandboxCondition> {
    let conditions = &sandbox.status.as_ref().expect("a status").conditions;
    conditions.iter().find(|condition| condition.r#type == kind).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_a_boot_are_shown_and_counted() {
    let stage = Stage::up().await;
    let mine = with_policy(&stage, SandboxRestartPolicy::OnFailure).await;
    let agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    reaches(&mine, Phase::Ready).await;
    tell(&agent, MainProcessRuns { started_time: at(100), ..Default::default() }).await;
    let first = seen(&stage).await;
    assert_eq!(first.spec.as_ref().expect("a spec").restart_policy(), SandboxRestartPolicy::OnFailure);
    assert_eq!(first.status.as_ref().expect("a status").main_process_started_time, at(100));
    assert_eq!(condition(&first, "MainProcessRunning"), None, "nothing odd about a first run");

    let waiting = MainProcessRuns {
        restarts: 2,
        started_time: at(200),
        next_start_time: at(300),
        last_exit_code: Some(7),
        crash_loop: 0,
    };
    tell(&agent, waiting).await;
    let view = mine.view();
    tell(&agent, waiting).await;
    assert_eq!(mine.view(), view, "the same again changes nothing");
    let resting = seen(&stage).await;
    let status = resting.status.clone().expect("a status");
    assert_eq!((status.restart_count, status.next_restart_time), (2, at(300)));
    let told = condition(&resting, "MainProcessRunning").expect("a condition");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "WaitsForRestart"));
    assert!(told.message.contains("restarted 2 times") && told.message.contains("code 7"), "{told:?}");
    // What no clock shows is no time.
    tell(&agent, MainProcessRuns { restarts: 2, started_time: at(i64::MAX), ..Default::default() }).await;
    assert_eq!(mine.view().record.main.started_ms, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_is_an_error_with_its_remedy_and_a_start_begins_anew() {
    let stage = Stage::up().await;
    let mine = with_policy(&stage, SandboxRestartPolicy::Always).await;
    let agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    let given_up = MainProcessRuns { restarts: 7, last_exit_code: Some(3), crash_loop: 8, ..Default::default() };
    tell(&agent, given_up).await;
    // What the data connection was told before, and says later.
    tell(&agent, MainProcessRuns { crash_loop: 0, ..given_up }).await;
    tell(&agent, MainProcessRuns { restarts: 6, ..given_up }).await;
    agent.report(3).await.expect("the report");
    agent.report(3).await.expect("the same again");
    stage.driver.end(mine.id, Ended::Exited(3));
    reaches(&mine, Phase::Error).await;
    let sandbox = seen(&stage).await;
    let ready = condition(&sandbox, "Ready").expect("a condition");
    assert_eq!(ready.reason, "CrashLoop");
    for word in ["8 times", "code 3", "policy always", "openshell vm start mine"] {
        assert!(ready.message.contains(word), "{ready:?}");
    }
    assert_eq!(sandbox.status.expect("a status").exit_code, Some(3));

    mine.ask(Event::Start).await.expect("start");
    let started = becomes(&mine, "launched again", |view| view.record.machine.boot == 2).await;
    assert_eq!((started.exit_code(), started.phase()), (None, Phase::Starting));
    becomes(&mine, "without the runs of the last boot", |view| view.record.main == Default::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_not_ready_before_the_agent_has_said_so() {
    let stage = Stage::up().await;
    let mut request = request("mine");
    let declaration = ("openshell.service/db".to_owned(), "command = [\"/bin/db\"]".to_owned());
    request.annotations.extend([declaration]);
    let mine = stage.registry.create(&request).await.expect("create");
    becomes(&mine, "launched", |view| view.record.floor > 0).await;
    let agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    let told = async || {
        let condition = condition(&seen(&stage).await, "ServicesReady").expect("a condition");
        (condition.status, condition.message)
    };
    assert_eq!(told().await, ("False".to_owned(), "the agent has not told of them yet".to_owned()));
    let note = "db is starting".to_owned();
    let syncs = [(note.clone(), ("False", note)), (String::new(), ("True", String::new()))];
    for (services_note, (status, message)) in syncs {
        agent.sync_telling(SyncRequest { services_note, ..Default::default() }).await.expect("sync");
        assert_eq!(told().await, (status.to_owned(), message));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_end_of_one_boot_counts() {
    let stage = Stage::up().await;
    let mine = with_policy(&stage, SandboxRestartPolicy::Never).await;
    let agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    reaches(&mine, Phase::Ready).await;
    let former = agent.instance_id.clone();
    agent.report(7).await.expect("the first");
    let version = mine.view().record.version;
    agent.report(7).await.expect("the same again");
    assert_eq!(agent.report(0).await.expect_err("another code").code(), Code::Aborted);
    assert_eq!((mine.view().exit_code(), mine.view().record.version), (Some(7), version));
    stage.driver.end(mine.id, Ended::Exited(7));
    reaches(&mine, Phase::Completed).await;

    let floor = mine.view().record.floor;
    mine.ask(Event::Start).await.expect("start");
    // The floor rises with the first token of a boot.
    becomes(&mine, "launched again", |view| view.record.machine.boot == 2 && view.record.floor > floor).await;
    let mut next = Agent::of(&stage, &mine).await;
    let _session = next.session(1).await;
    reaches(&mine, Phase::Ready).await;
    next.instance_id = former;
    assert_eq!(next.report(7).await.expect_err("of the boot before").code(), Code::Aborted);
    assert_eq!((mine.view().exit_code(), mine.view().phase()), (None, Phase::Ready));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_no_gateway_heard_of_is_told_by_exit_code_and_last_words_together() {
    for (said, code, phase, exit) in [
        (Some(LastWords { exit_code: 42, crash_loop: 0 }), 42, Phase::Completed, Some(42)),
        (Some(LastWords { exit_code: 42, crash_loop: 8 }), 42, Phase::Error, Some(42)),
        // A guest that died on its way out, and one that says nothing.
        (Some(LastWords { exit_code: 42, crash_loop: 0 }), 0, Phase::Starting, None),
        (None, 42, Phase::Starting, None),
    ] {
        let stage = Stage::up().await;
        let mine = with_policy(&stage, SandboxRestartPolicy::Never).await;
        let agent = Agent::of(&stage, &mine).await;
        let _session = agent.session(1).await;
        reaches(&mine, Phase::Ready).await;
        if let Some(words) = said {
            stage.driver.say(&format!("booted\n{}\nreboot: Restarting system\n", words.encode()));
        }
        stage.driver.end(mine.id, Ended::Exited(code));
        let ended = reaches(&mine, phase).await;
        assert_eq!(ended.exit_code(), exit, "{said:?} {code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_none_is_refused() {
    let stage = Stage::up().await;
    let mut request = request("mine");
    request.spec.as_mut().expect("a spec").restart_policy = 9;
    let status = stage.user().await.create_sandbox(request).await.expect_err("no such policy");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("restart_policy: 9"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_read_while_it_is_written_and_after_its_end() {
    let stage = Stage::up().await;
    let mine = with_policy(&stage, SandboxRestartPolicy::Never).await;
    let mut operator = OperatorClient::new(channel(&stage.socket()).await);
    stage.driver.say("early \x1b[2J");
    let follow = ReadConsoleRequest { sandbox: "mine".into(), follow: true };
    let mut chunks = operator.read_console(follow.clone()).await.expect("before there is a session").into_inner();
    let chunk = chunks.message().await.expect("a chunk").expect("not the end");
    assert_eq!(chunk.data, b"early \x1b[2J", "as it is: who shows it filters it");
    stage.driver.say("early \x1b[2Jlate");
    assert_eq!(chunks.message().await.expect("a chunk").expect("not the end").data, b"late");

    let agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;
    agent.report(0).await.expect("report");
    stage.driver.end(mine.id, Ended::Exited(0));
    reaches(&mine, Phase::Completed).await;
    assert_eq!(chunks.message().await.expect("the end"), None);
    let mut again = operator.read_console(follow).await.expect("after the end").into_inner();
    assert_eq!(again.message().await.expect("a chunk").expect("not the end").data, b"early \x1b[2Jlate");
    assert_eq!(again.message().await.expect("the end"), None);
    let nobody = ReadConsoleRequest { sandbox: "nope".into(), follow: false };
    assert_eq!(operator.read_console(nobody).await.expect_err("nobody").code(), Code::NotFound);
}
