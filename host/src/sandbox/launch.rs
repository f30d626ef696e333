//! From a record to running compute: places, listener, identity directory, vmm, in this order.

use std::time::Duration;

use tokio::time::timeout;

use super::driver::{Compute, DriverError};
use super::record::Record;
use super::task::Deps;
use super::view::{boot_spec, wall_ms};
use crate::rotation::rotor::Enrolment;

/// How long the end of an earlier boot's compute is waited for.
const EARLIER_BOOT: Duration = Duration::from_secs(5);

/// Why a boot was not launched.
#[derive(Debug)]
pub struct LaunchError {
    /// The driver's reason, for programs; empty where it was not the driver.
    pub reason: String,
    /// Act, object, cause and remedy.
    pub message: String,
}

impl From<String> for LaunchError {
    fn from(message: String) -> Self {
        Self { reason: String::new(), message }
    }
}

impl From<DriverError> for LaunchError {
    fn from(error: DriverError) -> Self {
        Self { reason: error.reason.name(), message: error.to_string() }
    }
}

/// Starts the record's current boot. On success the floor is the first generation of this boot: no token of an
/// earlier one is accepted any more.
///
/// # Errors
/// Act, object and cause of the step that failed; what earlier steps made is overwritten by the next launch and
/// removed by a delete.
pub async fn launch(deps: &Deps, record: &mut Record) -> Result<(), LaunchError> {
    let id = record.id;
    if deps.driver.is_running(id) {
        let gone = timeout(EARLIER_BOOT, deps.driver.wait_gone(id)).await;
        gone.map_err(|_| {
            format!("the compute of an earlier boot of {} did not end within {EARLIER_BOOT:?}", record.name)
        })?;
    }
    let places = deps.driver.prepare(id)?;
    deps.link.open(id, &places.socket)?;
    let host_key = deps.host_keys.private(id)?;
    let enrolment = Enrolment {
        sandbox_id: id,
        directory: places.directory,
        owner: places.owner,
        boot_spec: boot_spec(record, places.endpoint, host_key, wall_ms(&*deps.clock)),
    };
    // An earlier boot may have left its own; a sandbox that rotation does not know is fine, too.
    drop(deps.rotation.withdraw(id).await);
    let published = deps.rotation.enroll(enrolment).await.map_err(|e| e.to_string())?;
    record.floor = published.generation;
    deps.driver.start(&compute(record), &record.instance_id).await?;
    Ok(())
}

/// What the driver is asked for.
pub fn compute(record: &Record) -> Compute {
    Compute {
        sandbox_id: record.id,
        image: record.spec.image.clone(),
        vcpus: record.spec.vcpus,
        memory_mib: record.spec.memory_mib,
    }
}
