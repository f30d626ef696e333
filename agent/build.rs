//! The build id: a hash over everything that this agent is made of, so that a gateway can tell two builds of one version.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Sources, and what pins the dependencies.
const MADE_OF: [&str; 4] = ["src", "../proto/src", "../proto/openshell", "../Cargo.lock"];
/// Bytes of the hash that are told.
const LENGTH: usize = 8;

fn main() -> io::Result<()> {
    let mut files = Vec::new();
    for part in MADE_OF {
        println!("cargo::rerun-if-changed={part}");
        collect(Path::new(part), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.to_string_lossy().as_bytes());
        hash.update(Sha256::digest(fs::read(file)?));
    }
    let id: String = hash.finalize()[..LENGTH].iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=AGENT_BUILD={id}");
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
