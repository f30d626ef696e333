//! How big the agent is, on disk and in the guest's memory. The bar itself is what it stands next to.

use e2e::programs::program;

use crate::report::{Bar, Ratio, Report};

const LIMIT_KIB: f64 = 6.0 * 1024.0;

pub(crate) fn measure(resident_kib: f64, report: &mut Report) {
    let agent = program("openshell-agent");
    let bytes = std::fs::metadata(&agent).unwrap_or_else(|error| panic!("look at {}: {error}", agent.display())).len();
    let mut add = |name: &str, of: &str, kib| {
        let (against, unit, bar) = ("6 MiB".into(), "KiB".into(), Some(Bar::AtMost(1.0)));
        report.add(Ratio { name: name.into(), of: of.into(), against, unit, pairs: vec![(kib, LIMIT_KIB)], bar });
    };
    add("agent_size", "the agent's stripped static binary", bytes as f64 / 1024.0);
    add("agent_rss", "resident memory of the idle agent in the guest", resident_kib);
}
