//! A gateway that stands still freezes nobody, and a client that does holds up itself alone.

use std::time::{Duration, Instant};

use e2e::world::World;
use libtest_mimic::Trial;
use proto::budget;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::{TcpForwardFrame, tcp_forward_frame};
use rustix::process::Signal;

use crate::uptime::{TICKER, longest_gap, ticks};
use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("relay::a_gateway_that_stops_reading_does_not_stop_the_vm", stopped_gateway),
        trial("relay::clients_that_pause_hold_up_nobody_else", paused_clients),
        trial("relay::short_lines_to_a_gateway_that_stops_reading_do_not_stop_the_vm", short_lines),
    ]
}

/// Long enough to fill any buffer; neither a session nor a Sync on its way is given up meanwhile.
const STOP: Duration = Duration::from_secs(3);
const _: () =
    assert!(STOP.as_millis() < 2 * budget::heartbeat(TTL).as_millis() && STOP.as_millis() < budget::UNARY.as_millis());
const NUMBERS: u32 = 600_000;
const LINES: u32 = 10_000;

/// A peer that does not read blocks the vmm's only event loop, unless no more is ever on its way than fits.
async fn stopped_gateway() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    world.ready("busy", &TICKER).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let baseline = longest_gap(&ticks(&api, "busy").await);

    let mut events = api.exec_stream("busy", &["seq", "1", &NUMBERS.to_string()]).await.expect("exec");
    let gateway = world.gateway.as_ref().expect("a gateway");
    let mut received = Vec::new();
    let mut before_the_stop = 0;
    loop {
        let event = tokio::time::timeout(Duration::from_secs(60), events.message()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing more came after {} bytes", received.len()));
        match event.expect("an event").expect("an exit before the end").payload {
            Some(Payload::Stdout(chunk)) => received.extend(chunk.data),
            Some(Payload::Exit(exit)) => {
                assert_eq!(exit.exit_code, 0);
                break;
            }
            _ => {}
        }
        if before_the_stop == 0 && received.len() > 512 << 10 {
            before_the_stop = received.len();
            gateway.signal(Signal::STOP);
            tokio::time::sleep(STOP).await;
            gateway.signal(Signal::CONT);
        }
    }
    let expected = (1..=NUMBERS).map(|number| format!("{number}\n")).collect::<String>();
    assert!(before_the_stop > 0 && before_the_stop < expected.len() / 2, "stopped after {before_the_stop} bytes");
    assert_eq!(received.len(), expected.len());
    assert!(received == expected.as_bytes(), "other bytes arrived");

    let gap = longest_gap(&ticks(&api, "busy").await);
    println!("relay: longest gap {gap:.2} s with the gateway stopped for {STOP:?}, {baseline:.2} s before");
    assert!(gap < 1.0, "the guest stood still for {gap:.2} s");
    world.delete("busy").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// About a line each millisecond; in a file the time after each ten. It pauses by reading from a pipe into which nobody
/// writes: to start a `sleep` for each line, or to note each line's time, would take several milliseconds where KVM is
/// emulated.
const SHORT_LINES: &str = "mkfifo /tmp/quiet; exec 9<>/tmp/quiet; n=0
    while [ $n -lt LINES ]; do
        for i in 1 2 3 4 5 6 7 8 9 10; do n=$((n+1)); echo $n; read -t 0.001 -u 9 x; done
        read u x < /proc/uptime; echo $u >> /tmp/times
    done; true";
const LINES_PER_TIME: usize = 10;
/// Packets of a line each that fill a socket's buffer: Linux charges it with 768 bytes for the shortest.
const FILLING: usize = budget::VMM_SOCKET_BUFFER as usize / 768;

/// A socket's buffer is charged by packet, and each short line would be one.
async fn short_lines() {
    // Neither a session nor a Sync on its way is given up while the gateway is stopped.
    let stop = budget::UNARY - Duration::from_millis(500);
    let world = World::quick(2 * TTL).await;
    assert!(stop < budget::heartbeat(2 * TTL) * (budget::HEARTBEATS_MISSED - 1));
    let api = world.api().await;
    world.ready("chatty", &TICKER).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let baseline = longest_gap(&ticks(&api, "chatty").await);

    let script = SHORT_LINES.replace("LINES", &LINES.to_string());
    let mut events = api.exec_stream("chatty", &["/bin/sh", "-c", &script]).await.expect("exec");
    let gateway = world.gateway.as_ref().expect("a gateway");
    let mut received = Vec::new();
    let mut before_the_stop = 0;
    loop {
        let event = tokio::time::timeout(Duration::from_secs(15), events.message()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing more came after {} bytes", received.len()));
        match event.expect("an event").expect("an exit before the end").payload {
            Some(Payload::Stdout(chunk)) => received.extend(chunk.data),
            Some(Payload::Exit(exit)) => {
                assert_eq!(exit.exit_code, 0);
                break;
            }
            _ => {}
        }
        if before_the_stop == 0 && received.len() > 1000 {
            before_the_stop = received.iter().filter(|byte| **byte == b'\n').count();
            gateway.signal(Signal::STOP);
            tokio::time::sleep(stop).await;
            gateway.signal(Signal::CONT);
        }
    }
    assert!(before_the_stop > 0, "the gateway was never stopped");
    let expected = (1..=LINES).map(|number| format!("{number}\n")).collect::<String>();
    assert_eq!(received.len(), expected.len());
    assert!(received == expected.as_bytes(), "other bytes arrived");
    // While the gateway stood still for certain, the guest had more to say than the packets that fill a socket's buffer.
    let times = api.sh("chatty", "cat /tmp/times").await;
    let times = times.lines().map(|time| time.parse().expect("an uptime")).collect::<Vec<f64>>();
    let stopped = times[before_the_stop / LINES_PER_TIME - 1];
    let certain = stopped + 0.5..stopped + stop.as_secs_f64() - 0.5;
    let during_the_stop = times.iter().filter(|time| certain.contains(time)).count() * LINES_PER_TIME;
    assert!(during_the_stop > FILLING, "only {during_the_stop} lines while the gateway was stopped");

    let gap = longest_gap(&ticks(&api, "chatty").await);
    println!("relay: longest gap {gap:.2} s, {baseline:.2} s before; {during_the_stop} lines to a stopped gateway");
    assert!(gap < 1.0, "the guest stood still for {gap:.2} s");
    world.delete("chatty").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// With the credit of all of them, several times the window of their connection.
const PAUSED: usize = 8;
const PORT: u16 = 7777;
/// To whoever connects, more than is on its way in a relay; the guest's loopback holds the rest.
const SERVER: &str = "echo 'exec seq 1 200000' > /tmp/pour; exec nc -ll -p 7777 -e /bin/sh /tmp/pour";
/// Until it does; ten seconds.
const LISTENING: &str = "for i in $(seq 50); do
        nc -w 1 127.0.0.1 7777 -e true && echo yes && exit; sleep 0.2
    done";
/// Connections to that port on which bytes have come that nobody has read.
const WAITING: &str = "awk '$3 ~ /:1E61$/ && substr($5, 10) != \"00000000\"' /proc/net/tcp | wc -l";
/// For the buffers of all of them to fill.
const FILLED: Duration = Duration::from_secs(60);

/// All relays of a sandbox share a connection, and what is not read must not stay in its window.
async fn paused_clients() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    world.ready("shared", &TICKER).await;
    let _server = api.exec_stream("shared", &["/bin/sh", "-c", SERVER]).await.expect("exec");
    let listening = api.sh("shared", LISTENING).await;
    assert_eq!(listening, "yes\n", "nobody listens in the guest");
    let mut paused = vec![];
    for number in 0..PAUSED {
        let (frames, mut replies) = api.forward("shared", PORT).await.expect("forward");
        let first = tokio::time::timeout(FILLED, replies.message()).await;
        let first =
            first.unwrap_or_else(|_| panic!("nothing came to client {number}")).expect("a frame").expect("data");
        paused.push((frames, replies, data(first)));
    }
    let began = Instant::now();
    loop {
        let waiting = api.sh("shared", WAITING).await;
        if waiting == format!("{PAUSED}\n") {
            break;
        }
        assert!(
            began.elapsed() < FILLED,
            "after {FILLED:?} the agent has stopped to read of {waiting} of {PAUSED} relays"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    // Longer than a session lives whose Sync is not answered.
    let lost = budget::heartbeat(TTL) * (budget::HEARTBEATS_MISSED + 1) + budget::UNARY;
    let until = Instant::now() + lost;
    let mut answered = 0;
    while Instant::now() < until {
        assert_eq!(api.sh("shared", "echo here").await, "here\n");
        answered += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("relay: {answered} execs were answered beside {PAUSED} clients that had paused");

    let expected = (1..=200_000).map(|number| format!("{number}\n")).collect::<String>();
    for (number, (_frames, mut replies, mut received)) in paused.into_iter().enumerate() {
        let rest = async {
            while let Some(frame) = replies.message().await.unwrap_or_else(|status| panic!("client {number}: {status}"))
            {
                received.extend(data(frame));
            }
        };
        let rest = tokio::time::timeout(FILLED, rest).await;
        rest.unwrap_or_else(|_| panic!("no end came to client {number}"));
        assert!(received == expected.as_bytes(), "client {number} has other bytes, {}", received.len());
    }
    world.delete("shared").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

fn data(frame: TcpForwardFrame) -> Vec<u8> {
    match frame.payload {
        Some(tcp_forward_frame::Payload::Data(data)) => data.into(),
        other => panic!("no data: {other:?}"),
    }
}
