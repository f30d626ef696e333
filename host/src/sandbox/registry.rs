//! All sandboxes of a gateway, by id and by name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use proto::openshell::v1::CreateSandboxRequest;
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::Uuid;

use super::decide::Machine;
use super::document::Configuration;
use super::driver::{Compute, DriverError};
use super::record::{MainRuns, Record, StoreError};
use super::spec::{Bounds, Invalid, Spec, check};
use super::task::{Beginning, Deps, Ending, Handle, spawn};
use super::view::wall_ms;

/// How long a start waits for sandboxes to be taken over before it serves users.
const RESUME: Duration = Duration::from_secs(15);

/// Why a sandbox was not created.
#[derive(Debug)]
pub enum CreateError {
    /// Field and rule.
    Invalid(Invalid),
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
    /// Held from the record to the handle, so that whoever finds the name taken finds the sandbox as well.
    creating: Arc<Mutex<()>>,
}

impl Registry {
    /// Empty; [`Registry::adopt`] fills it from the store.
    pub fn new(deps: Arc<Deps>, bounds: Bounds) -> Self {
        Self { deps, bounds, sandboxes: Map::default(), creating: Arc::default() }
    }

    /// Takes over every sandbox of the store, and clears what belongs to none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn adopt(&self) -> Result<usize, StoreError> {
        let records = self.deps.store.load()?;
        let known: Vec<Uuid> = records.iter().map(|record| record.id).collect();
        let count = records.len();
        let mut resumed = vec![];
        for record in records {
            let (done, told) = oneshot::channel();
            self.spawn(record, Beginning::Found(done));
            resumed.push(told);
        }
        for stray in self.deps.driver.found().into_iter().filter(|id| !known.contains(id)) {
            self.clear(stray).await;
        }
        let all = async {
            for told in resumed {
                // A task that fell over is started again, and logged, elsewhere.
                let _fell_over = told.await;
            }
        };
        if timeout(RESUME, all).await.is_err() {
            tracing::warn!(
                "some sandboxes were not taken over within {RESUME:?}; that goes on while others are served"
            );
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
        if let Some(handle) = self.repeated(&request.name, &spec)? {
            return Ok(handle);
        }
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
            main: MainRuns::default(),
            configuration: Configuration::default(),
            note: String::new(),
            reason: String::new(),
            phase_since_ms: now,
        };
        let _turn = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        match self.deps.store.insert(&record) {
            Ok(()) => Ok(self.spawn(record, Beginning::Created)),
            // The same request may have come twice at once.
            Err(StoreError::NameTaken) => {
                self.repeated(&record.name, &record.spec)?.ok_or(CreateError::NameTaken(record.name))
            }
            Err(StoreError::Failed(message)) => Err(CreateError::Store(message)),
        }
    }

    /// The sandbox that this very request has made already.
    fn repeated(&self, name: &str, spec: &Spec) -> Result<Option<Handle>, CreateError> {
        if spec.request_id.is_empty() {
            return Ok(None);
        }
        let made = self.all().into_iter().find(|handle| handle.view().record.spec.request_id == spec.request_id);
        match made {
            Some(handle) if handle.name == name && handle.view().record.spec == *spec => Ok(Some(handle)),
            Some(handle) => {
                let message = format!(
                    "request_id: it stands for the request that made sandbox {}; another request needs another one",
                    handle.name
                );
                Err(CreateError::Invalid(Invalid { field: "request_id", message }))
            }
            None => Ok(None),
        }
    }

    fn spawn(&self, record: Record, beginning: Beginning) -> Handle {
        let (id, registry) = (record.id, self.clone());
        // Held across the spawn, so that the end of a short life cannot come before its beginning.
        let mut map = self.sandboxes.write().unwrap_or_else(PoisonError::into_inner);
        let handle = spawn(self.deps.clone(), record, beginning, move |ending| {
            registry.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if ending == Ending::Panicked {
                registry.recover(id);
            }
        });
        map.insert(id, handle.clone());
        handle
    }

    /// A task fell over its own defect: the sandbox goes on with a new one, from what the store knows.
    fn recover(&self, id: Uuid) {
        tracing::error!(sandbox = %id, "the task of a sandbox panicked; starting another");
        let records = self.deps.store.load().unwrap_or_default();
        if let Some(record) = records.into_iter().find(|record| record.id == id) {
            self.spawn(record, Beginning::Found(oneshot::channel().0));
        }
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

    /// What its console holds behind byte number `from`; see [`super::driver::ComputeDriver::console`].
    pub fn console(&self, id: Uuid, from: u64) -> (Vec<u8>, u64) {
        self.deps.driver.console(id, from)
    }

    /// The lowest generation accepted from a sandbox; `None` where there is nobody to accept anything from.
    pub fn floor(&self, id: Uuid) -> Option<u64> {
        let view = self.get(id)?.view();
        view.accepts_tokens().then_some(view.record.floor)
    }
}
