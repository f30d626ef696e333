//! The connection between guest and gateway is held up, cut and squeezed: the session comes back, and what was
//! acknowledged is there.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::api::Api;
use e2e::cut::{Cut, Loser, Passage};
use e2e::programs::{program, test_image};
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::budget;
use proto::openshell::v1::{GetSandboxLogsRequest, SandboxPhase};

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("cuts::a_session_comes_back_from_every_cut_and_no_line_is_lost", every_cut),
        trial("cuts::bursts_both_ways_pass_whole", bursts),
    ]
}

/// Numbers, until it is told to end.
const COUNTER: &str =
    "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo n$i; sleep 0.2; done; echo $i > /tmp/last; exit 7";
const BURST: usize = 16 << 20;

/// A sandbox all of whose connections pass the cut.
async fn behind_a_cut(world: &World, api: &Api, name: &str, command: &[&str]) -> Cut {
    let sandbox = api.create(name, &test_image(), command).await.expect("create");
    let socket = world.places(&sandbox).join("ctl/gateway.sock");
    // A guest takes seconds to boot: nobody has connected yet.
    let cut = until("the sandbox's socket", PATIENCE, async || socket.exists().then(|| Cut::before(&socket))).await;
    world.phase(name, SandboxPhase::Ready).await;
    assert!(cut.opened() > 0, "the guest found another way to the gateway");
    cut
}

/// The session's connection is left, and the next one works.
async fn comes_back(api: &Api, cut: &Cut, before: usize, what: &str) {
    until(&format!("another connection after: {what}"), PATIENCE, async || (cut.opened() > before).then_some(())).await;
    cut.set(Passage::Open);
    until(&format!("an exec after: {what}"), PATIENCE, async || {
        let finished = api.exec("cut", &["echo", what]).await.ok()?;
        (finished.stdout == format!("{what}\n")).then_some(())
    })
    .await;
    println!("cuts: back after: {what}");
}

async fn every_cut() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let cut = behind_a_cut(&world, &api, "cut", &["/bin/sh", "-c", COUNTER]).await;
    for (passage, what) in [
        (Passage::ToGatewayHeld, "nothing reaches the gateway"),
        (Passage::ToGuestHeld, "nothing reaches the guest"),
        (Passage::Held, "nothing passes"),
    ] {
        // With a data connection, which is held up as well.
        assert_eq!(api.sh("cut", "echo before").await, "before\n");
        let before = cut.opened();
        cut.set(passage);
        comes_back(&api, &cut, before, what).await;
    }
    for (loser, what) in [(Loser::Gateway, "the gateway lost it"), (Loser::Guest, "the guest lost it")] {
        assert_eq!(api.sh("cut", "echo before").await, "before\n");
        let before = cut.opened();
        cut.lose(loser);
        comes_back(&api, &cut, before, what).await;
    }

    let before = cut.opened();
    cut.set(Passage::ByteByByte);
    for number in 0..3 {
        assert_eq!(api.sh("cut", &format!("echo slow {number}")).await, format!("slow {number}\n"));
        tokio::time::sleep(budget::heartbeat(TTL)).await;
    }
    assert_eq!(cut.opened(), before, "a connection was given up though bytes passed");
    cut.set(Passage::Open);

    api.sh("cut", "touch /tmp/end").await;
    let sandbox = world.phase("cut", SandboxPhase::Completed).await;
    assert_eq!(sandbox.status.expect("a status").exit_code, Some(7));
    let request = GetSandboxLogsRequest { sandbox: "cut".into(), sources: vec!["main".into()], ..Default::default() };
    let lines = api.client.clone().get_sandbox_logs(request).await.expect("logs").into_inner().logs;
    let numbers = lines.iter().map(|line| line.message.clone()).collect::<Vec<_>>();
    assert!(numbers.len() > 100, "only {} lines", numbers.len());
    assert_eq!(numbers, (1..=numbers.len()).map(|number| format!("n{number}")).collect::<Vec<_>>());
    println!("cuts: {} lines, each once, over {} connections", numbers.len(), cut.opened());
    world.delete("cut").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// By an exec that sends back what it gets; held up twice, for less than a session endures.
async fn bursts() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let cut = behind_a_cut(&world, &api, "burst", &[]).await;
    let mut child = Command::new(program("openshell"))
        .args(["vm", "exec", "burst", "--", "cat"])
        .env_clear()
        .envs(world.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start openshell");
    let sent = (0..BURST as u32 / 4).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes());
    let sent = std::sync::Arc::new(sent.collect::<Vec<u8>>());
    let (mut input, content) = (child.stdin.take().expect("a pipe"), sent.clone());
    let writing = tokio::task::spawn_blocking(move || input.write_all(&content));
    let reading = tokio::task::spawn_blocking(move || child.wait_with_output());
    let before = cut.opened();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        cut.set(Passage::Held);
        tokio::time::sleep(Duration::from_secs(2)).await;
        cut.set(Passage::Open);
    }
    writing.await.expect("a task").expect("write all");
    let output = reading.await.expect("a task").expect("output");
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(output.stdout.len(), BURST);
    assert!(output.stdout == *sent, "other bytes came back");
    assert!(cut.opened() <= before + 1, "more than the data connection was opened");
    world.delete("burst").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
