//! A guest whose workload does its worst: the agent keeps its beat, and an exec gets in.

use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::SandboxPhase;
use proto::openshell::v1::exec_sandbox_event::Payload;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("load::a_thousand_busy_children_and_endless_output_stop_neither_rotation_nor_exec", busy_children),
        trial("load::a_fork_bomb_is_bounded_and_an_exec_gets_in", fork_bomb),
    ]
}

/// The children wait for each other before they begin: those that ran would keep the rest from being started.
const BUSY: &str = "mkfifo /tmp/go; i=0
    while [ $i -lt 1000 ]; do (read x < /tmp/go; while :; do :; done) & i=$((i + 1)); done
    touch /tmp/ready; wait";
const UNDER_LOAD: Duration = Duration::from_secs(20);
/// An emulated processor of 1,001 programs.
const EXEC_DEADLINE: Duration = Duration::from_secs(15);

async fn busy_children() {
    let mut world = World::empty(TTL).without_trial_boot().with("OPENSHELL_VM_DEFAULT_MEMORY", "512Mi");
    world.up().await;
    let api = world.api().await;
    let calm = world.ready("calm", &[]).await;
    let sandbox = world.ready("busy", &["/bin/sh", "-c", BUSY]).await;
    until("a thousand children", PATIENCE, async || {
        // Each look takes time from the children's parent.
        tokio::time::sleep(Duration::from_secs(4)).await;
        api.exec("busy", &["test", "-e", "/tmp/ready"]).await.ok().filter(|finished| finished.code == 0)
    })
    .await;
    let mut output = api.exec_stream("busy", &["yes"]).await.expect("exec");
    let reading = tokio::spawn(async move {
        let mut bytes = 0;
        while let Ok(Some(event)) = output.message().await {
            if let Some(Payload::Stdout(chunk)) = event.payload {
                bytes += chunk.data.len();
            }
            if bytes > 1 << 30 {
                break;
            }
        }
        panic!("the output ended after {bytes} bytes");
    });
    let lost = || [&sandbox, &calm].map(|sandbox| world.console(sandbox).matches("no session").count());
    let lost_before = lost();
    api.sh("busy", ": > /tmp/go").await;
    let (began, first) = (Instant::now(), seen_generation(&api).await);
    let (mut execs, mut slowest, mut beside) = (0, Duration::ZERO, Duration::ZERO);
    while began.elapsed() < UNDER_LOAD {
        slowest = slowest.max(timed_exec(&api, "busy").await);
        beside = beside.max(timed_exec(&api, "calm").await);
        execs += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // A token lives for 30 s: one was replaced, and seen, or there would be no session any more.
    let seen = until("a rotation under load", TTL, async || {
        let seen = seen_generation(&api).await;
        (seen > first).then_some(seen)
    })
    .await;
    let load = api.sh("busy", "cut -d' ' -f4 /proc/loadavg").await;
    println!("load: {execs} execs, the slowest took {slowest:?}; generations {first} to {seen}; tasks {}", load.trim());
    assert!(!reading.is_finished(), "{:?}", reading.await);
    reading.abort();
    let running: u32 = load.split('/').next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(running >= 1000, "only {running} were busy");
    println!("load: the slowest exec in another VM took {beside:?}");
    assert_eq!(lost(), lost_before, "a session was lost");
    world.delete("calm").await;
    world.delete("busy").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Whoever cannot fork ends, and makes room for others who can. The main process itself becomes something that needs no
/// fork.
const BOMB: &str = "while [ ! -e /tmp/go ]; do sleep 1; done; b() { while :; do b & done; }; b & exec sleep 100000";

async fn fork_bomb() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let sandbox = world.ready("bomb", &["/bin/sh", "-c", BOMB]).await;
    let refused = api.exec("bomb", &["/bin/sh", "-c", "echo 0 > /sys/fs/cgroup/cgroup.procs"]).await.expect("exec");
    assert_ne!(refused.code, 0, "a workload has left its control group");
    let groups = api.sh("bomb", "cat /proc/self/cgroup; cat /sys/fs/cgroup/workload/main/pids.current").await;
    assert!(groups.starts_with("0::/workload/exec\n"), "{groups}");
    api.sh("bomb", ": > /tmp/go").await;
    let read = "cd /sys/fs/cgroup/workload/main; read a < pids.max; read b < pids.current; read c d < pids.events;
        echo $a $b $d";
    let (most, running, failed) = until("the bomb to meet its bound", PATIENCE, async || {
        let finished = api.exec("bomb", &["/bin/sh", "-c", read]).await.ok()?;
        let numbers = finished.stdout.split_whitespace().map(|word| word.parse::<u64>().ok());
        let [most, running, failed] = numbers.collect::<Option<Vec<_>>>()?.try_into().ok()?;
        (failed > 0).then_some((most, running, failed))
    })
    .await;
    assert!(running <= most, "{running} of {most}");
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        slowest = slowest.max(timed_exec(&api, "bomb").await);
    }
    let console = world.console(&sandbox);
    assert!(!console.contains("no session"), "{console}");
    let began = Instant::now();
    world.openshell(&["vm", "stop", "bomb"]).await;
    world.phase("bomb", SandboxPhase::Stopped).await;
    println!(
        "load: {running} of {most} processes, {failed} forks refused; the slowest exec took {slowest:?}, the stop {:?}",
        began.elapsed()
    );
    world.delete("bomb").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn seen_generation(api: &Api) -> u64 {
    api.token("busy").await.get("seen-generation").map_or(0, |text| text.parse().expect("a generation"))
}

async fn timed_exec(api: &Api, name: &str) -> Duration {
    let began = Instant::now();
    let finished = tokio::time::timeout(EXEC_DEADLINE, api.exec(name, &["true"])).await;
    let finished = finished.unwrap_or_else(|_| panic!("an exec did not end within {EXEC_DEADLINE:?}"));
    assert_eq!(finished.expect("an exec").code, 0);
    began.elapsed()
}
