//! The main job on real microVMs, with a token that lives 30 seconds: `make demo`.
//!
//! create → exec → a stream through rotations → gateway killed past the TTL → ten quick restarts → a stolen token →
//! stopped past the TTL and started → deleted without a trace → the smoke test that users know.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod counter;
mod report;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::api::channel;
use e2e::programs::test_image;
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use proto::budget;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::{Sandbox, SandboxPhase};
use proto::openshell::vm::v1::{SyncRequest, vm_client::VmClient};
use tonic::{Code, Request};

use report::Report;

const TTL: Duration = budget::TTL_MIN;
/// Longer than any token of the time before.
const PAST_TTL: Duration = Duration::from_secs(TTL.as_secs() + 5);

#[tokio::main]
async fn main() -> ExitCode {
    let mut report = Report::new();
    let mut world = World::start(TTL).await;
    let demo = create(&world, &mut report).await;
    exec(&world, &mut report).await;
    rotations(&world, &mut report).await;
    outage(&mut world, &demo, &mut report).await;
    quick_restarts(&mut world, &mut report).await;
    stolen_token(&world, &demo, &mut report).await;
    stopped_past_ttl(&world, &demo, &mut report).await;
    delete(&world, &mut report).await;
    smoke(&world, &mut report).await;
    drop(world);
    if report.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn create(world: &World, report: &mut Report) -> Sandbox {
    report.step("create `demo`, whose main process counts");
    let counting = format!("{{ {}; }} >/tmp/count", counter::script("/tmp/never"));
    let began = Instant::now();
    let sandbox = world.ready("demo", &["/bin/sh", "-c", &counting]).await;
    report.measured("create → Ready", began.elapsed());
    sandbox
}

async fn exec(world: &World, report: &mut Report) {
    report.step("openshell vm exec demo -- uname -a");
    let began = Instant::now();
    let output = world.openshell(&["vm", "exec", "demo", "--", "uname", "-a"]).await;
    report.measured("exec uname -a", began.elapsed());
    let words = String::from_utf8_lossy(&output.stdout).trim().to_string();
    report.detail(&words);
    report.check(output.status.success() && words.starts_with("Linux demo "), "the guest answers with its own name");
}

async fn rotations(world: &World, report: &mut Report) {
    report.step("one exec stream through three rotations, then one more whose nudge is suppressed");
    let api = world.api().await;
    let mut events = api.exec_stream("demo", &["/bin/sh", "-c", &counter::script("/tmp/enough")]).await.expect("exec");
    let reading = tokio::spawn(async move {
        let mut text = vec![];
        while let Ok(Some(event)) = events.message().await {
            if let Some(Payload::Stdout(chunk)) = event.payload {
                text.extend(chunk.data);
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let before = generation(world).await;
    for _ in 0..3 {
        rotation(world, report, "nudged").await;
    }
    let faults = world.state().join("faults");
    std::fs::write(&faults, "suppress-nudge\n").expect("write the faults file");
    rotation(world, report, "not nudged").await;
    std::fs::remove_file(&faults).expect("remove the faults file");
    let after = generation(world).await;
    report.check(after >= before + 4, "four new generations were presented");
    report.check(!reading.is_finished(), "the stream lives");
    api.sh("demo", "touch /tmp/enough").await;
    let counted = counter::read(&reading.await.expect("the reader"));
    report.check(counted.contiguous && counted.lines > 100, "the stream lost no line");
    report.measured("longest gap in the stream", counted.longest_gap);
}

/// Waits for the next generation to be presented.
async fn rotation(world: &World, report: &mut Report, how: &str) {
    let api = world.api().await;
    let old = api.token("demo").await;
    let seen = generation(world).await;
    let (token, generation) = until("the next generation to be presented", 2 * TTL, async || {
        let token = api.token("demo").await;
        let now: u64 = token.get("seen-generation")?.parse().ok()?;
        (now > seen && token.contains_key("last-delay-ms")).then_some((token, now))
    })
    .await;
    let issued = |token: &HashMap<String, String>| humantime::parse_rfc3339(&token["issued"]).expect("a time");
    let age = issued(&token).duration_since(issued(&old)).expect("time goes on");
    report.row(
        &format!("rename → receipt, {how}, generation {generation}"),
        format!("{} ms; its predecessor was {} s old, of {} s", token["last-delay-ms"], age.as_secs(), TTL.as_secs()),
    );
}

async fn generation(world: &World) -> u64 {
    let token = world.api().await.token("demo").await;
    token.get("seen-generation").and_then(|text| text.parse().ok()).unwrap_or_default()
}

async fn outage(world: &mut World, demo: &Sandbox, report: &mut Report) {
    report.step(&format!("gateway killed (SIGKILL) for {} s, longer than the token lives", PAST_TTL.as_secs()));
    let before = (boot_id(world).await, world.vmm_processes());
    world.down();
    tokio::time::sleep(PAST_TTL).await;
    let began = Instant::now();
    world.up().await;
    let after = world.phase("demo", SandboxPhase::Ready).await;
    report.measured("gateway started → Ready again", began.elapsed());
    let now = (boot_id(world).await, world.vmm_processes());
    report.check(before == now, "same boot, same processes");
    let instance = |sandbox: &Sandbox| sandbox.status.clone().unwrap_or_default().main_process_instance_id;
    report.check(instance(demo) == instance(&after), "same instance");
    no_gap(world, report).await;
}

async fn quick_restarts(world: &mut World, report: &mut Report) {
    report.step("ten quick gateway restarts");
    let before = (boot_id(world).await, world.vmm_processes());
    let began = Instant::now();
    for _ in 0..10 {
        world.down();
        world.up().await;
    }
    world.phase("demo", SandboxPhase::Ready).await;
    report.measured("ten restarts → Ready", began.elapsed());
    let now = (boot_id(world).await, world.vmm_processes());
    report.check(before == now, "same boot, same processes");
    no_gap(world, report).await;
}

async fn boot_id(world: &World) -> String {
    world.api().await.sh("demo", "cat /proc/sys/kernel/random/boot_id").await
}

async fn no_gap(world: &World, report: &mut Report) {
    let counted = counter::read(&world.api().await.sh("demo", "cat /tmp/count").await);
    report.check(counted.contiguous && counted.longest_gap < Duration::from_secs(1), "the counter has no gap");
    report.row("main process, lines counted", counted.lines.to_string());
    report.measured("main process, longest gap", counted.longest_gap);
}

async fn stolen_token(world: &World, demo: &Sandbox, report: &mut Report) {
    report.step("a token of `demo` presented from another VM's socket");
    let other = world.ready("other", &[]).await;

    let present = async |at: &Sandbox| {
        let channel = channel(&world.places(at).join("ctl/gateway.sock")).await.expect("connect");
        let mut request = Request::new(SyncRequest::default());
        let bearer = format!("Bearer {}", world.token(demo));
        request.metadata_mut().insert("authorization", bearer.parse().expect("a header"));
        VmClient::new(channel).sync(request).await
    };
    let own = present(demo).await;
    report.check(own.is_ok(), "from its own socket it is accepted");
    let refused = present(&other).await.err();
    report.check(
        refused.as_ref().is_some_and(|status| status.code() == Code::Unauthenticated),
        "from another's it is refused",
    );
    report.detail(&format!("the answer: {}", refused.map(|status| status.message().to_string()).unwrap_or_default()));
}

async fn stopped_past_ttl(world: &World, demo: &Sandbox, report: &mut Report) {
    report.step(&format!("stopped for {} s, then started", PAST_TTL.as_secs()));
    let api = world.api().await;
    let began = Instant::now();
    api.stop("demo").await.expect("stop");
    world.phase("demo", SandboxPhase::Stopped).await;
    report.measured("stop → Stopped", began.elapsed());
    let token = world.places(demo).join("share").join(proto::layout::TOKEN_FILE);
    report.check(!token.exists(), "no token on disk while it is stopped");
    tokio::time::sleep(PAST_TTL).await;
    let began = Instant::now();
    api.start("demo").await.expect("start");
    world.phase("demo", SandboxPhase::Ready).await;
    report.measured("start → Ready", began.elapsed());
    let answer = api.exec("demo", &["hostname"]).await.expect("exec");
    report.check(answer.stdout.trim() == "demo", "it answers");
}

async fn delete(world: &World, report: &mut Report) {
    report.step("delete both");
    let api = world.api().await;
    let began = Instant::now();
    for name in ["demo", "other"] {
        api.delete(name).await.expect("delete");
    }
    until("everything to be gone", PATIENCE, async || world.traces().is_empty().then_some(())).await;
    report.measured("delete → nothing left", began.elapsed());
    report.check(world.traces().is_empty(), "no process, mount, socket or file is left");
}

async fn smoke(world: &World, report: &mut Report) {
    report.step("openshell sandbox create --name smoke --from IMAGE --no-keep --no-tty -- /bin/sh -lc 'echo agent-ok'");
    let image = test_image();
    let image = image.to_str().expect("a path of text");
    let began = Instant::now();
    let arguments = [
        "sandbox",
        "create",
        "--name",
        "smoke",
        "--from",
        image,
        "--no-keep",
        "--no-tty",
        "--",
        "/bin/sh",
        "-lc",
        "echo agent-ok",
    ];
    let output = world.openshell(&arguments).await;
    report.measured("smoke, from command line to command line", began.elapsed());
    let printed = String::from_utf8_lossy(&output.stdout);
    printed.lines().for_each(|line| report.detail(line));
    let expected = "Created sandbox: smoke\nagent-ok\nDeleted sandbox smoke\n";
    report.check(printed == expected && output.status.success(), "three lines, exit 0");
    report.check(world.traces().is_empty(), "nothing is left of it");
}
