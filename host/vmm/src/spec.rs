//! Reading and checking what the gateway asks for.

use std::{
    io::Read,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proto::{
    layout,
    vmm::{Failure, MEMORY_MIB, VCPUS, VmmSpec},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::failure;

/// How long the caller may take to hand the spec over.
const HAND_OVER: Duration = Duration::from_secs(10);
const SPEC_MAX: usize = 64 * 1024;

/// What the jailed child needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JailSpec {
    /// Must still be the parent when the jail stands.
    pub(crate) keeper_pid: i32,
    pub(crate) agent: PathBuf,
    pub(crate) libkrunfw: Option<PathBuf>,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// As whom, where the keeper is root.
    pub(crate) uid: u32,
    /// Nothing for a probe.
    pub(crate) sandbox: Option<SandboxFiles>,
}

/// The only files of the host that enter a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxFiles {
    pub(crate) image: PathBuf,
    pub(crate) share: PathBuf,
    pub(crate) ctl: PathBuf,
}

/// Reads a document to its end, which must come in time.
pub(crate) fn read_to_end<R: Read + AsFd>(mut from: R) -> Result<Vec<u8>, Failure> {
    let deadline = Instant::now() + HAND_OVER;
    let mut document = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(failure::spec(format!("the spec did not end within {} s", HAND_OVER.as_secs()))),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(failure::spec(format!("failed to wait for the spec: {error}"))),
        }
        match from.read(&mut chunk) {
            Ok(0) => return Ok(document),
            Ok(n) => document.extend_from_slice(&chunk[..n]),
            Err(error) => return Err(failure::spec(format!("failed to read the spec: {error}"))),
        }
        if document.len() > SPEC_MAX {
            return Err(failure::spec(format!("the spec is longer than {SPEC_MAX} bytes")));
        }
    }
}

/// Parses a spec and looks at everything in it that can be looked at.
pub(crate) fn parse(document: &[u8]) -> Result<VmmSpec, Failure> {
    let spec: VmmSpec =
        serde_json::from_slice(document).map_err(|error| failure::spec(format!("the spec is not valid: {error}")))?;
    check_numbers(&spec)?;
    file("image", &spec.image)?;
    file("agent", &spec.agent)?;
    for name in [layout::SHARE_DIR, layout::CTL_DIR, layout::RUN_DIR] {
        directory(&spec.runtime_dir.join(name))?;
    }
    Ok(spec)
}

fn check_numbers(spec: &VmmSpec) -> Result<(), Failure> {
    if !VCPUS.contains(&spec.vcpus) {
        let (least, most) = (VCPUS.start(), VCPUS.end());
        return Err(failure::spec(format!("{} vCPUs asked for; from {least} to {most} are possible", spec.vcpus)));
    }
    if !MEMORY_MIB.contains(&spec.memory_mib) {
        let (asked, least, most) = (spec.memory_mib, MEMORY_MIB.start(), MEMORY_MIB.end());
        return Err(failure::spec(format!("{asked} MiB of memory asked for; from {least} to {most} are possible")));
    }
    if spec.jail_uid == 0 || spec.jail_uid == u32::MAX {
        return Err(failure::spec(format!("uid {} for the jail; it must be an unprivileged one", spec.jail_uid)));
    }
    Ok(())
}

fn file(what: &str, path: &Path) -> Result<(), Failure> {
    absolute(path)?;
    match path.metadata() {
        Ok(data) if data.is_file() => Ok(()),
        Ok(_) => Err(failure::spec(format!("the {what} {} is not a regular file", path.display()))),
        Err(error) => Err(failure::spec(format!("failed to look at the {what} {}: {error}", path.display()))),
    }
}

fn directory(path: &Path) -> Result<(), Failure> {
    absolute(path)?;
    match path.symlink_metadata() {
        Ok(data) if data.is_dir() => Ok(()),
        Ok(_) => Err(failure::spec(format!("{} is not a directory", path.display()))),
        Err(error) => Err(failure::spec(format!("failed to look at {}: {error}", path.display()))),
    }
}

fn absolute(path: &Path) -> Result<(), Failure> {
    // The keeper's working directory is `/`; a relative path would mean something else to it than to its caller.
    if path.is_absolute() { Ok(()) } else { Err(failure::spec(format!("{} is not absolute", path.display()))) }
}

#[cfg(test)]
mod tests {
    use proto::vmm::FailureKind;
    use uuid::Uuid;

    use super::*;

    fn valid(directory: &Path) -> VmmSpec {
        for name in [layout::SHARE_DIR, layout::CTL_DIR, layout::RUN_DIR] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
        }
        for name in ["image", "agent"] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        VmmSpec {
            sandbox_id: Uuid::nil(),
            instance_id: "1-x".to_owned(),
            image: directory.join("image"),
            agent: directory.join("agent"),
            libkrunfw: None,
            runtime_dir: directory.to_owned(),
            vcpus: 1,
            memory_mib: 256,
            jail_uid: 0x7f00_0000,
        }
    }

    fn refusal(change: impl Fn(&mut VmmSpec)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = valid(directory.path());
        change(&mut spec);
        let failure = parse(&serde_json::to_vec(&spec).unwrap()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Spec);
        failure.message
    }

    #[test]
    fn a_valid_spec_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let spec = valid(directory.path());
        assert_eq!(parse(&serde_json::to_vec(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn every_wrong_field_is_named() {
        assert!(refusal(|s| s.vcpus = 0).contains("0 vCPUs"));
        assert!(refusal(|s| s.vcpus = 33).contains("33 vCPUs"));
        assert!(refusal(|s| s.memory_mib = 127).contains("127 MiB"));
        assert!(refusal(|s| s.jail_uid = 0).contains("uid 0"));
        assert!(refusal(|s| s.jail_uid = u32::MAX).contains("uid 4294967295"));
        assert!(refusal(|s| s.image = "image".into()).contains("not absolute"));
        assert!(refusal(|s| s.image = s.runtime_dir.clone()).contains("not a regular file"));
        assert!(refusal(|s| s.agent = s.runtime_dir.join("none")).contains("failed to look at the agent"));
        assert!(refusal(|s| std::fs::remove_dir(s.runtime_dir.join("ctl")).unwrap()).contains("/ctl"));
    }

    #[test]
    fn unknown_fields_and_half_a_document_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&valid(directory.path())).unwrap();
        let with_more = text.replacen('{', "{\"seccomp\":true,", 1);
        assert!(parse(with_more.as_bytes()).unwrap_err().message.contains("seccomp"));
        assert!(parse(&text.as_bytes()[..text.len() / 2]).is_err());
    }
}
