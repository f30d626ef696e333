//! The files of the checkout, as the rules look at them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use toml::{Table, Value};

pub(crate) fn root() -> PathBuf {
    let here = std::env::current_dir().expect("a current directory");
    let found = here.ancestors().find(|directory| directory.join("Cargo.lock").is_file());
    found.expect("run in the checkout").to_owned()
}

/// Every file that is or will be committed, relative to the root.
pub(crate) fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("run git: the rules are about the files of a checkout");
    assert!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    let names: BTreeSet<String> = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert!(names.contains("Cargo.toml"), "git lists no Cargo.toml");
    // A file that was deleted and not yet committed is still listed.
    names.into_iter().filter(|name| root().join(name).is_file()).collect()
}

pub(crate) fn files_with(extension: &str) -> Vec<String> {
    files().into_iter().filter(|name| name.ends_with(extension)).collect()
}

/// The text of a file; nothing where it is not text.
pub(crate) fn text(file: &str) -> Option<String> {
    String::from_utf8(fs::read(root().join(file)).unwrap_or_else(|error| panic!("failed to read {file}: {error}"))).ok()
}

pub(crate) fn read(file: &str) -> String {
    text(file).unwrap_or_else(|| panic!("{file} is not UTF-8"))
}

/// The lines of a Rust file without comments, numbered from 1.
pub(crate) fn code(file: &str) -> Vec<(usize, String)> {
    let text = read(file);
    let lines = text.lines().enumerate().map(|(number, line)| {
        let line = if line.trim_start().starts_with("//") { "" } else { line };
        (number + 1, line.split(" // ").next().unwrap_or_default().to_owned())
    });
    lines.collect()
}

pub(crate) fn manifest(directory: &str) -> Table {
    let file = if directory.is_empty() { "Cargo.toml".to_owned() } else { format!("{directory}/Cargo.toml") };
    read(&file).parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Dependencies of every kind: `(kind, name, how)`.
pub(crate) fn dependencies(manifest: &Table) -> Vec<(&'static str, String, Value)> {
    let mut tables = vec![manifest];
    if let Some(Value::Table(targets)) = manifest.get("target") {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let pairs = tables.into_iter().flat_map(|table| kinds.map(|kind| (kind, table.get(kind))));
    let entries = pairs.filter_map(|(kind, value)| Some((kind, value?.as_table()?)));
    entries
        .flat_map(|(kind, entries)| entries.iter().map(move |(name, how)| (kind, name.clone(), how.clone())))
        .collect()
}
