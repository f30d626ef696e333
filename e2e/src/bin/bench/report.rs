//! Ratios, as a table for people and as `bench.json` for programs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

/// Something measured, next to something else measured.
pub(crate) struct Ratio {
    pub(crate) name: &'static str,
    /// What of ours was measured.
    pub(crate) of: &'static str,
    /// What it stands next to.
    pub(crate) against: &'static str,
    pub(crate) unit: &'static str,
    /// Both, as often as they were measured.
    pub(crate) pairs: Vec<(f64, f64)>,
    /// The largest ratio that is good enough; nothing where the ratio is only to be known.
    pub(crate) bar: Option<f64>,
}

pub(crate) struct Report {
    began: Instant,
    ratios: Vec<Ratio>,
}

impl Ratio {
    fn of_median(&self) -> f64 {
        median(self.pairs.iter().map(|(of, _)| *of))
    }

    fn against_median(&self) -> f64 {
        median(self.pairs.iter().map(|(_, against)| *against))
    }

    /// The median of the pairs' own ratios: what disturbs both halves of a pair disturbs neither their ratio nor it.
    fn ratio(&self) -> f64 {
        median(self.pairs.iter().map(|(of, against)| of / against))
    }

    fn verdict(&self) -> &'static str {
        match self.bar {
            None => "no bar",
            Some(bar) if self.ratio() <= bar => "bar met",
            Some(_) => "bar missed",
        }
    }

    fn row(&self) -> [String; 6] {
        let spread = self.pairs.iter().map(|(of, against)| of / against);
        let (low, high) = spread.fold((f64::INFINITY, 0.0_f64), |(low, high), one| (low.min(one), high.max(one)));
        [
            self.name.to_owned(),
            format!("{:.2}", self.ratio()),
            format!("{low:.2} – {high:.2}"),
            self.bar.map_or_else(|| "–".to_owned(), |bar| format!("{bar:.2}")),
            self.verdict().to_owned(),
            format!("{:.1} {unit} / {:.1} {unit}", self.of_median(), self.against_median(), unit = self.unit),
        ]
    }

    fn json(&self) -> Value {
        let side = |what: &str, median: f64| json!({ "what": what, "median": median, "unit": self.unit });
        json!({
            "name": self.name,
            "ratio": self.ratio(),
            "of": side(self.of, self.of_median()),
            "against": side(self.against, self.against_median()),
            "bar": self.bar,
            "pairs": self.pairs,
        })
    }
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), ratios: vec![] }
    }

    /// A line while it runs.
    pub(crate) fn say(&self, what: &str) {
        println!("[{:>5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    pub(crate) fn add(&mut self, ratio: Ratio) {
        self.ratios.push(ratio);
    }

    /// Prints the table and writes the file.
    pub(crate) fn close(self) -> Result<(), String> {
        let heading = ["name", "ratio", "of all pairs", "bar", "verdict", "medians"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(heading).chain(self.ratios.iter().map(Ratio::row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 6] = std::array::from_fn(width);
        println!();
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
            println!("{}", cells.join("  ").trim_end());
        }
        println!();
        for Ratio { name, of, against, pairs, .. } in &self.ratios {
            println!("{name}: {of}, next to {against}; {} measured", pairs.len());
        }
        let file = file();
        let document = Value::from(self.ratios.iter().map(Ratio::json).collect::<Vec<_>>());
        std::fs::write(&file, format!("{document:#}\n"))
            .map_err(|e| format!("failed to write {}: {e}", file.display()))?;
        println!("\nbench: done in {:.0} s", self.began.elapsed().as_secs_f64());
        Ok(())
    }
}

/// In the lab only one directory outlives the run.
fn file() -> PathBuf {
    let lab = std::env::var_os("LAB_OUT").map(PathBuf::from);
    lab.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("bench.json")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}
