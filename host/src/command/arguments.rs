//! Arguments that several verbs share.

use std::collections::HashMap;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::openshell::datamodel::v1::{WorkspaceSelector, workspace_selector::Selection};

use super::console::Terminals;
use super::detach::DetachKeys;

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For scripts; fields are added, never changed.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Output {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Tty {
    /// Run on a terminal (default: where standard input and output are one)
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Run on pipes
    #[arg(long, overrides_with = "tty")]
    no_tty: bool,
}

impl Tty {
    /// Whether it was asked for.
    pub(crate) fn asked(&self) -> bool {
        self.tty
    }

    pub(crate) fn wanted(&self, terminals: Terminals) -> bool {
        self.tty || (!self.no_tty && terminals.stdin && terminals.stdout)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Variables {
    /// Environment variable; may be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

impl Variables {
    pub(crate) fn to_map(&self) -> HashMap<String, String> {
        self.env.iter().cloned().collect()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// Keys that detach from the main process and leave it running; `none` for no keys
    #[arg(long = "detach-keys", value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) keys: DetachKeys,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// A deadline as an argument.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("write a duration like 90s or 2m".to_owned()),
    }
}

/// The one workspace that there is.
pub(crate) fn workspace() -> Option<WorkspaceSelector> {
    Some(WorkspaceSelector { selection: Some(Selection::Workspace("default".to_owned())) })
}
