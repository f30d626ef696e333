//! Whose a runtime directory is.

use std::io;
use std::path::Path;

use uuid::Uuid;

use super::StartError;
use crate::atomic_file;

/// Marks the runtime directory as this gateway's: what another one's sandboxes left there is not ours to clear.
pub(super) fn claim(runtime_dir: &Path, gateway_id: Uuid) -> Result<(), StartError> {
    let path = runtime_dir.join("gateway-id");
    let failed = |cause| StartError::Claim { path: path.display().to_string(), cause };
    let found = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    // A crash may have left it empty.
    let found = found.filter(|found| !found.is_empty());
    if found.as_ref().is_some_and(|found| *found == gateway_id.to_string()) {
        return Ok(());
    }
    let vms = std::fs::read_dir(runtime_dir.join("vm")).is_ok_and(|mut entries| entries.next().is_some());
    if found.is_some() && vms {
        return Err(StartError::OtherRuntime(runtime_dir.display().to_string()));
    }
    atomic_file::replace(&path, gateway_id.to_string().as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_gateways_sandboxes_are_left_alone_and_a_crash_locks_nobody_out() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, id) = (temp.path(), Uuid::new_v4());
        claim(dir, id).unwrap();
        std::fs::create_dir_all(dir.join("vm/some")).unwrap();
        claim(dir, id).unwrap();
        assert!(matches!(claim(dir, Uuid::new_v4()), Err(StartError::OtherRuntime(_))));
        // What a crash in the middle of writing could leave.
        std::fs::write(dir.join("gateway-id"), "").unwrap();
        claim(dir, id).unwrap();
        std::fs::remove_dir(dir.join("vm/some")).unwrap();
        claim(dir, Uuid::new_v4()).unwrap();
    }
}
