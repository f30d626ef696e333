//! Files of the image. What stands at a path of the image was made by somebody else: a link that leads anywhere, a
//! FIFO at which an open waits for ever, something without an end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// More than any of the files has that are read here.
pub const MAX: u64 = 1024 * 1024;

/// The first `max` bytes of a regular file.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path, OFlags::RDONLY)?.take(max).read_to_end(&mut content)?;
    Ok(content)
}

/// Adds to a regular file, or makes one.
pub fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    open_regular(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?.write_all(bytes)
}

fn open_regular(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::from_raw_mode(0o644))?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("the image has something else than a regular file there"));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_are_used_and_only_their_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        append(&at("hosts"), b"one\n").unwrap();
        append(&at("hosts"), b"two\n").unwrap();
        assert_eq!(read(&at("hosts"), MAX).unwrap(), b"one\ntwo\n");
        assert_eq!(read(&at("hosts"), 5).unwrap(), b"one\nt");

        symlink(at("hosts"), at("link")).unwrap();
        symlink("/dev/zero", at("endless")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(at("directory")).unwrap();
        for name in ["link", "endless", "fifo", "directory"] {
            assert!(read(&at(name), MAX).is_err(), "{name}");
            assert!(append(&at(name), b"three\n").is_err(), "{name}");
        }
        assert_eq!(fs::read(at("hosts")).unwrap(), b"one\ntwo\n");
    }
}
