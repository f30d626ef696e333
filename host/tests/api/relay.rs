//! Byte streams into a sandbox.

use std::time::Duration;

use bytes::Bytes;
use host::session::relay::RelayStream;
use proto::budget::{RELAY_CHUNK, RELAY_CREDIT, VM_STREAM_WINDOW};
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::relay_frame::Payload as Frame;
use proto::openshell::v1::relay_open::Target;
use proto::openshell::v1::supervisor_message::Payload as Said;
use proto::openshell::v1::{ExecSandboxRequest, RelayFrame, RelayOpenResult, SshRelayTarget};
use proto::relay::data_frame;
use proto::relay::flow::{Incoming, Outgoing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Code, Streaming};
use uuid::Uuid;

use crate::agent::{Agent, Talk, init};
use crate::stage::{PATIENCE, Stage};

/// For which nothing has been taken from whoever pours.
const STUCK: Duration = Duration::from_secs(1);
/// With the credit of all of them, several times what fits into the window of their connection.
const STOPPED: usize = 12;
/// More than fits into the windows of one connection.
const PIECES: usize = 32;

/// Somebody at the gateway asks for a relay.
fn asked(stage: &Stage, sandbox_id: Uuid) -> JoinHandle<Result<RelayStream, String>> {
    let (relays, session) = (stage.relays.clone(), stage.sessions.of(sandbox_id).expect("a session"));
    tokio::spawn(async move { relays.open(sandbox_id, &session, Target::Ssh(SshRelayTarget {})).await })
}

/// The two ends of a new relay: the gateway's, and what the agent sends and gets.
async fn opened(
    stage: &Stage,
    sandbox_id: Uuid,
    agent: &Agent,
    talk: &mut Talk,
) -> (RelayStream, mpsc::Sender<RelayFrame>, Streaming<RelayFrame>) {
    let asked = asked(stage, sandbox_id);
    let (send, frames) = agent.relay(init(&ordered(talk).await)).await.expect("a relay");
    (asked.await.expect("join").expect("a relay"), send, frames)
}

/// The same with an agent that counts credit.
async fn opened_counted(
    stage: &Stage,
    sandbox_id: Uuid,
    agent: &Agent,
    talk: &mut Talk,
) -> (RelayStream, Incoming, Outgoing) {
    let asked = asked(stage, sandbox_id);
    let (incoming, outgoing) = agent.counted_relay(&ordered(talk).await).await.expect("a relay");
    (asked.await.expect("join").expect("a relay"), incoming, outgoing)
}

