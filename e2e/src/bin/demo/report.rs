//! What the demo says while it runs, and the table at its end.

use std::time::{Duration, Instant};

/// Collects what was measured.
pub(crate) struct Report {
    began: Instant,
    rows: Vec<(String, String)>,
    failed: Vec<String>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), rows: vec![], failed: vec![] }
    }

    /// Announces a step.
    pub(crate) fn step(&self, what: &str) {
        println!("[{:>5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// A line of detail.
    pub(crate) fn detail(&self, what: &str) {
        println!("           {what}");
    }

    /// Notes a measured time.
    pub(crate) fn measured(&mut self, what: &str, took: Duration) {
        self.row(what, format!("{} ms", took.as_millis()));
    }

    /// Notes anything else for the table.
    pub(crate) fn row(&mut self, what: &str, value: String) {
        self.detail(&format!("{what}: {value}"));
        self.rows.push((what.into(), value));
    }

    /// A promise that must hold; one that does not fails the demo, which goes on.
    pub(crate) fn check(&mut self, holds: bool, promise: &str) {
        self.detail(&format!("{} {promise}", if holds { "ok    " } else { "FAILED" }));
        if !holds {
            self.failed.push(promise.into());
        }
    }

    /// Prints the table. `false` if anything failed.
    pub(crate) fn close(self) -> bool {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or_default();
        println!("\n{:<width$}  measured", "what");
        for (what, value) in &self.rows {
            println!("{what:<width$}  {value}");
        }
        for promise in &self.failed {
            println!("FAILED: {promise}");
        }
        let verdict = if self.failed.is_empty() { "demo: every step passed" } else { "demo: failed" };
        println!("\n{verdict} in {:.0} s", self.began.elapsed().as_secs_f64());
        self.failed.is_empty()
    }
}
