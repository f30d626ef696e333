//! The real store, with a switch that makes its writes fail.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use host::rotation::rotor::Generations;
use host::sandbox::record::{Record, Store, StoreError};
use host::store::sqlite::SqliteStore;
use uuid::Uuid;

pub(crate) struct FlakyStore {
    inner: SqliteStore,
    failing: AtomicU32,
}

impl FlakyStore {
    pub(crate) fn open(state_dir: &Path) -> Self {
        Self { inner: SqliteStore::open(state_dir).expect("open the store"), failing: AtomicU32::new(0) }
    }

    pub(crate) fn gateway_id(&self) -> Uuid {
        self.inner.gateway_id()
    }

    /// The next so many updates fail.
    pub(crate) fn fail_updates(&self, count: u32) {
        self.failing.store(count, Ordering::SeqCst);
    }

    /// How many of them are still to come.
    pub(crate) fn failures_left(&self) -> u32 {
        self.failing.load(Ordering::SeqCst)
    }

    pub(crate) fn has(&self, sandbox_id: Uuid) -> bool {
        self.load().expect("read the store").iter().any(|record| record.id == sandbox_id)
    }
}

impl Store for FlakyStore {
    fn load(&self) -> Result<Vec<Record>, StoreError> {
        self.inner.load()
    }

    fn insert(&self, record: &Record) -> Result<(), StoreError> {
        self.inner.insert(record)
    }

    fn update(&self, record: &Record) -> Result<(), StoreError> {
        let take = |left: u32| left.checked_sub(1);
        match self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Err(StoreError::Failed("the disk is full".into())),
            Err(_) => self.inner.update(record),
        }
    }

    fn remove(&self, sandbox_id: Uuid) -> Result<(), StoreError> {
        self.inner.remove(sandbox_id)
    }
}

impl Generations for FlakyStore {
    fn reserve(&self, sandbox_id: Uuid, count: u64) -> Result<Range<u64>, String> {
        self.inner.reserve(sandbox_id, count)
    }
}
