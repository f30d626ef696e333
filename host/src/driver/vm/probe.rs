//! Does KVM work? Asked once per boot of the host, by booting a guest; only a yes is remembered.

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use proto::vmm::Failure;
use tokio::{process::Command, sync::watch, time::timeout};

use super::{VmDriverConfig, translate};
use crate::sandbox::driver::{DriverError, DriverReason};

/// In the runtime directory: the id of the boot on which the probe succeeded.
const REMEMBERED: &str = "kvm-works";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What the probe may take beyond the guest's own deadline.
const MARGIN: Duration = Duration::from_secs(10);

type Answer = Result<(), DriverError>;

/// At most one guest at a time. It outlives who asked for it: a caller that has no patience left asks again later,
/// and must not find that every answer was thrown away with its question.
#[derive(Default)]
pub(super) struct Prober {
    running: Mutex<Option<watch::Receiver<Option<Answer>>>>,
}

impl Prober {
    pub(super) async fn check(&self, config: &VmDriverConfig) -> Answer {
        check_libkrunfw(config.libkrunfw.as_deref())?;
        let Some(mut answer) = self.ask(config) else { return Ok(()) };
        let answered = answer.wait_for(Option::is_some).await;
        let cut_short = || failed(&config.vmm_bin, "it was cut short".to_owned());
        answered.ok().and_then(|answer| answer.clone()).unwrap_or_else(|| Err(cut_short()))
    }

    /// Where the answer will come; nothing where it is known to be yes.
    fn ask(&self, config: &VmDriverConfig) -> Option<watch::Receiver<Option<Answer>>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A probe without an answer whose task is gone never gives one.
        if let Some(answer) = &*running
            && answer.borrow().is_none()
            && answer.has_changed().is_ok()
        {
            return Some(answer.clone());
        }
        let remembered = config.runtime_dir.join(REMEMBERED);
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        if !boot.is_empty() && fs::read_to_string(&remembered).is_ok_and(|known| known == boot) {
            return None;
        }
        let (sender, answer) = watch::channel(None);
        let config = config.clone();
        tokio::spawn(async move {
            let answer = run(&config).await;
            if answer.is_ok() {
                // Not remembered means asked again.
                let _ = fs::write(remembered, boot);
            }
            // Who asked may be gone.
            let _ = sender.send(Some(answer));
        });
        Some(running.insert(answer).clone())
    }
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

#[cfg(test)]
mod tests {
    use std::{io::Write, path::PathBuf, process, sync::Arc};

    use super::*;

    /// A vmm that notes that it was run and then waits for a line in `go`. Written by another process: a program that
    /// this one had open for writing may be busy when it is run.
    fn fake_vmm(directory: &Path) -> PathBuf {
        let make = "mkfifo go && printf '#!/bin/sh\\necho run >> %s/runs\\nread code < %s/go\\nexit $code\\n' \
                    \"$PWD\" \"$PWD\" > vmm && chmod +x vmm";
        let made = process::Command::new("sh").args(["-c", make]).current_dir(directory).status().unwrap();
        assert!(made.success());
        directory.join("vmm")
    }

    fn config(directory: &Path) -> VmDriverConfig {
        VmDriverConfig {
            runtime_dir: directory.to_owned(),
            vmm_bin: fake_vmm(directory),
            agent_bin: "/agent".into(),
            libkrunfw: None,
            image_dir: "/images".into(),
            probe_deadline: Duration::from_secs(20),
            jail_uid_base: 1,
        }
    }

    /// Returns when the program runs that reads it.
    async fn open_go(directory: &Path) -> fs::File {
        let go = directory.join("go");
        tokio::task::spawn_blocking(move || fs::File::options().write(true).open(go).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn one_probe_serves_all_and_outlives_who_asked_first() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let prober = Arc::new(Prober::default());
        let asks = |prober: Arc<Prober>, config: VmDriverConfig| async move { prober.check(&config).await };

        let first = tokio::spawn(asks(prober.clone(), config.clone()));
        let mut go = open_go(directory.path()).await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let (second, third) = (prober.ask(&config).unwrap(), tokio::spawn(asks(prober.clone(), config.clone())));
        assert!(second.borrow().is_none());
        writeln!(go, "0").unwrap();
        third.await.unwrap().unwrap();
        assert_eq!(*second.borrow(), Some(Ok(())));
        assert!(prober.ask(&config).is_none());
        assert_eq!(fs::read_to_string(directory.path().join("runs")).unwrap(), "run\n");
    }

    #[tokio::test]
    async fn a_no_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let prober = Prober::default();
        for code in ["3", "0"] {
            let (answer, ()) = tokio::join!(prober.check(&config), async {
                writeln!(open_go(directory.path()).await, "{code}").unwrap();
            });
            assert_eq!(answer.is_ok(), code == "0", "{answer:?}");
        }
    }
}
