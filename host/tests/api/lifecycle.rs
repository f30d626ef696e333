//! What users ask for.

use std::time::Duration;

use host::sandbox::decide::Event;
use host::sandbox::driver::{ComputeDriver as _, DriverReason};
use host::sandbox::phase::Phase;
use proto::openshell::datamodel::v1::{WorkspaceSelector, workspace_selector::Selection};
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::*;
use proto::vmm::{Ended, Failure, FailureKind};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::agent::Agent;
use crate::driver::Call;
use crate::stage::{Knobs, PATIENCE, Stage, becomes, reaches, removed, request};

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let stage = Stage::up().await;
    let mut user = stage.user().await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        stage.launched(name).await;
    }
    let mut page = async |page_size, page_token: &str| {
        let request = ListSandboxesRequest { page_size, page_token: page_token.into(), ..Default::default() };
        let answer = user.list_sandboxes(request).await?.into_inner();
        let names = answer.sandboxes.into_iter().map(|s| s.metadata.expect("metadata").name).collect::<Vec<_>>();
        Ok::<_, Status>((names.join(""), answer.next_page_token))
    };
    let ok = |names: &str, next: &str| (names.to_string(), next.to_string());
    assert_eq!(page(0, "").await.unwrap(), ok("abcde", ""));
    assert_eq!(page(5, "").await.unwrap(), ok("abcde", ""));
    assert_eq!(page(2, "").await.unwrap(), ok("ab", "b"));
    assert_eq!(page(2, "b").await.unwrap(), ok("cd", "d"));
    assert_eq!(page(2, "d").await.unwrap(), ok("e", ""));
    // The sandbox that the token names may be gone by now.
    assert_eq!(page(2, "bb").await.unwrap(), ok("cd", "d"));
    assert_eq!(page(2, "z").await.unwrap(), ok("", ""));
    for size in [-1, 1001, i32::MAX] {
        assert_eq!(page(size, "").await.unwrap_err().code(), Code::InvalidArgument, "{size}");
    }
}

