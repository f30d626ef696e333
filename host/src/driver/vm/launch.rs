//! Starting a keeper: the spec goes in, one line comes out, and from then on it stands on its own.

use std::{path::Path, process::Stdio, time::Duration};

use proto::vmm::{Started, VmmSpec};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::translate;
use crate::sandbox::driver::{DriverError, DriverReason};

/// From the start of the keeper to its line; longer than the keeper itself allows its child.
const STARTED: Duration = Duration::from_secs(30);
const LINE_MAX: u64 = 64 * 1024;

pub(super) async fn launch(vmm: &Path, spec: &VmmSpec) -> Result<(), DriverError> {
    let mut keeper = Command::new(vmm)
        .arg("run")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(spec, format!("failed to run {}: {error}", vmm.display())))?;
    let line = match timeout(STARTED, hand_over(&mut keeper, spec)).await {
        Ok(line) => line,
        Err(_) => {
            // Its child dies with it.
            let _ = keeper.start_kill();
            Err(format!("the keeper did not answer within {} s", STARTED.as_secs()))
        }
    };
    // Somebody has to wait for a child that ends before this process does.
    let reaped = async move { keeper.wait().await };
    let started = match line {
        Ok(line) => serde_json::from_str(&line),
        Err(cause) => {
            let status = timeout(Duration::from_secs(5), reaped).await;
            let status = status.ok().and_then(Result::ok).map(|status| format!(" ({status})")).unwrap_or_default();
            return Err(failed(spec, format!("{cause}{status}")));
        }
    };
    tokio::spawn(reaped);
    match started {
        Ok(Started::Running { .. }) => Ok(()),
        Ok(Started::Failed(failure)) => {
            Err(translate(&format!("start the VM of sandbox {}", spec.sandbox_id), failure))
        }
        Err(error) => Err(failed(spec, format!("the keeper's answer is not understood: {error}"))),
    }
}

async fn hand_over(keeper: &mut Child, spec: &VmmSpec) -> Result<String, String> {
    let (Some(mut input), Some(output)) = (keeper.stdin.take(), keeper.stdout.take()) else {
        return Err("the keeper has no pipes".to_owned());
    };
    let document = serde_json::to_vec(spec).map_err(|error| format!("failed to write the spec: {error}"))?;
    input.write_all(&document).await.map_err(|error| format!("failed to hand the spec over: {error}"))?;
    drop(input);
    let mut line = String::new();
    match BufReader::new(output.take(LINE_MAX)).read_line(&mut line).await {
        Ok(0) => Err("the keeper ended without an answer".to_owned()),
        Ok(_) => Ok(line),
        Err(error) => Err(format!("failed to read the keeper's answer: {error}")),
    }
}

fn failed(spec: &VmmSpec, cause: String) -> DriverError {
    DriverError {
        reason: DriverReason::ProgramMissing,
        message: format!("failed to start the VM of sandbox {}: {cause}", spec.sandbox_id),
        remedy: "check that openshell-vmm runs on this machine and is of the gateway's version".to_owned(),
    }
}
