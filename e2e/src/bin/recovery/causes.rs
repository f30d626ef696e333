//! What happens to the sandboxes, and when it is over.

use std::time::{Duration, Instant};

use e2e::processes::signal;
use futures_util::future::{join_all, try_join_all};
use proto::openshell::v1::SandboxPhase;
use rustix::process::Signal;
use tokio::time::sleep;

use crate::cases::Case;
use crate::column::{Column, FROZEN, KILLED, RESTED, SANDBOXES, STEADY};
use crate::host_clock::WrongClock;
use crate::witness::{Before, api, get, in_time, is_connected};

const HOUR: i64 = 60 * 60;
const DAY: i64 = 24 * HOUR;

type Outcome = Result<Duration, String>;

/// Causes that one sandbox has for itself: all at once.
pub(crate) async fn of_one_sandbox(column: &Column) {
    let steady = async {
        column.case(Case::RunningPastTtl, running_past_ttl(column)).await;
        column.case(Case::StopStartPastTtl, stopped(column, Case::StopStartPastTtl, STEADY, Duration::ZERO)).await;
    };
    let rested = column.case(Case::StoppedPastTtl, stopped(column, Case::StoppedPastTtl, RESTED, column.past_ttl()));
    let killed = async {
        column.case(Case::VmmKilled, vmm_killed(column)).await;
        column.case(Case::GuestClockForward, guest_clock(column, Case::GuestClockForward, 3 * DAY)).await;
        column.case(Case::GuestClockBack, guest_clock(column, Case::GuestClockBack, -3 * DAY)).await;
    };
    let frozen = column.case(Case::VmmFrozenPastTtl, vmm_frozen(column));
    tokio::join!(steady, rested, killed, frozen);
}

/// Causes that all sandboxes share: one after another.
pub(crate) async fn of_the_gateway(column: &mut Column) {
    for case in [
        Case::GatewayKilled1s,
        Case::GatewayStoppedPastTtl,
        Case::GatewayKilledPastTtl,
        Case::GatewayFrozenPastTtl,
        Case::BothFrozenPastTtl,
    ] {
        if column.begin(case) {
            let outcome = gateway(column, case).await;
            column.end(case, outcome);
        }
    }
}

/// Causes that all runtimes share.
pub(crate) async fn of_the_host_clock(columns: &[Column]) {
    for (case, by) in [(Case::HostClockForward, 3 * DAY), (Case::HostClockBack, -HOUR)] {
        let columns: Vec<&Column> = columns.iter().filter(|column| column.begin(case)).collect();
        if !columns.is_empty() {
            host_clock(&columns, case, by).await;
        }
    }
}

/// Nothing happens at all, for longer than its first token lives.
async fn running_past_ttl(column: &Column) -> Outcome {
    let (sandbox, created) = &column.sandboxes[STEADY];
    tokio::time::sleep_until((*created + column.past_ttl()).into()).await;
    Before::of(STEADY, sandbox).back(column, Case::RunningPastTtl, Instant::now()).await
}

/// A sandbox that is older than its token is stopped, and started after `pause`.
async fn stopped(column: &Column, case: Case, name: &'static str, pause: Duration) -> Outcome {
    let (sandbox, created) = &column.sandboxes[name];
    let api = api(column).await?;
    if pause.is_zero() {
        tokio::time::sleep_until((*created + column.past_ttl()).into()).await;
    }
    let before = Before::now(column, name).await?;
    in_time("stop", api.stop(name)).await?;
    column.world.phase(name, SandboxPhase::Stopped).await;
    if column.world.token_file(sandbox).exists() {
        return Err(format!("{name}: is stopped and has a token on disk"));
    }
    sleep(pause).await;
    let _alone = column.starts.acquire().await;
    let since = Instant::now();
    in_time("start", api.start(name)).await?;
    before.back(column, case, since).await
}

async fn vmm_killed(column: &Column) -> Outcome {
    let _alone = column.starts.acquire().await;
    let before = Before::now(column, KILLED).await?;
    let since = Instant::now();
    send(&column.children(&[KILLED]), Signal::KILL);
    before.back(column, Case::VmmKilled, since).await
}

async fn vmm_frozen(column: &Column) -> Outcome {
    let before = Before::now(column, FROZEN).await?;
    let child = column.children(&[FROZEN]);
    send(&child, Signal::STOP);
    sleep(column.past_ttl()).await;
    let noticed = in_time("look", async { get(&api(column).await?, FROZEN).await }).await;
    let since = Instant::now();
    send(&child, Signal::CONT);
    if is_connected(&noticed?) {
        return Err(format!("{FROZEN}: has a session although its vmm stood still"));
    }
    before.back(column, Case::VmmFrozenPastTtl, since).await
}

