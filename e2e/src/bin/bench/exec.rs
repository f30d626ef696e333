//! An exec on a session that is warm, next to what cannot be left out: to start the program inside, and two round trips
//! of a relay, one to start it and one to hear that it ended.

use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::wait::PATIENCE;
use e2e::world::World;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::exec_sandbox_input::Payload as Input;
use proto::openshell::v1::{ExecSandboxEvent, ExecSandboxInput, ExecSandboxRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::probe;
use crate::report::{Bar, Ratio, Report};

const WARM_UP: usize = 5;
const PAIRS: usize = 9;
/// Of each, in a pair.
const EACH: u32 = 5;

pub(crate) async fn measure(world: &World, report: &mut Report) {
    let api = world.api().await;
    world.ready("exec", &[]).await;
    // Nothing is open yet but the session itself.
    let cold = timed(&api).await;
    probe::put(&api, "exec").await;
    for _ in 0..WARM_UP {
        timed(&api).await;
    }
    let mut echo = Echo::start(&api).await;
    let (mut warm, mut colder) = (vec![], vec![]);
    for pair in 1..=PAIRS {
        let mut exec = Duration::ZERO;
        let mut round_trip = Duration::ZERO;
        for _ in 0..EACH {
            exec += timed(&api).await / EACH;
            round_trip += echo.round_trip().await / EACH;
        }
        let spawn = probe::spawning(&api, "exec").await / 1e3;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let bare = spawn + 2.0 * ms(round_trip);
        report.say(&format!(
            "exec: pair {pair}: {:.1} ms next to {spawn:.1} ms + 2 × {:.1} ms",
            ms(exec),
            ms(round_trip)
        ));
        warm.push((ms(exec), bare));
        colder.push((ms(cold), bare));
    }
    drop(echo);
    world.delete("exec").await;
    let against = "fork + exec of the same inside the guest, plus two relay round trips";
    let ratio = |name: &str, of: &str, pairs, bar| Ratio {
        name: name.into(),
        of: of.into(),
        against: against.into(),
        unit: "ms".into(),
        pairs,
        bar,
    };
    report.add(ratio("exec", "exec of /bin/true on a warm session", warm, Some(Bar::AtMost(3.0))));
    report.add(ratio("exec_cold", "the first exec of a boot", colder, None));
    // Next to `docker exec` this says something only where a sandbox runs at its real speed.
    report.say("exec: next to `docker exec`: not run: no docker engine is set up by this benchmark");
}

async fn timed(api: &Api) -> Duration {
    let began = Instant::now();
    let finished = timeout(PATIENCE, api.exec("exec", &["/bin/true"])).await;
    let finished = finished.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for an exec"));
    assert_eq!(finished.expect("an exec").code, 0);
    began.elapsed()
}

/// A program that sends back what it gets.
struct Echo {
    input: mpsc::Sender<ExecSandboxInput>,
    output: Streaming<ExecSandboxEvent>,
}

impl Echo {
    async fn start(api: &Api) -> Self {
        let (input, inputs) = mpsc::channel(1);
        let start =
            ExecSandboxRequest { sandbox: "exec".into(), command: vec!["/bin/cat".into()], ..Default::default() };
        input.send(ExecSandboxInput { payload: Some(Input::Start(start)) }).await.expect("send");
        let output = api.client.clone().exec_sandbox_interactive(ReceiverStream::new(inputs)).await;
        let mut echo = Self { input, output: output.expect("exec").into_inner() };
        echo.round_trip().await;
        echo
    }

    async fn round_trip(&mut self) -> Duration {
        let began = Instant::now();
        let input = ExecSandboxInput { payload: Some(Input::Stdin(b"?".to_vec())) };
        self.input.send(input).await.expect("send");
        let answer = async {
            loop {
                match self.output.message().await.expect("an event").expect("an event").payload {
                    Some(Payload::Stdout(_)) => return,
                    Some(Payload::Exit(exit)) => panic!("the echo ended: {exit:?}"),
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for one byte"));
        began.elapsed()
    }
}
