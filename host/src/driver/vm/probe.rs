//! Does KVM work? Asked once per boot of the host, by booting a guest; only a yes is remembered.

use std::{fs, path::Path, process::Stdio, time::Duration};

use proto::vmm::Failure;
use tokio::{process::Command, time::timeout};

use super::{VmDriverConfig, translate};
use crate::sandbox::driver::{DriverError, DriverReason};

/// In the runtime directory: the id of the boot on which the probe succeeded.
const REMEMBERED: &str = "kvm-works";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What the probe may take beyond the guest's own deadline.
const MARGIN: Duration = Duration::from_secs(10);

pub(super) async fn check(config: &VmDriverConfig) -> Result<(), DriverError> {
    check_libkrunfw(config.libkrunfw.as_deref())?;
    let remembered = config.runtime_dir.join(REMEMBERED);
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    if !boot.is_empty() && fs::read_to_string(&remembered).is_ok_and(|known| known == boot) {
        return Ok(());
    }
    run(config).await?;
    // Not remembered means asked again.
    let _ = fs::write(remembered, boot);
    Ok(())
}

/// Not only when the probe runs: a library that was removed since is a clear message before a create, too.
fn check_libkrunfw(path: Option<&Path>) -> Result<(), DriverError> {
    match path {
        Some(path) if !path.is_file() => Err(DriverError {
            reason: DriverReason::Libkrunfw,
            message: format!("failed to find libkrunfw at {}", path.display()),
            remedy: "install libkrunfw.so.5, or correct its path in the configuration".to_owned(),
        }),
        _ => Ok(()),
    }
}

async fn run(config: &VmDriverConfig) -> Result<(), DriverError> {
    let deadline = config.probe_deadline.as_secs().max(1);
    let mut probe = Command::new(&config.vmm_bin);
    probe.args(["probe", "--json", "--deadline", &deadline.to_string()]).arg("--agent").arg(&config.agent_bin);
    if let Some(path) = &config.libkrunfw {
        probe.arg("--libkrunfw").arg(path);
    }
    probe.env_clear().current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(Duration::from_secs(deadline) + MARGIN, probe.output()).await {
        Err(_) => return Err(failed(&config.vmm_bin, "it did not end in time".to_owned())),
        Ok(Err(error)) => return Err(failed(&config.vmm_bin, error.to_string())),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    match serde_json::from_slice::<Failure>(&output.stdout) {
        Ok(failure) => Err(translate("boot a first guest on this machine", failure)),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(failed(&config.vmm_bin, format!("{} {}", output.status, said.trim())))
        }
    }
}

fn failed(vmm: &Path, cause: String) -> DriverError {
    DriverError {
        reason: DriverReason::ProgramMissing,
        message: format!("failed to check KVM with {}: {cause}", vmm.display()),
        remedy: "check that openshell-vmm runs on this machine and is of the gateway's version".to_owned(),
    }
}
