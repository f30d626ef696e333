//! Rows of host's own example `identity`: what costs something inside of the gateway.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::report::{Ratio, Report};

pub(crate) async fn measure(report: &mut Report) -> Result<(), String> {
    let here = std::env::current_exe().map_err(|error| format!("failed to find this program: {error}"))?;
    let program = here.with_file_name("examples").join("identity");
    let started = Command::new(&program).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
    let failed = |error: std::io::Error| format!("failed to run {}: {error}; run `make bench`", program.display());
    let mut running = started.map_err(failed)?;
    let rows = running.stdout.take().ok_or("the example has no output")?;
    let mut rows = BufReader::new(rows).lines();
    while let Some(line) = rows.next_line().await.map_err(failed)? {
        let row = serde_json::from_str::<Value>(&line).ok();
        let row = row.as_ref().and_then(Ratio::read).ok_or_else(|| format!("not a row: {line}"))?;
        report.say(&format!("{} is measured", row.name));
        report.add(row);
    }
    let status = running.wait().await.map_err(failed)?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", program.display())) }
}
