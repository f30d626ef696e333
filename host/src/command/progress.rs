//! What people see while they wait: a spinner on a terminal, else a line now and then. Only on standard error.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::console::Console;
use super::table::printable;

/// Lines of a log are not written more often than this.
const LINES: Duration = Duration::from_secs(10);
const SPIN: Duration = Duration::from_millis(120);

/// See the module. Gone when it is dropped.
pub(crate) struct Progress {
    what: String,
    state: String,
    began: Instant,
    spinner: Option<ProgressBar>,
    next_line: Instant,
}

impl Progress {
    pub(crate) fn new(what: String, console: &Console) -> Self {
        let began = Instant::now();
        let spinner = console.terminals.stderr.then(|| {
            let spinner = ProgressBar::new_spinner().with_message(what.clone());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(SPIN);
            spinner
        });
        Self { what, state: String::new(), began, spinner, next_line: began + LINES }
    }

    /// What is known now.
    pub(crate) fn state(&mut self, state: &str) {
        self.state = printable(state);
        if let Some(spinner) = &self.spinner {
            spinner.set_message(self.message());
        }
    }

    /// Called at least every second.
    pub(crate) async fn tick(&mut self, console: &mut Console) {
        let now = Instant::now();
        if self.spinner.is_none() && now >= self.next_line {
            self.next_line = now + LINES;
            let waited = now.duration_since(self.began).as_secs();
            console.note(&format!("{} ({waited} s)", self.message())).await;
        }
    }

    fn message(&self) -> String {
        if self.state.is_empty() { self.what.clone() } else { format!("{}: {}", self.what, self.state) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
