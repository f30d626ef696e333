//! Programs in a sandbox: bytes, codes, limits, terminals and callers who leave.

use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::exec_sandbox_input::Payload as Input;
use proto::openshell::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("exec::programs_run_as_asked_and_end_with_their_caller", one_sandbox)]
}

/// What a finished exec left, byte for byte.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: i32,
}

/// Runs to the end.
pub(crate) async fn run(api: &Api, request: ExecSandboxRequest) -> Finished {
    let mut events = api.client.clone().exec_sandbox(request).await.expect("exec").into_inner();
    let mut finished = Finished { stdout: vec![], stderr: vec![], code: -1 };
    while let Some(event) = events.message().await.expect("an event") {
        match event.payload {
            Some(Payload::Stdout(chunk)) => finished.stdout.extend(chunk.data),
            Some(Payload::Stderr(chunk)) => finished.stderr.extend(chunk.data),
            Some(Payload::Exit(exit)) => {
                finished.code = exit.exit_code;
                return finished;
            }
            None => {}
        }
    }
    panic!("the exec's events ended without an exit");
}

fn request(command: &[&str]) -> ExecSandboxRequest {
    ExecSandboxRequest {
        sandbox: "work".into(),
        command: command.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

async fn one_sandbox() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    world.ready("work", &[]).await;
    input_is_carried_byte_for_byte(&api).await;
    output_is_carried_byte_for_byte(&api).await;
    codes_streams_and_surroundings(&api).await;
    time_limits(&api).await;
    terminals(&api).await;
    callers_who_leave(&api).await;
    world.openshell(&["vm", "stop", "work"]).await;
    world.phase("work", SandboxPhase::Stopped).await;
    let status = api.exec("work", &["true"]).await.expect_err("an exec without a session");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("no session") && status.message().contains("Stopped"), "{status:?}");
    world.delete("work").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Bytes that no pattern would match.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(length).collect()
}

async fn input_is_carried_byte_for_byte(api: &Api) {
    let sent = noise(1 << 20);
    let command = request(&["tee", "/tmp/noise"]);
    let finished = run(api, ExecSandboxRequest { stdin: sent.clone(), ..command }).await;
    assert_eq!(finished.code, 0, "{}", String::from_utf8_lossy(&finished.stderr));
    assert_eq!(finished.stdout.len(), sent.len());
    assert!(finished.stdout == sent, "other bytes came back");
}

/// Both streams at once: eight times what was sent before, and some lines.
async fn output_is_carried_byte_for_byte(api: &Api) {
    let began = Instant::now();
    let script = "for i in 1 2 3 4 5 6 7 8; do cat /tmp/noise; seq 1 1000 >&2; done";
    let finished = run(api, request(&["/bin/sh", "-c", script])).await;
    assert_eq!(finished.code, 0);
    let expected = noise(1 << 20).repeat(8);
    assert_eq!(finished.stdout.len(), expected.len());
    assert!(finished.stdout == expected, "other bytes arrived");
    let lines = (1..=1000).map(|number| format!("{number}\n")).collect::<String>().repeat(8);
    assert!(finished.stderr == lines.as_bytes(), "other errors arrived");
    let rate = expected.len() as f64 / began.elapsed().as_secs_f64() / f64::from(1 << 20);
    println!("exec: {rate:.1} MiB/s of output");
}

async fn codes_streams_and_surroundings(api: &Api) {
    let finished = run(api, request(&["/bin/sh", "-c", "echo out; echo err >&2; exit 42"])).await;
    assert_eq!((finished.stdout, finished.stderr, finished.code), (b"out\n".to_vec(), b"err\n".to_vec(), 42));
    let finished = run(api, request(&["/bin/sh", "-c", "kill -KILL $$"])).await;
    assert_eq!(finished.code, 128 + 9);
    assert_eq!(run(api, request(&["/no/such/program"])).await.code, 127);
    // Arguments arrive as they are; no shell looks at them.
    let words = ["printf", "%s|", "a b", "", "$HOME", "\"'\\", "ü"];
    assert_eq!(run(api, request(&words)).await.stdout, "a b||$HOME|\"'\\|ü|".as_bytes());
    let surrounded = ExecSandboxRequest {
        workdir: "/usr".into(),
        environment: [("WORD".to_owned(), "two words".to_owned())].into(),
        ..request(&["/bin/sh", "-c", "pwd; echo \"$WORD\""])
    };
    assert_eq!(run(api, surrounded).await.stdout, b"/usr\ntwo words\n");
    let nowhere = ExecSandboxRequest { workdir: "/no/such".into(), ..request(&["true"]) };
    assert_eq!(run(api, nowhere).await.code, 126);
}

