//! The identity directory, and the boot spec in it.

use std::path::Path;
use std::time::Duration;

use proto::boot::BootSpec;
use proto::{budget, layout};
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use secrecy::ExposeSecret as _;

use super::mounts::{close_directory, make_root_held};
use super::{Fault, Machine};
use crate::session::endpoint::Endpoints;
use crate::sys::clock;
use crate::token::reader::read_listed;

const FLAGS: MountFlags =
    MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Whether the vmm has the share at all: a kernel mounts by a tag, and there is no list of tags.
pub(super) fn is_offered() -> bool {
    let mounted = rustix::mount::mount(layout::IDENTITY_TAG, layout::STAGING, "virtiofs", FLAGS, None).is_ok();
    mounted && unmount(layout::STAGING, UnmountFlags::DETACH).is_ok()
}

pub(super) fn mount(_: &mut Machine) -> Result<(), Fault> {
    let directory = Path::new(layout::IDENTITY_DIR);
    make_root_held(directory, 0o755)?;
    if let Some(parent) = directory.parent() {
        close_directory(parent)?;
    }
    rustix::mount::mount(layout::IDENTITY_TAG, directory, "virtiofs", FLAGS, None).map_err(|errno| {
        Fault::new(format!("virtio-fs share {} on {}", layout::IDENTITY_TAG, directory.display()), errno)
    })
}

pub(super) fn read_spec(machine: &mut Machine) -> Result<(), Fault> {
    let failed = |cause: &dyn std::fmt::Display| Fault::new(layout::BOOT_SPEC_FILE, cause);
    let content = read_listed(Path::new(layout::IDENTITY_DIR), layout::BOOT_SPEC_FILE, budget::BOOT_SPEC_MAX)
        .map_err(|error| failed(&error))?;
    machine.spec = Some(parse(content.expose_secret()).map_err(|cause| failed(&cause))?);
    Ok(())
}

/// The spec, if it is one that this agent can serve.
pub(super) fn parse(content: &[u8]) -> Result<BootSpec, String> {
    // Where it is wrong, not what stands there: there is a key in it.
    let spec: BootSpec = serde_json::from_slice(content)
        .map_err(|error| format!("not a boot spec, line {} column {}", error.line(), error.column()))?;
    if spec.user.uid == 0 || spec.user.gid == 0 {
        return Err("the workload's user is root, but must not be".to_owned());
    }
    if spec.user.uid == u32::MAX || spec.user.gid == u32::MAX {
        return Err("the workload's user has an id that no user can have".to_owned());
    }
    if spec.instance_id.is_empty() {
        return Err("the instance id is empty".to_owned());
    }
    if spec.main.as_ref().is_some_and(|main| main.argv.is_empty()) {
        return Err("the main process has no program".to_owned());
    }
    Endpoints::of(&spec)?;
    Ok(spec)
}

pub(super) fn set_clock(machine: &mut Machine) -> Result<(), Fault> {
    let Some(spec) = &machine.spec else { return Ok(()) };
    let host = Duration::from_millis(spec.wall_time_ms);
    if clock::wall() >= host {
        return Ok(());
    }
    clock::set_wall(host).map_err(|error| Fault::new("the wall clock", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"{"sandbox_id":"00000000-0000-0000-0000-000000000007","instance_id":"1-a","hostname":"dev",
        "endpoint":"vsock://2:5100","wall_time_ms":0,"ssh_host_key":"SECRET","user":{"uid":1000,"gid":1000},
        "main":{"argv":["true"],"tty":false,"await_attachment":false},"of_a_later_version":1}"#;

    #[test]
    fn a_spec_that_cannot_be_served_is_refused() {
        assert!(parse(SPEC.as_bytes()).is_ok());
        for (part, broken) in [
            (r#""uid":1000"#, r#""uid":0"#),
            (r#""gid":1000"#, r#""gid":4294967295"#),
            (r#""instance_id":"1-a""#, r#""instance_id":"""#),
            (r#"["true"]"#, "[]"),
            ("vsock://2:5100", "https://example.org"),
            (r#""hostname":"dev","#, ""),
        ] {
            let error = parse(SPEC.replace(part, broken).as_bytes()).unwrap_err();
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}
