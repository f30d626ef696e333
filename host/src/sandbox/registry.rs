//! All sandboxes of a gateway, by id and by name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use proto::openshell::v1::CreateSandboxRequest;
use uuid::Uuid;

use super::decide::Machine;
use super::driver::{Compute, DriverError};
use super::record::{Record, StoreError};
use super::spec::{Bounds, check};
use super::task::{Beginning, Deps, Handle, spawn};
use super::view::wall_ms;

/// Why a sandbox was not created.
#[derive(Debug)]
pub enum CreateError {
    /// Field and rule.
    Invalid(String),
    /// The name is taken.
    NameTaken(String),
    /// The driver cannot do it.
    Driver(DriverError),
    /// The store failed.
    Store(String),
}

type Map = Arc<RwLock<HashMap<Uuid, Handle>>>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    deps: Arc<Deps>,
    bounds: Bounds,
    sandboxes: Map,
}

impl Registry {
    /// Empty; [`Registry::adopt`] fills it from the store.
    pub fn new(deps: Arc<Deps>, bounds: Bounds) -> Self {
        Self { deps, bounds, sandboxes: Map::default() }
    }

    /// Takes over every sandbox of the store, and clears what belongs to none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn adopt(&self) -> Result<usize, StoreError> {
        let records = self.deps.store.load()?;
        let known: Vec<Uuid> = records.iter().map(|record| record.id).collect();
        let count = records.len();
        for record in records {
            self.spawn(record, Beginning::Found);
        }
        for stray in self.deps.driver.found().into_iter().filter(|id| !known.contains(id)) {
            self.clear(stray).await;
        }
        Ok(count)
    }

    /// A runtime directory without a record: a create that was cut short, or a state directory that was replaced.
    async fn clear(&self, stray: Uuid) {
        tracing::warn!(sandbox = %stray, "removing a runtime directory that belongs to no sandbox");
        let cleared = async {
            if self.deps.driver.is_running(stray) {
                let gone = self.deps.driver.wait_gone(stray);
                self.deps.driver.kill(stray).await?;
                gone.await;
            }
            self.deps.driver.remove(stray).await
        };
        if let Err(error) = cleared.await {
            tracing::error!(sandbox = %stray, %error, "failed to remove it");
        }
    }

    /// Checks everything, then records the sandbox and lets its task launch it.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is left behind.
    pub async fn create(&self, request: &CreateSandboxRequest) -> Result<Handle, CreateError> {
        let spec = check(request, &self.bounds).map_err(CreateError::Invalid)?;
        if self.named(&request.name).is_some() {
            return Err(CreateError::NameTaken(request.name.clone()));
        }
        let id = Uuid::new_v4();
        let compute =
            Compute { sandbox_id: id, image: spec.image.clone(), vcpus: spec.vcpus, memory_mib: spec.memory_mib };
        self.deps.driver.validate(&compute).await.map_err(CreateError::Driver)?;
        let now = wall_ms(&*self.deps.clock);
        let record = Record {
            id,
            name: request.name.clone(),
            spec,
            created_ms: now,
            version: 1,
            machine: Machine::created(),
            instance_id: String::new(),
            floor: 0,
            note: String::new(),
            reason: String::new(),
            phase_since_ms: now,
        };
        match self.deps.store.insert(&record) {
            Ok(()) => Ok(self.spawn(record, Beginning::Created)),
            Err(StoreError::NameTaken) => Err(CreateError::NameTaken(record.name)),
            Err(StoreError::Failed(message)) => Err(CreateError::Store(message)),
        }
    }

    fn spawn(&self, record: Record, beginning: Beginning) -> Handle {
        let (id, sandboxes) = (record.id, self.sandboxes.clone());
        // Held across the spawn, so that the end of a short life cannot come before its beginning.
        let mut map = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        let handle = spawn(self.deps.clone(), record, beginning, move || {
            sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
        map.insert(id, handle.clone());
        handle
    }

    /// By id.
    pub fn get(&self, id: Uuid) -> Option<Handle> {
        self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// By name.
    pub fn named(&self, name: &str) -> Option<Handle> {
        let map = self.sandboxes.read().unwrap_or_else(PoisonError::into_inner);
        map.values().find(|handle| handle.name == name).cloned()
    }

    /// By name, or by id.
    pub fn find(&self, reference: &str) -> Option<Handle> {
        self.named(reference).or_else(|| self.get(reference.parse().ok()?))
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Handle> {
        let mut all: Vec<Handle> =
            self.sandboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The lowest generation accepted from a sandbox; `None` where there is nobody to accept anything from.
    pub fn floor(&self, id: Uuid) -> Option<u64> {
        let view = self.get(id)?.view();
        view.accepts_tokens().then_some(view.record.floor)
    }
}
