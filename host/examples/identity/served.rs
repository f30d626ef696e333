//! A session that is served while very many tokens are due, by a gateway with a rotation thread and a runtime of many
//! threads as it has them.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::rotation::clock::Clock as _;
use proto::budget;
use proto::openshell::vm::v1::vm_client::VmClient;
use tokio::time::sleep;
use tonic::metadata::AsciiMetadataValue;
use uuid::Uuid;

use crate::directories::{enrolment, many};
use crate::row::{Bar, Row, micros, p99};
use crate::rpc::{Client, bearer, sync};
use crate::stage::{Knobs, Stage, channel};
use crate::time::Ahead;

const BURSTS: usize = 5;
/// At least, for a value that 99 of 100 do not exceed.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) async fn measure() {
    let clock = Arc::new(Ahead::default());
    let stage = Stage::at(Knobs::default(), clock.clone()).await;
    let sandbox_id = stage.launched("bench").await.id;
    let client = VmClient::new(channel(&stage.vm_socket(sandbox_id)).await);
    let count = many();
    let root = stage.socket().with_file_name("many");
    std::fs::create_dir(&root).expect("make a directory");
    let mut enrolled = vec![];
    for _ in 0..count {
        let enrolment = enrolment(&root);
        enrolled.push(enrolment.sandbox_id);
        stage.rotation.enroll(enrolment).await.expect("enroll");
    }
    let mut pairs = vec![];
    for _ in 0..BURSTS {
        let token = bearer(&stage.token(sandbox_id));
        let quiet = latencies(&client, &token, sleep(QUIET)).await;
        clock.advance(budget::rotate_until(budget::TTL_DEFAULT));
        let began = Instant::now();
        // The thread would look within a second by itself.
        let woken = stage.rotation.rotate_now(sandbox_id);
        let (woken, busy) = tokio::join!(woken, latencies(&client, &token, renewed(&stage, &enrolled, &clock)));
        woken.expect("rotate");
        eprintln!(
            "due_at_once: all {count} are renewed after {:.2} s, and {} calls were answered meanwhile",
            began.elapsed().as_secs_f64(),
            busy.len()
        );
        pairs.push((p99(busy), p99(quiet)));
    }
    Row {
        name: "due_at_once_rpc",
        of: format!("Sync while {count} tokens are due at once, p99"),
        against: "the same while none is",
        unit: "us",
        pairs,
        bar: Bar::None,
    }
    .print();
}

/// Until every sandbox has a token that is younger than this call.
async fn renewed(stage: &Stage, sandboxes: &[Uuid], clock: &Ahead) {
    let young = clock.now().unix();
    let mut open = sandboxes.to_vec();
    while let Some(sandbox_id) = open.last() {
        match stage.rotation.published(*sandbox_id) {
            Some(published) if published.iat >= young => drop(open.pop()),
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// One call after another until `end`; in microseconds.
async fn latencies(client: &Client, token: &AsciiMetadataValue, end: impl Future<Output = ()>) -> Vec<f64> {
    let mut latencies = vec![];
    let mut client = client.clone();
    let mut end = std::pin::pin!(end);
    loop {
        let began = Instant::now();
        tokio::select! {
            biased;
            () = &mut end => return latencies,
            () = sync(&mut client, token) => latencies.push(micros(began.elapsed())),
        }
    }
}
