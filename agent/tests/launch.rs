//! The binary as a program: what it refuses.

#![forbid(unsafe_code)]

use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_openshell-agent")).args(arguments).output().unwrap()
}

#[test]
fn it_tells_its_version_and_its_protocols() {
    let output = agent(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("openshell-agent ") && text.contains("(protocol 1-"), "{text}");
}

#[test]
fn it_is_nobody_elses_init() {
    for arguments in [&[][..], &["--help"], &["launch"], &["launch", "1000", "1000"]] {
        assert_eq!(agent(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn a_program_is_not_started_where_the_token_can_be_seen() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    // Not a mount point, so that nothing takes it away.
    let identity = tempfile::tempdir().unwrap();
    std::fs::write(identity.path().join(proto::layout::TOKEN_FILE), "a token").unwrap();
    let path = identity.path().to_str().unwrap();
    let output = agent(&["launch", "1000", "1000", "pipes", "", "/", path, "", "", "0", "echo", "started"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]), "{error}");
    assert!(error.contains("identity directory") || error.contains("Operation not permitted"), "{error}");
}
