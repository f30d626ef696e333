//! The result: one row for a case, one column for a runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::Runtime;
use crate::cases::Case;

/// How one case ended on one runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Back, after so long, and so long was allowed.
    Ok { took: Duration, bound: Duration },
    /// Not back, or not as it has to be.
    Failed(String),
    /// This runtime has no such thing.
    NotApplicable,
    /// Nobody knows.
    NotRun(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::as_secs_f64;
        match self {
            Self::Ok { took, bound } => f.pad(&format!("ok {:.1} of {:.1} s", seconds(took), seconds(bound))),
            Self::Failed(why) => f.pad(&format!("FAILED: {why}")),
            Self::NotApplicable => f.pad("n/a"),
            Self::NotRun(why) => f.pad(&format!("not run: {why}")),
        }
    }
}

/// Filled in while the cases run.
pub(crate) struct Table {
    runtimes: Vec<Runtime>,
    cases: Vec<Case>,
    cells: BTreeMap<(Runtime, Case), Cell>,
    /// Begun and not yet ended.
    running: Vec<(Runtime, Case)>,
}

impl Table {
    pub(crate) fn new(runtimes: Vec<Runtime>, cases: Vec<Case>) -> Self {
        Self { runtimes, cases, cells: BTreeMap::new(), running: vec![] }
    }

    /// What has no result yet.
    pub(crate) fn open(&self) -> Vec<(Runtime, Case)> {
        let all = self.runtimes.iter().flat_map(|runtime| self.cases.iter().map(|case| (*runtime, *case)));
        all.filter(|cell| !self.cells.contains_key(cell)).collect()
    }

    /// Whether it was asked for and can run.
    pub(crate) fn is_open(&self, runtime: Runtime, case: Case) -> bool {
        self.open().contains(&(runtime, case))
    }

    /// Runtimes of which anything has no result yet.
    pub(crate) fn runtimes_to_run(&self) -> Vec<Runtime> {
        let has_open = |runtime: &Runtime| self.open().iter().any(|(open, _)| open == runtime);
        self.runtimes.iter().copied().filter(has_open).collect()
    }

    pub(crate) fn begin(&mut self, runtime: Runtime, case: Case) {
        self.running.push((runtime, case));
    }

    pub(crate) fn put(&mut self, runtime: Runtime, case: Case, cell: Cell) {
        self.running.retain(|running| *running != (runtime, case));
        self.cells.insert((runtime, case), cell);
    }

    /// A column ended early. What ran in it has failed by that, and what had not begun never will; where nothing ran,
    /// the column itself did not come up, which fails all of it.
    pub(crate) fn close(&mut self, runtime: Runtime, why: &str) {
        let why = why.lines().next().unwrap_or_default();
        let of_it = |(of, _): &(Runtime, Case)| *of == runtime;
        let running: Vec<_> = self.running.iter().copied().filter(of_it).collect();
        let open: Vec<_> = self.open().into_iter().filter(of_it).collect();
        for (_, case) in open {
            let failed = running.is_empty() || running.contains(&(runtime, case));
            let after = || Cell::NotRun(format!("an earlier case failed: {why}"));
            self.put(runtime, case, if failed { Cell::Failed(why.into()) } else { after() });
        }
    }

    pub(crate) fn has_failed(&self, runtime: Runtime) -> bool {
        self.cells.iter().any(|((of, _), cell)| *of == runtime && matches!(cell, Cell::Failed(_)))
    }

    pub(crate) fn exit_code(&self) -> u8 {
        let any = |wanted: fn(&Cell) -> bool| self.cells.values().any(wanted) || !self.open().is_empty();
        if self.cells.values().any(|cell| matches!(cell, Cell::Failed(_))) {
            1
        } else if any(|cell| matches!(cell, Cell::NotRun(_))) {
            3
        } else {
            0
        }
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match self.exit_code() {
            0 => "every case came back",
            1 => "failed",
            _ => "not everything was run",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_cases = self.cases.iter().map(|case| case.name().len()).max().unwrap_or_default();
        // A reason may be long; what succeeds is not, and lines up.
        let of_cells = "ok 100.0 of 100.0 s".len();
        let mut line = format!("{:<of_cases$}", "case");
        line.extend(self.runtimes.iter().map(|runtime| format!("  {:<of_cells$}", runtime.name())));
        writeln!(f, "{}", line.trim_end())?;
        for case in &self.cases {
            let mut line = format!("{:<of_cases$}", case.name());
            for runtime in &self.runtimes {
                let nothing = Cell::NotRun("no result".into());
                let cell = self.cells.get(&(*runtime, *case)).unwrap_or(&nothing);
                line += &format!("  {cell:<of_cells$}");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_cell_decides_the_exit_code() {
        let cases = [Case::RunningPastTtl, Case::VmmKilled];
        let mut table = Table::new(vec![Runtime::Fake], cases.to_vec());
        assert_eq!(table.exit_code(), 3, "no result is no success");
        let second = Duration::from_secs(1);
        table.put(Runtime::Fake, Case::RunningPastTtl, Cell::Ok { took: second, bound: second });
        table.put(Runtime::Fake, Case::VmmKilled, Cell::NotApplicable);
        assert_eq!(table.exit_code(), 0);
        table.put(Runtime::Fake, Case::VmmKilled, Cell::NotRun("why".into()));
        assert_eq!(table.exit_code(), 3);
        table.put(Runtime::Fake, Case::RunningPastTtl, Cell::Failed("why".into()));
        assert_eq!(table.exit_code(), 1);
    }

    #[test]
    fn an_early_end_is_a_failure_of_what_was_running_in_that_column() {
        let mut table = Table::new(vec![Runtime::Vm, Runtime::Fake], vec![Case::RunningPastTtl, Case::VmmKilled]);
        table.begin(Runtime::Fake, Case::VmmKilled);
        table.close(Runtime::Fake, "a panic\nwith more to say");
        assert_eq!(table.open(), [(Runtime::Vm, Case::RunningPastTtl), (Runtime::Vm, Case::VmmKilled)]);
        table.close(Runtime::Vm, "no gateway");
        assert_eq!(
            table.to_string(),
            "case              vm                   fake\n\
             running-past-ttl  FAILED: no gateway   not run: an earlier case failed: a panic\n\
             vmm-killed        FAILED: no gateway   FAILED: a panic\n"
        );
    }
}
