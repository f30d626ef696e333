//! From the boot spec to the exit code: what runs while the sandbox lives, and the order in which it ends.
//!
//! | task | takes | gives |
//! |---|---|---|
//! | reaper | SIGCHLD | exit codes |
//! | main process | input of attachments | output, its exit code |
//! | control (own thread) | heartbeats, relay orders | ticks, stop orders, reports |
//! | data | ticks, relay orders, log lines | relays, each with an SSH server or a port |
//!
//! Nothing here fails: a task that panics is reported and started again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use proto::boot::BootSpec;
use proto::{budget, layout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::logs::Logs;
use crate::session::endpoint::Endpoint;
use crate::session::{RelayOrder, Session, Stop, debug, run_control, run_data};
use crate::ssh::{DebugCalls, Server};
use crate::token::holder::Tokens;
use crate::workload::Workload;
use crate::workload::launch::SELF;
use crate::workload::main_process::MainProcess;
use crate::workload::reaper::Reaper;

/// Relay orders between the two connections.
const ORDERS: usize = 16;
/// After the main process's end, how long those attached may take to read the rest.
const DETACH: Duration = Duration::from_secs(10);
/// How long a report of the main process's exit is tried.
const REPORT: Duration = Duration::from_secs(10 * 60);
/// What is left over after the main process has ended gets this long.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// Of the grace of a stop, for what comes after the processes: sync, power off.
const POWER_OFF: Duration = Duration::from_secs(1);
/// Of that, for the main process's exit code, where it had to be killed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// After a main process that was told to end, how long those attached may take to read the rest.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the gateway may take to get the last log lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Before a part that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);
/// The control thread only speaks with the gateway.
const CONTROL_STACK: usize = 512 * 1024;

enum End {
    Main(i32),
    Stop(Stop),
}

/// Lives the sandbox's life, and writes it down in `logs`. Returns the exit code of the machine.
pub async fn supervise(spec: BootSpec, logs: Logs) -> Result<u8, String> {
    let spec = Arc::new(spec);
    let endpoint: Endpoint = spec.endpoint.parse()?;
    let reaper = Arc::new(Reaper::default());
    let mut workload = Workload::new(&spec, SELF.into(), layout::IDENTITY_DIR.into(), reaper.clone());
    workload.logs = logs.clone();
    let workload = Arc::new(workload);
    let main = spec.main.clone().map(|main| Arc::new(MainProcess::new(main, workload.clone())));
    let tokens = Tokens::new(layout::IDENTITY_DIR, spec.sandbox_id);
    let session = Session::new(spec.clone(), tokens, workload.secrets.clone());
    let session = Arc::new(Session { logs: logs.clone(), ..session });
    let debug = debug_calls(session.clone(), endpoint.clone());
    let ssh = Arc::new(Server::new(&spec.ssh_host_key, workload.clone(), main.clone(), Some(debug))?);

    let (orders, inbox) = mpsc::channel(ORDERS);
    start_reaper(reaper);
    start_control(session.clone(), endpoint.clone(), orders)?;
    start_data(session.clone(), endpoint, inbox, ssh);

    let mut running = pin!(run_main(main.clone()));
    let end = tokio::select! {
        code = &mut running => End::Main(code),
        stop = stop_order(session.clone()) => End::Stop(stop),
        stop = signalled() => End::Stop(stop),
    };
    say_memory();
    let code = match end {
        End::Main(code) => {
            tracing::info!(code, "main process ended");
            if let Some(main) = main {
                let _ = timeout(DETACH, main.detached()).await;
            }
            report(&session, code).await;
            end_processes(&workload, LEFTOVERS).await;
            u8::try_from(code.clamp(0, 255)).unwrap_or(u8::MAX)
        }
        End::Stop(stop) => {
            tracing::info!(grace = ?stop.grace, "stopping: {}", stop.reason);
            let grace = stop.grace.saturating_sub(POWER_OFF);
            tokio::join!(end_processes(&workload, grace), timeout(grace + LAST_WORDS, last_words(main, running))).0;
            0
        }
    };
    // What is not taken by then is lost with the machine.
    let _ = timeout(LAST_LINES, logs.drained()).await;
    Ok(code)
}

fn debug_calls(session: Arc<Session>, endpoint: Endpoint) -> DebugCalls {
    Box::new(move |call| {
        let (session, endpoint) = (session.clone(), endpoint.clone());
        Box::pin(
            async move { debug::call(session, endpoint, call).await.map_err(|error| (error.message, error.exit_code)) },
        )
    })
}

/// The streams of a main process that is told to end are carried until it has ended: what it says while it cleans up
/// is heard by those attached, and its exit code. One that waits for its first attachment is not started any more.
async fn last_words(main: Option<Arc<MainProcess>>, running: impl Future<Output = i32>) {
    if let Some(main) = main.filter(|main| main.has_started()) {
        let code = running.await;
        tracing::info!(code, "main process ended");
        let _ = timeout(FAREWELL, main.detached()).await;
    }
}

/// What the agent itself cost, for whoever reads the console.
fn say_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    tracing::info!(resident = field("VmRSS:"), peak = field("VmHWM:"), "memory of the agent");
}

