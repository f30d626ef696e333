//! A row of the table, as JSON on standard output.

use std::time::{Duration, Instant};

use serde_json::json;

/// Which ratios are good enough.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    /// Costs.
    AtMost(f64),
    /// Rates.
    AtLeast(f64),
    /// It is only to be known.
    None,
}

/// Something measured, next to something else measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What of ours was measured.
    pub(crate) of: String,
    /// What it stands next to.
    pub(crate) against: &'static str,
    pub(crate) unit: &'static str,
    /// Both, as often as they were measured.
    pub(crate) pairs: Vec<(f64, f64)>,
    pub(crate) bar: Bar,
}

impl Row {
    pub(crate) fn print(&self) {
        let (bar, bar_is) = match self.bar {
            Bar::AtMost(bar) => (Some(bar), Some("at most")),
            Bar::AtLeast(bar) => (Some(bar), Some("at least")),
            Bar::None => (None, None),
        };
        let side = |what: &str| json!({ "what": what, "unit": self.unit });
        let row = json!({
            "name": self.name,
            "of": side(&self.of),
            "against": side(self.against),
            "bar": bar,
            "bar_is": bar_is,
            "pairs": self.pairs,
        });
        println!("{row}");
    }
}

/// Measures both in turns, neither always first.
pub(crate) fn in_turns<T>(pairs: usize, mut of: impl FnMut() -> T, mut against: impl FnMut() -> T) -> Vec<(T, T)> {
    let pair = |number| {
        if number % 2 == 0 {
            let first = of();
            (first, against())
        } else {
            let first = against();
            (of(), first)
        }
    };
    (0..pairs).map(pair).collect()
}

/// How long one of `count` takes, in microseconds.
pub(crate) fn each(count: usize, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    micros(began.elapsed()) / count as f64
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The value that 99 of 100 do not exceed.
pub(crate) fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(last * 99 / 100).copied().unwrap_or(f64::NAN)
}