fn with_spec(change: impl FnOnce(&mut SandboxSpec)) -> CreateSandboxRequest {
    let mut request = request("dev");
    change(request.spec.as_mut().expect("a spec"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_repeated_makes_one_sandbox() {
    let stage = Stage::up().await;
    let user = stage.user().await;
    let create = async |name: &str, request_id: &str| {
        let request = CreateSandboxRequest { request_id: request_id.into(), ..request(name) };
        let made = user.clone().create_sandbox(request).await?.into_inner().sandbox.expect("a sandbox");
        Ok::<_, Status>(made.metadata.expect("metadata").id)
    };
    let first = create("dev", "one").await.expect("create");
    assert_eq!(create("dev", "one").await.expect("the same again"), first);
    assert_eq!(create("dev", "two").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(create("dev", "").await.unwrap_err().code(), Code::AlreadyExists);
    let other = create("other", "one").await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument, "{other:?}");
    assert_eq!(create("long", &"x".repeat(129)).await.unwrap_err().code(), Code::InvalidArgument);
    let (one, two) = tokio::join!(create("twice", "three"), create("twice", "three"));
    assert_eq!(one.expect("one of two at once"), two.expect("the other one"));
    assert_eq!(stage.registry.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_that_are_refused_leave_nothing() {
    let stage = Stage::up().await;
    let mut user = stage.user().await;
    let variable = |key: &str, value: String| with_spec(|spec| drop(spec.environment.insert(key.into(), value)));
    let named = |name: &str| request(name);
    let limit = |key: &str, value: &str| {
        use prost_types::{Struct, Value, value::Kind};
        let value = Value { kind: Some(Kind::StringValue(value.into())) };
        let limits = Value { kind: Some(Kind::StructValue(Struct { fields: [(key.to_string(), value)].into() })) };
        let resources = Some(Struct { fields: [("limits".to_string(), limits)].into() });
        with_spec(|spec| spec.template = Some(SandboxTemplate { resources, ..Default::default() }))
    };
    let elsewhere = WorkspaceSelector { selection: Some(Selection::Workspace("elsewhere".into())) };
    let many = (0..129).map(|n| (format!("V{n}"), String::new()));
    for (request, code, word) in [
        (named(""), Code::InvalidArgument, "name"),
        (named("Dev"), Code::InvalidArgument, "a-z"),
        (named("a--b"), Code::InvalidArgument, "name `a--b`"),
        (named("../etc"), Code::InvalidArgument, "name"),
        (named("twenty-characters-xx"), Code::InvalidArgument, "1 to 19"),
        (variable("OPENSHELL_TOKEN", String::new()), Code::InvalidArgument, "reserved"),
        (variable("A=B", String::new()), Code::InvalidArgument, "`A=B`"),
        (variable("BIG", "x".repeat(8 * 1024 + 1)), Code::InvalidArgument, "8 KiB"),
        (variable("NUL", "a\0b".into()), Code::InvalidArgument, "`NUL`"),
        (with_spec(|spec| spec.environment.extend(many)), Code::InvalidArgument, "129"),
        (with_spec(|spec| spec.command = vec!["x".into(); 257]), Code::InvalidArgument, "command"),
        (with_spec(|spec| spec.command = vec!["x".repeat(256 * 1024 + 1)]), Code::InvalidArgument, "command"),
        (with_spec(|spec| spec.command = vec![String::new()]), Code::InvalidArgument, "command"),
        (with_spec(|spec| spec.command = vec!["a\0".into()]), Code::InvalidArgument, "NUL"),
        (limit("cpu", "5"), Code::InvalidArgument, "5 is more than 4"),
        (limit("cpu", "0"), Code::InvalidArgument, "cpus: `0`"),
        (limit("memory", "64Mi"), Code::InvalidArgument, "at least 128Mi"),
        (limit("memory", "5Gi"), Code::InvalidArgument, "5Gi is more than 4096Mi"),
        (CreateSandboxRequest { workspace_scope: Some(elsewhere), ..named("dev") }, Code::NotFound, "elsewhere"),
    ] {
        let status = user.create_sandbox(request).await.expect_err(word);
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(word), "{word}: {status:?}");
    }
    for (reason, code) in [
        (DriverReason::UnknownImage, Code::NotFound),
        (DriverReason::InvalidImage, Code::InvalidArgument),
        (DriverReason::OutOfRange, Code::InvalidArgument),
        (DriverReason::Kvm, Code::FailedPrecondition),
        (DriverReason::Libkrunfw, Code::FailedPrecondition),
        (DriverReason::Jail, Code::FailedPrecondition),
        (DriverReason::ProgramMissing, Code::Internal),
    ] {
        stage.driver.refuse(Some(reason));
        let status = user.create_sandbox(named("dev")).await.expect_err("refused");
        let told = host::status::reason(&status);
        assert_eq!((status.code(), told), (code, Some(reason.name())), "{status:?}");
        assert!(status.message().ends_with("; try again"), "{status:?}");
    }
    stage.driver.refuse(None);
    assert!(stage.registry.all().is_empty());
    assert_eq!(stage.driver.count(Call::Prepare), 0);

    user.create_sandbox(named("dev")).await.expect("the name is still free");
    let status = user.create_sandbox(named("dev")).await.expect_err("now it is not");
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("sandbox named dev exists"), "{status:?}");
}

async fn watching(stage: &Stage, stop_on_terminal: bool) -> Streaming<SandboxStreamEvent> {
    let request = WatchSandboxRequest { sandbox: "dev".into(), stop_on_terminal, ..Default::default() };
    stage.user().await.watch_sandbox(request).await.expect("a watch").into_inner()
}

/// All phases until the stream ends, without repetitions.
async fn phases(mut events: Streaming<SandboxStreamEvent>) -> Vec<SandboxPhase> {
    let mut phases = vec![];
    let all = async {
        while let Some(event) = events.message().await.expect("an event") {
            let Some(Payload::Sandbox(sandbox)) = event.payload else { continue };
            phases.push(sandbox.status.expect("a status").phase());
        }
    };
    timeout(PATIENCE, all).await.expect("the watch to end");
    phases.dedup();
    phases
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_terminal_phase_or_with_the_sandbox() {
    let stage = Stage::up().await;
    let dev = stage.launched("dev").await;
    let (to_terminal, to_end) = (watching(&stage, true).await, watching(&stage, false).await);
    let terminal = tokio::spawn(phases(to_terminal));
    let end = tokio::spawn(phases(to_end));

    let agent = Agent::of(&stage, &dev).await;
    let _session = agent.session(1).await;
    reaches(&dev, Phase::Ready).await;
    dev.ask(Event::Stop).await.expect("stop");
    stage.driver.end(dev.id, Ended::Exited(0));
    // It ends by itself: nothing comes after `Stopped`.
    let seen = terminal.await.expect("join");
    assert_eq!(seen.last(), Some(&SandboxPhase::Stopped), "{seen:?}");
    assert!(!end.is_finished());
    // A watch of what is terminal already shows that, and ends.
    assert_eq!(phases(watching(&stage, true).await).await, [SandboxPhase::Stopped]);

    dev.ask(Event::Start).await.expect("start");
    becomes(&dev, "launched again", |view| view.record.machine.boot == 2).await;
    let mut user = stage.user().await;
    let delete = DeleteSandboxRequest { name: "dev".into(), ..Default::default() };
    let deleted = user.delete_sandbox(delete.clone()).await.expect("delete").into_inner();
    assert_eq!(deleted.outcome(), DeletionOutcome::Completed);
    let seen = end.await.expect("join");
    assert_eq!((seen.first(), seen.last()), (Some(&SandboxPhase::Provisioning), Some(&SandboxPhase::Deleting)));

    let status = user.delete_sandbox(delete.clone()).await.expect_err("gone");
    assert_eq!(status.code(), Code::NotFound);
    let missing = DeleteSandboxRequest { allow_missing: true, ..delete };
    let outcome = user.delete_sandbox(missing).await.expect("gone is fine").into_inner().outcome();
    assert_eq!(outcome, DeletionOutcome::AlreadyAbsent);
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_are_levels_and_refusals_name_the_phase() {
    let stage = Stage::up().await;
    let dev = stage.launched("dev").await;
    let mut user = stage.user().await;
    let mut start = async || user.start_sandbox(StartSandboxRequest { name: "dev".into(), ..Default::default() }).await;
    start().await.expect("being started already is success");
    let agent = Agent::of(&stage, &dev).await;
    let _session = agent.session(1).await;
    dev.ask(Event::Stop).await.expect("stop");
    let status = start().await.expect_err("not while it stops");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "cannot start sandbox dev: it is in phase Stopping");
    stage.driver.end(dev.id, Ended::Exited(0));
    reaches(&dev, Phase::Stopped).await;
    start().await.expect("start");
    becomes(&dev, "the second boot", |view| view.record.machine.boot == 2).await;
}

async fn condition(stage: &Stage) -> SandboxCondition {
    let request = GetSandboxRequest { name: "dev".into(), ..Default::default() };
    let sandbox = stage.user().await.get_sandbox(request).await.expect("get").into_inner().sandbox.expect("a sandbox");
    sandbox.status.expect("a status").conditions.into_iter().find(|c| c.r#type == "Ready").expect("a condition")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_boot_shows_its_reason_and_the_console() {
    let stage = Stage::up().await;
    stage.driver.fail(Call::Start, 1);
    let dev = stage.registry.create(&request("dev")).await.expect("create");
    reaches(&dev, Phase::Error).await;
    let ready = condition(&stage).await;
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Internal"));
    assert!(ready.message.starts_with("failed to Start; try again; console:\nthe last words"), "{ready:?}");
    assert!(!stage.vm_socket(dev.id).exists());

    // What the vmm itself says has a code of its own, too.
    dev.ask(Event::Start).await.expect("start");
    for boot in [2, 3] {
        becomes(&dev, "launched", |view| view.record.machine.boot == boot && view.record.floor > 0).await;
        let failure =
            Failure { kind: FailureKind::Libkrunfw, message: "no libkrunfw".into(), remedy: "install it".into() };
        crate::stage::until("compute", || stage.driver.is_running(dev.id).then_some(())).await;
        stage.driver.end(dev.id, Ended::Failed(failure));
    }
    reaches(&dev, Phase::Error).await;
    let ready = condition(&stage).await;
    assert_eq!(ready.reason, "Libkrunfw");
    assert!(ready.message.contains("the vmm did not start: no libkrunfw; install it"), "{ready:?}");

    // A boot that succeeds is not blamed for an earlier one.
    dev.ask(Event::Start).await.expect("start");
    becomes(&dev, "launched", |view| view.record.machine.boot == 4).await;
    crate::stage::until("compute", || stage.driver.is_running(dev.id).then_some(())).await;
    let _session = Agent::of(&stage, &dev).await.session(1).await;
    reaches(&dev, Phase::Ready).await;
    let ready = condition(&stage).await;
    assert_eq!((ready.status.as_str(), ready.reason.as_str(), ready.message.as_str()), ("True", "Ready", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_at_the_deadline_with_evidence() {
    let stage = Stage::with(Knobs { boot: Duration::from_millis(300), ..Knobs::default() }).await;
    let dev = stage.launched("dev").await;
    // Somebody is there, and is refused.
    let socket = stage.vm_socket(dev.id);
    let stranger = Agent::at(&socket, &dev, "not.a.token".into()).await;
    assert_eq!(stranger.sync().await.expect_err("refused").code(), Code::Unauthenticated);
    let failed = reaches(&dev, Phase::Error).await;
    let note = &failed.record.note;
    for words in
        ["no hello from the agent within 300ms", "refused: /openshell.vm.v1.Vm/Sync", "console:\nthe last words"]
    {
        assert!(note.contains(words), "{words}: {note}");
    }
    assert!(!note.contains("not.a.token"), "{note}");
    assert!(!stage.driver.is_running(dev.id));
    dev.ask(Event::Delete).await.expect("delete");
    removed(&stage, &dev).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compute_that_ends_while_the_store_fails_is_not_forgotten() {
    let stage = Stage::up().await;
    let dev = stage.launched("dev").await;
    let _session = Agent::of(&stage, &dev).await.session(1).await;
    reaches(&dev, Phase::Ready).await;
    stage.store.fail_updates(1);
    stage.driver.end(dev.id, Ended::Exited(0));
    crate::stage::until("the store to fail", || (stage.store.failures_left() == 0).then_some(())).await;
    becomes(&dev, "the restart", |view| view.record.machine.boot == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_a_client_could_not_take_it() {
    let stage = Stage::up().await;
    let mut user = stage.user().await;
    for number in 0..40 {
        let labels = [("big".to_owned(), "x".repeat(60 * 1024))].into();
        let create = CreateSandboxRequest { labels, ..request(&format!("s{number:02}")) };
        user.create_sandbox(create).await.expect("create");
    }
    let (mut names, mut pages, mut page_token) = (vec![], 0, String::new());
    loop {
        let list = ListSandboxesRequest { page_size: 1000, page_token, ..Default::default() };
        let page = user.list_sandboxes(list).await.expect("list").into_inner();
        names.extend(page.sandboxes.into_iter().map(|sandbox| sandbox.metadata.expect("metadata").name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (0..40).map(|number| format!("s{number:02}")).collect::<Vec<_>>());
    assert!(pages > 1, "2.4 MB in one page");
    let selected = ListSandboxesRequest { label_selector: "big=x".into(), ..Default::default() };
    let status = user.list_sandboxes(selected).await.expect_err("not served");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}
