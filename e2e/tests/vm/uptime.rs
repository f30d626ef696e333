//! A process in a guest that writes the guest's uptime down, again and again: a gap shows when the VM stood still.

use e2e::api::Api;

/// For the main process: ten times a second.
pub(crate) const TICKER: [&str; 3] =
    ["/bin/sh", "-c", "while :; do cut -d' ' -f1 /proc/uptime >> /tmp/ticks; sleep 0.1; done"];

/// All that was written so far, in seconds.
pub(crate) async fn ticks(api: &Api, name: &str) -> Vec<f64> {
    let text = api.sh(name, "cat /tmp/ticks").await;
    let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    complete.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("no uptime: {line:?}"))).collect()
}

/// The longest pause between two ticks, in seconds.
pub(crate) fn longest_gap(ticks: &[f64]) -> f64 {
    assert!(ticks.len() > 5, "only {} ticks", ticks.len());
    ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}
