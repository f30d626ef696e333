//! Services: programs that run in a guest beside its main process, declared by files.
//!
//! A file of the image (`/etc/openshell/services.d/NAME.toml`) and a file that is given at create are the same thing and
//! are read by the same function, [`parse`]. What came at create travels in the boot spec, already checked. [`order`]
//! says in which order all of them start, or why they cannot.

mod graph;
mod parse;
mod status;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::boot::RestartPolicy;

pub use graph::{Scope, order};
pub use parse::parse;
pub use status::{ServiceState, ServiceStatus};

/// Where an image has its declarations.
pub const IMAGE_DIRECTORY: &str = "/etc/openshell/services.d";
/// What the names of declarations end with.
pub const EXTENSION: &str = ".toml";
/// Services of one guest.
pub const SERVICES_MAX: usize = 64;
/// The longest declaration, in bytes.
pub const FILE_MAX: usize = 32 * 1024;
/// In front of a dependency's name: the image declares it, and whoever reads a declaration without the image takes its
/// word for that.
pub const OF_IMAGE: &str = "image:";

/// A declaration that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its file's name without the extension.
    pub name: String,
    /// Where it was declared, for messages.
    pub file: String,
    /// Program and arguments, exactly; no shell in between. Never empty.
    pub command: Vec<String>,
    /// Name or `uid` or `uid:gid`, looked up in the image; the sandbox's user where nothing is said.
    pub user: Option<String>,
    /// Added to the sandbox's environment.
    pub environment: BTreeMap<String, String>,
    /// Where it starts; its user's home where nothing is said.
    pub workdir: Option<String>,
    /// What starts before it.
    pub dependencies: Vec<Dependency>,
    /// What tells that it serves.
    pub ready: Readiness,
    /// How long it may take to that point.
    pub start_timeout: Duration,
    /// Whether it is started again when it has ended.
    pub restart: RestartPolicy,
    /// What asks it to end.
    pub stop_signal: StopSignal,
    /// How long it may take to end, before it is killed.
    pub stop_timeout: Duration,
    /// The sandbox is not worth running without it.
    pub critical: bool,
    /// The main process does not wait for it.
    pub optional: bool,
}

/// Another service that starts earlier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Its name.
    pub on: String,
    /// Whether it has to be ready; otherwise it is enough that it is not on its way any more.
    pub required: bool,
    /// The image declares it.
    pub of_image: bool,
    /// Line of the declaration.
    pub line: usize,
}

/// What tells that a service serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// That it runs.
    Started,
    /// `READY=1`, sent to the socket that `NOTIFY_SOCKET` names.
    Notify,
    /// That this command exits with 0; it is tried again and again.
    Command(Vec<String>),
    /// That it has ended with 0 itself: it has something to do, and does it once.
    Exit,
}

/// The signals by which programs are asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they have the names that they have everywhere")]
pub enum StopSignal {
    Hup,
    Int,
    Quit,
    Kill,
    Usr1,
    Usr2,
    #[default]
    Term,
    Winch,
}

/// Something that is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// In which file.
    pub file: String,
    /// In which line; nothing where the file itself is the matter.
    pub line: Option<usize>,
    /// What it is.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for Mistake {}

/// All of them, one after another.
pub fn listed(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("; ")
}
