//! From the rename of a token to its receipt, next to what cannot be left out: the guest lists, opens and reads the
//! file, and one round trip goes over its session. Both are of the same generation of the same guest.
//!
//! The gateway's log says the first, the agent's words on the console the second.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::world::World;
use proto::budget;
use proto::openshell::v1::Sandbox;
use tokio::time::{Instant, sleep};

use crate::number;
use crate::report::{Bar, Ratio, Report};

const NUDGED: usize = 8;
const NOT_NUDGED: usize = 3;
/// Between two looks into files that change every 15 seconds; a look is not to disturb what it waits for.
const LOOK: Duration = Duration::from_secs(1);
const PATIENCE: Duration = budget::TTL_MIN;

/// Returns the resident memory of the agent after all that, in KiB.
pub(crate) async fn measure(world: &World, report: &mut Report) -> f64 {
    let sandbox = world.ready("receipt", &[]).await;
    // The first one after the boot still brings code into memory.
    let mut last = next(world, &sandbox, newest(world, &sandbox)).await;
    let mut nudged = vec![];
    for _ in 0..NUDGED {
        last = next(world, &sandbox, last.generation).await;
        report.say(&format!("receipt: {last}"));
        nudged.push(last.pair());
    }
    let faults = world.state().join("faults");
    std::fs::write(&faults, "suppress-nudge\n").expect("switch the fault on");
    let mut not_nudged = vec![];
    for _ in 0..NOT_NUDGED {
        last = next(world, &sandbox, last.generation).await;
        report.say(&format!("receipt without nudge: {last}"));
        not_nudged.push(last.pair());
    }
    std::fs::remove_file(&faults).expect("switch the fault off");
    world.delete("receipt").await;

    let against = "list + open + read in the same guest, plus one session round trip";
    let ratio = |name: &str, of: &str, pairs, bar| Ratio {
        name: name.into(),
        of: of.into(),
        against: against.into(),
        unit: "ms".into(),
        pairs,
        bar,
    };
    report.add(ratio("receipt", "rename → receipt, nudged", nudged, Some(Bar::AtMost(2.0))));
    report.add(ratio("receipt_not_nudged", "rename → receipt, at the next heartbeat", not_nudged, None));
    last.resident_kib
}

/// One generation, from rename to receipt; times in microseconds.
struct Receipt {
    generation: u64,
    delay: f64,
    read: f64,
    round_trip: f64,
    resident_kib: f64,
}

impl Receipt {
    /// In milliseconds.
    fn pair(&self) -> (f64, f64) {
        (self.delay / 1e3, (self.read + self.round_trip) / 1e3)
    }
}

impl std::fmt::Display for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { generation, delay, read, round_trip, .. } = self;
        write!(f, "generation {generation}: {delay} us next to {read} us (read) + {round_trip} us (round trip)")
    }
}

/// The next generation after `last` of which everything is known.
async fn next(world: &World, sandbox: &Sandbox, last: u64) -> Receipt {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(receipt) = look(world, sandbox, last) {
            return receipt;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for the receipt of a generation after {last}");
        sleep(LOOK).await;
    }
}

fn newest(world: &World, sandbox: &Sandbox) -> u64 {
    delays(world, sandbox).last_key_value().map_or(0, |(generation, _)| *generation)
}

fn look(world: &World, sandbox: &Sandbox, last: u64) -> Option<Receipt> {
    let (generation, delay) =
        delays(world, sandbox).range(last + 1..).next().map(|(generation, delay)| (*generation, *delay))?;
    let console = world.console(sandbox);
    let line = |words: &str| {
        let of_generation = |line: &&str| line.contains(words) && number(line, "generation") == Some(generation as f64);
        console.lines().rev().find(of_generation)
    };
    let (read, presented) = (line("read a new token")?, line("presented a new token")?);
    Some(Receipt {
        generation,
        delay,
        read: number(read, "read_us")?,
        round_trip: number(presented, "round_trip_us")?,
        resident_kib: number(presented, "resident_kib")?,
    })
}

/// By generation.
fn delays(world: &World, sandbox: &Sandbox) -> BTreeMap<u64, f64> {
    let log = std::fs::read_to_string(world.log()).unwrap_or_default();
    let id = &sandbox.metadata.as_ref().expect("metadata").id;
    let receipts = log.lines().filter(|line| line.contains("audit: first presentation") && line.contains(id));
    receipts.filter_map(|line| Some((number(line, "generation")? as u64, number(line, "delay_us")?))).collect()
}
