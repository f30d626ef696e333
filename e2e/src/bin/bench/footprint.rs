//! How big the gateway is: its program, its memory with a hundred sessions, and what each session adds. The bar itself
//! is what it stands next to.

use std::time::Duration;

use e2e::programs::program;
use e2e::world::World;
use proto::budget;
use tokio::time::sleep;

use crate::fakes::{connected, world};
use crate::report::{Bar, Ratio, Report, median};

const LIMIT_KIB: f64 = 20.0 * 1024.0;
const GROWTH_KIB: f64 = 60.0;
const FEW: usize = 10;
const MANY: usize = 100;
/// After the last session is up.
const SETTLING: Duration = Duration::from_secs(10);
const LOOKS: usize = 5;
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn measure(report: &mut Report) {
    let gateway = program("openshell-gateway");
    let size = std::fs::metadata(&gateway).unwrap_or_else(|e| panic!("look at {}: {e}", gateway.display())).len();
    let world = world(budget::TTL_DEFAULT).await;
    let none = resident(&world).await;
    let _few = connected(&world, 0..FEW).await;
    let few = resident(&world).await;
    let _many = connected(&world, FEW..MANY).await;
    let many = resident(&world).await;
    drop(world);
    let (before, first) = (median(none.into_iter()), median(few.iter().copied()));
    report.say(&format!("gateway_rss: {before} KiB without a sandbox, {first} KiB with {FEW}"));

    let mut add = |name: &str, of: String, against: &str, limit: f64, values: Vec<f64>| {
        let pairs = values.into_iter().map(|kib| (kib, limit)).collect();
        let bar = Some(Bar::AtMost(1.0));
        report.add(Ratio { name: name.into(), of, against: against.into(), unit: "KiB".into(), pairs, bar });
    };
    add("gateway_size", "the gateway's stripped binary".into(), "20 MiB", LIMIT_KIB, vec![size as f64 / 1024.0]);
    let of = format!("resident memory of the idle gateway with {MANY} connected sandboxes");
    let growth = many.iter().zip(few).map(|(many, few)| (many - few) / (MANY - FEW) as f64).collect();
    add("gateway_rss", of, "20 MiB", LIMIT_KIB, many);
    let of = format!("what each sandbox from the {FEW}th to the {MANY}th adds to that");
    add("gateway_growth", of, "60 KiB", GROWTH_KIB, growth);
}

/// Of the gateway, in KiB, several times once it is idle.
async fn resident(world: &World) -> Vec<f64> {
    let gateway = world.gateway.as_ref().expect("a running gateway").pid();
    sleep(SETTLING).await;
    let mut looks = vec![];
    for _ in 0..LOOKS {
        sleep(LOOK).await;
        let status = std::fs::read_to_string(format!("/proc/{gateway}/status")).expect("read the gateway's status");
        let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
        looks.push(value.trim().trim_end_matches(" kB").trim().parse().expect("a number"));
    }
    looks
}
