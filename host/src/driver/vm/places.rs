//! The directories of sandboxes below `<runtime>/vm/`.
//!
//! ```text
//! <id>/        0700   gateway
//!   stage/            rotation's         files are written here and renamed into share/
//!   share/            rotation's         what the guest sees; never made or touched here: a running guest pins it
//!   ctl/       0710   gateway : jail id  holds the socket; the directory is what guards it
//!   run/       0700   gateway            the keeper's lock, console and exit record
//! ```
//!
//! Where the gateway is root every sandbox has a numeric id of its own, as uid and gid. It is the group of `ctl/`,
//! and stands nowhere else. Where the gateway is not root, all belongs to its user, with the same modes.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Mutex,
};

use proto::layout;
use uuid::Uuid;

use crate::sandbox::driver::{DriverError, DriverReason, Places};

/// As many ids as one range of jails has.
const JAIL_IDS: u32 = 1 << 24;

pub(super) struct Sandboxes {
    root: PathBuf,
    /// The first id of jails; nothing where this process is not root.
    base: Option<u32>,
    /// Held while an id is chosen, so that two sandboxes never take the same one.
    choosing: Mutex<()>,
}

impl Sandboxes {
    pub(super) fn new(root: PathBuf, base: Option<u32>) -> Self {
        Self { root, base, choosing: Mutex::new(()) }
    }

    pub(super) fn directory(&self, sandbox_id: Uuid) -> PathBuf {
        self.root.join(sandbox_id.to_string())
    }

    pub(super) fn prepare(&self, sandbox_id: Uuid) -> Result<Places, DriverError> {
        let directory = self.directory(sandbox_id);
        let failed = |error| failure("make the directories", sandbox_id, &directory, error);
        make(&self.root, 0o700, None).map_err(failed)?;
        make(&directory, 0o700, None).map_err(failed)?;
        make(&directory.join(layout::RUN_DIR), 0o700, None).map_err(failed)?;
        let id = self.choose_id(sandbox_id).map_err(failed)?;
        Ok(Places {
            owner: id.map(|id| (id, id)),
            endpoint: format!("vsock://{}:{}", layout::HOST_CID, layout::CONTROL_PORT),
            socket: directory.join(layout::CTL_DIR).join(layout::CTL_SOCKET),
            directory,
        })
    }

    /// The id of a prepared sandbox.
    pub(super) fn jail_uid(&self, sandbox_id: Uuid) -> Result<Option<u32>, DriverError> {
        if self.base.is_none() {
            return Ok(None);
        }
        let ctl = self.directory(sandbox_id).join(layout::CTL_DIR);
        match ctl.metadata() {
            Ok(data) => Ok(Some(data.gid())),
            Err(error) => Err(failure("look at the directories", sandbox_id, &ctl, error)),
        }
    }

    fn choose_id(&self, sandbox_id: Uuid) -> io::Result<Option<u32>> {
        let ctl = self.directory(sandbox_id).join(layout::CTL_DIR);
        let Some(base) = self.base else { return make(&ctl, 0o710, None).map(|()| None) };
        let _one = self.choosing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let group = |path: PathBuf| path.metadata().ok().map(|data| data.gid()).filter(|gid| *gid >= base);
        let own = group(ctl.clone());
        let id = own.unwrap_or_else(|| {
            let others = self.found().into_iter().filter(|id| *id != sandbox_id);
            let taken = others.filter_map(|id| group(self.directory(id).join(layout::CTL_DIR))).collect();
            choose(base, sandbox_id, &taken)
        });
        make(&ctl, 0o710, Some(id)).map(|()| Some(id))
    }

    pub(super) fn found(&self) -> Vec<Uuid> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut ids: Vec<Uuid> = names.filter_map(|name| Uuid::parse_str(name.to_str()?).ok()).collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn remove(&self, sandbox_id: Uuid) -> Result<(), DriverError> {
        let directory = self.directory(sandbox_id);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failure("remove the directories", sandbox_id, &directory, error))
            }
            _ => Ok(()),
        }
    }
}

/// The id that the sandbox's UUID leads to, or the next free one.
fn choose(base: u32, sandbox_id: Uuid, taken: &BTreeSet<u32>) -> u32 {
    let first = (sandbox_id.as_u128() % u128::from(JAIL_IDS)) as u32;
    let candidates = (0..JAIL_IDS).map(|step| base + (first + step) % JAIL_IDS);
    // More live sandboxes than ids do not fit a host.
    candidates.into_iter().find(|id| !taken.contains(id)).unwrap_or(base + first)
}

/// A directory with exactly this mode and group, whether it is there or not. Never a symbolic link.
fn make(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if !path.symlink_metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a directory", path.display())));
    }
    if group.is_some() {
        chown(path, None, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn failure(act: &str, sandbox_id: Uuid, path: &Path, error: io::Error) -> DriverError {
    DriverError {
        reason: DriverReason::Runtime,
        message: format!("failed to {act} of sandbox {sandbox_id} at {}: {error}", path.display()),
        remedy: "make sure that the runtime directory is the gateway's own and has room".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_stable_unless_another_sandbox_has_it() {
        let (base, sandbox) = (0x7f00_0000, Uuid::from_u128(0xffff_ffff));
        let first = choose(base, sandbox, &BTreeSet::new());
        assert_eq!(first, base + 0xff_ffff);
        assert_eq!(choose(base, sandbox, &BTreeSet::from([first])), base);
        assert_eq!(choose(base, sandbox, &BTreeSet::from([first, base])), base + 1);
    }

    #[test]
    fn prepare_is_idempotent_and_remove_leaves_nothing() {
        let runtime = tempfile::tempdir().unwrap();
        let base = rustix::process::geteuid().is_root().then_some(0x7f00_0000);
        let sandboxes = Sandboxes::new(runtime.path().join("vm"), base);
        // Both lead to the same id.
        let (one, two) = (Uuid::from_u128(5), Uuid::from_u128(5 + (1 << 24)));
        let places = sandboxes.prepare(one).unwrap();
        assert_eq!(sandboxes.prepare(one).unwrap(), places);
        assert_eq!(places.endpoint, "vsock://2:5100");
        assert!(places.socket.ends_with("ctl/gateway.sock"));
        for (name, mode) in [("ctl", 0o710), ("run", 0o700)] {
            let data = places.directory.join(name).metadata().unwrap();
            assert_eq!(data.mode() & 0o7777, mode, "{name}");
        }
        let other = sandboxes.prepare(two).unwrap();
        if base.is_some() {
            assert_eq!(places.owner, Some((0x7f00_0005, 0x7f00_0005)));
            assert_eq!(other.owner, Some((0x7f00_0006, 0x7f00_0006)));
            assert_eq!(sandboxes.jail_uid(two).unwrap(), Some(0x7f00_0006));
        }
        assert_eq!(sandboxes.found(), [one, two]);
        sandboxes.remove(one).unwrap();
        sandboxes.remove(one).unwrap();
        assert_eq!(sandboxes.found(), [two]);
    }
}
