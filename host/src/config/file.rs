//! The layer of the file.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{Given, KEYS, Value};
use super::problem::{Origin, Problem};

/// Where the file is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// The path.
    pub path: PathBuf,
    /// Somebody named it: it must be there.
    pub named: bool,
}

/// What the file says; nothing where it is not there.
pub(super) fn read(place: &ConfigFile, problems: &mut Vec<Problem>) -> Given {
    match std::fs::read_to_string(&place.path) {
        Ok(text) => parse(&place.path, &text, problems),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && !place.named => Given::default(),
        Err(cause) => {
            let origin = Origin::File { path: place.path.clone(), line: 0 };
            problems.push(Problem::new(origin, format!("failed to read the configuration file: {cause}")));
            Given::default()
        }
    }
}

/// What `text` says, as the content of `path`.
pub(super) fn parse(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Given {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reading = Reading { path, text, given: Given::default(), problems };
    for error in &errors {
        reading.complain(error.span().unwrap_or(0..0), error.message().to_owned());
    }
    reading.table("", document.get_ref());
    reading.given
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    given: Given,
    problems: &'a mut Vec<Problem>,
}

impl Reading<'_> {
    fn origin(&self, span: Range<usize>) -> Origin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_path_buf(), line }
    }

    fn complain(&mut self, span: Range<usize>, message: String) {
        let origin = self.origin(span);
        self.problems.push(Problem::new(origin, message));
    }

    fn unknown(&mut self, span: Range<usize>, message: String) {
        let origin = self.origin(span);
        self.problems.push(Problem { origin, message, unknown: true });
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        // Maps are sorted by key; people read from the top.
        let mut entries = table.iter().collect::<Vec<_>>();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let path =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            let below = format!("{path}.");
            let is_table = KEYS.iter().any(|row| row.path.starts_with(&below));
            match (value.get_ref(), KEYS.iter().find(|row| row.path == path)) {
                (DeValue::Table(inner), _) if is_table => self.table(&path, inner),
                (_, _) if is_table => self.complain(key.span(), format!("`{path}` is a table: write `[{path}]`")),
                (value, Some(row)) => match text_of(value) {
                    Some(text) => {
                        self.given.insert(row.key, Value { text, origin: self.origin(key.span()) });
                    }
                    None => {
                        let found = value.type_str();
                        self.complain(
                            key.span(),
                            format!("`{path}` is {found}; write a string, a whole number or a boolean"),
                        );
                    }
                },
                (DeValue::Table(_), None) => self.unknown(key.span(), unknown("table", &path)),
                (_, None) => self.unknown(key.span(), unknown("key", &path)),
            }
        }
    }
}

fn text_of(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

fn unknown(what: &str, path: &str) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let misplaced = || KEYS.iter().map(|row| row.path).find(|known| last(known) == last(path));
    let misspelt = || {
        let tables = KEYS.iter().filter_map(|row| row.path.rsplit_once('.')).map(|(table, _)| table);
        let candidates = KEYS.iter().map(|row| row.path).chain(tables);
        let nearest = candidates.map(|known| (strsim::damerau_levenshtein(known, path), known)).min()?;
        (nearest.0 <= 3).then_some(nearest.1)
    };
    match misplaced().or_else(misspelt) {
        Some(known) => format!("unknown {what} `{path}`; did you mean `{known}`?"),
        None => format!("unknown {what} `{path}`"),
    }
}
