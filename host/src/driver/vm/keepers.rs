//! The keepers of all sandboxes, as well as they can be known.
//!
//! The lock in `run/` tells who keeps a VM. It is a file, though, and somebody may remove it under a running VM,
//! with the whole directory or without. What then still knows the keeper, in this order: the pidfd that this driver
//! remembers since it started or found it, and, where the gateway was started anew since, the list of processes.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::layout;
use uuid::Uuid;

use super::{
    keeper::{Keeper, RunLock},
    orphan,
};

/// Until a keeper is looked for again that could not be looked for.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Keepers {
    /// The directory of all sandboxes.
    root: PathBuf,
    known: Mutex<HashMap<Uuid, Keeper>>,
}

impl Keepers {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default() }
    }

    pub(super) fn run_dir(&self, sandbox_id: Uuid) -> PathBuf {
        self.root.join(sandbox_id.to_string()).join(layout::RUN_DIR)
    }

    /// The keeper of this sandbox; nothing where it is certain that there is none.
    pub(super) fn find(&self, sandbox_id: Uuid) -> io::Result<Option<Keeper>> {
        let lock = Keeper::find(&self.run_dir(sandbox_id))?;
        if let RunLock::Held(keeper) = lock {
            self.remember(sandbox_id, &keeper);
            return Ok(Some(keeper));
        }
        // A lock that is free may be of a new file, and then says nothing about the keeper that held the old one.
        if let Some(keeper) = self.alive().get(&sandbox_id) {
            return keeper.try_clone().map(Some);
        }
        match lock {
            RunLock::Missing => Ok(orphan::search(&self.root, |id| id == sandbox_id)?.pop().map(|(_, keeper)| keeper)),
            _ => Ok(None),
        }
    }

    /// Keeps in mind who keeps this sandbox, unless that is known already.
    pub(super) fn remember(&self, sandbox_id: Uuid, keeper: &Keeper) {
        let mut alive = self.alive();
        // Without a descriptor to spare there is still the lock, and the next time that somebody looks.
        if let Some(keeper) = (!alive.contains_key(&sandbox_id)).then(|| keeper.try_clone().ok()).flatten() {
            alive.insert(sandbox_id, keeper);
        }
    }

    /// Waits until this sandbox has no keeper. Not to know is never taken for that.
    pub(super) async fn gone(&self, sandbox_id: Uuid) {
        let mut told = false;
        loop {
            let watched = match self.find(sandbox_id) {
                Ok(None) => break,
                Ok(Some(keeper)) => keeper.gone().await,
                Err(error) => Err(error),
            };
            let Err(error) = watched else { break };
            if !std::mem::replace(&mut told, true) {
                tracing::error!(sandbox = %sandbox_id, %error, "failed to watch a VM; trying until it can be watched");
            }
            tokio::time::sleep(AGAIN).await;
        }
        drop(self.alive());
    }

    /// Sandboxes whose VM runs although nothing else of them is left on this host.
    pub(super) fn orphans(&self, but: &[Uuid]) -> io::Result<Vec<Uuid>> {
        let found = orphan::search(&self.root, |id| !but.contains(&id))?;
        Ok(found.into_iter().map(|(id, _)| id).collect())
    }

    /// What is known, without those that ended.
    fn alive(&self) -> MutexGuard<'_, HashMap<Uuid, Keeper>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, keeper| keeper.is_alive());
        known
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::driver::vm::fake::FakeKeeper;

    const SANDBOX: Uuid = Uuid::from_u128(0x1d07_5e1d);

    fn started(root: &Path, keepers: &Keepers, jailed: Option<Uuid>) -> FakeKeeper {
        let run_dir = keepers.run_dir(SANDBOX);
        assert!(run_dir.starts_with(root));
        fs::create_dir_all(&run_dir).unwrap();
        FakeKeeper::start(&run_dir, jailed)
    }

    #[tokio::test]
    async fn a_keeper_whose_directory_was_removed_is_still_known() {
        let root = tempfile::tempdir().unwrap();
        let keepers = Keepers::new(root.path().to_owned());
        let mut fake = started(root.path(), &keepers, None);
        assert!(keepers.find(SANDBOX).unwrap().is_some());
        fs::remove_dir_all(root.path().join(SANDBOX.to_string())).unwrap();
        let keeper = keepers.find(SANDBOX).unwrap().expect("remembered");
        // A new file, which nobody has locked, does not make it forgotten.
        fs::create_dir_all(keepers.run_dir(SANDBOX)).unwrap();
        fs::write(keepers.run_dir(SANDBOX).join(layout::RUN_LOCK), "").unwrap();
        assert!(keepers.find(SANDBOX).unwrap().is_some());
        assert!(!fake.has_ended());
        let (ended, ()) = tokio::join!(keeper.end(), keepers.gone(SANDBOX));
        ended.unwrap();
        assert!(keepers.find(SANDBOX).unwrap().is_none());
        assert!(keepers.known.lock().unwrap().is_empty());
        assert!(fake.has_ended());
    }

    #[tokio::test]
    async fn an_orphan_is_found_by_a_gateway_that_never_saw_its_lock() {
        let root = tempfile::tempdir().unwrap();
        let keepers = Keepers::new(root.path().to_owned());
        let mut fake = started(root.path(), &keepers, Some(SANDBOX));
        fs::remove_dir_all(root.path().join(SANDBOX.to_string())).unwrap();
        assert_eq!(keepers.orphans(&[]).unwrap(), [SANDBOX]);
        assert!(keepers.orphans(&[SANDBOX]).unwrap().is_empty());
        // Of another gateway.
        let other = tempfile::tempdir().unwrap();
        assert!(Keepers::new(other.path().to_owned()).find(SANDBOX).unwrap().is_none());
        keepers.find(SANDBOX).unwrap().expect("an orphan").end().await.unwrap();
        keepers.gone(SANDBOX).await;
        assert!(fake.has_ended());
        assert!(keepers.orphans(&[]).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_lock_that_cannot_be_asked_is_asked_again() {
        let root = tempfile::tempdir().unwrap();
        let keepers = Keepers::new(root.path().to_owned());
        // Not "not found": the directory of the sandbox is no directory.
        let in_the_way = root.path().join(SANDBOX.to_string());
        fs::write(&in_the_way, "").unwrap();
        assert!(keepers.find(SANDBOX).is_err());
        let mut gone = Box::pin(keepers.gone(SANDBOX));
        assert!(futures_util::poll!(&mut gone).is_pending());
        fs::remove_file(&in_the_way).unwrap();
        gone.await;
    }
}
