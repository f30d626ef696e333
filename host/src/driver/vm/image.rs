//! From an image's name to an erofs file that a jailed vmm can open.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::sandbox::driver::{DriverError, DriverReason};

/// An erofs superblock begins at this offset, with this magic, little endian.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

/// A name with a `/` in it is a path, any other stands for `<image_dir>/<name>.erofs`.
pub(super) fn find(name: &str, image_dir: &Path) -> Result<PathBuf, DriverError> {
    let named = path(name, image_dir)?;
    // Without symbolic links, so that what is bound into the jail is what was looked at.
    let path = named.canonicalize().map_err(|error| DriverError {
        reason: DriverReason::UnknownImage,
        message: format!("failed to find image {name} at {}: {error}", named.display()),
        remedy: "build it with `make guest-image`, or give the path of an erofs file".to_owned(),
    })?;
    look(&path).map(|()| path)
}

fn path(name: &str, image_dir: &Path) -> Result<PathBuf, DriverError> {
    if name.contains('/') {
        if Path::new(name).is_absolute() {
            return Ok(PathBuf::from(name));
        }
        return Err(invalid(format!("image path {name} is not absolute"), "give the whole path, beginning with /"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(invalid(
            format!("{name:?} is no image name"),
            "use letters, digits, '.', '_' and '-', or a path with a '/' in it",
        ));
    }
    Ok(image_dir.join(format!("{name}.erofs")))
}

fn look(path: &Path) -> Result<(), DriverError> {
    let shown = path.display();
    let data = path.metadata().map_err(|error| unreadable(path, &error))?;
    if !data.is_file() {
        return Err(invalid(format!("image {shown} is not a regular file"), "give the path of an erofs file"));
    }
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut magic, SUPERBLOCK))
        .or_else(|error| if error.kind() == std::io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) })
        .map_err(|error| unreadable(path, &error))?;
    if u32::from_le_bytes(magic) != MAGIC {
        return Err(invalid(format!("image {shown} is no erofs file system"), "make one with mkfs.erofs"));
    }
    // The vmm opens it as an uid of its own.
    if rustix::process::geteuid().is_root() && data.mode() & 0o004 == 0 {
        let message = format!("image {shown} cannot be read by others, so not by an unprivileged vmm");
        return Err(invalid(message, &format!("chmod o+r {shown}")));
    }
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> DriverError {
    invalid(format!("failed to read image {}: {error}", path.display()), "make it readable for the gateway's user")
}

fn invalid(message: String, remedy: &str) -> DriverError {
    DriverError { reason: DriverReason::InvalidImage, message, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn erofs() -> Vec<u8> {
        let mut content = vec![0; 4096];
        content[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
        content
    }

    #[test]
    fn names_and_paths_lead_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().canonicalize().unwrap().join("dev-1.2.erofs");
        fs::write(&file, erofs()).unwrap();
        assert_eq!(find("dev-1.2", directory.path()).unwrap(), file);
        assert_eq!(find(file.to_str().unwrap(), Path::new("/nowhere")).unwrap(), file);
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("directory.erofs")).unwrap();
        fs::write(root.join("empty.erofs"), []).unwrap();
        fs::write(root.join("text.erofs"), vec![b'x'; 4096]).unwrap();
        for (name, words) in [
            ("none", "failed to find image none"),
            ("directory", "not a regular file"),
            ("empty", "no erofs"),
            ("text", "no erofs"),
            ("", "no image name"),
            ("..", "no image name"),
            ("a b", "no image name"),
            ("./text.erofs", "not absolute"),
        ] {
            let error = find(name, root).unwrap_err();
            let unknown = error.reason == DriverReason::UnknownImage;
            assert_eq!(unknown, name == "none", "{error:?}");
            assert!(error.message.contains(words), "{name}: {error}");
            assert!(!error.remedy.is_empty());
        }
    }

    #[test]
    fn an_image_that_only_root_reads_is_refused_for_root() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("private.erofs");
        fs::write(&file, erofs()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let found = find("private", directory.path());
        if rustix::process::geteuid().is_root() {
            assert!(found.unwrap_err().remedy.starts_with("chmod o+r"));
        } else {
            assert!(found.is_ok());
        }
    }
}
