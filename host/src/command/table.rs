//! Columns for people.

/// Rows below a header, two spaces between columns, nothing at the ends of lines.
pub(crate) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let header = header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let all = std::iter::once(&header).chain(rows).map(|row| row.iter().map(|cell| printable(cell)).collect());
    let all = all.collect::<Vec<Vec<String>>>();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let width = all.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count()).max();
            line.push_str(&format!("{cell:<width$}  ", width = width.unwrap_or(0)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one pair a line.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| {
        format!("{:<width$}  {}", format!("{name}:"), printable(value)).trim_end().to_owned() + "\n"
    };
    pairs.iter().map(line).collect()
}

/// Text that a guest may have written, without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Several lines of it, indented.
pub(crate) fn indented(text: &str, by: &str) -> String {
    text.lines().map(|line| format!("\n{by}{}", printable(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = columns(&["NAME", "PHASE", "AGE"], &[row(["a", "Ready", ""]), row(["längste", "Error", "2m"])]);
        assert_eq!(text, "NAME     PHASE  AGE\na        Ready\nlängste  Error  2m\n");
        assert_eq!(columns(&["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn terminals_are_not_steered_by_what_guests_write() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c"), "a\u{fffd}[2Jb\u{fffd}c");
        assert_eq!(indented("a\n\x07b", "  "), "\n  a\n  \u{fffd}b");
        assert_eq!(pairs(&[("a", "1\n2".into()), ("long", String::new())]), "a:     1\u{fffd}2\nlong:\n");
    }
}
