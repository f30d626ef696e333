//! The agent's last line on the console, after which it ends the machine because the main process has ended.
//!
//! The end is reported by RPC. Where no gateway took the report for as long as the machine waits, the next gateway finds
//! an exit record, whose code alone says nothing: a guest that dies early leaves 0, too. Record and line together do.

use serde::{Deserialize, Serialize};

const OPENING: &str = "openshell-agent: last words ";

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// Of the main process.
    pub exit_code: i32,
    /// Not 0: it ended so often in a row, too soon after its start.
    pub crash_loop: u32,
}

impl LastWords {
    /// The line.
    pub fn encode(&self) -> String {
        format!("{OPENING}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The last such line of a console.
    pub fn find(console: &str) -> Option<Self> {
        let mut lines = console.lines().rev().filter_map(|line| line.split_once(OPENING));
        serde_json::from_str(lines.next()?.1.trim()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_among_the_kernels_lines() {
        let said = LastWords { exit_code: 42, crash_loop: 0 };
        let last = LastWords { exit_code: 1, crash_loop: 8 };
        let console =
            format!("booted\n{}\n[ 1.5] {}\r\n[ 2.0] reboot: Restarting system\n", said.encode(), last.encode());
        assert_eq!(LastWords::find(&console), Some(last));
        assert_eq!(LastWords::find("openshell-agent: last words {\"exit_code\":\n"), None);
        assert_eq!(LastWords::find("reboot: Restarting system"), None);
    }
}
