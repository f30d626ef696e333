//! The `vm` driver: one libkrun microVM per sandbox, kept by an `openshell-vmm` keeper that outlives the gateway.
//!
//! On the host a sandbox is the directory `<runtime>/vm/<id>/` ([`places`]). Whether its VM runs is told by the lock
//! that its keeper holds there ([`keeper`]), never by a remembered pid, so that a gateway that comes back after any
//! end of its own knows as much as the one before it. Where somebody removed that directory, other traces of the
//! process are asked ([`keepers`]).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proto::{
    layout,
    vmm::{ExitRecord, Failure, FailureKind, MEMORY_MIB, VCPUS, VmmSpec},
};
use uuid::Uuid;

use crate::{
    driver::vm::{agent::Agent, keepers::Keepers, places::Sandboxes, probe::Prober},
    sandbox::driver::{AgentFile, Compute, ComputeDriver, DriverError, DriverReason, Places, Task},
};

mod agent;
mod console;
#[cfg(test)]
mod fake;
mod image;
mod keeper;
mod keepers;
mod launch;
mod orphan;
mod places;
mod probe;

/// The first uid that a jail may get. No image uses ids of this range, and no `/etc/passwd` hands them out.
pub const JAIL_UID_BASE: u32 = 0x7f00_0000;

/// Where the driver's programs and directories are; all paths are absolute.
#[derive(Debug, Clone)]
pub struct VmDriverConfig {
    /// The gateway's runtime directory, on a tmpfs.
    pub runtime_dir: PathBuf,
    /// `openshell-vmm`.
    pub vmm_bin: PathBuf,
    /// `openshell-agent`.
    pub agent_bin: PathBuf,
    /// `libkrunfw.so.5`, where the dynamic linker does not find it by itself.
    pub libkrunfw: Option<PathBuf>,
    /// Where images with a plain name stand, as `NAME.erofs`.
    pub image_dir: PathBuf,
    /// How long the guest that shows that KVM works may take to answer.
    pub probe_deadline: Duration,
    /// See [`JAIL_UID_BASE`].
    pub jail_uid_base: u32,
}

/// See the module.
pub struct VmDriver {
    config: VmDriverConfig,
    sandboxes: Sandboxes,
    keepers: Arc<Keepers>,
    prober: Prober,
    agent: Agent,
}

impl VmDriver {
    /// A driver; looks at nothing yet.
    pub fn new(config: VmDriverConfig) -> Self {
        let jail_uid_base = rustix::process::geteuid().is_root().then_some(config.jail_uid_base);
        let root = config.runtime_dir.join("vm");
        let sandboxes = Sandboxes::new(root.clone(), jail_uid_base);
        Self {
            config,
            sandboxes,
            keepers: Arc::new(Keepers::new(root)),
            prober: Prober::default(),
            agent: Agent::default(),
        }
    }

    /// The agent that guests get, if they can be booted with it.
    ///
    /// # Errors
    /// It is missing, or guests cannot run it, or it speaks another protocol.
    pub async fn inspect_agent(&self) -> Result<AgentFile, DriverError> {
        self.agent.check(&self.config.agent_bin).await
    }

    async fn check(&self, compute: &Compute) -> Result<(), DriverError> {
        check_sizes(compute)?;
        image::find(&compute.image, &self.config.image_dir)?;
        check_program("openshell-vmm", &self.config.vmm_bin)?;
        self.inspect_agent().await?;
        self.prober.check(&self.config).await
    }

    async fn launch(&self, compute: &Compute, instance_id: &str) -> Result<(), DriverError> {
        let sandbox_id = compute.sandbox_id;
        // The new keeper would refuse by the lock; but that may be gone while the old one is not.
        match self.keepers.find(sandbox_id) {
            Ok(None) => {}
            Ok(Some(_)) => return Err(still_runs("start the VM", sandbox_id)),
            Err(error) => return Err(keeper_error("look for an earlier VM", sandbox_id, error)),
        }
        // Another one may have been put there since the create.
        self.inspect_agent().await?;
        let spec = VmmSpec {
            sandbox_id,
            instance_id: instance_id.to_owned(),
            image: image::find(&compute.image, &self.config.image_dir)?,
            agent: self.config.agent_bin.clone(),
            libkrunfw: self.config.libkrunfw.clone(),
            jail_uid: self.sandboxes.jail_uid(sandbox_id)?.unwrap_or(self.config.jail_uid_base),
            runtime_dir: self.sandboxes.directory(sandbox_id),
            vcpus: compute.vcpus,
            memory_mib: compute.memory_mib,
        };
        let keeper = launch::launch(&self.config.vmm_bin, &spec).await?;
        self.keepers.remember(sandbox_id, &keeper);
        Ok(())
    }

