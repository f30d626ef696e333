//! Secrets of providers: variables that the workload of a sandbox gets if it was created with that provider.
//!
//! At rest they are in one file of the state directory, 0600 and not encrypted: whoever can read it could read the
//! signing keys beside it as well. In the guest they are in the memory of the agent and of the programs that it starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use proto::budget::ENVIRONMENT_MAX;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::atomic_file;

/// The file, in the state directory.
pub const FILE: &str = "secrets.json";
const PROVIDERS_MAX: usize = 256;
/// Of one provider, names and values together: those of all that a sandbox may have fit into one answer to its agent,
/// and into the environment of a program.
const PROVIDER_BYTES_MAX: usize = 64 * 1024;

/// Why secrets cannot be read or changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretsError {
    /// The file is not what this gateway writes.
    #[error("{} {what}; restore it from a copy, or remove it to start without secrets", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Others could read it.
    #[error("{} can be read by others; chmod 0600 it, and renew the secrets in it", .0.display())]
    Exposed(PathBuf),
    /// The file system said no.
    #[error("failed to {act} {}: {cause}", .path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        cause: String,
    },
    /// There is none.
    #[error("{0} does not exist; `openshell secret list` shows what there is")]
    Unknown(String),
    /// A limit.
    #[error("{0}")]
    TooMuch(String),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Rises with every change.
    revision: u64,
    providers: BTreeMap<String, Provider>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    /// The document's, at this provider's last change.
    revision: u64,
    variables: BTreeMap<String, Variable>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    #[serde(serialize_with = "expose")]
    value: SecretString,
    updated_ms: u64,
}

/// The only way by which a value leaves its type here: into the file.
fn expose<S: Serializer>(value: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose_secret())
}

/// One secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Whose.
    pub provider: String,
    /// The variable.
    pub key: String,
    /// In milliseconds since the epoch.
    pub updated_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Secrets {
    path: PathBuf,
    document: RwLock<Document>,
}

impl Secrets {
    /// Reads the file; there need not be one.
    ///
    /// # Errors
    /// [`SecretsError`]; the file is left as it is.
    pub fn open(state_dir: &Path) -> Result<Self, SecretsError> {
        let path = state_dir.join(FILE);
        let document = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Document::default(),
            Err(error) => return Err(failed("inspect", &path, &error)),
            Ok(metadata) if !metadata.is_file() => {
                return Err(SecretsError::Unusable { path, what: "is not a regular file".into() });
            }
            Ok(metadata) if metadata.mode() & 0o077 != 0 => return Err(SecretsError::Exposed(path)),
            Ok(_) => read(&path)?,
        };
        Ok(Self { path, document: RwLock::new(document) })
    }

    /// Where they are at rest.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets one. The caller has checked key and value as those of an environment variable.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn set(&self, provider: &str, key: &str, value: SecretString, now_ms: u64) -> Result<(), SecretsError> {
        self.change(now_ms, |document| {
            if !document.providers.contains_key(provider) && document.providers.len() >= PROVIDERS_MAX {
                return Err(SecretsError::TooMuch(format!("at most {PROVIDERS_MAX} providers may have secrets")));
            }
            let provider = document.providers.entry(provider.into()).or_default();
            provider.variables.insert(key.into(), Variable { value, updated_ms: now_ms });
            provider.revision = document.revision;
            let bytes: usize = provider.variables.iter().map(|(k, v)| k.len() + v.value.expose_secret().len()).sum();
            if provider.variables.len() > ENVIRONMENT_MAX || bytes > PROVIDER_BYTES_MAX {
                return Err(SecretsError::TooMuch(format!(
                    "a provider may have {ENVIRONMENT_MAX} secrets of {PROVIDER_BYTES_MAX} bytes together"
                )));
            }
            Ok(())
        })
    }

    /// Removes one, or with an empty key the whole provider. How many are gone.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn remove(&self, provider: &str, key: &str, now_ms: u64) -> Result<u32, SecretsError> {
        let unknown = |what: String| SecretsError::Unknown(what);
        self.change(now_ms, |document| {
            let found = document.providers.get_mut(provider);
            let found = found.ok_or_else(|| unknown(format!("provider `{}`", provider.escape_debug())))?;
            if key.is_empty() {
                let removed = found.variables.len() as u32;
                document.providers.remove(provider);
                return Ok(removed);
            }
            let secret = || format!("secret `{}` of provider `{provider}`", key.escape_debug());
            found.variables.remove(key).ok_or_else(|| unknown(secret()))?;
            // A provider without variables stays: sandboxes may have been created with it.
            found.revision = document.revision;
            Ok(1)
        })
    }

    /// Those of one provider, or of all where it is empty.
    pub fn list(&self, provider: &str) -> Vec<Listed> {
        let document = self.document.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = document.providers.iter().filter(|(name, _)| provider.is_empty() || *name == provider);
        let all = wanted.flat_map(|(provider, held)| {
            held.variables.iter().map(|(key, variable)| Listed {
                provider: provider.clone(),
                key: key.clone(),
                updated_ms: variable.updated_ms,
            })
        });
        all.collect()
    }

    /// Whether there is such a provider.
    pub fn knows(&self, provider: &str) -> bool {
        self.document.read().unwrap_or_else(PoisonError::into_inner).providers.contains_key(provider)
    }

    /// What a sandbox with these providers gets; of two that set the same variable the later one wins.
    pub fn environment(&self, providers: &[String]) -> BTreeMap<String, SecretString> {
        let document = self.document.read().unwrap_or_else(PoisonError::into_inner);
        let held = providers.iter().filter_map(|name| document.providers.get(name));
        held.flat_map(|provider| provider.variables.iter().map(|(k, v)| (k.clone(), v.value.clone()))).collect()
    }

    /// Changes with every change of what a sandbox with these providers gets; 0 for a sandbox without providers, and for
    /// no other: an agent that has to wait for secrets waits for another number.
    pub fn revision(&self, providers: &[String]) -> u64 {
        let document = self.document.read().unwrap_or_else(PoisonError::into_inner);
        let revision = |name: &String| document.providers.get(name).map_or(1, |provider| provider.revision);
        providers.iter().map(revision).max().unwrap_or_default()
    }

    /// Durable before it counts. Revisions go by the clock, so that one that was given out before an older file was
    /// restored does not come again.
    fn change<T>(
        &self,
        now_ms: u64,
        act: impl FnOnce(&mut Document) -> Result<T, SecretsError>,
    ) -> Result<T, SecretsError> {
        let mut document = self.document.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = document.clone();
        changed.revision = now_ms.max(changed.revision + 1);
        let outcome = act(&mut changed)?;
        let cause = |error: &dyn std::fmt::Display| SecretsError::Io {
            act: "write",
            path: self.path.clone(),
            cause: error.to_string(),
        };
        let json = serde_json::to_string_pretty(&changed).map(SecretString::from).map_err(|error| cause(&error))?;
        if let Err(error) = atomic_file::replace(&self.path, json.expose_secret().as_bytes()) {
            // It may have come as far as the rename: what is there now is what counts.
            if let Ok(found) = read(&self.path) {
                *document = found;
            }
            return Err(cause(&error));
        }
        *document = changed;
        Ok(outcome)
    }
}

