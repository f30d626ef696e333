//! Bytes out of a guest by the port forward, next to the bare vsock port below it.

use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::world::World;
use proto::budget;
use proto::openshell::v1::tcp_forward_frame::Payload;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::timeout;

use crate::bare::Bare;
use crate::report::{Bar, Ratio, Report};
use crate::{fakes, probe};

/// What the probe pours.
const BYTES: usize = 64 << 20;
const PAIRS: usize = 3;
const NATIVE_PAIRS: usize = 9;
/// For one of them. In the lab a megabyte takes a second.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) async fn measure(world: &World, report: &mut Report) {
    let bare = Bare::new(world, "pour");
    let api = world.api().await;
    world.ready("relay", &[]).await;
    probe::put(&api, "relay").await;
    let (port, _server) = probe::pouring(&api, "relay").await;
    let mut pairs = vec![];
    for pair in 1..=PAIRS {
        let (ours, theirs) = (forwarded(&api, "relay", port).await, bare_port(&bare).await);
        report.say(&format!("relay: pair {pair}: {} ms next to {} ms", ours.as_millis(), theirs.as_millis()));
        pairs.push((rate(ours), rate(theirs)));
    }
    world.delete("relay").await;
    report.add(Ratio {
        name: "relay".into(),
        of: "64 MiB out of a sandbox by ForwardTcp".into(),
        against: "the same from PID 1 of a VM by libkrun alone, through the same vsock port".into(),
        unit: "MiB/s".into(),
        pairs,
        bar: Some(Bar::AtLeast(0.7)),
    });
}

fn rate(took: Duration) -> f64 {
    BYTES as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

/// What the programs on the way cost, without a virtual machine: the guest is a process.
pub(crate) async fn measure_native(report: &mut Report) {
    let world = fakes::world(budget::TTL_DEFAULT).await;
    fakes::connected(&world, 0..1).await;
    let api = world.api().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pour(stream));
        }
    });
    let mut pairs = vec![];
    for _ in 0..NATIVE_PAIRS {
        pairs.push((rate(forwarded(&api, "fake-0", port).await), rate(bare_socket().await)));
    }
    report.add(Ratio {
        name: "relay_native".into(),
        of: "64 MiB from a port by agent, gateway and ForwardTcp, all of them processes".into(),
        against: "the same by one unix socket".into(),
        unit: "MiB/s".into(),
        pairs,
        bar: None,
    });
}

async fn pour(mut into: impl AsyncWrite + Unpin) {
    let piece = vec![0x5a; 64 << 10];
    for _ in 0..BYTES / piece.len() {
        // Whoever counts misses what is not written.
        if into.write_all(&piece).await.is_err() {
            return;
        }
    }
}

async fn bare_socket() -> Duration {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    tokio::spawn(pour(theirs));
    drained(ours).await
}

/// Until the other side has ended.
async fn drained(mut stream: UnixStream) -> Duration {
    let (mut meter, mut buffer) = (Meter::default(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).await.expect("read") {
            0 => return meter.took(),
            read => meter.count(read),
        }
    }
}

/// From the first byte to the last.
#[derive(Default)]
struct Meter {
    first: Option<Instant>,
    bytes: usize,
}

impl Meter {
    fn count(&mut self, bytes: usize) {
        self.first.get_or_insert_with(Instant::now);
        self.bytes += bytes;
    }

    fn took(self) -> Duration {
        assert_eq!(self.bytes, BYTES, "not all of it came");
        self.first.expect("a byte").elapsed()
    }
}

async fn forwarded(api: &Api, sandbox: &str, port: u16) -> Duration {
    let (_frames, mut replies) = api.forward(sandbox, port).await.expect("forward");
    let mut meter = Meter::default();
    let all = async {
        while let Some(frame) = replies.message().await.expect("a frame") {
            if let Some(Payload::Data(data)) = frame.payload {
                meter.count(data.len());
            }
        }
        meter.took()
    };
    timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {BYTES} bytes by the forward"))
}

async fn bare_port(bare: &Bare) -> Duration {
    let _stale = std::fs::remove_file(bare.socket());
    let listener = UnixListener::bind(bare.socket()).expect("listen at the bare VM's socket");
    let mut vm = bare.start();
    let all = async {
        let (stream, _) = listener.accept().await.expect("a connection of the bare VM");
        drained(stream).await
    };
    let took = timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for the bare VM's bytes"));
    vm.kill().expect("end the bare VM");
    vm.wait().expect("wait for the bare VM");
    took
}
