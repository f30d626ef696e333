//! What others see of a sandbox: a snapshot, published by its task on every change.

use proto::boot::BootSpec;

use super::phase::Phase;
use super::record::Record;
use crate::rotation::clock::Clock;

/// A snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The durable part.
    pub record: Record,
    /// Since when there has been a session, or none, in milliseconds since the epoch.
    pub session_since_ms: u64,
}

impl View {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.record.machine.phase
    }

    /// Whether a request of this sandbox may be heard at all.
    pub fn accepts_tokens(&self) -> bool {
        self.phase().has_compute() && self.phase() != Phase::Deleting
    }

    /// The exit code of the main process, once it is known.
    pub fn exit_code(&self) -> Option<i32> {
        self.record.machine.main_exit
    }
}

/// Milliseconds since the epoch.
pub fn wall_ms(clock: &dyn Clock) -> u64 {
    clock.now().wall.as_millis() as u64
}

/// `<boot counter>-<uuid>`: fences late words of an earlier boot.
pub fn instance_id(boot: u64, unique: uuid::Uuid) -> String {
    format!("{boot}-{unique}")
}

/// The boot spec of the record's current boot.
pub fn boot_spec(
    record: &Record,
    endpoint: String,
    ssh_host_key: secrecy::SecretString,
    wall_time_ms: u64,
) -> BootSpec {
    let main = (!record.spec.command.is_empty()).then(|| proto::boot::MainProcess {
        argv: record.spec.command.clone(),
        tty: record.spec.tty,
        // Somebody waits for the first start, however many boots it takes; a restart has nobody to wait for.
        await_attachment: record.spec.await_attachment && record.machine.phase == Phase::Provisioning,
        restart: record.spec.restart,
    });
    BootSpec {
        sandbox_id: record.id,
        instance_id: record.instance_id.clone(),
        hostname: record.name.clone(),
        endpoint,
        endpoints: vec![],
        wall_time_ms,
        ssh_host_key,
        user: proto::boot::DEFAULT_USER,
        main,
        needs_session: !record.spec.providers.is_empty(),
        environment: record.spec.environment.clone(),
        services: record.spec.services.clone(),
        workdir: None,
        image_main: proto::boot::ImageMain { tty: record.spec.tty, restart: record.spec.restart },
    }
}
