//! Every RPC against every kind of caller.

use std::time::Duration;

use host::identity::guard::{RULES, Rule};
use host::identity::refusal::PUBLIC_REFUSAL;
use host::sandbox::decide::Event;
use proto::vmm::Ended;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::agent::Agent;
use crate::stage::{Stage, becomes, channel, removed};

/// Sends an empty message to any RPC and reads whatever comes: the guard looks at neither.
#[derive(Default)]
struct Blind;

impl Codec for Blind {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Blind {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, (): (), _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Blind {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        use bytes::Buf as _;
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

async fn call(channel: &Channel, path: &str, bearer: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(());
    if let Some(token) = bearer {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("a connection");
    // Whether it streams or not: one message tells.
    let mut answers = grpc.server_streaming(request, path.parse().expect("a path"), Blind).await?.into_inner();
    answers.message().await.map(drop)
}

/// What the guard does to a call; whatever a handler answers counts as let through.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Through,
    Unauthenticated,
    Denied,
}

async fn verdict(channel: &Channel, path: &str, bearer: Option<&str>) -> Verdict {
    match call(channel, path, bearer).await {
        Err(status) if status.code() == Code::Unauthenticated => {
            assert_eq!(status.message(), PUBLIC_REFUSAL, "a refusal tells nothing: {path}");
            Verdict::Unauthenticated
        }
        Err(status) if status.code() == Code::PermissionDenied && status.message().starts_with(path) => Verdict::Denied,
        Ok(()) => Verdict::Through,
        Err(status) => {
            let handlers = [Code::InvalidArgument, Code::NotFound, Code::PermissionDenied, Code::Aborted];
            assert!(handlers.contains(&status.code()), "{path}: {status:?}");
            Verdict::Through
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_for_every_caller() {
    let stage = Stage::up().await;
    let (mine, other, dead) =
        (stage.launched("mine").await, stage.launched("other").await, stage.launched("dead").await);
    let (own, foreign, of_the_dead) = (stage.token(mine.id), stage.token(other.id), stage.token(dead.id));
    let below_floor = stage.minted(mine.id, 0, Duration::from_secs(60));
    dead.ask(Event::Delete).await.expect("delete");
    removed(&stage, &dead).await;
    assert!(!stage.vm_socket(dead.id).exists(), "a deleted sandbox has no socket");

    // Up: else whoever asks for a session without a token gives it up.
    let _session = Agent::of(&stage, &mine).await.session(1).await;
    let (vm, user) = (channel(&stage.vm_socket(mine.id)).await, channel(&stage.socket()).await);
    for (path, rule) in RULES {
        let by_rule = |anyone, user, sandbox, either| match rule {
            Rule::Anyone => anyone,
            Rule::User => user,
            Rule::Sandbox => sandbox,
            Rule::Either => either,
        };
        use Verdict::{Denied, Through};
        let unauthenticated = || Verdict::Unauthenticated;
        let callers = [
            ("its own sandbox", &vm, Some(&own), by_rule(Through, Denied, Through, Through)),
            ("another sandbox's token", &vm, Some(&foreign), unauthenticated()),
            ("a deleted sandbox's token", &vm, Some(&of_the_dead), unauthenticated()),
            ("a token below the floor", &vm, Some(&below_floor), unauthenticated()),
            ("nobody", &vm, None, by_rule(Through, unauthenticated(), unauthenticated(), unauthenticated())),
            ("the user", &user, None, by_rule(Through, Through, Denied, Through)),
            ("the user with a sandbox's token", &user, Some(&own), unauthenticated()),
        ];
        for (who, channel, bearer, expected) in callers {
            assert_eq!(verdict(channel, path, bearer.map(String::as_str)).await, expected, "{who} calls {path}");
        }
    }
    // The create that went through had no name, and so made nothing.
    assert_eq!(stage.registry.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_rpc_is_named() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    for socket in [stage.socket(), stage.vm_socket(mine.id)] {
        for path in ["/openshell.v1.OpenShell/Nothing", "/elsewhere.v9.Other/Call"] {
            let status = call(&channel(&socket).await, path, None).await.expect_err("no such RPC");
            assert_eq!(status.code(), Code::Unimplemented);
            assert!(status.message().contains(path), "{status:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_boot_ends_the_tokens_of_the_one_before() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let first = Agent::of(&stage, &mine).await;
    first.sync().await.expect("a good token");
    let floor = mine.view().record.floor;
    stage.driver.end(mine.id, Ended::Exited(0));
    becomes(&mine, "the second boot", |view| view.record.floor > floor).await;
    let late = Agent::at(&stage.vm_socket(mine.id), &mine, first.token.clone()).await;
    assert_eq!(late.sync().await.expect_err("below the floor").code(), Code::Unauthenticated);
    Agent::of(&stage, &mine).await.sync().await.expect("the token of this boot");
}
