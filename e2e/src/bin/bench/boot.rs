//! From create to a session, next to the same VM by libkrun alone.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::programs::{guest_probe, program, test_image};
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::{Sandbox, SandboxPhase, WatchSandboxRequest};
use tokio::time::timeout;

use crate::report::{Bar, Ratio, Report};
use crate::{MEMORY_MIB, VCPUS};

/// Until files are in memory and an emulated machine has translated what runs here; not measured.
const WARM_UP: usize = 3;
const PAIRS: usize = 7;

pub(crate) async fn measure(world: &World, report: &mut Report) {
    let bare = Bare::new(world);
    let api = world.api().await;
    report.say(&format!("boot: {WARM_UP} of each to warm up"));
    for _ in 0..WARM_UP {
        bare.run().await;
        session(world, &api).await;
    }
    let mut pairs = vec![];
    for pair in 1..=PAIRS {
        // Neither always comes first.
        let (ours, theirs) = if pair % 2 == 0 {
            let theirs = bare.run().await;
            (session(world, &api).await, theirs)
        } else {
            let ours = session(world, &api).await;
            (ours, bare.run().await)
        };
        report.say(&format!("boot: pair {pair}: {} ms next to {} ms", ours.as_millis(), theirs.as_millis()));
        pairs.push((ours.as_secs_f64() * 1e3, theirs.as_secs_f64() * 1e3));
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
}

/// Creates a sandbox, waits for its session, and takes both away again.
async fn session(world: &World, api: &Api) -> Duration {
    let began = Instant::now();
    api.create("boot", &test_image(), &[]).await.expect("create");
    timeout(PATIENCE, ready(api)).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for a session"));
    let took = began.elapsed();
    world.delete("boot").await;
    until("the VM to be gone", PATIENCE, async || world.vmm_processes().is_empty().then_some(())).await;
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

/// The program to compare with, and the files that its VM is made of.
struct Bare {
    program: PathBuf,
    arguments: Vec<PathBuf>,
}

impl Bare {
    fn new(world: &World) -> Self {
        let here = std::env::current_exe().expect("this program's path");
        let program = here.with_file_name("examples").join("bare");
        assert!(program.exists(), "{} is not built; run `make bench`", program.display());
        let directory = world.runtime().join("bare");
        let (init, share) = (directory.join("init"), directory.join("share"));
        std::fs::create_dir_all(&share).expect("make a directory");
        let mut bytes = std::fs::read(guest_probe()).expect("read the probe");
        bytes.extend(b"\ntrue");
        std::fs::write(&init, bytes).expect("write the probe");
        let socket = directory.join("gateway.sock");
        let firmware = self::program("libkrunfw.so.5");
        Self { program, arguments: vec![firmware, init, test_image(), share, socket, VCPUS.into(), MEMORY_MIB.into()] }
    }

    async fn run(&self) -> Duration {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        let running = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            (command.output().expect("run the bare VM"), began.elapsed())
        });
        let ended = timeout(PATIENCE, running).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for the bare VM"));
        let (output, took) = ended.expect("the bare VM's thread");
        let console = String::from_utf8_lossy(&output.stdout);
        // An exit code of 0 alone is that of a guest that never started.
        assert!(console.contains("image: /bin/true ended: exit status: 0"), "the bare VM: {output:?}");
        took
    }
}
