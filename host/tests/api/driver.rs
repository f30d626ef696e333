//! A driver whose compute is an entry in a map.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use host::sandbox::driver::{AgentFile, Compute, ComputeDriver, DriverError, DriverReason, Places, Task};
use proto::layout;
use proto::version::ProtocolRange;
use proto::vmm::{Ended, ExitRecord};
use tokio::sync::watch;
use uuid::Uuid;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Validate,
    Prepare,
    Start,
    Kill,
    Remove,
}

/// See the module. Directories are real, because sockets and tokens are.
pub(crate) struct FakeDriver {
    root: PathBuf,
    vms: Arc<Mutex<HashMap<Uuid, Vm>>>,
    faults: Mutex<Faults>,
    console: Mutex<String>,
}

struct Vm {
    instance_id: String,
    running: watch::Sender<bool>,
    exit: Option<ExitRecord>,
}

#[derive(Default)]
struct Faults {
    planned: HashSet<(Call, u32)>,
    made: HashMap<Call, u32>,
    reason: Option<DriverReason>,
}

impl FakeDriver {
    pub(crate) fn new(root: PathBuf) -> Self {
        fs::create_dir_all(&root).expect("make the runtime directory");
        Self {
            root,
            vms: Arc::default(),
            faults: Mutex::default(),
            console: Mutex::new("the last words of a guest".into()),
        }
    }

    /// The `nth` call of this kind from the beginning, counted from 1, fails.
    pub(crate) fn fail(&self, call: Call, nth: u32) {
        self.faults.lock().unwrap().planned.insert((call, nth));
    }

    /// Every validation fails with this reason, until told otherwise.
    pub(crate) fn refuse(&self, reason: Option<DriverReason>) {
        self.faults.lock().unwrap().reason = reason;
    }

    /// What guests have said on their consoles.
    pub(crate) fn say(&self, console: &str) {
        *self.console.lock().unwrap() = console.into();
    }

    /// How often it was asked to.
    pub(crate) fn count(&self, call: Call) -> u32 {
        self.faults.lock().unwrap().made.get(&call).copied().unwrap_or_default()
    }

    /// The compute ends by itself.
    pub(crate) fn end(&self, sandbox_id: Uuid, ended: Ended) {
        let mut vms = self.vms.lock().unwrap();
        let Some(vm) = vms.get_mut(&sandbox_id).filter(|vm| *vm.running.borrow()) else { return };
        vm.exit = Some(ExitRecord {
            sandbox_id,
            instance_id: vm.instance_id.clone(),
            ended,
            at_ms: 0,
            stderr: String::new(),
        });
        vm.running.send_replace(false);
    }

    fn directory(&self, sandbox_id: Uuid) -> PathBuf {
        self.root.join("vm").join(sandbox_id.to_string())
    }

    fn made(&self, call: Call) -> Result<(), DriverError> {
        let mut faults = self.faults.lock().unwrap();
        let count = faults.made.entry(call).or_default();
        *count += 1;
        let this = (call, *count);
        let planned = faults.planned.contains(&this).then_some(DriverReason::Internal);
        let refused = faults.reason.filter(|_| call == Call::Validate);
        match planned.or(refused) {
            None => Ok(()),
            Some(reason) => {
                Err(DriverError { reason, message: format!("failed to {call:?}"), remedy: "try again".into() })
            }
        }
    }
}

impl ComputeDriver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn agent(&self) -> Option<AgentFile> {
        let protocol = ProtocolRange { oldest: 3, newest: 4 };
        Some(AgentFile { path: "/fake/agent".into(), digest: "d1e5".into(), version: "3.0.0".into(), protocol })
    }

    fn validate<'a>(&'a self, _: &'a Compute) -> Task<'a, Result<(), DriverError>> {
        Box::pin(async { self.made(Call::Validate) })
    }

    fn prepare(&self, sandbox_id: Uuid) -> Result<Places, DriverError> {
        self.made(Call::Prepare)?;
        let directory = self.directory(sandbox_id);
        let ctl = directory.join(layout::CTL_DIR);
        fs::create_dir_all(&ctl).expect("make a directory");
        let socket = ctl.join(layout::CTL_SOCKET);
        Ok(Places { directory, owner: None, endpoint: "vsock://2:5100".into(), socket })
    }

    fn start<'a>(&'a self, compute: &'a Compute, instance_id: &'a str) -> Task<'a, Result<(), DriverError>> {
        Box::pin(async {
            self.made(Call::Start)?;
            let (running, _) = watch::channel(true);
            let vm = Vm { instance_id: instance_id.into(), running, exit: None };
            self.vms.lock().unwrap().insert(compute.sandbox_id, vm);
            Ok(())
        })
    }

    fn wait_gone(&self, sandbox_id: Uuid) -> Task<'static, Option<ExitRecord>> {
        let running = self.vms.lock().unwrap().get(&sandbox_id).map(|vm| vm.running.subscribe());
        let vms = self.vms.clone();
        Box::pin(async move {
            // An error means that the entry was replaced or removed: gone as well.
            drop(running?.wait_for(|running| !running).await);
            vms.lock().unwrap().get(&sandbox_id)?.exit.clone()
        })
    }

    fn is_running(&self, sandbox_id: Uuid) -> bool {
        self.vms.lock().unwrap().get(&sandbox_id).is_some_and(|vm| *vm.running.borrow())
    }

    fn kill<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.made(Call::Kill)?;
            self.end(sandbox_id, Ended::Killed);
            Ok(())
        })
    }

    fn remove<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.made(Call::Remove)?;
            assert!(!self.is_running(sandbox_id), "removed under running compute");
            self.vms.lock().unwrap().remove(&sandbox_id);
            drop(fs::remove_dir_all(self.directory(sandbox_id)));
            Ok(())
        })
    }

    fn console_tail(&self, _: Uuid, _: usize) -> String {
        self.console.lock().unwrap().clone()
    }

    fn console(&self, _: Uuid, from: u64) -> (Vec<u8>, u64) {
        let console = self.console.lock().unwrap();
        let from = usize::try_from(from).unwrap();
        (console.as_bytes().get(from..).unwrap_or_default().to_vec(), console.len() as u64)
    }

    fn found(&self) -> Vec<Uuid> {
        let entries = fs::read_dir(self.root.join("vm")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}
