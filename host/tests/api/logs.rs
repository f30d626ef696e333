//! Log lines: whose they are, how many, and who follows them.

use std::time::Duration;

use proto::log::{BATCH_LINES, GATEWAY_LINES, MESSAGE_MAX};
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::*;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::agent::Agent;
use crate::stage::{PATIENCE, Stage, removed};
use host::sandbox::decide::Event;

fn line(agent: &Agent, source: &str, sequence: u64, message: &str) -> SandboxLogLine {
    let fields = [("boot".to_owned(), agent.instance_id.clone()), ("seq".to_owned(), sequence.to_string())];
    SandboxLogLine {
        level: "INFO".into(),
        source: source.into(),
        target: "stdout".into(),
        message: message.into(),
        fields: fields.into(),
        event_time: Some(prost_types::Timestamp { seconds: sequence as i64, nanos: 0 }),
        ..Default::default()
    }
}

fn batch(sandbox_id: &str, logs: Vec<SandboxLogLine>) -> PushSandboxLogsRequest {
    PushSandboxLogsRequest { sandbox_id: sandbox_id.into(), logs }
}

async fn push(agent: &Agent, batches: Vec<PushSandboxLogsRequest>) -> Result<(), Status> {
    agent.client().push_sandbox_logs(agent.request(tokio_stream::iter(batches))).await.map(drop)
}