    async fn end(&self, sandbox_id: Uuid) -> Result<(), DriverError> {
        let failed = |error| keeper_error("end the VM", sandbox_id, error);
        match self.keepers.find(sandbox_id).map_err(failed)? {
            None => Ok(()),
            Some(keeper) => keeper.end().await.map_err(failed),
        }
    }

    async fn clear(&self, sandbox_id: Uuid) -> Result<(), DriverError> {
        if self.is_running(sandbox_id) {
            return Err(still_runs("remove the files", sandbox_id));
        }
        self.sandboxes.remove(sandbox_id)
    }
}

impl ComputeDriver for VmDriver {
    fn name(&self) -> &'static str {
        "vm"
    }

    fn agent(&self) -> Option<AgentFile> {
        self.agent.last()
    }

    fn validate<'a>(&'a self, compute: &'a Compute) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.check(compute))
    }

    fn prepare(&self, sandbox_id: Uuid) -> Result<Places, DriverError> {
        self.sandboxes.prepare(sandbox_id)
    }

    fn start<'a>(&'a self, compute: &'a Compute, instance_id: &'a str) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.launch(compute, instance_id))
    }

    fn wait_gone(&self, sandbox_id: Uuid) -> Task<'static, Option<ExitRecord>> {
        let keepers = self.keepers.clone();
        Box::pin(async move {
            keepers.gone(sandbox_id).await;
            keeper::exit_record(&keepers.run_dir(sandbox_id))
        })
    }

    fn is_running(&self, sandbox_id: Uuid) -> bool {
        // Not to know must not look like an end: files would be removed, or a second VM started, under the first.
        self.keepers.find(sandbox_id).map_or_else(
            |error| {
                tracing::warn!(sandbox = %sandbox_id, %error, "failed to look for its keeper; taking it for running");
                true
            },
            |keeper| keeper.is_some(),
        )
    }

    fn kill<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.end(sandbox_id))
    }

    fn remove<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.clear(sandbox_id))
    }

    fn console_tail(&self, sandbox_id: Uuid, lines: usize) -> String {
        console::tail(&self.keepers.run_dir(sandbox_id).join(layout::CONSOLE_FILE), lines)
    }

    fn console(&self, sandbox_id: Uuid, from: u64) -> (Vec<u8>, u64) {
        console::since(&self.keepers.run_dir(sandbox_id).join(layout::CONSOLE_FILE), from)
    }

    fn found(&self) -> Vec<Uuid> {
        let mut found = self.sandboxes.found();
        match self.keepers.orphans(&found) {
            Ok(orphans) => found.extend(orphans),
            Err(error) => tracing::error!(%error, "failed to look for VMs without a runtime directory"),
        }
        found
    }
}

fn check_sizes(compute: &Compute) -> Result<(), DriverError> {
    let out_of_range = |what: &str, asked: u32, least: u32, most: u32| DriverError {
        reason: DriverReason::OutOfRange,
        message: format!("{asked} {what} asked for"),
        remedy: format!("ask for {least} to {most}"),
    };
    if !VCPUS.contains(&compute.vcpus) {
        let (least, most) = (*VCPUS.start(), *VCPUS.end());
        return Err(out_of_range("CPUs", compute.vcpus.into(), least.into(), most.into()));
    }
    if !MEMORY_MIB.contains(&compute.memory_mib) {
        return Err(out_of_range("MiB of memory", compute.memory_mib, *MEMORY_MIB.start(), *MEMORY_MIB.end()));
    }
    Ok(())
}

fn check_program(name: &str, path: &Path) -> Result<(), DriverError> {
    if path.metadata().is_ok_and(|data| data.is_file()) {
        return Ok(());
    }
    Err(DriverError {
        reason: DriverReason::ProgramMissing,
        message: format!("failed to find {name} at {}", path.display()),
        remedy: "install it beside openshell-gateway, or name its absolute path in the configuration".to_owned(),
    })
}

