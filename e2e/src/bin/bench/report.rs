//! Ratios, as a table for people and as `bench.json` for programs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

/// Something measured, next to something else measured.
pub(crate) struct Ratio {
    pub(crate) name: String,
    /// What of ours was measured.
    pub(crate) of: String,
    /// What it stands next to.
    pub(crate) against: String,
    pub(crate) unit: String,
    /// Both, as often as they were measured.
    pub(crate) pairs: Vec<(f64, f64)>,
    /// Which ratios are good enough; nothing where the ratio is only to be known.
    pub(crate) bar: Option<Bar>,
}

/// See [`Ratio::bar`].
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    /// For what something costs.
    AtMost(f64),
    /// For how much is done in a time.
    AtLeast(f64),
}

pub(crate) struct Report {
    began: Instant,
    ratios: Vec<Ratio>,
}

impl Bar {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(bar) => ratio <= bar,
            Self::AtLeast(bar) => ratio >= bar,
        }
    }

    fn value(self) -> f64 {
        let (Self::AtMost(bar) | Self::AtLeast(bar)) = self;
        bar
    }

    /// In words, for programs.
    fn direction(self) -> &'static str {
        match self {
            Self::AtMost(_) => "at most",
            Self::AtLeast(_) => "at least",
        }
    }

    fn sign(self) -> char {
        match self {
            Self::AtMost(_) => '≤',
            Self::AtLeast(_) => '≥',
        }
    }
}

impl Ratio {
    /// A row of `bench.json`, or one that another program printed.
    pub(crate) fn read(row: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let pairs = row["pairs"].as_array()?.iter().map(|pair| Some((pair[0].as_f64()?, pair[1].as_f64()?)));
        let bar = row["bar"].as_f64();
        Some(Self {
            name: text(&row["name"])?,
            of: text(&row["of"]["what"])?,
            against: text(&row["against"]["what"])?,
            unit: text(&row["of"]["unit"])?,
            pairs: pairs.collect::<Option<_>>()?,
            bar: bar.map(|bar| if row["bar_is"] == "at least" { Bar::AtLeast(bar) } else { Bar::AtMost(bar) }),
        })
    }

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
            Some(bar) if bar.met(self.ratio()) => "bar met",
            Some(_) => "bar missed",
        }
    }

    fn row(&self) -> [String; 6] {
        let spread = self.pairs.iter().map(|(of, against)| of / against);
        let (low, high) = spread.fold((f64::INFINITY, 0.0_f64), |(low, high), one| (low.min(one), high.max(one)));
        [
            self.name.clone(),
            format!("{:.2}", self.ratio()),
            format!("{low:.2} – {high:.2}"),
            self.bar.map_or_else(|| "–".to_owned(), |bar| format!("{} {:.2}", bar.sign(), bar.value())),
            self.verdict().to_owned(),
            format!("{} / {}", quantity(self.of_median(), &self.unit), quantity(self.against_median(), &self.unit)),
        ]
    }

    fn json(&self) -> Value {
        let side = |what: &str, median: f64| json!({ "what": what, "median": median, "unit": self.unit });
        json!({
            "name": self.name,
            "ratio": self.ratio(),
            "of": side(&self.of, self.of_median()),
            "against": side(&self.against, self.against_median()),
            "bar": self.bar.map(Bar::value),
            "bar_is": self.bar.map(Bar::direction),
            "pairs": self.pairs,
        })
    }
}

impl Report {
    /// With the rows that an earlier part of the same run has written.
    pub(crate) fn with(ratios: Vec<Ratio>) -> Self {
        Self { began: Instant::now(), ratios }
    }

    /// A line while it runs.
    pub(crate) fn say(&self, what: &str) {
        println!("[{:>5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// In place of one of that name from an earlier run.
    pub(crate) fn add(&mut self, ratio: Ratio) {
        self.ratios.retain(|there| there.name != ratio.name);
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

/// What an earlier part has written; nothing where there was none.
pub(crate) fn written() -> Result<Vec<Ratio>, String> {
    let file = file();
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(vec![]) };
    let strange = || format!("{} was not written by this program; remove it", file.display());
    let document: Value = serde_json::from_str(&text).map_err(|_| strange())?;
    document.as_array().ok_or_else(strange)?.iter().map(Ratio::read).collect::<Option<_>>().ok_or_else(strange)
}

/// In the lab only one directory outlives the run.
fn file() -> PathBuf {
    let lab = std::env::var_os("LAB_OUT").map(PathBuf::from);
    lab.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("bench.json")
}

/// Short times have digits that count.
fn quantity(value: f64, unit: &str) -> String {
    if value.abs() < 1.0 { format!("{value:.3} {unit}") } else { format!("{value:.1} {unit}") }
}

/// The value that 99 of 100 do not exceed.
pub(crate) fn p99(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(last * 99 / 100).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}
