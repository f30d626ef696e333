//! `guest-probe` as a program of a sandbox.

use e2e::api::{Api, collect};
use e2e::programs::guest_probe;
use e2e::wait::PATIENCE;
use proto::openshell::v1::ExecSandboxRequest;
use proto::openshell::v1::exec_sandbox_event::Payload;
use tokio::time::timeout;
use tonic::Streaming;

const PATH: &str = "/tmp/probe";

/// Brings it there.
pub(crate) async fn put(api: &Api, sandbox: &str) {
    let request = ExecSandboxRequest {
        sandbox: sandbox.into(),
        command: ["/bin/sh", "-c", &format!("cat > {PATH} && chmod +x {PATH}")].map(str::to_owned).to_vec(),
        stdin: std::fs::read(guest_probe()).expect("read the probe"),
        ..Default::default()
    };
    let events = api.client.clone().exec_sandbox(request).await.expect("exec").into_inner();
    assert_eq!(collect(events).await.expect("an exit").code, 0, "the probe could not be written");
}

/// Microseconds that starting `/bin/true` takes inside.
pub(crate) async fn spawning(api: &Api, sandbox: &str) -> f64 {
    let finished = api.exec(sandbox, &[PATH, "spawn"]).await.expect("exec");
    finished.stdout.trim().parse().unwrap_or_else(|_| panic!("no number of microseconds: {finished:?}"))
}

/// The port on which it pours, for as long as the stream is kept.
pub(crate) async fn pouring(api: &Api, sandbox: &str) -> (u16, Streaming<proto::openshell::v1::ExecSandboxEvent>) {
    let mut events = api.exec_stream(sandbox, &[PATH, "pour"]).await.expect("exec");
    let mut said = String::new();
    while !said.ends_with('\n') {
        let event = timeout(PATIENCE, events.message()).await.unwrap_or_else(|_| panic!("no port within {PATIENCE:?}"));
        if let Some(Payload::Stdout(chunk)) = event.expect("an event").expect("an event").payload {
            said += &String::from_utf8_lossy(&chunk.data);
        }
    }
    (said.trim().parse().expect("a port"), events)
}
