//! What the jailed child may do: nothing that the VM does not need.

use std::fs;

use caps::{CapSet, Capability};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, fchown, getegid, geteuid, getppid, setgroups, setresgid, setresuid},
};
use proto::vmm::{Failure, FailureKind};

use crate::failure;

/// libkrun panics when it runs out of descriptors, and every vsock connection of the guest costs one.
const DESCRIPTORS: u64 = 65_536;

/// Who runs the keeper, and so which way leads to an unprivileged VM.
pub(super) enum Caller {
    /// Becomes `uid`, which nobody else has.
    Root { uid: u32 },
    /// Stays who it is, without any capability. Its supplementary groups stay, too: the kernel lets nobody drop
    /// them in such a namespace, and the group of `/dev/kvm` is among them.
    User { uid: u32, gid: u32 },
}

impl Caller {
    /// Enters namespaces of its own: mounts, IPC, host name and network (with no interface up).
    pub(super) fn unshare(jail_uid: u32) -> Result<Self, Failure> {
        let separate =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
        if geteuid().is_root() {
            unshare(separate).map_err(|error| failure::jail("enter new namespaces as root", error))?;
            return Ok(Self::Root { uid: jail_uid });
        }
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        unshare(CloneFlags::CLONE_NEWUSER | separate)
            .map_err(|error| failure::jail("enter a user namespace (the caller is not root)", error))?;
        // An unprivileged group map is accepted only from a process that can no longer drop groups.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1")),
            ("gid_map", format!("{gid} {gid} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| failure::jail(format!("write {file} of the user namespace"), error))?;
        }
        Ok(Self::User { uid, gid })
    }

    /// Lets the ids of the jail open standard output, a pipe, by its path.
    pub(super) fn own_console(&self) -> Result<(), Failure> {
        let Self::Root { uid } = self else { return Ok(()) };
        fchown(std::io::stdout(), Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*uid)))
            .map_err(|error| failure::jail("hand the console to the jail's uid", error))
    }

    pub(super) fn drop_privileges(&self) -> Result<(), Failure> {
        let failed = |error: caps::errors::CapsError| failure::jail("drop capabilities", error);
        // Needs CAP_SETPCAP, so before the others go.
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
        self.take_ids()?;
        for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            caps::clear(None, set).map_err(failed)?;
        }
        prctl::set_no_new_privs().map_err(|error| failure::jail("set no_new_privs", error))?;
        // No core dump and no ptrace by a process of the same uid. /proc/self/fd stays usable: a process may always
        // look at itself.
        prctl::set_dumpable(false).map_err(|error| failure::jail("make the process undumpable", error))?;
        check_powerless()
    }

    fn take_ids(&self) -> Result<(), Failure> {
        let (uid, gid) = match self {
            Self::Root { uid } => {
                setgroups(&[]).map_err(|error| failure::jail("drop supplementary groups", error))?;
                (*uid, *uid)
            }
            Self::User { uid, gid } => (*uid, *gid),
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setresgid(gid, gid, gid).map_err(|error| failure::jail(format!("become group {gid}"), error))?;
        setresuid(uid, uid, uid).map_err(|error| failure::jail(format!("become user {uid}"), error))
    }
}

/// Believes no return value: reads back what is left.
fn check_powerless() -> Result<(), Failure> {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Bounding, CapSet::Ambient] {
        let left = caps::read(None, set).map_err(|error| failure::jail("read capabilities back", error))?;
        if !left.is_empty() {
            let names: Vec<String> = left.iter().map(Capability::to_string).collect();
            return Err(failure::jail("drop capabilities", format!("{set:?} still has {}", names.join(" "))));
        }
    }
    if geteuid().is_root() {
        return Err(failure::jail("leave root", "the uid is still 0"));
    }
    Ok(())
}

/// Enough descriptors for a guest that opens many connections; no core file, which would hold guest memory.
pub(super) fn set_limits() -> Result<(), Failure> {
    let failed = |error| failure::jail("set resource limits", error);
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).map_err(|error| Failure {
        kind: FailureKind::Jail,
        message: format!(
            "failed to raise the limit of open files, {hard}, to the {DESCRIPTORS} that a VM needs: {error}"
        ),
        remedy: format!(
            "raise its hard limit for the gateway, for example LimitNOFILE={DESCRIPTORS} in its service's unit"
        ),
    })
}

/// The kernel kills this process when the keeper ends; if it ended already, nobody would.
pub(super) fn die_with(keeper_pid: i32) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| failure::jail("tie the VM to its keeper", error))?;
    if getppid().as_raw() != keeper_pid {
        return Err(failure::jail("tie the VM to its keeper", "the keeper is gone"));
    }
    Ok(())
}
