//! What a sandbox says reaches its user: across gateways that are killed, and however much it is.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::programs::program;
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::log::{FIELD_MISSING, FIELD_SEQUENCE, TARGET_GAP};
use proto::openshell::v1::{GetSandboxLogsRequest, SandboxLogLine, SandboxPhase};

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("logs::every_line_comes_once_over_two_gateway_kills", gateway_kills),
        trial("logs::a_flood_has_gaps_that_are_said_and_holds_nothing_up", flood),
    ]
}

const NUMBERS: u64 = 150;
/// A number every tenth of a second.
const COUNTER: &str = "i=1; while [ $i -le 150 ]; do echo n$i; i=$((i+1)); sleep 0.1; done; exit 7";
/// As fast as it can for five seconds. A source is heard again when it has kept to its rate for a second; the flood may
/// have ended within a line.
const FLOOD: &str = "yes flood & p=$!; sleep 5; kill $p; wait $p; sleep 3; echo; echo after; sleep 1000";

async fn logs(world: &World, name: &str, source: &str) -> Vec<SandboxLogLine> {
    let sources = if source.is_empty() { vec![] } else { vec![source.to_owned()] };
    let request = GetSandboxLogsRequest { sandbox: name.into(), sources, ..Default::default() };
    world.api().await.client.clone().get_sandbox_logs(request).await.expect("logs").into_inner().logs
}

fn expected() -> Vec<String> {
    (1..=NUMBERS).map(|number| format!("n{number}")).collect()
}

async fn reaches(world: &World, name: &str, number: u64) {
    let last = format!("n{number}");
    until(&format!("line {last}"), Duration::from_secs(60), async || {
        logs(world, name, "main").await.iter().any(|line| line.message == last).then_some(())
    })
    .await;
}

/// The gateway keeps lines in memory: what a killed one has had comes once more from the agent. One who follows
/// through all that sees each line once, and the end of the sandbox.
async fn gateway_kills() {
    let mut world = World::quick(TTL).await;
    world.ready("counter", &["/bin/sh", "-c", COUNTER]).await;
    let follower = Command::new(program("openshell"))
        .args(["vm", "logs", "counter", "--follow", "--source", "main", "-o", "json"])
        .env_clear()
        .envs(world.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start openshell");
    for number in [15, 60] {
        reaches(&world, "counter", number).await;
        world.down();
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.up().await;
    }
    world.phase("counter", SandboxPhase::Completed).await;
    let messages = |lines: Vec<SandboxLogLine>| lines.into_iter().map(|line| line.message).collect::<Vec<_>>();
    assert_eq!(messages(logs(&world, "counter", "main").await), expected());
    let followed = tokio::task::spawn_blocking(|| follower.wait_with_output()).await.expect("a task").expect("output");
    assert!(followed.status.success(), "{followed:?}");
    let followed = String::from_utf8(followed.stdout).expect("UTF-8");
    let followed = followed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    assert_eq!(followed.map(|line| line["message"].as_str().expect("text").to_owned()).collect::<Vec<_>>(), expected());
    assert!(!logs(&world, "counter", "agent").await.is_empty(), "the agent's own words come as well");
    world.delete("counter").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn flood() {
    let world = World::quick(TTL).await;
    world.ready("loud", &["/bin/sh", "-c", FLOOD]).await;
    let api = world.api().await;
    let session = || async {
        let status = api.get("loud").await.expect("the sandbox").status.expect("a status");
        let connected = status.conditions.into_iter().find(|condition| condition.r#type == "SessionConnected");
        connected.map(|condition| (condition.status, condition.transition_time))
    };
    let (before, began) = (session().await, Instant::now());
    assert_eq!(api.sh("loud", "echo through").await, "through\n");
    println!("logs: an exec beside the flood took {:.1} s", began.elapsed().as_secs_f64());
    until("the end of the flood", Duration::from_secs(60), async || {
        logs(&world, "loud", "main").await.last().is_some_and(|line| line.message == "after").then_some(())
    })
    .await;
    assert_eq!(session().await, before, "the session was lost");

    let all = logs(&world, "loud", "").await;
    let number = |line: &SandboxLogLine, field: &str| line.fields[field].parse::<u64>().expect("a number");
    let mut missing = 0;
    for pair in all.windows(2) {
        let gap = if pair[1].target == TARGET_GAP { number(&pair[1], FIELD_MISSING) } else { 1 };
        assert_eq!(number(&pair[1], FIELD_SEQUENCE), number(&pair[0], FIELD_SEQUENCE) + gap, "{pair:?}");
        missing += gap - 1;
    }
    println!("logs: {} lines came, {missing} are said to be missing", all.len());
    assert!(missing > 1_000, "that was no flood");
    world.delete("loud").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