/// Guest root sets the clock; the next Sync sets it right.
async fn guest_clock(column: &Column, case: Case, by: i64) -> Outcome {
    let before = Before::now(column, KILLED).await?;
    let script = format!(
        "echo {by} > /tmp/set-clock.new && mv /tmp/set-clock.new /tmp/set-clock-by
         until [ ! -e /tmp/set-clock-by ]; do sleep 0.1; done; cat /tmp/clock-was-set"
    );
    let since = Instant::now();
    let finished = in_time("exec", api(column).await?.exec(KILLED, &["/bin/sh", "-c", &script])).await?;
    let words: Vec<&str> = finished.stdout.split_whitespace().collect();
    let number = |word: &str| word.parse::<i64>().unwrap_or_default();
    match words[..] {
        [from, to, "Ok(())"] if number(to) - number(from) == by => {}
        _ => return Err(format!("{KILLED}: guest root did not set the clock: {finished:?}")),
    }
    before.back(column, case, since).await
}

/// The gateway is away, or stands still, for a second or for longer than a token lives.
async fn gateway(column: &mut Column, case: Case) -> Outcome {
    let before = all_before(column).await?;
    let pause = if case == Case::GatewayKilled1s { Duration::from_secs(1) } else { column.past_ttl() };
    let since = match case {
        Case::GatewayKilled1s | Case::GatewayKilledPastTtl => {
            column.world.down();
            away(column, pause).await
        }
        Case::GatewayStoppedPastTtl => {
            let gateway = column.world.gateway.take().ok_or("no gateway")?;
            let status = gateway.stop().await;
            let since = away(column, pause).await;
            if !status.success() {
                return Err(format!("SIGTERM ended the gateway with {status}"));
            }
            since
        }
        _ => {
            let mut frozen = vec![column.world.gateway.as_ref().ok_or("no gateway")?.pid()];
            if case == Case::BothFrozenPastTtl {
                frozen.extend(column.children(&SANDBOXES));
            }
            send(&frozen, Signal::STOP);
            sleep(pause).await;
            let since = Instant::now();
            send(&frozen, Signal::CONT);
            since
        }
    };
    all_back(column, &before, case, since).await
}

/// Nobody serves for so long; the cause ends where the next gateway is started.
async fn away(column: &mut Column, pause: Duration) -> Instant {
    sleep(pause).await;
    let since = Instant::now();
    column.world.up().await;
    since
}

/// Everybody's clock at once, and back; both are jumps.
async fn host_clock(columns: &[&Column], case: Case, by: i64) {
    let outcomes = match all_columns_before(columns).await {
        Err(why) => Err(why),
        Ok(before) => jump(columns, case, by, &before).await,
    };
    for (number, column) in columns.iter().enumerate() {
        column.end(case, outcomes.clone().and_then(|outcomes| outcomes[number].clone()));
    }
}

async fn jump(columns: &[&Column], case: Case, by: i64, before: &[Vec<Before>]) -> Result<Vec<Outcome>, String> {
    let since = Instant::now();
    let wrong = WrongClock::set(by)?;
    let forth = all_columns_back(columns, before, case, since).await;
    // Tokens of this moment are from another time once the clock is right.
    let before = all_columns_before(columns).await?;
    let since = Instant::now();
    drop(wrong);
    let back = all_columns_back(columns, &before, case, since).await;
    let worst = |(forth, back): (Outcome, Outcome)| {
        let back = back.map_err(|why| format!("after the clock was set right: {why}"));
        Ok(forth?.max(back?))
    };
    Ok(forth.into_iter().zip(back).map(worst).collect())
}

async fn all_columns_before(columns: &[&Column]) -> Result<Vec<Vec<Before>>, String> {
    try_join_all(columns.iter().map(|column| all_before(column))).await
}

async fn all_columns_back(columns: &[&Column], before: &[Vec<Before>], case: Case, since: Instant) -> Vec<Outcome> {
    join_all(columns.iter().zip(before).map(|(column, before)| all_back(column, before, case, since))).await
}

async fn all_before(column: &Column) -> Result<Vec<Before>, String> {
    try_join_all(SANDBOXES.map(|name| Before::now(column, name))).await
}

/// The slowest counts.
async fn all_back(column: &Column, before: &[Before], case: Case, since: Instant) -> Outcome {
    let took = try_join_all(before.iter().map(|before| before.back(column, case, since))).await?;
    Ok(took.into_iter().max().unwrap_or_default())
}

fn send(processes: &[u32], what: Signal) {
    for process in processes {
        signal(*process, what);
    }
}
