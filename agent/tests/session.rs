//! Both connections of a session against a small gateway on a unix socket.

#![forbid(unsafe_code)]

#[path = "session/gateway.rs"]
mod gateway;
#[path = "session/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::session::endpoint::Endpoints;
use agent::session::{Relays, Session, run_control, run_data};
use agent::ssh::Server;
use agent::token::holder::Tokens;
use agent::workload::Workload;
use agent::workload::reaper::Reaper;
use agent::workload::ring::Stream;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway::Gateway;
use proto::boot::{BootSpec, DEFAULT_USER};
use proto::budget::RELAY_CREDIT;
use proto::layout;
use proto::openshell::v1::{TcpRelayTarget, relay_open};
use proto::openshell::vm::v1::StopOrder;
use russh::keys::{Algorithm, PrivateKey};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

const SANDBOX: uuid::Uuid = uuid::Uuid::from_u128(7);
const HEARTBEAT: Duration = Duration::from_millis(300);
/// How a gap ends.
const MISSING: &str = " lines are missing: written faster than 1000 lines a second or their bytes";

/// An agent without a guest: its session, and the directory that it reads.
struct Agent {
    directory: tempfile::TempDir,
    session: Arc<Session>,
}

impl Agent {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// Its gateway's socket is the last place where it looks; these are tried before.
    fn start_with(endpoints: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = format!("unix://{}", directory.path().join("gateway.sock").display());
        let mut endpoints = endpoints.to_vec();
        endpoints.push(socket);
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        // Not before the host: the tests run as whom they like, and must not set this machine's clock.
        let wall_time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let spec = BootSpec {
            sandbox_id: SANDBOX,
            instance_id: "1-boot".to_owned(),
            hostname: "dev".to_owned(),
            endpoint: endpoints.remove(0),
            endpoints,
            wall_time_ms,
            ssh_host_key: key.to_openssh(Default::default()).unwrap().to_string().into(),
            user: DEFAULT_USER,
            main: None,
            needs_session: false,
            environment: Default::default(),
            services: Vec::new(),
            workdir: None,
            image_main: Default::default(),
        };
        let workload = Workload::new(&spec, "/none".into(), directory.path().into(), Arc::new(Reaper::default()));
        let secrets = workload.secrets.clone();
        let ssh = Arc::new(Server::new(&spec.ssh_host_key, Arc::new(workload), None, None).unwrap());
        let endpoints = Endpoints::of(&spec).unwrap();
        let session = Arc::new(Session::new(Arc::new(spec), Tokens::new(directory.path(), SANDBOX), secrets));
        let (orders, inbox) = mpsc::channel(16);
        let mut relays = Relays::new(inbox);
        tokio::spawn(run_control(session.clone(), endpoints.clone(), orders));
        let data = session.clone();
        tokio::spawn(async move { run_data(data, endpoints, &mut relays, ssh).await });
        Self { directory, session }
    }

    /// An agent with a token, and a gateway that has heard of it.
    async fn connected() -> (Gateway, Self, gateway::Running) {
        let gateway = Gateway::new(HEARTBEAT);
        let agent = Self::start();
        agent.publish(1);
        let running = gateway.listen(&agent.socket());
        gateway.until("a Sync", |state| !state.syncs.is_empty()).await;
        (gateway, agent, running)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("gateway.sock")
    }

    fn trust(&self, authority: &str) {
        let stage = self.directory.path().join("stage");
        std::fs::write(&stage, authority).unwrap();
        std::fs::rename(stage, self.directory.path().join(layout::CA_FILE)).unwrap();
    }

    /// By rename, as the host does it. Returns the header that is to be seen.
    fn publish(&self, generation: u64) -> String {
        publish(self.directory.path(), generation)
    }
}

