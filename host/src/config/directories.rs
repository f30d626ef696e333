//! The places on the host: where they are by default, and whether they can be what they must be.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::file::ConfigFile;
use super::keys::CONFIG_VARIABLE;
use super::{Environment, GatewayFlags};
use crate::tmpfs::is_tmpfs;

/// The API socket of the local user, in the runtime directory.
pub const API_SOCKET: &str = "gateway.sock";
/// What a gateway that was started in the background says, in the state directory.
pub const LOG_FILE: &str = "gateway.log";

/// A unix socket's address, with its final NUL.
const SOCKET_PATH_MAX: usize = 108;
/// What stands behind the runtime directory in the longest socket path.
const LONGEST_SOCKET: &str = "/vm/00000000-0000-0000-0000-000000000000/ctl/gateway.sock";

/// The file to read: named by flag or variable, or in its usual place.
pub fn config_file(flags: &GatewayFlags, environment: &Environment) -> Option<ConfigFile> {
    let named = flags.config.clone().or_else(|| environment.variable(CONFIG_VARIABLE).map(PathBuf::from));
    if let Some(path) = named {
        return Some(ConfigFile { path: environment.current_dir.join(path), named: true });
    }
    let base = environment.base_dir("XDG_CONFIG_HOME", ".config")?;
    Some(ConfigFile { path: base.join("openshell/gateway.toml"), named: false })
}

/// A tmpfs of the user's session, or else the one that every machine has.
pub(super) fn default_runtime_dir(environment: &Environment) -> PathBuf {
    let shared = || PathBuf::from(format!("/dev/shm/openshell-{}", environment.uid));
    environment.session_runtime_dir().unwrap_or_else(shared)
}

/// Refuses a runtime directory below which a sandbox's socket would have too long a path.
pub(super) fn socket_fits(dir: PathBuf) -> Result<PathBuf, String> {
    let most = SOCKET_PATH_MAX - 1 - LONGEST_SOCKET.len();
    let length = dir.as_os_str().len();
    if length <= most {
        return Ok(dir);
    }
    let dir = dir.display();
    Err(format!("`{dir}` is {length} bytes long, and sockets below it have room for {most}; choose a shorter path"))
}

/// Why a directory can not be used: the directory, what is wrong with it and what to do.
#[derive(Debug)]
pub struct DirectoryError {
    /// Which of the two, for people.
    what: &'static str,
    dir: PathBuf,
    wrong: Wrong,
}

#[derive(Debug)]
enum Wrong {
    Create(io::Error),
    Inspect(io::Error),
    Write(io::Error),
    NotDirectory,
    NotTmpfs,
    Owner { found: u32, wanted: u32 },
    Mode(u32),
}

impl fmt::Display for DirectoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, dir) = (self.what, self.dir.display());
        let variable = if what == RUNTIME { "OPENSHELL_RUNTIME_DIR" } else { "OPENSHELL_STATE_DIR" };
        match &self.wrong {
            Wrong::Create(cause) => write!(f, "failed to create {what} {dir}: {cause}; make it, or set {variable}"),
            Wrong::Inspect(cause) => write!(f, "failed to inspect {what} {dir}: {cause}; set {variable}"),
            Wrong::Write(cause) => {
                write!(f, "failed to write in {what} {dir}: {cause}; make it writable, or set {variable}")
            }
            Wrong::NotDirectory => write!(f, "{what} {dir} is not a directory; remove it, or set {variable}"),
            Wrong::NotTmpfs => write!(
                f,
                "{what} {dir} is not on a tmpfs, and tokens are never written to a disk; set {variable} to a \
                 directory on one, such as /dev/shm/openshell"
            ),
            Wrong::Owner { found, wanted } => write!(
                f,
                "{what} {dir} belongs to uid {found}, not to uid {wanted}; set {variable} to a directory of your own"
            ),
            Wrong::Mode(mode) => {
                write!(f, "{what} {dir} has mode {mode:04o} and is open to others; run: chmod 0700 {dir}")
            }
        }
    }
}

impl std::error::Error for DirectoryError {}

impl DirectoryError {
    /// Whether this is about the runtime directory; else it is about the state directory.
    pub fn is_runtime_dir(&self) -> bool {
        self.what == RUNTIME
    }
}

const RUNTIME: &str = "runtime directory";
const STATE: &str = "state directory";

