//! A process that counts, and whether it ever paused.

use std::time::Duration;

/// Counts a line every 100 ms, a number and the guest's uptime, until the file `end` exists.
pub(crate) fn script(end: &str) -> String {
    format!("i=0; until [ -e {end} ]; do i=$((i+1)); read up rest </proc/uptime; echo \"$i $up\"; sleep 0.1; done")
}

/// What a list of counted lines shows.
#[derive(Debug)]
pub(crate) struct Counted {
    /// How many.
    pub(crate) lines: usize,
    /// Whether each number follows the one before.
    pub(crate) contiguous: bool,
    /// The longest time between two lines.
    pub(crate) longest_gap: Duration,
}

/// Reads the lines; an unfinished last one is left out.
pub(crate) fn read(text: &str) -> Counted {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| {
        let (number, uptime) = line.split_once(' ')?;
        Some((number.parse::<u64>().ok()?, uptime.parse::<f64>().ok()?))
    };
    let lines: Vec<Option<(u64, f64)>> = whole.lines().map(parse).collect();
    let pairs = || lines.windows(2).map(|pair| (pair[0].unwrap_or_default(), pair[1].unwrap_or_default()));
    let contiguous = lines.iter().all(Option::is_some) && pairs().all(|(a, b)| b.0 == a.0 + 1);
    let longest = pairs().map(|(a, b)| b.1 - a.1).fold(0.0, f64::max);
    Counted { lines: lines.len(), contiguous, longest_gap: Duration::from_secs_f64(longest) }
}
