//! The console's last lines, for people.

use std::{fs, path::Path};

/// Characters of a line that are shown.
const LINE_MAX: usize = 400;

/// What a guest printed is not trusted: its escape sequences never reach somebody's terminal.
pub(super) fn tail(file: &Path, lines: usize) -> String {
    let bytes = fs::read(file).map(|content| proto::console::unroll(&content)).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes), lines)
}

fn last_lines(text: &str, lines: usize) -> String {
    let mut last: Vec<String> =
        text.lines().map(printable).filter(|line| !line.trim().is_empty()).rev().take(lines).collect();
    last.reverse();
    last.join("\n")
}

fn printable(line: &str) -> String {
    line.trim_end().chars().take(LINE_MAX).map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_come_without_control_characters() {
        let text = "one\r\n\r\ntwo\n\x1b[2Jthree\tx\n   \n";
        assert_eq!(last_lines(text, 2), "two\n\u{fffd}[2Jthree\tx");
        assert_eq!(last_lines(text, 9), "one\ntwo\n\u{fffd}[2Jthree\tx");
        assert_eq!(last_lines("", 5), "");
        assert_eq!(tail(Path::new("/nowhere"), 5), "");
    }
}