async fn ordered(talk: &mut Talk) -> String {
    match talk.next_order().await {
        Some(Payload::RelayOpen(open)) => open.channel_id,
        other => panic!("no relay was ordered: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_the_end_arrives() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let (mut relay, send, mut frames) = opened(&stage, mine.id, &agent, &mut talk).await;

    // More than fits into the windows of one connection.
    let sent = Bytes::from((0..1_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let expected = sent.clone();
    let guest = tokio::spawn(async move {
        let mut got = vec![];
        while let Some(RelayFrame { payload: Some(Frame::Data(data)), .. }) = frames.message().await.expect("frames") {
            assert!(data.len() <= proto::budget::RELAY_CHUNK);
            got.extend_from_slice(&data);
        }
        assert!(got == expected, "{} bytes arrived", got.len());
        send.send(data_frame(Bytes::from_static(b"heard"))).await.expect("open");
    });
    relay.write_all(&sent).await.expect("write");
    relay.shutdown().await.expect("close");
    let mut answer = String::new();
    timeout(PATIENCE, relay.read_to_string(&mut answer)).await.expect("an end").expect("read");
    assert_eq!(answer, "heard");
    guest.await.expect("the guest's side");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_have_stopped_hold_up_nobody_else() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let piece = Bytes::from(vec![7; RELAY_CHUNK]);
    let mut stopped = vec![];
    for _ in 0..STOPPED {
        let (relay, incoming, outgoing) = opened_counted(&stage, mine.id, &agent, &mut talk).await;
        let mut sent = 0;
        // Until nothing is taken any more.
        while timeout(STUCK, outgoing.send(piece.clone())).await.is_ok() {
            sent += piece.len();
        }
        // Besides the credit: a piece in each channel and each hand.
        assert!(sent <= RELAY_CREDIT as usize + 6 * RELAY_CHUNK, "{sent} bytes for nobody");
        stopped.push((relay, incoming, outgoing, sent));
    }
    let (relay, mut incoming, outgoing) = opened_counted(&stage, mine.id, &agent, &mut talk).await;
    let sent = Bytes::from((0..1_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let expected = sent.clone();
    let guest = tokio::spawn(async move {
        let mut got = vec![];
        while let Some(data) = incoming.recv().await {
            got.extend_from_slice(&data.expect("data"));
        }
        assert!(got == expected, "{} bytes arrived", got.len());
        // After the other direction's end, and with more than any credit.
        outgoing.send(expected).await.expect("open");
    });
    let (mut read, mut write) = tokio::io::split(relay);
    write.write_all(&sent).await.expect("write");
    write.shutdown().await.expect("close");
    let mut back = vec![];
    timeout(PATIENCE, read.read_to_end(&mut back)).await.expect("not held up").expect("read");
    assert!(back == sent, "{} bytes came back", back.len());
    guest.await.expect("the guest's side");
    timeout(PATIENCE, agent.sync()).await.expect("Sync is not held up").expect("Sync");
    // Nothing of the others is lost.
    for (mut relay, _incoming, outgoing, sent) in stopped {
        drop(outgoing);
        let mut rest = vec![];
        timeout(PATIENCE, relay.read_to_end(&mut rest)).await.expect("an end").expect("read");
        assert_eq!(rest.len(), sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_stopped_readers_of_an_agent_that_does_not_count_hold_up_nobody_else() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let piece = data_frame(Bytes::from(vec![7; RELAY_CHUNK]));
    let mut stopped = vec![];
    for _ in 0..3 {
        let (relay, send, frames) = opened(&stage, mine.id, &agent, &mut talk).await;
        // Until nothing is taken any more.
        while timeout(STUCK, send.send(piece.clone())).await.is_ok() {}
        stopped.push((relay, send, frames));
    }
    let (mut relay, send, _frames) = opened(&stage, mine.id, &agent, &mut talk).await;
    let pouring = tokio::spawn(async move {
        for _ in 0..PIECES {
            send.send(piece.clone()).await.expect("open");
        }
    });
    let mut got = vec![0; PIECES * RELAY_CHUNK];
    timeout(PATIENCE, relay.read_exact(&mut got)).await.expect("a fourth relay is not held up").expect("read");
    pouring.await.expect("pour");
    timeout(PATIENCE, agent.sync()).await.expect("Sync is not held up").expect("Sync");
    // Nothing of the others is lost.
    for (mut relay, send, _frames) in stopped {
        drop(send);
        let mut rest = vec![];
        timeout(PATIENCE, relay.read_to_end(&mut rest)).await.expect("an end").expect("read");
        assert!(rest.len() > VM_STREAM_WINDOW as usize && rest.len() % RELAY_CHUNK == 0, "{}", rest.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_not_asked_of_this_sandbox_is_refused() {
    let stage = Stage::up().await;
    let (mine, other) = (stage.launched("mine").await, stage.launched("other").await);
    let (agent, stranger) = (Agent::of(&stage, &mine).await, Agent::of(&stage, &other).await);
    let mut talk = agent.session(1).await;
    let _session = stranger.session(1).await;
    let asked = asked(&stage, mine.id);
    let channel = ordered(&mut talk).await;

    let invented = Uuid::new_v4().to_string();
    for (who, agent, channel) in
        [("invented", &agent, invented.as_str()), ("no id", &agent, "../1"), ("another's", &stranger, &channel)]
    {
        let status = agent.relay(init(channel)).await.expect_err("refused");
        assert_eq!(status.code(), Code::PermissionDenied, "{who}: {status:?}");
        assert_eq!(status.message(), "no such relay was asked of this sandbox", "{who}");
    }
    let status = agent.relay(Frame::Data(Bytes::new())).await.expect_err("no init");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    // A stranger's no does not end it either.
    talk_refusal(&stranger.session(2).await, &channel).await;
    let _open = agent.relay(init(&channel)).await.expect("the one that was asked");
    asked.await.expect("join").expect("a relay");
    let again = agent.relay(init(&channel)).await.expect_err("a channel is opened once");
    assert_eq!(again.code(), Code::PermissionDenied);
}

async fn talk_refusal(talk: &Talk, channel_id: &str) {
    let result = RelayOpenResult { channel_id: channel_id.into(), success: false, error: "no shell here".into() };
    talk.send(Said::RelayOpenResult(result)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_refuses_says_why() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let asked = asked(&stage, mine.id);
    let channel = ordered(&mut talk).await;
    talk_refusal(&talk, &channel).await;
    let why = asked.await.expect("join").err().expect("refused");
    assert_eq!(why, "the agent refused the relay: no shell here");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_without_session_or_relay_says_what_is_missing() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut user = stage.user().await;
    let request = ExecSandboxRequest { sandbox: "mine".into(), command: vec!["true".into()], ..Default::default() };
    let status = user.exec_sandbox(request.clone()).await.expect_err("no session");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("sandbox mine has no session since 20"), "{status:?}");
    assert!(status.message().contains("(phase Provisioning); it connects by itself"), "{status:?}");

    let agent = Agent::of(&stage, &mine).await;
    let _talk = agent.session(1).await;
    let status = user.exec_sandbox(request).await.expect_err("no relay");
    assert_eq!(status.code(), Code::Unavailable);
    let words = "sandbox mine: no relay: the agent did not open a relay within 10s";
    assert_eq!(status.message(), words);
}
