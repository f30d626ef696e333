//! What wakes an idle agent: its heartbeats, and nothing else.
//!
//! A token is replaced after half of its life, and a life has a fixed number of heartbeats. So from one token to the next an
//! agent wakes equally often, however long that is, unless something else wakes it, too.

use std::time::Duration;

use e2e::world::World;
use proto::openshell::v1::Sandbox;
use tokio::time::{Instant, sleep};

use crate::report::{Bar, Ratio, Report};
use crate::{number, world_of};

/// Heartbeats every 2 s and every 8 s, tokens every 15 s and every 60 s.
const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
/// Tokens, after the first two: a boot ends with the first, and what it brought into memory with the second.
const SHORT_LIVES: usize = 4;
const LONG_LIVES: usize = 2;
const LOOK: Duration = Duration::from_secs(2);

pub(crate) async fn measure(report: &mut Report) {
    let short = per_token(SHORT, SHORT_LIVES, report).await;
    let long = per_token(LONG, LONG_LIVES, report).await;
    report.add(Ratio {
        name: "wakeups".into(),
        of: "wakeups of an idle agent in a minute, from one token to the next, with a heartbeat every 8 s".into(),
        against: "the same in a quarter of a minute, with as many heartbeats, one every 2 s".into(),
        unit: "".into(),
        pairs: vec![(long, short)],
        bar: Some(Bar::AtMost(1.1)),
    });
}

async fn per_token(ttl: Duration, lives: usize, report: &mut Report) -> f64 {
    let world = world_of(ttl).await;
    let sandbox = world.ready("idle", &[]).await;
    let patience = ttl * (lives as u32 + 2);
    let end = Instant::now() + patience;
    let counts = loop {
        let counts = counts(&world, &sandbox);
        if counts.len() >= lives + 2 {
            break counts;
        }
        assert!(Instant::now() < end, "waited {patience:?} for {} tokens", lives + 2);
        sleep(LOOK).await;
    };
    world.delete("idle").await;
    let wakeups = (counts[lives + 1] - counts[1]) / lives as f64;
    report.say(&format!("wakeups: {wakeups:.1} from one token to the next, with a TTL of {ttl:?}"));
    wakeups
}

/// So many, when each of its tokens was presented.
fn counts(world: &World, sandbox: &Sandbox) -> Vec<f64> {
    let console = world.console(sandbox);
    let presented = console.lines().filter(|line| line.contains("presented a new token"));
    presented.filter_map(|line| number(line, "wakeups")).collect()
}
