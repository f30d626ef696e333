//! What wakes an idle agent: its heartbeats, and nothing else.
//!
//! Whatever a heartbeat costs, it costs the same whether the next one comes soon or late. What else woke the agent would
//! wake it more often between two heartbeats that are further apart.

use std::time::Duration;

use e2e::world::World;
use proto::budget::heartbeat;
use proto::openshell::v1::Sandbox;
use tokio::time::{Instant, sleep};

use crate::report::{Bar, Ratio, Report};
use crate::{number, world_of};

/// Heartbeats every 2 s and every 8 s.
const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
/// Each for a minute at least: a token is replaced after about half of its life.
const SHORT_LIVES: usize = 4;
const LONG_LIVES: usize = 1;
const LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn measure(report: &mut Report) {
    let short = per_heartbeat(SHORT, SHORT_LIVES, report).await;
    let long = per_heartbeat(LONG, LONG_LIVES, report).await;
    report.add(Ratio {
        name: "wakeups".into(),
        of: "wakeups of an idle agent per heartbeat, with one every 8 s".into(),
        against: "the same with one every 2 s".into(),
        unit: "".into(),
        pairs: vec![(long, short)],
        bar: Some(Bar::AtMost(1.1)),
    });
}

async fn per_heartbeat(ttl: Duration, lives: usize, report: &mut Report) -> f64 {
    let world = world_of(ttl).await;
    let sandbox = world.ready("idle", &[]).await;
    // A boot ends with the first token; what a rotation needs for the first time is in memory with the second.
    let (before, began) = presented(&world, &sandbox, ttl, 2).await;
    let (after, ended) = presented(&world, &sandbox, ttl, 2 + lives).await;
    world.delete("idle").await;
    let took = ended - began;
    let each = (after - before) / (took.as_secs_f64() / heartbeat(ttl).as_secs_f64());
    report.say(&format!("wakeups: {each:.1} per heartbeat, one every {:?}, over {took:.0?}", heartbeat(ttl)));
    each
}

/// The wakeups until the token with this number was presented, and when that was.
async fn presented(world: &World, sandbox: &Sandbox, ttl: Duration, token: usize) -> (f64, Instant) {
    let patience = ttl * token as u32;
    let end = Instant::now() + patience;
    loop {
        let console = world.console(sandbox);
        let mut counts = console.lines().filter(|line| line.contains("presented a new token"));
        if let Some(count) = counts.nth(token - 1).and_then(|line| number(line, "wakeups")) {
            return (count, Instant::now());
        }
        assert!(Instant::now() < end, "waited {patience:?} for token {token} to be presented");
        sleep(LOOK).await;
    }
}