fn token(generation: u64) -> String {
    let payload = format!(r#"{{"sandbox_id":"{SANDBOX}","gen":{generation},"iat":100,"exp":700}}"#);
    ["{}", &payload, "s"].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

fn publish(directory: &Path, generation: u64) -> String {
    let token = token(generation);
    let stage = directory.join("stage");
    std::fs::write(&stage, &token).unwrap();
    std::fs::rename(stage, directory.join(layout::TOKEN_FILE)).unwrap();
    format!("Bearer {token}")
}

/// Whether two connections have presented it.
fn on_both(state: &gateway::State, bearer: &str) -> bool {
    let mut connections: Vec<usize> =
        state.syncs.iter().filter(|(_, seen)| seen == bearer).map(|(connection, _)| *connection).collect();
    connections.sort_unstable();
    connections.dedup();
    connections.len() >= 2
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_lives_through_rotation_and_restart() {
    let gateway = Gateway::new(HEARTBEAT);
    let agent = Agent::start();
    // The gateway comes later, and so does the token.
    let running = gateway.listen(&agent.socket());
    let bearer = agent.publish(1);
    gateway.until("hello", |state| state.hellos.len() == 1).await;
    {
        let state = gateway.state();
        let hello = &state.hellos[0];
        assert_eq!((hello.sandbox_id.as_str(), hello.instance_id.as_str()), (&*SANDBOX.to_string(), "1-boot"));
        assert_eq!(state.agent, Some((proto::version::VERSION.to_owned(), proto::version::PROTOCOL.to_string())));
    }
    gateway.until("the token was presented", |state| !state.syncs.is_empty()).await;
    assert!(!on_both(&gateway.state(), &bearer), "a data connection that nobody needs");
    let _needed = agent.session.demand.need();
    gateway.until("the token on both connections", |state| on_both(state, &bearer)).await;
    gateway.until("heartbeats are answered", |state| state.heartbeats >= 2).await;

    let bearer = agent.publish(2);
    gateway.nudge().await;
    gateway.until("the second token on both connections", |state| on_both(state, &bearer)).await;
    // An older one is never presented again.
    agent.publish(1);
    let before = gateway.state().syncs.len();
    gateway.nudge().await;
    gateway.until("more syncs", |state| state.syncs.len() >= before + 4).await;
    assert!(gateway.state().syncs[before..].iter().all(|(_, seen)| *seen == bearer));

    let first = gateway.state().hellos[0].connection_epoch;
    drop(running);
    let bearer = agent.publish(3);
    let _running = gateway.listen(&agent.socket());
    gateway.until("a second hello", |state| state.hellos.len() >= 2).await;
    assert!(gateway.state().hellos[1].connection_epoch > first);
    gateway.until("the third token on both connections", |state| on_both(state, &bearer)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_revocation_that_overtakes_a_sync_costs_no_connection() {
    let gateway = Gateway::new(HEARTBEAT);
    let agent = Agent::start();
    let _running = gateway.listen(&agent.socket());
    let revoked = agent.publish(1);
    let _needed = agent.session.demand.need();
    gateway.until("the token on both connections", |state| on_both(state, &revoked)).await;
    // The next token is there when the Sync has left, and before its refusal arrives.
    let directory = agent.directory.path().to_owned();
    gateway.state().revoked = Some((revoked, Box::new(move || drop(publish(&directory, 2)))));
    let bearer = format!("Bearer {}", token(2));
    gateway.until("the second token on both connections", |state| on_both(state, &bearer)).await;
    let state = gateway.state();
    assert_eq!(state.hellos.len(), 1);
    assert!(state.syncs.iter().all(|(connection, _)| *connection < 2), "a connection more");
}

#[tokio::test(flavor = "current_thread")]
async fn an_exit_is_reported_until_it_is_taken_and_a_stop_is_heard() {
    let (gateway, agent, _running) = Agent::connected().await;
    gateway.state().refuse_reports = 2;
    agent.session.main_exit.send_replace(Some(23));
    gateway.until("the report", |state| state.exit_code == Some(23)).await;
    agent.session.reported.subscribe().wait_for(|reported| *reported).await.unwrap();

    let grace = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    gateway.state().stop = Some(StopOrder { grace, reason: "because".to_owned() });
    let mut stop = agent.session.stop.subscribe();
    let ordered = stop.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!((ordered.grace, ordered.reason.as_str()), (Duration::from_secs(3), "because"));
}

#[tokio::test(flavor = "current_thread")]
async fn an_exit_is_reported_after_a_sync_that_could_tell_of_it() {
    let (gateway, agent, _running) = Agent::connected().await;
    let session = agent.session.clone();
    gateway.state().during_sync = Some(Box::new(move || {
        session.main_exit.send_replace(Some(23));
    }));
    gateway.until("the report", |state| state.exit_code == Some(23)).await;
    let state = gateway.state();
    assert!(state.syncs_at_report > state.syncs_meanwhile, "the crash loop that goes with it was not told");
}

#[tokio::test(flavor = "current_thread")]
async fn secrets_come_by_the_session_and_again_when_they_change() {
    let (gateway, agent, _running) = Agent::connected().await;
    for revision in [3, 4] {
        gateway.state().secrets = revision;
        gateway.until("the agent to hold them", |state| state.held_secrets == revision).await;
        let held = agent.session.secrets.environment();
        assert_eq!(held["KEY"].expose_secret(), format!("{SANDBOX} {revision}"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_gateway_that_falls_silent_is_left_and_a_rejection_is_not_the_end() {
    // No heartbeat at all after the first one.
    let gateway = Gateway::silent(HEARTBEAT);
    let agent = Agent::start();
    agent.publish(1);
    let _running = gateway.listen(&agent.socket());
    gateway.until("a hello after a silence", |state| state.hellos.len() >= 2).await;
    gateway.state().reject = Some("not you".to_owned());
    let before = gateway.state().hellos.len();
    gateway.until("a hello after that", |state| state.hellos.len() > before).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_carries_bytes_to_a_port_of_the_sandbox_and_nowhere_else() {
    let (gateway, _agent, _running) = Agent::connected().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            all.reverse();
            stream.write_all(&all).await.unwrap();
        }
    });
    let target = |host: &str| relay_open::Target::Tcp(TcpRelayTarget { host: host.to_owned(), port });
    let sent: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    // A gateway that counts credit, and one that is too old for it.
    for credit in [RELAY_CREDIT, 0] {
        let (mut incoming, outgoing) = gateway.relay(target("127.0.0.1"), credit).await;
        assert_eq!(gateway.state().relay_credit, credit);
        outgoing.send(sent.clone().into()).await.unwrap();
        drop(outgoing);
        let mut received = Vec::new();
        while let Some(data) = incoming.recv().await {
            let data = data.unwrap();
            assert!(data.len() <= proto::budget::RELAY_CHUNK);
            received.extend_from_slice(&data);
        }
        received.reverse();
        assert!(received == sent, "{} bytes with a credit of {credit}", received.len());
    }

    gateway.open_relay(target("10.0.0.1"), RELAY_CREDIT).await;
    gateway.until("a refusal", |state| state.relay_results.iter().any(|result| !result.success)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn of_several_endpoints_the_one_that_works_is_used_and_told() {
    let gateway = Gateway::new(HEARTBEAT);
    // Nobody listens there; the name is in no hosts file; and behind the socket there is a gateway.
    let dead = ["unix:///none/gateway.sock", "https://nobody.invalid:1"].map(str::to_owned);
    let agent = Agent::start_with(&dead);
    let bearer = agent.publish(1);
    let _needed = agent.session.demand.need();
    let running = gateway.listen(&agent.socket());
    gateway.until("the token on both connections", |state| on_both(state, &bearer)).await;
    let socket = format!("unix://{}", agent.socket().display());
    assert_eq!(gateway.state().endpoints, [socket.as_str()]);
    // After a good session the same one is tried first.
    gateway.until("heartbeats", |state| state.heartbeats >= 2).await;
    drop(running);
    let _running = gateway.listen(&agent.socket());
    gateway.until("a second hello", |state| state.hellos.len() >= 2).await;
    assert!(gateway.state().endpoints.iter().all(|endpoint| *endpoint == socket));
}

#[tokio::test(flavor = "current_thread")]
async fn over_https_the_gateway_s_certificate_has_to_be_of_the_authority_in_the_identity_directory() {
    let gateway = Gateway::new(HEARTBEAT);
    let (front, forger) = (tls::Front::new("127.0.0.1").await, tls::Front::new("127.0.0.1").await);
    let agent = Agent::start_with(&[front.endpoint()]);
    // The socket behind the front has another name than the one that the agent was told last, where nobody listens.
    let behind = agent.directory.path().join("behind.sock");
    let _running = gateway.listen(&behind);
    let refusals = front.serve(&behind);
    let bearer = agent.publish(1);
    let _needed = agent.session.demand.need();
    agent.trust(forger.authority());
    refusals.clone().wait_for(|count| *count >= 2).await.unwrap();
    assert_eq!(gateway.state().hellos.len(), 0);
    // Read again with each attempt.
    agent.trust(front.authority());
    gateway.until("the token on both connections", |state| on_both(state, &bearer)).await;
    assert_eq!(gateway.state().endpoints, [front.endpoint()]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_certificate_for_another_host_is_refused() {
    let gateway = Gateway::new(HEARTBEAT);
    let front = tls::Front::new("gateway.example").await;
    let agent = Agent::start_with(&[front.endpoint()]);
    let behind = agent.directory.path().join("behind.sock");
    let _running = gateway.listen(&behind);
    let refusals = front.serve(&behind);
    agent.publish(1);
    agent.trust(front.authority());
    refusals.clone().wait_for(|count| *count >= 2).await.unwrap();
    assert_eq!(gateway.state().hellos.len(), 0);
}

/// The numbers that have come, in the order in which they came.
fn numbers(state: &gateway::State) -> Vec<u64> {
    state.logs.iter().map(|(number, _)| *number).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn log_lines_come_once_and_in_order_whatever_breaks() {
    let gateway = Gateway::new(HEARTBEAT);
    let agent = Agent::start();
    agent.publish(1);
    let main = agent.session.logs.writer("main");
    let write = |from: u64, to: u64| (from..=to).for_each(|n| main.write(Stream::Out, format!("{n}\n").as_bytes()));
    // Before there is a gateway.
    write(1, 250);
    gateway.state().break_bursts = 1;
    gateway.state().lose_answers = 1;
    let running = gateway.listen(&agent.socket());
    gateway.until("all lines", |state| state.logs.len() >= 250).await;
    write(251, 300);
    gateway.until("the next lines", |state| state.logs.len() >= 300).await;
    assert_eq!(numbers(&gateway.state()), (1..=300).collect::<Vec<_>>());
    assert!(gateway.state().logs.iter().all(|(number, message)| *message == number.to_string()));
    let left = {
        let state = gateway.state();
        (state.break_bursts, state.lose_answers)
    };
    assert_eq!(left, (0, 0));

    // A gateway that remembers gets what is new, one that has forgotten gets what is still kept.
    drop(running);
    write(301, 310);
    let running = gateway.listen(&agent.socket());
    gateway.until("what was written meanwhile", |state| state.logs.len() >= 310).await;
    assert_eq!(numbers(&gateway.state()), (1..=310).collect::<Vec<_>>());
    drop(running);
    gateway.state().logs.clear();
    let _running = gateway.listen(&agent.socket());
    gateway.until("all of it once more", |state| state.logs.len() >= 310).await;
    assert_eq!(numbers(&gateway.state()), (1..=310).collect::<Vec<_>>());
    tokio::time::timeout(Duration::from_secs(20), agent.session.logs.drained()).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_gap_is_said_and_a_flood_of_lines_keeps_nothing_else_back() {
    let gateway = Gateway::new(HEARTBEAT);
    let agent = Agent::start();
    agent.publish(1);
    let main = agent.session.logs.writer("main");
    let _running = gateway.listen(&agent.socket());
    gateway.until("hello", |state| !state.hellos.is_empty()).await;
    for _ in 0..50 {
        main.write(Stream::Out, "a line of a flood\n".repeat(2_000).as_bytes());
        tokio::task::yield_now().await;
    }
    let (beats, syncs) = {
        let state = gateway.state();
        (state.heartbeats, state.syncs.len())
    };
    gateway.until("the last line", |state| state.logs.last().is_some_and(|(number, _)| *number == 100_000)).await;
    gateway.until("heartbeats and Syncs", |state| state.heartbeats > beats && state.syncs.len() > syncs).await;
    let state = gateway.state();
    let missing = |message: &str| message.strip_suffix(MISSING).map(|count| count.parse::<u64>().unwrap());
    let (gaps, lines): (Vec<_>, Vec<_>) =
        state.logs.iter().map(|(_, message)| missing(message)).partition(Option::is_some);
    assert!(!gaps.is_empty());
    assert_eq!(gaps.into_iter().flatten().sum::<u64>() + lines.len() as u64, 100_000);
}
