//! Reads one file of the identity directory such that what comes back is what the host has put there last.
//!
//! The guest's kernel may trust a directory entry of the share for five seconds, so that a plain open returns a
//! token that was replaced five seconds ago. Listing the directory refreshes its entries at once. Hence the order:
//! a fresh descriptor of the directory, the listing from its start to its end, and only then the open. A name that
//! is not listed does not exist, even where a plain open would still find it.

use std::ffi::CString;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, fstat, open, openat};
use secrecy::SecretSlice;

/// Why a file of the identity directory was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The directory itself.
    #[error("failed to open identity directory {}: {cause}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The listing broke off.
    #[error("failed to list identity directory {}: {cause}", directory.display())]
    List {
        /// Which.
        directory: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// It does not exist.
    #[error("{name} is not in the listing of {}", directory.display())]
    NotListed {
        /// Which file.
        name: String,
        /// Of which directory.
        directory: PathBuf,
    },
    /// It is a symbolic link, a FIFO, a directory.
    #[error("{name} in {} is not a regular file", directory.display())]
    NotRegular {
        /// Which file.
        name: String,
        /// Of which directory.
        directory: PathBuf,
    },
    /// It is listed, but cannot be opened or read.
    #[error("failed to read {name} in {}: {cause}", directory.display())]
    File {
        /// Which file.
        name: String,
        /// Of which directory.
        directory: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Nothing that the host writes is that long.
    #[error("{name} in {} is longer than {max} bytes", directory.display())]
    TooLong {
        /// Which file.
        name: String,
        /// Of which directory.
        directory: PathBuf,
        /// The limit.
        max: usize,
    },
}

/// See the module.
pub fn read_listed(directory: &Path, name: &str, max: usize) -> Result<SecretSlice<u8>, ReadError> {
    let fd = open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ReadError::Directory { directory: directory.into(), cause: errno.into() })?;
    let kind = listed(&fd, name).map_err(|cause| ReadError::List { directory: directory.into(), cause })?;
    let this = || (name.to_owned(), directory.to_owned());
    match kind {
        Some(FileType::RegularFile | FileType::Unknown) => {}
        Some(_) => return Err(not_regular(this())),
        None => {
            let (name, directory) = this();
            return Err(ReadError::NotListed { name, directory });
        }
    }
    let failed = |cause: io::Error| {
        let (name, directory) = this();
        ReadError::File { name, directory, cause }
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat(&fd, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::LOOP) => return Err(not_regular(this())),
        Err(errno) => return Err(failed(errno.into())),
    };
    let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_regular(this()));
    }
    // Room for all of it at once: a buffer that grows would leave copies of the secret behind.
    let mut content = Vec::with_capacity(max + 1);
    std::fs::File::from(file).take(max as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    let content = SecretSlice::from(content);
    if secrecy::ExposeSecret::expose_secret(&content).len() > max {
        let (name, directory) = this();
        return Err(ReadError::TooLong { name, directory, max });
    }
    Ok(content)
}

fn not_regular((name, directory): (String, PathBuf)) -> ReadError {
    ReadError::NotRegular { name, directory }
}

/// The type of `name` in the listing, which is read to its end even after a hit: the end is what makes the kernel
/// take the whole of it as fresh.
fn listed(directory: &OwnedFd, name: &str) -> io::Result<Option<FileType>> {
    let wanted = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut found = None;
    while let Some(entry) = listing.next() {
        let entry = entry?;
        if entry.file_name() == wanted.as_c_str() {
            found = Some(entry.file_type());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn read(directory: &Path) -> Result<Vec<u8>, ReadError> {
        read_listed(directory, "sandbox.jwt", 16).map(|content| content.expose_secret().to_vec())
    }

    #[test]
    fn reads_what_a_rename_put_there() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["one", "two", "sixteen bytes ok"] {
            fs::write(directory.path().join(".new"), content).unwrap();
            fs::rename(directory.path().join(".new"), directory.path().join("sandbox.jwt")).unwrap();
            assert_eq!(read(directory.path()).unwrap(), content.as_bytes());
        }
    }

    #[test]
    fn refuses_what_is_not_a_short_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sandbox.jwt");
        assert!(matches!(read(directory.path()), Err(ReadError::NotListed { .. })));
        fs::write(&file, "seventeen bytes!!").unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::TooLong { max: 16, .. })));
        fs::rename(&file, directory.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &file).unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotRegular { .. })));
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotRegular { .. })));
        let gone = directory.path().join("gone");
        assert!(matches!(read(&gone), Err(ReadError::Directory { .. })));
    }
}
