//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

use super::keys::{CONFIG_VARIABLE, Key};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, by its long name.
    Flag(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// A line of the file, counted from 1; 0 for the file as a whole.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// Nothing was configured.
    Default(Key),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Environment(variable) => f.write_str(variable),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default(key) => write!(f, "default of {}", key.row().path),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, and what would be right.
    pub message: String,
    /// The key is not one of this program: the file may be somebody else's.
    pub unknown: bool,
}

impl Problem {
    /// A value that cannot be used.
    pub fn new(origin: Origin, message: String) -> Self {
        Self { origin, message, unknown: false }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// All mistakes of a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order file, environment, flags, then by key.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {}", count(self.problems.len()))?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        if self.problems.iter().any(|problem| problem.unknown) {
            write!(
                f,
                "\nIf the file belongs to another product, leave it as it is and name one of your own (it may be \
                 empty) in {CONFIG_VARIABLE} or with --config."
            )?;
        }
        Ok(())
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "one mistake:".to_owned() } else { format!("{problems} mistakes:") }
}

impl std::error::Error for ConfigError {}