fn still_runs(act: &str, sandbox_id: Uuid) -> DriverError {
    DriverError {
        reason: DriverReason::VmmAlreadyRunning,
        message: format!("failed to {act} of sandbox {sandbox_id}: its VM still runs"),
        remedy: "stop it first".to_owned(),
    }
}

fn keeper_error(act: &str, sandbox_id: Uuid, error: impl std::fmt::Display) -> DriverError {
    DriverError {
        reason: DriverReason::Runtime,
        message: format!("failed to {act} of sandbox {sandbox_id}: {error}"),
        remedy: "look for its openshell-vmm processes and end them by hand".to_owned(),
    }
}

/// What the vmm says, in the driver's terms.
fn translate(act: &str, failure: Failure) -> DriverError {
    let reason = match failure.kind {
        FailureKind::AlreadyRunning => DriverReason::VmmAlreadyRunning,
        FailureKind::Libkrunfw => DriverReason::Libkrunfw,
        FailureKind::Kvm => DriverReason::Kvm,
        FailureKind::Jail => DriverReason::Jail,
        FailureKind::Spec => DriverReason::VmmSpec,
        FailureKind::Libkrun => DriverReason::Libkrun,
    };
    DriverError { reason, message: format!("failed to {act}: {}", failure.message), remedy: failure.remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_the_range_are_named() {
        let compute = |vcpus, memory_mib| Compute { sandbox_id: Uuid::nil(), image: String::new(), vcpus, memory_mib };
        assert!(check_sizes(&compute(1, 128)).is_ok());
        assert!(check_sizes(&compute(32, 4096)).is_ok());
        for (vcpus, memory, words) in
            [(0, 512, "0 CPUs"), (33, 512, "33 CPUs"), (1, 64, "64 MiB"), (1, u32::MAX, "MiB")]
        {
            let error = check_sizes(&compute(vcpus, memory)).unwrap_err();
            assert_eq!(error.reason, DriverReason::OutOfRange);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    fn driver(runtime_dir: &Path) -> VmDriver {
        VmDriver::new(VmDriverConfig {
            runtime_dir: runtime_dir.to_owned(),
            vmm_bin: "/nowhere/openshell-vmm".into(),
            agent_bin: "/nowhere/openshell-agent".into(),
            libkrunfw: None,
            image_dir: "/nowhere".into(),
            probe_deadline: Duration::from_secs(1),
            jail_uid_base: JAIL_UID_BASE,
        })
    }

    #[tokio::test]
    async fn a_vm_without_its_directory_runs_until_it_is_killed() {
        let runtime = tempfile::tempdir().unwrap();
        let (before, id) = (driver(runtime.path()), Uuid::from_u128(0xca5e));
        let places = before.prepare(id).unwrap();
        let mut keeper = fake::FakeKeeper::start(&places.directory.join(layout::RUN_DIR), Some(id));
        assert!(before.is_running(id));
        std::fs::remove_dir_all(runtime.path().join("vm")).unwrap();
        let after_restart = driver(runtime.path());
        let compute = Compute { sandbox_id: id, image: String::new(), vcpus: 1, memory_mib: 128 };
        for driver in [&before, &after_restart] {
            assert!(driver.is_running(id));
            assert_eq!(driver.found(), [id]);
            assert_eq!(driver.remove(id).await.unwrap_err().reason, DriverReason::VmmAlreadyRunning);
            assert_eq!(driver.start(&compute, "1-a").await.unwrap_err().reason, DriverReason::VmmAlreadyRunning);
        }
        let gone = before.wait_gone(id);
        after_restart.kill(id).await.unwrap();
        assert_eq!(gone.await, None);
        assert!(keeper.has_ended());
        for driver in [before, after_restart] {
            assert!(!driver.is_running(id));
            assert!(driver.found().is_empty());
            driver.kill(id).await.unwrap();
        }
    }

    #[test]
    fn what_cannot_be_looked_for_runs() {
        let runtime = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(1);
        std::fs::create_dir(runtime.path().join("vm")).unwrap();
        // Not "not found": its directory is a file.
        std::fs::write(runtime.path().join("vm").join(id.to_string()), "").unwrap();
        assert!(driver(runtime.path()).is_running(id));
    }
}