/// Lines of the main process, each with its number as its message.
async fn push_numbers(agent: &Agent, from: u64, to: u64) {
    for begin in (from..=to).step_by(BATCH_LINES) {
        let end = to.min(begin + BATCH_LINES as u64 - 1);
        let lines: Vec<_> = (begin..=end).map(|number| line(agent, "main", number, &number.to_string())).collect();
        let taken = async {
            while let Err(status) = push(agent, vec![batch(&agent.sandbox_id, lines.clone())]).await {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, taken).await.expect("taken, if later");
    }
}

async fn get(stage: &Stage, request: GetSandboxLogsRequest) -> (Vec<String>, u32) {
    let request = GetSandboxLogsRequest { sandbox: "mine".into(), ..request };
    let reply = stage.user().await.get_sandbox_logs(request).await.expect("logs").into_inner();
    (reply.logs.into_iter().map(|line| line.message).collect(), reply.buffer_total)
}

async fn all(stage: &Stage) -> Vec<String> {
    get(stage, GetSandboxLogsRequest::default()).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_kept_once_and_found_by_source_level_time_and_number() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    assert_eq!(agent.sync().await.expect("sync").log_sequence, 0);
    let lines = vec![
        line(&agent, "main", 1, "one"),
        SandboxLogLine { level: "WARN".into(), ..line(&agent, "agent", 2, "two") },
        line(&agent, "web", 3, "three"),
    ];
    push(&agent, vec![batch(&agent.sandbox_id, lines.clone())]).await.expect("taken");
    // The answer was lost, and the agent does not ask.
    push(
        &agent,
        vec![batch(&agent.sandbox_id, lines), batch(&agent.sandbox_id, vec![line(&agent, "main", 4, "four")])],
    )
    .await
    .expect("taken");
    assert_eq!(agent.sync().await.expect("sync").log_sequence, 4);
    assert_eq!(all(&stage).await, ["one", "two", "three", "four"]);
    let some = |request| async { get(&stage, request).await };
    assert_eq!(
        some(GetSandboxLogsRequest { lines: 2, ..Default::default() }).await,
        (vec!["three".into(), "four".into()], 4)
    );
    let sources = vec!["main".into()];
    assert_eq!(some(GetSandboxLogsRequest { sources, ..Default::default() }).await.0, ["one", "four"]);
    let min_level = "warn".into();
    assert_eq!(some(GetSandboxLogsRequest { min_level, ..Default::default() }).await.0, ["two"]);
    let since_time = Some(prost_types::Timestamp { seconds: 3, nanos: 0 });
    assert_eq!(some(GetSandboxLogsRequest { since_time, ..Default::default() }).await.0, ["three", "four"]);
    let odd = GetSandboxLogsRequest { sandbox: "mine".into(), min_level: "loud".into(), ..Default::default() };
    let refused = stage.user().await.get_sandbox_logs(odd).await.expect_err("no such level");
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_belongs_to_one_sandbox_and_its_bounds_hold() {
    let stage = Stage::up().await;
    let (mine, other) = (stage.launched("mine").await, stage.launched("other").await);
    let agent = Agent::of(&stage, &mine).await;
    let own = agent.sandbox_id.clone();
    let good = |sequence| batch(&own, vec![line(&agent, "main", sequence, "good")]);
    let foreign = other.id.to_string();

    let denied = [
        vec![batch(&foreign, vec![line(&agent, "main", 1, "foreign")])],
        vec![batch(&own, vec![]), good(1), batch(&foreign, vec![])],
        vec![
            good(2),
            batch(&own, vec![SandboxLogLine { sandbox_id: foreign.clone(), ..line(&agent, "main", 3, "x") }]),
        ],
    ];
    for batches in denied {
        let status = push(&agent, batches).await.expect_err("another sandbox");
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "cross-sandbox access denied"));
    }
    // What came before is kept, and the other sandbox has nothing.
    assert_eq!(all(&stage).await, ["good", "good"]);
    let of_other = GetSandboxLogsRequest { sandbox: "other".into(), ..Default::default() };
    let of_other = stage.user().await.get_sandbox_logs(of_other).await.expect("logs").into_inner();
    assert_eq!(of_other, GetSandboxLogsResponse::default());

    let with = |change: fn(&mut SandboxLogLine)| {
        let mut line = line(&agent, "main", 5, "bad");
        change(&mut line);
        vec![batch(&own, vec![line])]
    };
    let many = (0..=BATCH_LINES as u64).map(|n| line(&agent, "main", 5 + n, "many")).collect();
    for batches in [
        vec![batch(&own, many)],
        with(|line| line.message = "x".repeat(MESSAGE_MAX + 1)),
        with(|line| line.fields = (0..1000).map(|n| (n.to_string(), String::new())).collect()),
        with(|line| drop(line.fields.insert("boot".into(), "7-another".into()))),
        with(|line| line.fields.clear()),
    ] {
        assert_eq!(push(&agent, batches).await.expect_err("out of bounds").code(), Code::InvalidArgument);
    }
    // A stream that says nothing is nobody's.
    push(&agent, vec![batch(&foreign, vec![]), batch("", vec![])]).await.expect("nothing was said");
    assert_eq!(all(&stage).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_and_the_ring_is_bounded() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    push_numbers(&agent, 1, GATEWAY_LINES as u64 + 300).await;
    let (kept, total) = get(&stage, GetSandboxLogsRequest::default()).await;
    assert_eq!(kept.len(), total as usize);
    assert!(total as usize <= GATEWAY_LINES && kept.last().expect("lines") == "10300", "{total}");

    let long = "x".repeat(MESSAGE_MAX);
    let refused = async {
        for sequence in (20_000..).step_by(20) {
            let lines = (0..20).map(|n| line(&agent, "main", sequence + n, &long)).collect();
            if let Err(status) = push(&agent, vec![batch(&agent.sandbox_id, lines)]).await {
                return status;
            }
        }
        unreachable!("numbers do not end")
    };
    let status = timeout(PATIENCE, refused).await.expect("refused in time");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    agent.sync().await.expect("the same connection serves on");
}

async fn follow(stage: &Stage, request: WatchSandboxRequest) -> Streaming<SandboxStreamEvent> {
    let request = WatchSandboxRequest { sandbox: "mine".into(), follow_logs: true, ..request };
    stage.user().await.watch_sandbox(request).await.expect("follow").into_inner()
}

async fn next(events: &mut Streaming<SandboxStreamEvent>) -> Option<Payload> {
    let event = timeout(PATIENCE, events.message()).await.expect("an event in time");
    event.expect("no error").map(|event| event.payload.expect("a payload"))
}

fn message(event: Option<Payload>) -> String {
    match event {
        Some(Payload::Log(line)) => line.message,
        other => panic!("no log line: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_get_the_tail_and_what_comes_until_the_sandbox_is_gone() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    push_numbers(&agent, 1, 5).await;
    let mut tail = follow(&stage, WatchSandboxRequest { log_tail_lines: 2, ..Default::default() }).await;
    let mut new = follow(&stage, WatchSandboxRequest { follow_status: true, ..Default::default() }).await;
    let mut web = follow(&stage, WatchSandboxRequest { log_sources: vec!["web".into()], ..Default::default() }).await;
    assert_eq!([message(next(&mut tail).await), message(next(&mut tail).await)], ["4", "5"]);
    assert!(matches!(next(&mut new).await, Some(Payload::Sandbox(_))));
    push(&agent, vec![batch(&agent.sandbox_id, vec![line(&agent, "main", 6, "6"), line(&agent, "web", 7, "up")])])
        .await
        .expect("taken");
    assert_eq!([message(next(&mut tail).await), message(next(&mut tail).await)], ["6", "up"]);
    assert_eq!(message(next(&mut new).await), "6");
    assert_eq!(message(next(&mut web).await), "up");

    let ring = stage.logs.of(&stage.registry, &mine);
    mine.ask(Event::Delete).await.expect("delete");
    removed(&stage, &mine).await;
    assert_eq!(next(&mut tail).await, None);
    assert_eq!(next(&mut web).await, None);
    // Forgotten with its sandbox: whoever held it is the last one.
    let forgotten = async {
        while std::sync::Arc::strong_count(&ring) > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    drop((tail, new, web));
    timeout(PATIENCE, forgotten).await.expect("forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_is_told_what_it_missed_and_holds_nobody_up() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut slow = follow(&stage, WatchSandboxRequest::default()).await;
    // More than is on its way to a client that does not read, and what the ring holds besides.
    let lines = 4 * GATEWAY_LINES as u64;
    push_numbers(&agent, 1, lines).await;
    let (mut seen, mut missed) = (vec![], 0);
    while seen.last() != Some(&lines) {
        match next(&mut slow).await.expect("more") {
            Payload::Log(line) => seen.push(line.message.parse::<u64>().expect("a number")),
            Payload::Warning(warning) => {
                missed += warning.message.split(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a count");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert!(missed > 0);
    assert_eq!(seen.len() as u64 + missed, lines);
}