/// Makes the runtime directory if it is not there, then [`check_runtime_dir`].
pub fn prepare_runtime_dir(dir: &Path, uid: u32) -> Result<(), DirectoryError> {
    create(RUNTIME, dir)?;
    check_runtime_dir(dir, uid)
}

/// Refuses a runtime directory that is not a tmpfs, not `uid`'s own, or open to others.
pub fn check_runtime_dir(dir: &Path, uid: u32) -> Result<(), DirectoryError> {
    private(RUNTIME, dir, uid)?;
    let error = |wrong| DirectoryError { what: RUNTIME, dir: dir.to_path_buf(), wrong };
    match is_tmpfs(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(error(Wrong::NotTmpfs)),
        Err(cause) => Err(error(Wrong::Inspect(cause))),
    }
}

/// Makes the state directory if it is not there; refuses one that is not `uid`'s own, open to others, or not
/// writable.
pub fn prepare_state_dir(dir: &Path, uid: u32) -> Result<(), DirectoryError> {
    create(STATE, dir)?;
    private(STATE, dir, uid)?;
    // Root may write where a file system is read-only, says access(2); only writing tells.
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&probe);
    written.and_then(|_| std::fs::remove_file(&probe)).map_err(|cause| DirectoryError {
        what: STATE,
        dir: dir.to_path_buf(),
        wrong: Wrong::Write(cause),
    })
}

fn create(what: &'static str, dir: &Path) -> Result<(), DirectoryError> {
    let outcome = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    match outcome {
        // Something that is not a directory; the check says so.
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => {
            outcome.map_err(|cause| DirectoryError { what, dir: dir.to_path_buf(), wrong: Wrong::Create(cause) })
        }
    }
}

/// By `lstat`: in a directory that others can write to, a link could lead anywhere.
fn private(what: &'static str, dir: &Path, uid: u32) -> Result<(), DirectoryError> {
    let error = |wrong| DirectoryError { what, dir: dir.to_path_buf(), wrong };
    let found = std::fs::symlink_metadata(dir).map_err(|cause| error(Wrong::Inspect(cause)))?;
    let mode = found.mode() & 0o7777;
    if !found.is_dir() {
        Err(error(Wrong::NotDirectory))
    } else if found.uid() != uid {
        Err(error(Wrong::Owner { found: found.uid(), wanted: uid }))
    } else if mode & 0o077 != 0 {
        Err(error(Wrong::Mode(mode)))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn own() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn in_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm")
    }

    #[test]
    fn a_runtime_directory_is_made_private_on_a_tmpfs() {
        let parent = in_memory();
        let dir = parent.path().join("a/b");
        prepare_runtime_dir(&dir, own()).unwrap();
        prepare_runtime_dir(&dir, own()).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_is_wrong_with_a_runtime_directory_is_said_with_a_remedy() {
        let parent = in_memory();
        let said = |dir: &Path, uid| check_runtime_dir(dir, uid).unwrap_err().to_string();

        let open = parent.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(said(&open, own()).contains("chmod 0700"));
        assert!(said(&open, own() + 1).contains("belongs to uid"));

        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(said(&link, own()).contains("is not a directory"));
        assert!(said(&parent.path().join("none"), own()).contains("failed to inspect"));
        assert!(check_runtime_dir(Path::new("/proc/self/fd"), own()).is_err());
    }

    #[test]
    fn a_disk_is_no_runtime_directory() {
        // The sources are on a disk wherever they can be built in reasonable time; a checkout on a tmpfs has
        // nothing to show here.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let outcome = check_runtime_dir(dir.path(), own());
        assert_eq!(outcome.is_ok(), is_tmpfs(dir.path()).unwrap());
        if let Err(error) = outcome {
            assert!(error.to_string().contains("not on a tmpfs"), "{error}");
        }
    }

    #[test]
    fn a_state_directory_must_be_a_directory_of_ones_own() {
        let parent = in_memory();
        let dir = parent.path().join("state/gateway");
        prepare_state_dir(&dir, own()).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "the probe is gone");
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(prepare_state_dir(&file, own()).unwrap_err().to_string().contains("is not a directory"));
        assert!(prepare_state_dir(&file.join("below"), own()).unwrap_err().to_string().contains("failed to create"));
    }

    #[test]
    fn a_runtime_directory_has_room_for_sockets() {
        let fits = |length: usize| socket_fits(PathBuf::from("/".repeat(length))).is_ok();
        assert!(fits(50));
        assert!(!fits(51));
    }
}
