//! The agent's own binary, which every program is started through ([`super::launch`]), in memory.
//!
//! The file that PID 1 was started from is on the share that the guest boots from, and whenever a file of a share is opened,
//! the kernel throws away what is cached of it: the pages of PID 1 that run at that moment, too. Executed from there, each
//! start of a program reads most of the binary from the host again.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// The most that one request of virtio-fs carries: 256 pages.
const PIECE: usize = 1 << 20;
const ALIGNMENT: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct Binary {
    origin: PathBuf,
    copy: OnceLock<Option<OwnedFd>>,
}

impl Binary {
    /// Of this file. Nothing is read before something is started.
    pub fn new(origin: PathBuf) -> Self {
        Self { origin, copy: OnceLock::new() }
    }

    /// What a child of this process is to execute.
    pub fn path(&self) -> PathBuf {
        let copy = self.copy.get_or_init(|| {
            let failed = |error| tracing::warn!(%error, "programs start slowly: failed to copy the agent into memory");
            self.copied().map_err(failed).ok()
        });
        match copy {
            Some(copy) => format!("/proc/self/fd/{}", copy.as_raw_fd()).into(),
            None => self.origin.clone(),
        }
    }

    /// Sealed, or not at all: a program finds this very file behind the `/proc/PID/exe` of its SFTP server, may open what
    /// is in memory for writing, and PID 1 executes it next time with all its rights. Root, who owns it, may change its
    /// mode, and nothing would start any more: that has a seal since Linux 6.3.
    fn copied(&self) -> io::Result<OwnedFd> {
        let mut copy = File::from(memfd_create("openshell-agent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        read_past_the_cache(&self.origin, &mut copy)?;
        match fcntl_add_seals(&copy, SealFlags::EXEC) {
            Err(Errno::INVAL) => {}
            sealed => sealed?,
        }
        fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(copy.into())
    }
}

/// In pieces of a request of a share each: through the cache it would be read by readahead, in eight times as many.
fn read_past_the_cache(origin: &Path, into: &mut impl Write) -> io::Result<()> {
    let open = |flags| rustix::fs::open(origin, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
    let mut file = File::from(match open(OFlags::DIRECT) {
        Err(Errno::INVAL) => open(OFlags::empty())?,
        opened => opened?,
    });
    // File systems of disks take only aligned memory.
    let mut memory = vec![0; PIECE + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let piece = &mut memory[start..start + PIECE];
    loop {
        match file.read(piece)? {
            0 => return Ok(()),
            read => into.write_all(&piece[..read])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, Permissions};
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use rustix::fs::fcntl_get_seals;

    use super::*;

    #[test]
    fn the_copy_runs_and_cannot_be_written_to() {
        let binary = Binary::new("/bin/echo".into());
        let said = Command::new(binary.path()).arg("copied").output().unwrap();
        assert_eq!(said.stdout, b"copied\n");
        let mut writer = OpenOptions::new().write(true).open(binary.path()).unwrap();
        let error = writer.write_all(b"#!").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM));
        // Kernels before 6.3 have no seal for that.
        if fcntl_get_seals(&writer).unwrap().contains(SealFlags::EXEC) {
            assert!(writer.set_permissions(Permissions::from_mode(0o000)).is_err());
        }
    }

    #[test]
    fn pieces_and_a_rest_are_copied_past_the_cache_and_through_it() {
        let content: Vec<u8> = (0..2 * PIECE + 77).map(|number| (number % 251) as u8).collect();
        // Of a disk, and of memory, which does not know of such reading on every kernel.
        let program = std::env::current_exe().unwrap();
        for place in [program.parent().unwrap(), Path::new("/dev/shm")] {
            let mut origin = tempfile::NamedTempFile::new_in(place).unwrap();
            origin.write_all(&content).unwrap();
            let mut copy = Vec::new();
            read_past_the_cache(origin.path(), &mut copy).unwrap();
            assert!(copy == content, "{}: {} bytes of {}", place.display(), copy.len(), content.len());
        }
    }

    #[test]
    fn without_a_copy_it_is_the_file_itself() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("agent");
        assert_eq!(Binary::new(missing.clone()).path(), missing);
    }
}
