//! Bytes of users into a sandbox.

use bytes::Bytes;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::relay_frame::Payload as Frame;
use proto::openshell::v1::relay_open::Target as Ordered;
use proto::openshell::v1::tcp_forward_frame::Payload as Piece;
use proto::openshell::v1::tcp_forward_init::Target;
use proto::openshell::v1::*;
use proto::openshell::vm::v1::GetSshHostKeyRequest;
use proto::openshell::vm::v1::operator_client::OperatorClient;
use proto::relay::data_frame;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::agent::{Agent, Talk, init};
use crate::stage::{PATIENCE, Stage, channel};

type Say = mpsc::Sender<TcpForwardFrame>;

fn to_port(port: u32) -> TcpForwardInit {
    let target = Target::Tcp(TcpRelayTarget { host: String::new(), port });
    TcpForwardInit { sandbox: "mine".into(), target: Some(target), ..Default::default() }
}

/// Begins one; it is answered when the agent has opened the relay.
async fn forward(stage: &Stage, first: TcpForwardInit) -> Result<(Say, Streaming<TcpForwardFrame>), Status> {
    let (say, said) = mpsc::channel(16);
    say.send(TcpForwardFrame { payload: Some(Piece::Init(first)) }).await.expect("room");
    let opened = stage.user().await.forward_tcp(ReceiverStream::new(said)).await?;
    Ok((say, opened.into_inner()))
}

async fn ordered(talk: &mut Talk) -> RelayOpen {
    match talk.next_order().await {
        Some(Payload::RelayOpen(open)) => open,
        other => panic!("no relay was ordered: {other:?}"),
    }
}

async fn all(frames: &mut Streaming<TcpForwardFrame>) -> Vec<u8> {
    let mut bytes = vec![];
    let read = async {
        while let Some(TcpForwardFrame { payload: Some(Piece::Data(data)) }) = frames.message().await.expect("frames") {
            bytes.extend_from_slice(&data);
        }
    };
    timeout(PATIENCE, read).await.expect("an end");
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_each_end_arrives() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let guest = async {
        let order = ordered(&mut talk).await;
        assert_eq!(order.target, Some(Ordered::Tcp(TcpRelayTarget { host: String::new(), port: 80 })));
        let (send, mut frames) = agent.relay(init(&order.channel_id)).await.expect("a relay");
        let mut got = vec![];
        while let Some(RelayFrame { payload: Some(Frame::Data(data)), .. }) = frames.message().await.expect("frames") {
            assert!(data.len() <= proto::budget::RELAY_CHUNK);
            got.extend_from_slice(&data);
        }
        send.send(data_frame(Bytes::from_static(b"heard all"))).await.expect("open");
        got
    };
    let sent = Bytes::from((0..1_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let user = async {
        let (say, mut frames) = forward(&stage, to_port(80)).await.expect("a forward");
        say.send(TcpForwardFrame { payload: Some(Piece::Data(sent.clone())) }).await.expect("open");
        // Nothing more from here; the sandbox still answers.
        drop(say);
        all(&mut frames).await
    };
    let (got, heard) = tokio::join!(guest, user);
    assert!(got == sent, "{} bytes arrived", got.len());
    assert_eq!(heard, b"heard all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_ends_the_relay() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let relay = async {
        let order = ordered(&mut talk).await;
        agent.relay(init(&order.channel_id)).await.expect("a relay")
    };
    let ((send, _frames), forward) = tokio::join!(relay, forward(&stage, to_port(80)));
    drop(forward.expect("a forward"));
    timeout(PATIENCE, send.closed()).await.expect("the agent hears of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let refused = async |init| forward(&stage, init).await.expect_err("refused").code();
    assert_eq!(refused(TcpForwardInit { sandbox: "none".into(), ..to_port(80) }).await, Code::NotFound);
    assert_eq!(refused(TcpForwardInit { target: None, ..to_port(80) }).await, Code::InvalidArgument);
    assert_eq!(refused(TcpForwardInit { workspace: "other".into(), ..to_port(80) }).await, Code::NotFound);
    let invented = TcpForwardInit { authorization_token: "x".into(), ..to_port(80) };
    assert_eq!(refused(invented).await, Code::PermissionDenied);
    assert_eq!(refused(to_port(80)).await, Code::Unavailable);

    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let refusing = async {
        let RelayOpen { channel_id, .. } = ordered(&mut talk).await;
        let result = RelayOpenResult { channel_id, success: false, error: "nobody listens there".into() };
        talk.send(supervisor_message::Payload::RelayOpenResult(result)).await;
    };
    let (status, ()) = tokio::join!(forward(&stage, to_port(80)), refusing);
    let status = status.expect_err("refused");
    assert!(status.message().ends_with("the agent refused the relay: nobody listens there"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_a_token_until_it_is_revoked() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut user = stage.user().await;
    let create = CreateSshSessionRequest { sandbox: "mine".into(), ..Default::default() };
    let session = user.create_ssh_session(create).await.expect("a session").into_inner();
    assert_eq!(session.sandbox_id, mine.id.to_string());
    assert!(session.host_key_fingerprint.starts_with("SHA256:") && session.expiration_time.is_some());
    let with_token = || TcpForwardInit { authorization_token: session.token.clone(), ..to_port(80) };
    // Let through, as far as the sandbox that has no session.
    assert_eq!(forward(&stage, with_token()).await.expect_err("no session").code(), Code::Unavailable);
    let revoke = |allow_missing| RevokeSshSessionRequest { token: session.token.clone(), allow_missing };
    let revoked = user.revoke_ssh_session(revoke(false)).await.expect("revoked").into_inner();
    assert_eq!(revoked.outcome(), DeletionOutcome::Completed);
    assert_eq!(forward(&stage, with_token()).await.expect_err("revoked").code(), Code::PermissionDenied);
    let again = user.revoke_ssh_session(revoke(true)).await.expect("already").into_inner();
    assert_eq!(again.outcome(), DeletionOutcome::AlreadyAbsent);
    assert_eq!(user.revoke_ssh_session(revoke(false)).await.expect_err("missing").code(), Code::NotFound);

    let mut operator = OperatorClient::new(channel(&stage.socket()).await);
    let request = GetSshHostKeyRequest { sandbox: "mine".into() };
    let key = operator.get_ssh_host_key(request).await.expect("a key").into_inner().public_key;
    let key: russh::keys::PublicKey = key.parse().expect("a line of known_hosts");
    assert_eq!(key.fingerprint(Default::default()).to_string(), session.host_key_fingerprint);
}