fn read(path: &Path) -> Result<Document, SecretsError> {
    let text = fs::read_to_string(path).map(SecretString::from).map_err(|error| failed("read", path, &error))?;
    // Where, not what: the words of the parser may repeat what it read.
    let broken = |error: serde_json::Error| SecretsError::Unusable {
        path: path.into(),
        what: format!("is not a document of secrets (line {}, column {})", error.line(), error.column()),
    };
    serde_json::from_str(text.expose_secret()).map_err(broken)
}

fn failed(act: &'static str, path: &Path, error: &io::Error) -> SecretsError {
    SecretsError::Io { act, path: path.into(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn values(secrets: &Secrets, providers: &[&str]) -> Vec<(String, String)> {
        let providers: Vec<String> = providers.iter().map(|name| (*name).to_owned()).collect();
        let environment = secrets.environment(&providers).into_iter();
        environment.map(|(key, value)| (key, value.expose_secret().to_owned())).collect()
    }

    #[test]
    fn secrets_survive_and_revisions_tell_of_changes() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        let (git, none) = (vec!["git".to_owned()], Vec::<String>::new());
        assert_eq!((secrets.revision(&git), secrets.knows("git")), (1, false));
        secrets.set("git", "TOKEN", "geheim".into(), 1000).unwrap();
        secrets.set("ai", "TOKEN", "two".into(), 1000).unwrap();
        assert_eq!((secrets.revision(&git), secrets.revision(&none)), (1000, 0));
        assert_eq!(values(&secrets, &["git", "ai"]), [("TOKEN".into(), "two".into())]);
        assert_eq!(values(&secrets, &["ai", "git"]), [("TOKEN".into(), "geheim".into())]);

        let secrets = Secrets::open(dir.path()).unwrap();
        assert_eq!(secrets.list("").len(), 2);
        assert_eq!(fs::metadata(secrets.path()).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{secrets:?}").contains("geheim"));
        let copy = fs::read(secrets.path()).unwrap();
        assert_eq!(secrets.remove("git", "TOKEN", 2000), Ok(1));
        assert_eq!((secrets.revision(&git), values(&secrets, &["git"])), (2000, vec![]));
        assert!(secrets.knows("git"));
        assert_eq!(secrets.remove("git", "", 2000), Ok(0));
        for (provider, key) in [("git", ""), ("ai", "OTHER")] {
            assert!(matches!(secrets.remove(provider, key, 3000), Err(SecretsError::Unknown(_))), "{provider} {key}");
        }
        // A copy of the time before: what comes next has a number that nobody holds.
        fs::write(secrets.path(), copy).unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        secrets.set("git", "TOKEN", "neu".into(), 4000).unwrap();
        assert_eq!(secrets.revision(&git), 4000);
    }

    #[test]
    fn what_others_can_read_or_have_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        secrets.set("git", "TOKEN", "geheim".into(), 1).unwrap();
        fs::set_permissions(secrets.path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(Secrets::open(dir.path()).unwrap_err(), SecretsError::Exposed(secrets.path().into()));
        fs::set_permissions(secrets.path(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(secrets.path(), "{\"revision\": \"geheim\"}").unwrap();
        let error = Secrets::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("geheim"), "{error}");
    }

    #[test]
    fn limits_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(dir.path()).unwrap();
        for number in 0..ENVIRONMENT_MAX {
            secrets.set("git", &format!("K{number}"), "x".into(), 1).unwrap();
        }
        assert!(matches!(secrets.set("git", "ONE_MORE", "x".into(), 1), Err(SecretsError::TooMuch(_))));
        assert_eq!(secrets.list("git").len(), ENVIRONMENT_MAX);
    }
}
