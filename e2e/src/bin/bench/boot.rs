//! From create to a session, next to the same VM by libkrun alone.

use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::programs::test_image;
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::{Sandbox, SandboxPhase, WatchSandboxRequest};
use tokio::time::timeout;

use crate::bare::Bare;
use crate::number;
use crate::report::{Bar, Ratio, Report};

/// Until files are in memory and an emulated machine has translated what runs here; not measured.
const WARM_UP: usize = 3;
const PAIRS: usize = 7;

pub(crate) async fn measure(world: &World, report: &mut Report) {
    let bare = Bare::new(world, "true");
    let api = world.api().await;
    report.say(&format!("boot: {WARM_UP} of each to warm up"));
    for _ in 0..WARM_UP {
        ran_true(&bare).await;
        session(world, &api).await;
    }
    let (mut pairs, mut parts) = (vec![], vec![]);
    for pair in 1..=PAIRS {
        // Neither always comes first.
        let ((ours, part), theirs) = if pair % 2 == 0 {
            let theirs = ran_true(&bare).await;
            (session(world, &api).await, theirs)
        } else {
            let ours = session(world, &api).await;
            (ours, ran_true(&bare).await)
        };
        report.say(&format!("boot: pair {pair}: {} ms next to {} ms", ours.as_millis(), theirs.as_millis()));
        pairs.push((ours.as_secs_f64() * 1e3, theirs.as_secs_f64() * 1e3));
        parts.push(part);
    }
    report.add(Ratio {
        name: "boot".into(),
        of: "create → session up".into(),
        against: "the same VM by libkrun alone, running /bin/true of the same image, from process start to its exit"
            .into(),
        unit: "ms".into(),
        pairs,
        bar: Some(Bar::AtMost(1.25)),
    });
    report.add(Ratio {
        name: "boot_agent".into(),
        of: "the agent's part of it: from its first instruction to its session".into(),
        against: "from the start of the guest's kernel to the session".into(),
        unit: "ms".into(),
        pairs: parts,
        bar: Some(Bar::AtMost(0.15)),
    });
}

/// Creates a sandbox, waits for its session, and takes both away again. Returns how long that took, and for how many
/// milliseconds of how many the guest's agent ran.
async fn session(world: &World, api: &Api) -> (Duration, (f64, f64)) {
    let began = Instant::now();
    let sandbox = api.create("boot", &test_image(), &[]).await.expect("create");
    timeout(PATIENCE, ready(api)).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for a session"));
    let took = began.elapsed();
    let part = until("the agent's words about its boot", PATIENCE, async || {
        let console = world.console(&sandbox);
        let said =
            |words: &str, name| console.lines().find(|line| line.contains(words)).and_then(|it| number(it, name));
        let (kernel, up) = (said("booted", "kernel_us")?, said("session accepted", "uptime_us")?);
        Some(((up - kernel) / 1e3, up / 1e3))
    })
    .await;
    world.delete("boot").await;
    until("the VM to be gone", PATIENCE, async || world.vmm_processes().is_empty().then_some(())).await;
    (took, part)
}

/// From process start to its exit.
async fn ran_true(bare: &Bare) -> Duration {
    let (console, took) = bare.run().await;
    // An exit code of 0 alone is that of a guest that never started.
    assert!(console.contains("image: /bin/true ended: exit status: 0"), "the bare VM: {console}");
    took
}

/// By the event, not by asking again and again: both cost the gateway something, and only one of them time.
async fn ready(api: &Api) {
    let request = WatchSandboxRequest { sandbox: "boot".into(), follow_status: true, ..Default::default() };
    let mut events = api.client.clone().watch_sandbox(request).await.expect("watch").into_inner();
    while let Some(event) = events.message().await.expect("watch") {
        if let Some(Payload::Sandbox(sandbox)) = event.payload
            && is_ready(&sandbox)
        {
            return;
        }
    }
    panic!("the sandbox went away while its session was waited for");
}

fn is_ready(sandbox: &Sandbox) -> bool {
    let status = sandbox.status.clone().unwrap_or_default();
    let connected = status.conditions.iter().any(|it| it.r#type == "Ready" && it.status == "True");
    assert_ne!(status.phase(), SandboxPhase::Error, "{:#?}", status.conditions);
    connected && status.phase() == SandboxPhase::Ready
}
