//! Makes what a gateway needs in its state directory, without starting one.

use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::{StartError, keys};
use crate::command::{table, view};
use crate::config::Config;
use crate::config::directories::prepare_state_dir;
use crate::identity::host_key::{HostKeys, SEED_FILE};
use crate::identity::tls::Certificates;
use crate::store::lock::DirectoryLock;
use crate::store::sqlite::{self, SqliteStore};

/// What there is now. Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
pub struct Made {
    /// The state directory.
    pub state_dir: PathBuf,
    /// Part of every token's issuer.
    pub gateway_id: Uuid,
    /// The id of the signing key.
    pub kid: String,
    /// The ids of the keys that sign no more, and whose tokens count.
    pub verify_kids: Vec<String>,
    /// What was made, and what was there.
    pub parts: Vec<Part>,
}

/// A file or directory in the state directory.
#[derive(Debug, Serialize)]
pub struct Part {
    /// What it is.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Whether it was made now.
    pub state: State,
}

/// Whether a part was made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum State {
    /// Made now.
    #[serde(rename = "new")]
    New,
    /// Complete, and left alone.
    #[serde(rename = "already there")]
    AlreadyThere,
}

impl State {
    fn before(path: &Path) -> Self {
        if path.symlink_metadata().is_ok() { Self::AlreadyThere } else { Self::New }
    }

    fn words(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::AlreadyThere => "already there",
        }
    }
}

/// Makes what is not there; what is there stays as it is, but for the signing keys with `new_keys`. Every part appears
/// whole or not at all, so that a run which was cut short is completed by the next one.
///
/// # Errors
/// [`StartError`]: a part is incomplete or cannot be used, or a gateway runs.
pub fn init(config: &Config, new_keys: bool) -> Result<Made, StartError> {
    let uid = rustix::process::getuid().as_raw();
    let state_dir = &config.gateway.state_dir;
    prepare_state_dir(state_dir, uid)?;
    let _lock = DirectoryLock::take(state_dir)?;
    let (jwt, tls) = (state_dir.join(keys::DIR), state_dir.join(keys::CERTIFICATES_DIR));
    let places = [
        ("store", sqlite::path(state_dir)),
        ("signing keys", jwt.clone()),
        ("certificates", tls.clone()),
        ("SSH host key seed", state_dir.join(SEED_FILE)),
    ];
    let parts = places.map(|(what, path)| {
        let renewed = new_keys && path == jwt;
        let state = if renewed { State::New } else { State::before(&path) };
        Part { what, path, state }
    });
    let store = SqliteStore::open(state_dir)?;
    let keys = if new_keys { keys::renew(&jwt, &store)? } else { keys::open(&jwt, &store)? };
    Certificates::load_or_create(&tls)?;
    HostKeys::load_or_create(state_dir).map_err(StartError::HostKeys)?;
    store.checkpoint()?;
    Ok(Made {
        state_dir: state_dir.clone(),
        gateway_id: store.gateway_id(),
        kid: keys.kid().to_owned(),
        verify_kids: keys.retired().into_iter().map(str::to_owned).collect(),
        parts: parts.into(),
    })
}

impl Made {
    /// For scripts.
    pub fn json(&self) -> String {
        view::json(self)
    }

    /// For people.
    pub fn table(&self) -> String {
        let rows = self.parts.iter();
        let rows = rows.map(|part| vec![part.what.into(), part.path.display().to_string(), part.state.words().into()]);
        let mut text = table::columns(&["WHAT", "PATH", "STATE"], &rows.collect::<Vec<_>>());
        if self.parts.iter().all(|part| part.state == State::AlreadyThere) {
            text.push_str(&format!("already there: {} is complete and was left alone\n", self.state_dir.display()));
        }
        text
    }
}
