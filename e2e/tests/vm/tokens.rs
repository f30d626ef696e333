//! Rotation under a running exec, and everything that is no valid token.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::api::{Api, channel};
use e2e::wait::{PATIENCE, until};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::budget;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::*;
use proto::openshell::vm::v1::SyncRequest;
use proto::openshell::vm::v1::vm_client::VmClient;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tonic::{Code, Request, Status};

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("tokens::rotation_passes_unnoticed_and_no_other_token_is_accepted", rotation_and_refusals)]
}

/// Rotations take their time, in which the other sandbox's socket is tried.
async fn rotation_and_refusals() {
    let world = World::quick(TTL).await;
    let (one, two) = tokio::join!(world.ready("one", &[]), world.ready("two", &[]));
    let first_token = world.token(&one);
    let published = Instant::now();
    let rotations = three_rotations(&world);
    let refusals = async {
        refused_tokens(&world, &one, &two).await;
        wrong_doors(&world, &two).await;
        idle_and_surplus_connections(&world, &two).await;
        token_of_an_earlier_boot(&world, &two).await;
    };
    tokio::join!(rotations, refusals);

    // By now the first token of all is over, and only that is wrong with it.
    let over = published + TTL + budget::leeway(TTL) + Duration::from_secs(1);
    tokio::time::sleep_until(over.into()).await;
    said_after(&world, "Sync: expired", async || {
        let status = sync(&vm_socket(&world, &one), Some(&first_token)).await;
        assert_eq!(status.expect_err("a token that is over").code(), Code::Unauthenticated);
    })
    .await;
    sync(&vm_socket(&world, &one), Some(&world.token(&one))).await.expect("the current token");
    world.delete("one").await;
    world.delete("two").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn three_rotations(world: &World) {
    let api = world.api().await;
    let script = "while :; do cut -d' ' -f1 /proc/uptime; sleep 0.2; done";
    let mut events = api.exec_stream("one", &["/bin/sh", "-c", script]).await.expect("exec");
    let reading = tokio::spawn(async move {
        let (mut chunks, mut last) = (0_u64, Instant::now());
        let mut longest = Duration::ZERO;
        while let Ok(Some(event)) = events.message().await {
            assert!(!matches!(event.payload, Some(Payload::Exit(_))), "the exec ended");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            chunks += 1;
        }
        panic!("the exec's events ended after {chunks} chunks, the longest pause was {longest:?}");
    });
    let mut generation = presented(&api).await;
    for _ in 0..3 {
        let (next, delay) = next_presented(&api, generation).await;
        println!("tokens: generation {next} presented {delay} ms after its rename");
        assert!(delay < budget::heartbeat(TTL).as_millis() as u64, "the nudge was late: {delay} ms");
        generation = next;
    }
    let faults = world.state().join("faults");
    std::fs::write(&faults, "suppress-nudge\n").expect("switch the fault on");
    let (next, delay) = next_presented(&api, generation).await;
    std::fs::remove_file(&faults).expect("switch the fault off");
    println!("tokens: generation {next} presented {delay} ms after its rename, without a nudge");
    // One heartbeat brings it, and one may be missed.
    assert!(delay < 2 * budget::heartbeat(TTL).as_millis() as u64 + 500, "without a nudge: {delay} ms");
    assert!(!reading.is_finished(), "{:?}", reading.await);
    reading.abort();
}

async fn presented(api: &Api) -> u64 {
    let token = api.token("one").await;
    token.get("seen-generation").map_or(0, |text| text.parse().expect("a generation"))
}

async fn next_presented(api: &Api, generation: u64) -> (u64, u64) {
    until(&format!("a generation after {generation} to be presented"), TTL, async || {
        let token = api.token("one").await;
        let seen: u64 = token.get("seen-generation")?.parse().expect("a generation");
        let delay: u64 = token.get("last-delay-ms")?.parse().expect("a delay");
        (seen > generation).then_some((seen, delay))
    })
    .await
}

pub(crate) fn vm_socket(world: &World, sandbox: &Sandbox) -> std::path::PathBuf {
    world.places(sandbox).join("ctl/gateway.sock")
}

fn bearing<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

pub(crate) async fn sync(socket: &Path, token: Option<&str>) -> Result<(), Status> {
    let mut client = VmClient::new(channel(socket).await.expect("connect"));
    client.sync(bearing(SyncRequest::default(), token)).await.map(drop)
}

/// `act`, after which the gateway's log has one more line with `words`. Such lines are rate-limited.
async fn said_after(world: &World, words: &str, act: impl AsyncFn()) {
    let count = || std::fs::read_to_string(world.log()).expect("read the log").matches(words).count();
    let before = count();
    until(&format!("the gateway to log {words:?}"), Duration::from_secs(10), async || {
        act().await;
        (count() > before).then_some(())
    })
    .await;
}

async fn refused_tokens(world: &World, one: &Sandbox, two: &Sandbox) {
    let socket = vm_socket(world, two);
    let own = world.token(two);
    sync(&socket, Some(&own)).await.expect("its own token");
    let (head, signature) = own.rsplit_once('.').expect("a signature");
    let (header, payload) = head.split_once('.').expect("a payload");
    let flipped = signature.chars().rev().collect::<String>();
    let cases = [
        ("a token of another sandbox", Some(world.token(one))),
        ("no token", None),
        ("no token at all", Some("no.to.ken".into())),
        ("another signature", Some(format!("{head}.{flipped}"))),
        ("no signature", Some(format!("{head}."))),
        ("a signature of another payload", Some(format!("{header}.{}.{signature}", payload.to_lowercase()))),
        ("half a token", Some(own[..own.len() / 2].into())),
        ("a token and something", Some(format!("{own}x"))),
    ];
    let mut answers = vec![];
    for (what, token) in cases {
        let status = sync(&socket, token.as_deref()).await.expect_err(what);
        assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status:?}");
        answers.push(status.message().to_owned());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answer tells a forger how far it came: {answers:?}");
    said_after(world, "Sync: cross-sandbox", async || {
        sync(&socket, Some(&world.token(one))).await.expect_err("a token of another sandbox");
    })
    .await;
}

async fn wrong_doors(world: &World, two: &Sandbox) {
    let token = world.token(two);
    let mut as_sandbox = OpenShellClient::new(channel(&vm_socket(world, two)).await.expect("connect"));
    let list = || ListSandboxesRequest { page_size: 10, ..Default::default() };
    let status = as_sandbox.list_sandboxes(bearing(list(), Some(&token))).await.expect_err("a user's call");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let exec = ExecSandboxRequest { sandbox: "one".into(), command: vec!["id".into()], ..Default::default() };
    let status = as_sandbox.exec_sandbox(bearing(exec, Some(&token))).await.expect_err("a user's call");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");

    let mut as_user = OpenShellClient::new(channel(&world.socket()).await.expect("connect"));
    as_user.list_sandboxes(bearing(list(), None)).await.expect("a user's call");
    let status = as_user.list_sandboxes(bearing(list(), Some(&token))).await.expect_err("a user with a token");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let report = ReportMainProcessExitRequest {
        sandbox_id: two.metadata.clone().expect("metadata").id,
        instance_id: two.status.clone().expect("a status").main_process_instance_id,
        exit_code: 0,
    };
    let status = as_user.report_main_process_exit(bearing(report, None)).await.expect_err("a sandbox's call");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let status = sync(&world.socket(), None).await.expect_err("a sandbox's call");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
}

/// How long until the gateway closes a connection on which nothing is said.
async fn closed_after(socket: &Path) -> Duration {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).await.expect("connect");
    let mut received = vec![];
    // A server speaks first in HTTP/2; a reset is a close, too.
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut received)).await;
    assert!(ended.is_ok(), "a connection on which nothing was said stayed open for 20 s");
    began.elapsed()
}

