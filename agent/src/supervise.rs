//! From the boot spec to the exit code: what runs while the sandbox lives, and the order in which it ends.
//!
//! | task | takes | gives |
//! |---|---|---|
//! | reaper | SIGCHLD | exit codes |
//! | main process | input of attachments | output, its exit code |
//! | services | ends of programs, notify sockets | programs, their state |
//! | control (own thread) | heartbeats, relay orders | ticks, stop orders, reports |
//! | data | ticks, relay orders, log lines | relays, each with an SSH server or a port |
//!
//! Nothing here fails. A task that panics is reported and started again; the main process is carried by the main thread
//! itself, and a fault there ends the machine, which says so by its exit code.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::boot::BootSpec;
use proto::service::Service;
use proto::{budget, layout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::logs::{Logs, Writer};
use crate::power::{self, EXIT_SERVICE_LOST};
use crate::services::{KILLED, RUN_DIRECTORY, Services, Sink};
use crate::session::endpoint::Endpoints;
use crate::session::{RelayOrder, Relays, Session, Stop, debug, run_control, run_data};
use crate::ssh::{DebugCalls, Server};
use crate::sys::cgroup;
use crate::token::holder::Tokens;
use crate::workload::Workload;
use crate::workload::launch::SELF;
use crate::workload::main_process::{Finished, MainProcess};
use crate::workload::reaper::Reaper;

/// Relay orders between the two connections.
const ORDERS: usize = 16;
/// After the main process's end, how long those attached may take to read the rest.
const DETACH: Duration = Duration::from_secs(10);
/// How long a report of the main process's exit is tried.
const REPORT: Duration = Duration::from_secs(10 * 60);
/// What is left over after the main process has ended gets this long.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// Of what the end of the machine may take, for the main process's exit code, where it had to be killed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// After the end of the main process, for the services.
const SERVICES: Duration = Duration::from_secs(5);
/// Between two words to the gateway about services: they may come and go many times a second.
const TELL: Duration = Duration::from_secs(1);
/// After a main process that was told to end, how long those attached may take to read the rest.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the gateway may take to get the last log lines.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Of the grace of a stop, what is not the programs'.
const AFTER_PROGRAMS: Duration =
    Duration::from_millis((LAST_WORDS.as_millis() + LAST_LINES.as_millis() + power::BUDGET.as_millis()) as u64);
/// A main process that ends by itself ends the machine within the same time: services, one that had to be killed, what is
/// left over.
const _: () = assert!(
    SERVICES.as_millis() + KILLED.as_millis() + LEFTOVERS.as_millis() + AFTER_PROGRAMS.as_millis()
        <= budget::STOP_GUEST.as_millis()
);
/// Before a part that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);
/// The control thread only speaks with the gateway.
const CONTROL_STACK: usize = 512 * 1024;

enum End {
    Main(Finished),
    Stop(Stop),
    /// A critical service failed.
    Lost(String),
}

/// Lives the sandbox's life, and writes it down in `logs`. Returns the exit code of the machine.
pub async fn supervise(spec: BootSpec, logs: Logs) -> Result<u8, String> {
    let spec = Arc::new(spec);
    let endpoints = Endpoints::of(&spec)?;
    let reaper = Arc::new(Reaper::default());
    let mut workload = Workload::new(&spec, SELF.into(), layout::IDENTITY_DIR.into(), reaper.clone());
    workload.logs = logs.clone();
    let executed = Arc::new(workload.within(cgroup::EXEC));
    let workload = Arc::new(workload.within(cgroup::MAIN));
    let main = spec.main.clone().map(|main| Arc::new(MainProcess::new(main, workload.clone())));
    let tokens = Tokens::new(layout::IDENTITY_DIR, spec.sandbox_id);
    let runs = main.as_ref().map(|main| main.runs());
    let session = Session::new(spec.clone(), tokens, workload.secrets.clone());
    let session = Arc::new(Session { main_runs: runs, logs: logs.clone(), ..session });
    let services =
        Services::new(spec.services.clone(), &workload, RUN_DIRECTORY.into(), services_log(&spec.services, &logs));
    // Before there is a session: its first Sync tells of services that are not ready.
    session.told.send_modify(|told| told.note = services.note());
    let debug = debug_calls(session.clone(), endpoints.clone(), services.clone());
    let ssh = Arc::new(Server::new(&spec.ssh_host_key, executed, main.clone(), Some(debug))?);

    let (orders, inbox) = mpsc::channel(ORDERS);
    start_reaper(reaper);
    start_control(session.clone(), endpoints.clone(), orders)?;
    start_data(session.clone(), endpoints, inbox, ssh);
    services.start();
    tell_of_services(session.clone(), services.clone());

    let mut running = pin!(run_main(main.clone(), services.clone()));
    let end = tokio::select! {
        finished = &mut running => End::Main(finished),
        stop = stop_order(session.clone()) => End::Stop(stop),
        stop = signalled() => End::Stop(stop),
        why = services.lost() => End::Lost(why),
    };
    say_memory();
    let code = match end {
        End::Main(finished) => {
            tracing::info!(code = finished.code, crash_loop = finished.crash_loop, "main process ended");
            if let Some(main) = main {
                let_read(main.detached(), stop_order(session.clone())).await;
            }
            report(&session, finished.code).await;
            services.stop(SERVICES).await;
            end_processes(&workload, LEFTOVERS).await;
            say_last_words(finished);
            u8::try_from(finished.code.clamp(0, 255)).unwrap_or(u8::MAX)
        }
        End::Stop(stop) => {
            tracing::info!(grace = ?stop.grace, "stopping: {}", stop.reason);
            if let Some(main) = &main {
                main.start_no_more();
            }
            let grace = stop.grace.saturating_sub(AFTER_PROGRAMS);
            let ended = wind_down(&workload, &services, grace);
            tokio::join!(ended, timeout(grace + LAST_WORDS, last_words(main, running))).0;
            0
        }
        End::Lost(why) => {
            tracing::error!("{why}");
            wind_down(&workload, &services, budget::STOP_GUEST.saturating_sub(AFTER_PROGRAMS)).await;
            give_up(&session, why).await;
            EXIT_SERVICE_LOST
        }
    };
    // What is not taken by then is lost with the machine.
    let _ = timeout(LAST_LINES, logs.drained()).await;
    Ok(code)
}

/// Those attached may read the rest; whoever wants the machine stopped waits for no reader.
async fn let_read(detached: impl Future<Output = ()>, stop: impl Future<Output = Stop>) {
    tokio::select! {
        _ = timeout(DETACH, detached) => {}
        _ = stop => {}
    }
}

fn debug_calls(session: Arc<Session>, endpoints: Endpoints, services: Arc<Services>) -> DebugCalls {
    Box::new(move |call| {
        let answer = debug::call(session.clone(), endpoints.clone(), services.clone(), call);
        Box::pin(async move { answer.await.map_err(|error| (error.message, error.exit_code)) })
    })
}

/// What services write is a source of log lines each, by their names.
fn services_log(services: &[Service], logs: &Logs) -> Sink {
    let writers: HashMap<String, Writer> =
        services.iter().map(|service| (service.name.clone(), logs.writer(&service.name))).collect();
    Arc::new(move |name, stream, bytes| {
        if let Some(writer) = writers.get(name) {
            writer.write(stream, bytes);
        }
    })
}

/// Level-triggered, as everything that goes with a Sync.
fn tell_of_services(session: Arc<Session>, services: Arc<Services>) {
    tokio::spawn(async move {
        let mut changes = services.changes();
        loop {
            changes.mark_unchanged();
            let note = services.note();
            session.told.send_if_modified(|told| {
                let news = told.note != note;
                told.note = note;
                news
            });
            sleep(TELL).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The gateway is told why, and ends the machine; where it does not, the machine ends by itself.
async fn give_up(session: &Session, why: String) {
    session.told.send_modify(|told| told.fault = why);
    let mut stop = session.stop.subscribe();
    tokio::select! {
        _ = stop.wait_for(Option::is_some) => {}
        () = sleep(REPORT) => tracing::error!(within = ?REPORT, "nobody took the report that a critical service failed"),
    }
}

/// The main process and what was executed beside it, then the services, then whatever is left.
async fn wind_down(workload: &Workload, services: &Arc<Services>, grace: Duration) {
    let deadline = Instant::now() + grace;
    let left = || deadline.saturating_duration_since(Instant::now());
    if !services.is_empty() {
        // Services may take as long as those who use them.
        workload.stop_beside(&services.sessions(), grace / 2).await;
        services.stop(left().saturating_sub(LAST_WORDS)).await;
    }
    end_processes(workload, left()).await;
}

/// The streams of a main process that is told to end are carried until it has ended: what it says while it cleans up
/// is heard by those attached, and its exit code. One that waits for its first attachment is not started any more.
async fn last_words(main: Option<Arc<MainProcess>>, running: impl Future<Output = Finished>) {
    if let Some(main) = main.filter(|main| main.has_started()) {
        let code = running.await.code;
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

/// For a gateway that was away for longer than the report was tried.
#[allow(clippy::print_stdout, reason = "the console is standard output")]
fn say_last_words(finished: Finished) {
    println!("{}", finished.last_words().encode());
}

/// The main process, where there is one; the sandbox idles otherwise. It starts when the services that it waits for
/// are ready, and without them where they are late: a sandbox that one can look into is worth more than none.
async fn run_main(main: Option<Arc<MainProcess>>, services: Arc<Services>) -> Finished {
    if let Err(late) = services.settled(budget::SERVICES).await {
        let late = late.join(", ");
        tracing::error!(services = late, waited = ?budget::SERVICES, "the main process starts without services that are not ready");
    }
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

fn start_data(session: Arc<Session>, endpoints: Endpoints, inbox: mpsc::Receiver<RelayOrder>, ssh: Arc<Server>) {
    let relays = Arc::new(tokio::sync::Mutex::new(Relays::new(inbox)));
    tokio::spawn(async move {
        loop {
            let (session, endpoints, ssh, relays) = (session.clone(), endpoints.clone(), ssh.clone(), relays.clone());
            let run = async move { run_data(session, endpoints, &mut *relays.lock().await, ssh).await };
            let ended = tokio::spawn(run).await;
            tracing::error!(?ended, "the data connection's task ended");
            sleep(RESTART).await;
        }
    });
}

/// A thread of its own: no load on the main thread can keep a heartbeat back.
fn start_control(session: Arc<Session>, endpoints: Endpoints, orders: mpsc::Sender<RelayOrder>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("failed to make the control runtime: {error}"))?;
    let run = move || {
        runtime.block_on(async {
            loop {
                let control = run_control(session.clone(), endpoints.clone(), orders.clone());
                let ended = tokio::spawn(control).await;
                tracing::error!(?ended, "the control connection's task ended");
                sleep(RESTART).await;
            }
        });
    };
    let thread = std::thread::Builder::new().name("control".to_owned()).stack_size(CONTROL_STACK).spawn(run);
    thread.map(drop).map_err(|error| format!("failed to start the control thread: {error}"))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_stop_does_not_wait_for_readers() {
        let stop = Stop { grace: budget::STOP_GUEST, reason: "stopped by its user".to_owned() };
        let waiting = let_read(pending(), ready(stop));
        timeout(DETACH / 2, waiting).await.expect("it ends with the stop order");
    }
}
