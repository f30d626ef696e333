//! Unary calls over a unix socket, with authentication and without it.

use std::time::Instant;

use futures_util::future::join_all;
use host::api::listeners::Serving;
use host::identity::principal::{Principal, Transport};
use host::rotation::clock::{Clock as _, SystemClock};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use proto::budget;
use proto::openshell::vm::v1::SyncRequest;
use proto::openshell::vm::v1::vm_client::VmClient;
use tokio::net::UnixListener;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tower::ServiceExt as _;
use uuid::Uuid;

use crate::row::{Bar, Row};
use crate::stage::{Stage, channel};

/// Many and short: a neighbour on the machine then disturbs some of them, and not all.
const PAIRS: usize = 101;
const CALLS: usize = 160;
/// In flight at a time.
const WIDTH: usize = 8;

pub(crate) type Client = VmClient<Channel>;

pub(crate) async fn measure() {
    let stage = Stage::up().await;
    let sandbox_id = stage.launched("bench").await.id;
    let guarded = VmClient::new(channel(&stage.vm_socket(sandbox_id)).await);
    let socket = stage.socket().with_file_name("open.sock");
    let principal = authenticated(&stage, sandbox_id);
    tokio::spawn(serve_open(UnixListener::bind(&socket).expect("listen"), stage.serving.clone(), principal));
    let open = VmClient::new(channel(&socket).await);
    let (mut warm, mut cold) = (vec![], vec![]);
    for pair in 0..=PAIRS {
        let same = vec![bearer(&stage.token(sandbox_id)); CALLS];
        let fresh: Vec<_> = (0..CALLS).map(|_| bearer(&stage.minted(sandbox_id, 1, budget::TTL_DEFAULT))).collect();
        // Neither always comes first.
        let rates = if pair % 2 == 0 {
            let of = rate(&guarded, &same).await;
            (of, rate(&open, &same).await, rate(&guarded, &fresh).await, rate(&open, &fresh).await)
        } else {
            let (against, against_cold) = (rate(&open, &same).await, rate(&open, &fresh).await);
            let of = rate(&guarded, &same).await;
            (of, against, rate(&guarded, &fresh).await, against_cold)
        };
        // The first is to warm up.
        if pair > 0 {
            warm.push((rates.0, rates.1));
            cold.push((rates.2, rates.3));
        }
    }
    eprintln!("rpc_authenticated: {PAIRS} pairs of {CALLS} calls each, {WIDTH} in flight");
    let against = "the same without the guard, the principal put in by the benchmark";
    let row = |name, of: &str, pairs, bar| Row { name, of: of.into(), against, unit: "/s", pairs, bar };
    row("rpc_authenticated", "Sync through the guard, calls per second of one core", warm, Bar::AtLeast(0.9)).print();
    row("rpc_authenticated_cold", "the same, each call with a token never seen before", cold, Bar::None).print();
}

/// Calls per second.
async fn rate(client: &Client, tokens: &[AsciiMetadataValue]) -> f64 {
    let began = Instant::now();
    join_all(tokens.chunks(tokens.len().div_ceil(WIDTH)).map(|tokens| {
        let mut client = client.clone();
        async move {
            for token in tokens {
                sync(&mut client, token).await;
            }
        }
    }))
    .await;
    tokens.len() as f64 / began.elapsed().as_secs_f64()
}

pub(crate) async fn sync(client: &mut Client, token: &AsciiMetadataValue) {
    let mut request = Request::new(SyncRequest::default());
    request.metadata_mut().insert("authorization", token.clone());
    client.sync(request).await.expect("sync");
}

/// Sent whole each time, as an agent does it.
pub(crate) fn bearer(token: &str) -> AsciiMetadataValue {
    let mut value: AsciiMetadataValue = format!("Bearer {token}").parse().expect("a token is ASCII");
    value.set_sensitive(true);
    value
}

/// What the guard finds out.
fn authenticated(stage: &Stage, sandbox_id: Uuid) -> Principal {
    let claims = stage.serving.authority.verifier.verify(&stage.token(sandbox_id), SystemClock.now().unix());
    Principal::Sandbox { id: sandbox_id, claims: claims.expect("an honest token") }
}

/// The same services as behind a sandbox's own socket, with the same settings; whoever calls is that sandbox.
async fn serve_open(listener: UnixListener, serving: Serving, principal: Principal) {
    let Principal::Sandbox { id: sandbox_id, .. } = principal else { return };
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        let (routes, principal) = (serving.vm_routes.clone(), principal.clone());
        let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(principal.clone());
            request.extensions_mut().insert(Transport::Vm { sandbox_id });
            routes.clone().oneshot(request)
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(32 * 1024)
            .max_concurrent_streams(80)
            .initial_connection_window_size(budget::VM_CONNECTION_WINDOW)
            .initial_stream_window_size(budget::VM_STREAM_WINDOW);
        tokio::spawn(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    }
}
