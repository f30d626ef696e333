//! `exit.json`: how the VM ended, for a gateway that may not have been there.

use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use proto::{
    layout,
    vmm::{Ended, ExitRecord, Failure, VmmSpec},
};

use crate::failure;

/// Removes the record of an earlier boot: while a VM runs there is none.
pub(crate) fn forget(run_dir: &Path) -> Result<(), Failure> {
    let path = run_dir.join(layout::EXIT_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failure::spec(format!("failed to remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Writes the record as one step: a reader sees all of it or none. No fsync, as the directory is on a tmpfs.
pub(crate) fn record(run_dir: &Path, spec: &VmmSpec, ended: Ended, stderr: String) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let record = ExitRecord {
        sandbox_id: spec.sandbox_id,
        instance_id: spec.instance_id.clone(),
        ended,
        at_ms: since.as_millis() as u64,
        stderr,
    };
    let Ok(document) = serde_json::to_vec(&record) else { return };
    let stage = run_dir.join(format!("{}.new", layout::EXIT_FILE));
    // Nobody is left to tell: a free lock without a record says "ended, unknown how".
    let _ = fs::write(&stage, document).and_then(|()| fs::rename(&stage, run_dir.join(layout::EXIT_FILE)));
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_record_replaces_the_one_before_and_can_be_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let spec = VmmSpec {
            sandbox_id: Uuid::from_u128(7),
            instance_id: "3-abc".to_owned(),
            image: "/i".into(),
            agent: "/a".into(),
            libkrunfw: None,
            runtime_dir: "/r".into(),
            vcpus: 1,
            memory_mib: 128,
            jail_uid: 1,
        };
        forget(directory.path()).unwrap();
        record(directory.path(), &spec, Ended::Killed, String::new());
        record(directory.path(), &spec, Ended::Exited(42), "last words".to_owned());
        let read = fs::read(directory.path().join(layout::EXIT_FILE)).unwrap();
        let read: ExitRecord = serde_json::from_slice(&read).unwrap();
        assert_eq!((read.sandbox_id, read.instance_id.as_str()), (Uuid::from_u128(7), "3-abc"));
        assert_eq!((read.ended, read.stderr.as_str()), (Ended::Exited(42), "last words"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        forget(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
