//! What a process finds around itself, as an argument.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::keys::{Given, KEYS, Value};
use super::problem::{Origin, Problem};
use crate::tmpfs::is_tmpfs;

type Lookup = Box<dyn Fn(&str) -> Option<OsString> + Send + Sync>;

/// The variables, the user and the machine that defaults depend on.
pub struct Environment {
    lookup: Lookup,
    is_tmpfs: fn(&Path) -> bool,
    /// Effective user id.
    pub uid: u32,
    /// The directory of the running program; its siblings are the other programs.
    pub executable_dir: PathBuf,
    /// Relative paths of flags and variables start here.
    pub current_dir: PathBuf,
    /// CPUs of the host.
    pub cpus: usize,
    /// Memory of the host in MiB.
    pub memory_mib: u32,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> io::Result<Self> {
        let executable = std::env::current_exe()?;
        let system = rustix::system::sysinfo();
        let memory = u64::from(system.mem_unit).saturating_mul(system.totalram);
        Ok(Self {
            lookup: Box::new(|name| std::env::var_os(name)),
            is_tmpfs: |path| is_tmpfs(path).unwrap_or(false),
            uid: rustix::process::geteuid().as_raw(),
            executable_dir: executable.parent().map(Path::to_path_buf).unwrap_or_default(),
            current_dir: std::env::current_dir()?,
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get()),
            memory_mib: u32::try_from(memory >> 20).unwrap_or(u32::MAX),
        })
    }

    /// One made of parts, for tests.
    pub fn fixed(
        lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static,
        is_tmpfs: fn(&Path) -> bool,
        uid: u32,
        executable_dir: PathBuf,
    ) -> Self {
        let current_dir = PathBuf::from("/");
        Self { lookup: Box::new(lookup), is_tmpfs, uid, executable_dir, current_dir, cpus: 8, memory_mib: 16 * 1024 }
    }

    /// A variable, if it is set and not empty.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// A base directory of the XDG specification, which has relative ones ignored; else below `$HOME`.
    pub fn base_dir(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |name: &str| self.variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute(name).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
    }

    /// `$XDG_RUNTIME_DIR/openshell` where that may hold tokens.
    pub fn session_runtime_dir(&self) -> Option<PathBuf> {
        let dir = self.variable("XDG_RUNTIME_DIR").map(PathBuf::from)?;
        (dir.is_absolute() && (self.is_tmpfs)(&dir)).then(|| dir.join("openshell"))
    }

    /// The layer of the variables.
    pub(super) fn variables(&self, given: &mut Given, problems: &mut Vec<Problem>) {
        for row in &KEYS {
            let Some(value) = self.variable(row.variable) else { continue };
            let origin = Origin::Environment(row.variable);
            match value.into_string() {
                Ok(text) => {
                    given.insert(row.key, Value { text, origin });
                }
                Err(_) => problems.push(Problem::new(origin, "is not UTF-8".to_owned())),
            }
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("uid", &self.uid).finish_non_exhaustive()
    }
}
