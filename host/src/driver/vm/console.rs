//! The console of a VM: its last lines for messages, and its bytes for who reads it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use proto::console::{self, HEADER};

/// Characters of a line that are shown.
const LINE_MAX: usize = 400;

/// What a guest printed is not trusted: its escape sequences never reach somebody's terminal.
pub(super) fn tail(file: &Path, lines: usize) -> String {
    let bytes = fs::read(file).map(|content| console::unroll(&content)).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes), lines)
}

/// What is new since byte number `from`, and how many bytes there were in all. Cheap where nothing is new.
pub(super) fn since(file: &Path, from: u64) -> (Vec<u8>, u64) {
    let mut content = vec![0; HEADER];
    let Ok(mut file) = File::open(file) else { return (vec![], 0) };
    if file.read_exact(&mut content).is_err() || console::total(&content) == Some(from) {
        return (vec![], console::total(&content).unwrap_or_default());
    }
    if file.read_to_end(&mut content).is_err() {
        return (vec![], from);
    }
    (console::since(&content, from), console::total(&content).unwrap_or_default())
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
