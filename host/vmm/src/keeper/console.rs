//! The console of the guest, into a file that never grows beyond its ring.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use proto::{budget::CONSOLE_RING, console, layout, vmm::Failure};

use crate::failure;

pub(crate) struct ConsoleRing {
    file: File,
    total: u64,
}

impl ConsoleRing {
    /// Begins anew; the console of an earlier boot is gone.
    pub(crate) fn create(run_dir: &Path) -> Result<Self, Failure> {
        let path = run_dir.join(layout::CONSOLE_FILE);
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| failure::spec(format!("failed to create {}: {error}", path.display())))?;
        Ok(Self { file, total: 0 })
    }

    /// Never fails: a full file system costs console output, not the VM.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let mut rest = &bytes[bytes.len().saturating_sub(CONSOLE_RING)..];
        while !rest.is_empty() {
            let (at, room) = console::place(self.total);
            let (now, later) = rest.split_at(rest.len().min(room));
            if self.file.write_all_at(now, at).is_err() {
                return;
            }
            self.total += now.len() as u64;
            rest = later;
        }
        // A failed write leaves the old count, which is still true.
        let _ = self.file.write_all_at(&console::header(self.total), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_ring_of_the_newest_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let mut ring = ConsoleRing::create(directory.path()).unwrap();
        let mut all = Vec::new();
        for line in 0..100_000 {
            let line = format!("[{line}] some line of the console\r\n");
            ring.write(line.as_bytes());
            all.extend(line.into_bytes());
        }
        let file = std::fs::read(directory.path().join(layout::CONSOLE_FILE)).unwrap();
        assert_eq!(file.len(), console::HEADER + CONSOLE_RING);
        assert_eq!(console::unroll(&file), all[all.len() - CONSOLE_RING..]);
    }

    #[test]
    fn a_new_boot_begins_with_an_empty_ring() {
        let directory = tempfile::tempdir().unwrap();
        ConsoleRing::create(directory.path()).unwrap().write(b"old");
        ConsoleRing::create(directory.path()).unwrap().write(b"new");
        let file = std::fs::read(directory.path().join(layout::CONSOLE_FILE)).unwrap();
        assert_eq!(console::unroll(&file), b"new");
    }
}