/// The main process, where there is one; the sandbox idles otherwise.
async fn run_main(main: Option<Arc<MainProcess>>) -> i32 {
    match main {
        Some(main) => main.run().await,
        None => std::future::pending().await,
    }
}

async fn stop_order(session: Arc<Session>) -> Stop {
    let mut stop = session.stop.subscribe();
    let ordered = stop.wait_for(Option::is_some).await.ok().and_then(|stop| stop.clone());
    match ordered {
        Some(stop) => stop,
        None => std::future::pending().await,
    }
}

/// The machine itself is told to end: by its keyboard, or by somebody in it.
async fn signalled() -> Stop {
    let (Ok(mut terminated), Ok(mut interrupted)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Stop { grace: budget::STOP_GUEST, reason: "signalled".to_owned() }
}

/// Level-triggered: control reports until the gateway has taken it, or wants the sandbox stopped anyway.
async fn report(session: &Session, code: i32) {
    session.main_exit.send_replace(Some(code));
    let mut reported = session.reported.subscribe();
    let mut stop = session.stop.subscribe();
    tokio::select! {
        _ = reported.wait_for(|reported| *reported) => {}
        _ = stop.wait_for(Option::is_some) => {}
        () = sleep(REPORT) => tracing::error!(code, within = ?REPORT, "nobody took the report of the main process's exit"),
    }
}

async fn end_processes(workload: &Workload, grace: Duration) {
    if !workload.stop(grace).await {
        tracing::warn!(?grace, "some processes did not end in time and were killed");
    }
}

fn start_reaper(reaper: Arc<Reaper>) {
    tokio::spawn(async move {
        loop {
            let reaper = reaper.clone();
            let ended = tokio::spawn(async move { reaper.run().await }).await;
            tracing::error!(?ended, "the reaper ended");
            sleep(RESTART).await;
        }
    });
}

fn start_data(session: Arc<Session>, endpoint: Endpoint, inbox: mpsc::Receiver<RelayOrder>, ssh: Arc<Server>) {
    let inbox = Arc::new(tokio::sync::Mutex::new(inbox));
    tokio::spawn(async move {
        loop {
            let (session, endpoint, ssh, inbox) = (session.clone(), endpoint.clone(), ssh.clone(), inbox.clone());
            let run = async move { run_data(session, endpoint, &mut *inbox.lock().await, ssh).await };
            let ended = tokio::spawn(run).await;
            tracing::error!(?ended, "the data connection's task ended");
            sleep(RESTART).await;
        }
    });
}

/// A thread of its own: no load on the main thread can keep a heartbeat back.
fn start_control(session: Arc<Session>, endpoint: Endpoint, orders: mpsc::Sender<RelayOrder>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("failed to make the control runtime: {error}"))?;
    let run = move || {
        runtime.block_on(async {
            loop {
                let control = run_control(session.clone(), endpoint.clone(), orders.clone());
                let ended = tokio::spawn(control).await;
                tracing::error!(?ended, "the control connection's task ended");
                sleep(RESTART).await;
            }
        });
    };
    let thread = std::thread::Builder::new().name("control".to_owned()).stack_size(CONTROL_STACK).spawn(run);
    thread.map(drop).map_err(|error| format!("failed to start the control thread: {error}"))
}
