//! Files of environment variables: a line `KEY=VALUE` each, the value exactly as it stands there; empty lines and
//! those that begin with `#` say nothing.

use std::path::Path;

use super::exit::ExitCode;
use super::failure::CommandError;

/// The variables of a file, in its order.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, String)>, CommandError> {
    let failed = |cause: String| {
        CommandError::new(ExitCode::Usage, format!("failed to read the environment file {}: {cause}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|cause| failed(cause.to_string()))?;
    parse(&text).map_err(|(line, why)| failed(format!("line {line}: {why}; write lines like KEY=VALUE")))
}

fn parse(text: &str) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| variable(line).map_err(|why| (number, why))).collect()
}

fn variable(line: &str) -> Result<(String, String), &'static str> {
    let (key, value) = line.split_once('=').ok_or("there is no `=`")?;
    if key.is_empty() {
        return Err("there is nothing before the `=`");
    }
    if key.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err("a name has no blanks");
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables_and_values_are_kept() {
        let text = "# a comment\n\nA=1\r\nB= two = 2 # all of it\nC=\n";
        let expected = [("A", "1"), ("B", " two = 2 # all of it"), ("C", "")];
        assert_eq!(parse(text).unwrap(), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_mistake_has_a_line() {
        for (text, line) in [("A=1\nB\n", 2), ("=1", 1), ("#\n\nexport A=1", 3)] {
            assert_eq!(parse(text).unwrap_err().0, line, "{text}");
        }
    }

    #[test]
    fn the_message_names_the_file_and_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vars");
        std::fs::write(&path, "A=1\nB\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("vars: line 2: there is no `=`; write"), "{error}");
        assert!(read(&directory.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
