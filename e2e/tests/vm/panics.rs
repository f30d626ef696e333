//! What of a guest can fall over: parts of the agent that panic, and every program that can be killed. Each comes back or
//! is reported, and the sandbox stays the one that it was.

use std::time::{Duration, Instant};

use e2e::api::{Api, Finished, collect};
use e2e::programs::test_image;
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::fault;
use proto::log::FIELD_SEQUENCE;
use proto::openshell::v1::*;
use tonic::Status;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("panics::of_the_agents_parts_are_reported_and_cost_nothing_else", parts),
        trial("panics::every_program_is_killed", killed),
    ]
}

/// A word every second; a `TERM` is an end.
const COUNTER: &str = "i=0; while :; do echo n$i; i=$((i+1)); sleep 1; done";
const BACK: Duration = Duration::from_secs(90);

/// Restarted whenever it ends.
fn request(name: &str, script: &str) -> CreateSandboxRequest {
    let template = SandboxTemplate { image: test_image().display().to_string(), ..Default::default() };
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut spec = SandboxSpec { template: Some(template), command, ..Default::default() };
    spec.set_restart_policy(SandboxRestartPolicy::Always);
    CreateSandboxRequest { name: name.into(), spec: Some(spec), ..Default::default() }
}

/// An exec that makes a part of the agent panic, the SSH server's with it.
async fn arm(api: &Api, name: &str, part: &str) -> Result<Finished, Status> {
    let request = ExecSandboxRequest {
        sandbox: name.into(),
        command: vec!["/bin/true".into()],
        environment: [(fault::VARIABLE.to_owned(), part.to_owned())].into(),
        ..Default::default()
    };
    collect(api.client.clone().exec_sandbox(request).await?.into_inner()).await
}

async fn parts() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    api.create_with(request("shaken", COUNTER)).await.expect("create");
    let sandbox = world.phase("shaken", SandboxPhase::Ready).await;
    for part in fault::PARTS {
        let began = Instant::now();
        let armed = arm(&api, "shaken", part).await;
        // Who asked the connection that panicked is told so; nobody else notices.
        assert_eq!(armed.is_err(), part == fault::SSH, "{part}: {armed:?}");
        let said = format!("fault point {part}");
        until(&format!("the panic of {part}"), BACK, async || {
            // The reaper comes by with every process that ends.
            drop(api.exec("shaken", &["/bin/true"]).await);
            world.console(&sandbox).contains(&said).then_some(())
        })
        .await;
        // More at a time than the gateway keeps connections: one of them needs a relay that is opened now.
        until(&format!("execs after the panic of {part}"), BACK, async || {
            let exec = async || api.exec("shaken", &["/bin/sh", "-c", "sleep 1; echo back"]).await.ok();
            let (one, two, three) = tokio::join!(exec(), exec(), exec());
            [one?, two?, three?].iter().all(|exec| exec.code == 0 && exec.stdout == "back\n").then_some(())
        })
        .await;
        println!("panics: {part} is back after {:.1} s", began.elapsed().as_secs_f64());
    }
    // What was said meanwhile comes, once, and so does the report of each panic.
    let request = GetSandboxLogsRequest { sandbox: "shaken".into(), ..Default::default() };
    let logs = until("the report of the last panic", BACK, async || {
        let logs = api.client.clone().get_sandbox_logs(request.clone()).await.ok()?.into_inner().logs;
        let told = |part: &str| logs.iter().any(|line| line.message.contains(&format!("fault point {part}")));
        fault::PARTS.iter().all(|part| told(part)).then_some(logs)
    })
    .await;
    let numbers: Vec<u64> = logs.iter().map(|line| line.fields[FIELD_SEQUENCE].parse().expect("a number")).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let counted = logs.iter().filter(|line| line.source == "main").enumerate();
    for (number, line) in counted {
        assert_eq!(line.message, format!("n{number}"));
    }
    let after = world.phase("shaken", SandboxPhase::Ready).await;
    let status = after.status.expect("a status");
    assert_eq!(status.restart_count, 0, "the main process was not touched");
    assert_eq!(world.console(&sandbox).matches(": booted ").count(), 1, "it is the same boot");
    world.delete("shaken").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// `kill -9 -1` spares PID 1 and whoever calls, and the kernel spares PID 1 from all of its namespace.
async fn killed() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    api.create_with(request("killed", COUNTER)).await.expect("create");
    let sandbox = world.phase("killed", SandboxPhase::Ready).await;
    let started = || async {
        let status = api.get("killed").await.ok()?.status?;
        Some((status.restart_count, status.main_process_started_time?))
    };
    let bystander = api.exec_stream("killed", &["/bin/sleep", "1000"]).await.expect("an exec");
    let before = until("the main process", BACK, started).await;
    // As both: root of the workload has no capability, so it does not reach the others.
    for user in ["0", "1000"] {
        let kill = "kill -9 1; kill -9 -1; echo done";
        let killer = world.openshell(&["vm", "exec", "-u", user, "killed", "--", "sh", "-c", kill]).await;
        assert_eq!((killer.status.code(), killer.stdout.as_slice()), (Some(0), b"done\n".as_slice()), "{killer:?}");
    }
    let ended = collect(bystander).await.expect("its end is told");
    assert_eq!(ended.code, 128 + 9);
    until("another main process", BACK, async || {
        let now = started().await?;
        (now.0 == before.0 + 1 && now.1 != before.1).then_some(())
    })
    .await;
    assert_eq!(api.sh("killed", "echo alive").await, "alive\n");
    assert_eq!(world.console(&sandbox).matches(": booted ").count(), 1, "it is the same boot");
    world.delete("killed").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
