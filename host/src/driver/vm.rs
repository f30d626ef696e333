//! The `vm` driver: one libkrun microVM per sandbox, kept by an `openshell-vmm` keeper that outlives the gateway.
//!
//! On the host a sandbox is the directory `<runtime>/vm/<id>/` ([`places`]). Whether its VM runs is told by the lock
//! that its keeper holds there ([`keeper`]), never by a remembered pid, so that a gateway that comes back after any
//! end of its own knows as much as the one before it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    layout,
    vmm::{ExitRecord, Failure, FailureKind, MEMORY_MIB, VCPUS, VmmSpec},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    driver::vm::{keeper::Keeper, places::Sandboxes},
    sandbox::driver::{Compute, ComputeDriver, DriverError, DriverReason, Places, Task},
};

mod console;
mod image;
mod keeper;
mod launch;
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
    /// Held while the probe runs, so that creates at the same time share one.
    probed: Mutex<()>,
}

impl VmDriver {
    /// A driver; looks at nothing yet.
    pub fn new(config: VmDriverConfig) -> Self {
        let jail_uid_base = rustix::process::geteuid().is_root().then_some(config.jail_uid_base);
        let sandboxes = Sandboxes::new(config.runtime_dir.join("vm"), jail_uid_base);
        Self { config, sandboxes, probed: Mutex::new(()) }
    }

    fn run_dir(&self, sandbox_id: Uuid) -> PathBuf {
        self.sandboxes.directory(sandbox_id).join(layout::RUN_DIR)
    }

    async fn check(&self, compute: &Compute) -> Result<(), DriverError> {
        check_sizes(compute)?;
        image::find(&compute.image, &self.config.image_dir)?;
        check_program("openshell-vmm", &self.config.vmm_bin)?;
        check_program("openshell-agent", &self.config.agent_bin)?;
        let _one = self.probed.lock().await;
        probe::check(&self.config).await
    }

    async fn launch(&self, compute: &Compute, instance_id: &str) -> Result<(), DriverError> {
        let directory = self.sandboxes.directory(compute.sandbox_id);
        let spec = VmmSpec {
            sandbox_id: compute.sandbox_id,
            instance_id: instance_id.to_owned(),
            image: image::find(&compute.image, &self.config.image_dir)?,
            agent: self.config.agent_bin.clone(),
            libkrunfw: self.config.libkrunfw.clone(),
            jail_uid: self.sandboxes.jail_uid(compute.sandbox_id)?.unwrap_or(self.config.jail_uid_base),
            runtime_dir: directory,
            vcpus: compute.vcpus,
            memory_mib: compute.memory_mib,
        };
        launch::launch(&self.config.vmm_bin, &spec).await
    }

    async fn end(&self, sandbox_id: Uuid) -> Result<(), DriverError> {
        match Keeper::find(&self.run_dir(sandbox_id)).map_err(|error| keeper_error(sandbox_id, error))? {
            None => Ok(()),
            Some(keeper) => keeper.end().await.map_err(|error| keeper_error(sandbox_id, error)),
        }
    }

    async fn clear(&self, sandbox_id: Uuid) -> Result<(), DriverError> {
        if self.is_running(sandbox_id) {
            return Err(DriverError {
                reason: DriverReason::VmmAlreadyRunning,
                message: format!("failed to remove the files of sandbox {sandbox_id}: its VM still runs"),
                remedy: "stop it first".to_owned(),
            });
        }
        self.sandboxes.remove(sandbox_id)
    }
}

impl ComputeDriver for VmDriver {
    fn name(&self) -> &'static str {
        "vm"
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
        let run_dir = self.run_dir(sandbox_id);
        Box::pin(async move {
            // Where the lock cannot be asked for there is no directory, and so nothing that could run in it.
            if let Ok(Some(keeper)) = Keeper::find(&run_dir) {
                keeper.gone().await;
            }
            keeper::exit_record(&run_dir)
        })
    }

    fn is_running(&self, sandbox_id: Uuid) -> bool {
        matches!(Keeper::find(&self.run_dir(sandbox_id)), Ok(Some(_)))
    }

    fn kill<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.end(sandbox_id))
    }

    fn remove<'a>(&'a self, sandbox_id: Uuid) -> Task<'a, Result<(), DriverError>> {
        Box::pin(self.clear(sandbox_id))
    }

    fn console_tail(&self, sandbox_id: Uuid, lines: usize) -> String {
        console::tail(&self.run_dir(sandbox_id).join(layout::CONSOLE_FILE), lines)
    }

    fn found(&self) -> Vec<Uuid> {
        self.sandboxes.found()
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

fn keeper_error(sandbox_id: Uuid, error: impl std::fmt::Display) -> DriverError {
    DriverError {
        reason: DriverReason::Runtime,
        message: format!("failed to end the VM of sandbox {sandbox_id}: {error}"),
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
}