async fn idle_and_surplus_connections(world: &World, two: &Sandbox) {
    let socket = vm_socket(world, two);
    let silent = closed_after(&socket).await;
    let due = budget::FIRST_RPC;
    assert!(silent > due - Duration::from_millis(500) && silent < due + Duration::from_secs(2), "{silent:?}");

    // The guest itself holds two: an exec needs the second one, which is kept for a while.
    assert_eq!(world.api().await.sh("two", "echo two").await, "two\n");
    let mut connections = tokio::task::JoinSet::new();
    for number in 3..=9 {
        let socket = socket.clone();
        connections.spawn(async move { (number, closed_after(&socket).await) });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut closed = connections.join_all().await;
    closed.sort();
    let (_, ninth) = closed.pop().expect("the ninth");
    assert!(ninth < Duration::from_secs(1), "the ninth connection was closed after {ninth:?}");
    assert!(closed.iter().all(|(_, after)| *after > Duration::from_secs(1)), "{closed:?}");
    // The guest's own were not touched by that.
    assert_eq!(world.api().await.sh("two", "echo alive").await, "alive\n");
}

async fn token_of_an_earlier_boot(world: &World, two: &Sandbox) {
    let api = world.api().await;
    let old = world.token(two);
    let read = Instant::now();
    api.stop("two").await.expect("stop");
    world.phase("two", SandboxPhase::Stopped).await;
    assert!(!world.token_file(two).exists(), "a stopped sandbox has a token on disk");
    api.start("two").await.expect("start");
    world.ready_in_boot("two", 2).await;
    let age = read.elapsed();
    assert!(age < PATIENCE);
    // Over in a slow lab or not: it is refused. Where it is not over yet, the floor is what refuses it.
    let words = if age < budget::rotate_from(TTL) { "Sync: revoked" } else { "Sync: " };
    said_after(world, words, async || {
        let status = sync(&vm_socket(world, two), Some(&old)).await.expect_err("a token of an earlier boot");
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    })
    .await;
}
