//! Where the built programs are.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package has a parent").into()
}

/// The directory that `make build` fills: programs, agent, `libkrunfw.so.5` and `images/`.
pub fn directory() -> PathBuf {
    let named = std::env::var_os("OPENSHELL_DIST").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist-test"))
}

/// One of the programs, or a clear word on what to run first.
pub fn program(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(path.exists(), "{} is not built; run `make build`", path.display());
    path
}

/// The image that most tests run: small, so that it is quick to read.
pub fn test_image() -> PathBuf {
    program("images/test.erofs")
}

/// The image that a gateway uses where none is named.
pub fn default_image() -> PathBuf {
    program("images/debian.erofs")
}

/// The static program that tests run inside guests.
pub fn guest_probe() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/x86_64-unknown-linux-gnu/agent/guest-probe");
    assert!(target.exists(), "{} is not built; run `make build-test`", target.display());
    target
}

/// A program at `path` that a gateway takes for an agent: guest-probe, and what is appended to it.
pub fn probe_as_agent(path: &Path, appended: &[u8]) {
    let mut bytes = std::fs::read(guest_probe()).expect("read the probe");
    bytes.extend_from_slice(appended);
    std::fs::write(path, bytes).expect("write the agent");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
}