async fn time_limits(api: &Api) {
    let limit = prost_types::Duration { seconds: 1, nanos: 0 };
    let limited = ExecSandboxRequest { execution_timeout: Some(limit), ..request(&["sleep", "7777"]) };
    let began = Instant::now();
    assert_eq!(run(api, limited).await.code, 124);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    gone(api, "sleep 7777").await;
}

/// Waits until no process has this command line.
async fn gone(api: &Api, line: &str) {
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -x '{line} ' || true"
    );
    until(&format!("the end of `{line}` in the guest"), Duration::from_secs(15), async || {
        api.sh("work", &script).await.is_empty().then_some(())
    })
    .await;
}

async fn terminals(api: &Api) {
    let (input, inputs) = mpsc::channel(4);
    let send = async |payload| input.send(ExecSandboxInput { payload: Some(payload) }).await.expect("send");
    let script = "test -t 0 && test -t 1 && stty size
        until [ \"$(stty size)\" = '50 120' ]; do sleep 0.1; done; echo resized
        read line && echo got $line; exit 3";
    let start = ExecSandboxRequest { tty: true, cols: 100, rows: 40, ..request(&["/bin/sh", "-c", script]) };
    send(Input::Start(start)).await;
    let mut events =
        api.client.clone().exec_sandbox_interactive(ReceiverStream::new(inputs)).await.expect("exec").into_inner();
    let mut text = String::new();
    let (mut resized, mut typed) = (false, false);
    let code = loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await;
        let event = event.unwrap_or_else(|_| panic!("nothing more came from the terminal after {text:?}"));
        match event.expect("an event").expect("an exit before the end").payload {
            Some(Payload::Stdout(chunk)) => text += &String::from_utf8_lossy(&chunk.data),
            Some(Payload::Exit(exit)) => break exit.exit_code,
            _ => {}
        }
        if text.contains("40 100") && !resized {
            resized = true;
            send(Input::Resize(ExecSandboxWindowResize { cols: 120, rows: 50 })).await;
        }
        if text.contains("resized") && !typed {
            typed = true;
            send(Input::Stdin(b"a line\n".to_vec())).await;
        }
    };
    assert_eq!(code, 3);
    assert!(text.contains("got a line"), "{text:?}");
}

/// Hang-up, termination and death come one after another.
async fn callers_who_leave(api: &Api) {
    let stubborn = "trap '' HUP TERM; echo up; sleep 8888; sleep 8889";
    let mut events = api.exec_stream("work", &["/bin/sh", "-c", stubborn]).await.expect("exec");
    let first = events.message().await.expect("an event").expect("an event").payload;
    assert!(matches!(first, Some(Payload::Stdout(chunk)) if chunk.data == b"up\n"));
    drop(events);
    gone(api, "sleep 8888").await;
    gone(api, "sleep 8889").await;
    let polite = "trap 'echo hung up > /tmp/hung-up; exit' HUP; echo up; while :; do sleep 0.1; done";
    let mut events = api.exec_stream("work", &["/bin/sh", "-c", polite]).await.expect("exec");
    events.message().await.expect("an event");
    drop(events);
    until("the hang-up to be noticed", Duration::from_secs(15), async || {
        (api.sh("work", "cat /tmp/hung-up 2>/dev/null || true").await == "hung up\n").then_some(())
    })
    .await;
}
