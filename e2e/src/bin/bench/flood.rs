//! Whether anybody else notices that one sandbox forges tokens as fast as it can: rotation of all, and an honest
//! sandbox's calls.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use e2e::api::channel;
use e2e::world::World;
use proto::openshell::v1::Sandbox;
use proto::{budget, layout};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::fakes::{connected, world};
use crate::forgery::{Forger, present};
use crate::report::{Bar, Ratio, Report, median, p99};

const SANDBOXES: usize = 50;
const TTL: Duration = budget::TTL_MIN;
/// Before the flood and after it.
const QUIET: Duration = Duration::from_secs(20);
/// From one honest call to the next.
const PACE: Duration = Duration::from_millis(5);
/// How often the rotation thread looks at the clocks, twice.
const TWO_TICKS: Duration = Duration::from_secs(2);

pub(crate) async fn measure(length: Duration, report: &mut Report) {
    let world = world(TTL).await;
    let sandboxes = connected(&world, 0..SANDBOXES).await;
    let (forging, honest) = (&sandboxes[0], &sandboxes[1]);
    let caller = Caller::start(socket(&world, honest), world.token_file(honest));
    // Every sandbox has to be between two rotations before one can be late.
    report.say(&format!("flood: {SANDBOXES} sandboxes, quiet for {} s", (TTL + QUIET).as_secs()));
    sleep(TTL).await;
    let before = window(QUIET).await;
    report.say(&format!("flood: tokens are forged for {} s", length.as_secs()));
    let forger = Forger::start(&socket(&world, forging), &world.token_file(forging));
    let (first, second) = (window(length / 2).await, window(length / 2).await);
    let forged = forger.stop();
    // Whoever waited because of it is served now.
    sleep(Duration::from_secs(2)).await;
    let after = window(QUIET).await;
    let calls = caller.stop();
    assert_eq!(forged.accepted, 0, "a forged token was accepted");
    let rotations = rotations(&std::fs::read_to_string(world.log()).expect("read the gateway's log"));
    drop(world);

    report.say(&format!(
        "flood: {} forged tokens refused, {:.0} per second; {} connections broken {}",
        forged.refused,
        forged.refused as f64 / length.as_secs_f64(),
        forged.broken,
        forged.why
    ));
    let within = |window: &Window| {
        let calls = calls.iter().filter(|call| window.begin <= call.began && call.began < window.end);
        calls.map(|call| call.took.as_secs_f64() * 1e3).collect::<Vec<_>>()
    };
    let [before_ms, first_ms, second_ms, after_ms] = [&before, &first, &second, &after].map(within);
    for (what, of) in [("before", &before_ms), ("1st half", &first_ms), ("2nd half", &second_ms), ("after", &after_ms)]
    {
        let (middle, last) = (median(of.iter().copied()), p99(of.iter().copied()));
        report.say(&format!("flood: {what}: {} honest calls, median {middle:.2} ms, p99 {last:.2} ms", of.len()));
    }
    let tail = |of: Vec<f64>| p99(of.into_iter());
    let quiet = (tail(before_ms), tail(after_ms));
    let pairs = vec![(tail(first_ms), quiet.0), (tail(second_ms), quiet.1)];
    lateness(&rotations, &before, &Window { end: second.end, wall: (first.wall.0, second.wall.1), ..first }, report);
    report.add(Ratio {
        name: "flood_rpc".into(),
        of: "Sync of an honest sandbox while another one forges tokens, p99".into(),
        against: "the same while it does not".into(),
        unit: "ms".into(),
        pairs,
        bar: Some(Bar::AtMost(5.0)),
    });
}

/// A token is due at some moment between 45 and 55 % of the life of the one before; beyond that it is late.
fn lateness(rotations: &[Rotation], quiet: &Window, flood: &Window, report: &mut Report) {
    let latest = budget::rotate_until(TTL);
    let within = |window: &Window| {
        let there = rotations.iter().filter(|one| window.wall.0 <= one.at && one.at < window.wall.1);
        there.map(|one| one.after.as_secs_f64()).collect::<Vec<_>>()
    };
    let late = |gaps: &[f64]| p99(gaps.iter().map(|gap| (gap - latest.as_secs_f64()).max(0.0) * 1e3));
    for (what, gaps) in [("quiet", within(quiet)), ("flood", within(flood))] {
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let longest = gaps.iter().copied().fold(0.0, f64::max);
        report.say(&format!(
            "flood: {what}: {} rotations, {mean:.2} s after the one before on average, at most {longest:.2} s; p99 of lateness {:.1} ms",
            gaps.len(),
            late(&gaps)
        ));
    }
    report.add(Ratio {
        name: "flood_lateness".into(),
        of: format!("lateness of {SANDBOXES} sandboxes' rotations while one forges tokens, p99"),
        against: "two ticks of the rotation thread".into(),
        unit: "ms".into(),
        pairs: vec![(late(&within(flood)), TWO_TICKS.as_secs_f64() * 1e3)],
        bar: Some(Bar::AtMost(1.0)),
    });
}

/// A sandbox's own socket, which a VM's vsock leads to.
fn socket(world: &World, sandbox: &Sandbox) -> PathBuf {
    world.places(sandbox).join(layout::CTL_DIR).join(layout::CTL_SOCKET)
}

/// From one moment to another, by both clocks.
struct Window {
    begin: Instant,
    end: Instant,
    wall: (SystemTime, SystemTime),
}

async fn window(length: Duration) -> Window {
    let (begin, from) = (Instant::now(), SystemTime::now());
    sleep(length).await;
    Window { begin, end: Instant::now(), wall: (from, SystemTime::now()) }
}

/// The publication of a token that replaced another one.
struct Rotation {
    at: SystemTime,
    after: Duration,
}

/// By the lines of the gateway's log. They are written after the fact, so they can only make a rotation later than it
/// was.
fn rotations(log: &str) -> Vec<Rotation> {
    let mut last: HashMap<&str, SystemTime> = HashMap::new();
    let published = log.lines().filter(|line| line.contains("audit: published"));
    let times = published.filter_map(|line| {
        let at = humantime::parse_rfc3339(line.split_whitespace().next()?).ok()?;
        let sandbox = line.split_whitespace().find_map(|word| word.strip_prefix("sandbox="))?;
        let before = last.insert(sandbox, at)?;
        Some(Rotation { at, after: at.duration_since(before).ok()? })
    });
    times.collect()
}

/// An honest sandbox's call every few milliseconds, on a thread that nobody else uses.
struct Caller {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Call>>,
}

struct Call {
    began: Instant,
    took: Duration,
}

impl Caller {
    fn start(socket: PathBuf, token: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::default());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let channel = channel(&socket).await.expect("connect as an honest sandbox");
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut calls = vec![];
                while !stopped.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let token = std::fs::read_to_string(&token).expect("read a token");
                    let began = Instant::now();
                    present(&channel, &token).await.expect("an honest call is answered");
                    calls.push(Call { began, took: began.elapsed() });
                }
                calls
            })
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the caller's thread")
    }
}
