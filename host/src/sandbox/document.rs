//! What a sandbox is configured with: a versioned document, which is stored and not interpreted, and settings.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

use super::spec::Invalid;
use crate::hex::hex;

/// The longest document, in bytes: a sandbox has to be able to send and to receive it.
pub const DOCUMENT_MAX: usize = 64 * 1024;
const SETTINGS_MAX: usize = 64;
const KEY_MAX: usize = 256;
const VALUE_MAX: usize = 512;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// Rises with every document; 0 before the first.
    pub version: u32,
    /// The document.
    #[serde(with = "as_base64")]
    pub document: Vec<u8>,
    /// By key.
    pub settings: BTreeMap<String, Setting>,
    /// Rises with every change of a setting.
    pub settings_revision: u64,
    /// The sandbox's version at the last change of either.
    pub changed_in: u64,
}

/// The value of one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Text.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(i64),
    /// Anything.
    #[serde(with = "as_base64")]
    Bytes(Vec<u8>),
}

/// One change. At least one of the two parts is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// A new document.
    pub document: Option<Vec<u8>>,
    /// A setting by key: its new value, or nothing to remove it.
    pub setting: Option<(String, Option<Setting>)>,
    /// The sandbox's version that the caller has seen; 0 for whatever is there.
    pub expected: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// A rule is broken.
    #[error(transparent)]
    Invalid(Invalid),
    /// Of another sandbox, or of a store that was replaced by an older one.
    #[error("version {expected} is none that this sandbox has had, the latest is {latest}; read it again, and repeat")]
    Unseen {
        /// What the caller says to have seen.
        expected: u64,
        /// The latest there is.
        latest: u64,
    },
    /// Somebody else was faster.
    #[error(
        "the configuration was changed in version {changed_in}, after version {expected}; read it again, and repeat"
    )]
    Conflict {
        /// What the caller has seen.
        expected: u64,
        /// The version that changed it.
        changed_in: u64,
    },
}

impl Configuration {
    /// The hash of the document, in hex; empty before the first.
    pub fn document_hash(&self) -> String {
        match self.version {
            0 => String::new(),
            _ => hex(&Sha256::digest(&self.document)),
        }
    }

    /// The configuration after a change, in the sandbox's version `next`.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn updated(&self, update: Update, next: u64) -> Result<Self, UpdateError> {
        let Update { document, setting, expected } = update;
        // Versions rise for other reasons, too; only what came after the caller's look is in its way.
        if expected >= next {
            return Err(UpdateError::Unseen { expected, latest: next - 1 });
        }
        if expected != 0 && expected < self.changed_in {
            return Err(UpdateError::Conflict { expected, changed_in: self.changed_in });
        }
        let mut updated = self.clone();
        if document.is_none() && setting.is_none() {
            return Err(invalid("policy", "name a policy or a setting_key: there is nothing to change"));
        }
        if let Some(document) = document {
            if document.len() > DOCUMENT_MAX {
                let found = document.len();
                return Err(invalid("policy", format!("policy: {found} bytes; at most {DOCUMENT_MAX}")));
            }
            if updated.version == 0 || updated.document != document {
                updated.version += 1;
                updated.document = document;
            }
        }
        if let Some((key, value)) = setting {
            updated.set(key, value)?;
        }
        // What is so already is no change.
        if updated != *self {
            updated.changed_in = next;
        }
        Ok(updated)
    }

    fn set(&mut self, key: String, value: Option<Setting>) -> Result<(), UpdateError> {
        if key.is_empty() || key.len() > KEY_MAX || key.chars().any(char::is_control) {
            let rule = format!("setting_key: 1 to {KEY_MAX} bytes without control characters");
            return Err(invalid("setting_key", rule));
        }
        let Some(value) = value else {
            if self.settings.remove(&key).is_some() {
                self.settings_revision += 1;
            }
            return Ok(());
        };
        let length = match &value {
            Setting::Text(text) => text.len(),
            Setting::Bytes(bytes) => bytes.len(),
            Setting::Flag(_) | Setting::Number(_) => 0,
        };
        if length > VALUE_MAX {
            return Err(invalid("setting_value", format!("setting_value: at most {VALUE_MAX} bytes")));
        }
        if self.settings.get(&key) == Some(&value) {
            return Ok(());
        }
        self.settings_revision += 1;
        self.settings.insert(key, value);
        if self.settings.len() > SETTINGS_MAX {
            let rule = format!("setting_key: a sandbox has at most {SETTINGS_MAX} settings");
            return Err(invalid("setting_key", rule));
        }
        Ok(())
    }
}

fn invalid(field: &'static str, message: impl Into<String>) -> UpdateError {
    UpdateError::Invalid(Invalid { field, message: message.into() })
}

/// Bytes in a JSON document.
mod as_base64 {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, value: Option<Setting>, expected: u64) -> Update {
        Update { setting: Some((key.into(), value)), expected, ..Update::default() }
    }

    fn document(bytes: &[u8], expected: u64) -> Update {
        Update { document: Some(bytes.into()), expected, ..Update::default() }
    }

    #[test]
    fn documents_and_settings_have_revisions_of_their_own() {
        let first = Configuration::default().updated(document(b"a", 0), 5).unwrap();
        assert_eq!((first.version, first.settings_revision, first.changed_in), (1, 0, 5));
        assert_eq!(first.document_hash(), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb");
        assert_eq!(Configuration::default().document_hash(), "");
        let second = first.updated(setting("k", Some(Setting::Number(-1)), 0), 6).unwrap();
        assert_eq!((second.version, second.settings_revision), (1, 1));
        assert_eq!(second.updated(setting("k", Some(Setting::Number(-1)), 0), 9), Ok(second.clone()), "no change");
        assert_eq!(second.updated(document(b"a", 0), 9), Ok(second.clone()), "no change");
        let third = second.updated(setting("k", None, 0), 7).unwrap();
        assert!(third.settings.is_empty());
        let json = serde_json::to_string(&second).unwrap();
        assert_eq!(serde_json::from_str::<Configuration>(&json).unwrap(), second);
    }

    #[test]
    fn only_a_change_after_the_callers_look_is_a_conflict() {
        let changed_in_5 = Configuration::default().updated(document(b"a", 0), 5).unwrap();
        for (expected, next, accepted) in
            [(0, 9, true), (4, 9, false), (5, 9, true), (8, 9, true), (9, 9, false), (u64::MAX, 9, false)]
        {
            let outcome = changed_in_5.updated(document(b"b", expected), next);
            assert_eq!(outcome.is_ok(), accepted, "{expected}: {outcome:?}");
        }
    }

    #[test]
    fn limits_are_named() {
        let none = Configuration::default();
        let long = |length: usize| Some(Setting::Text("x".repeat(length)));
        for (update, word) in [
            (Update::default(), "nothing to change"),
            (document(&[0; DOCUMENT_MAX + 1], 0), "policy"),
            (setting("", None, 0), "setting_key"),
            (setting("a\n", None, 0), "setting_key"),
            (setting("k", long(VALUE_MAX + 1), 0), "setting_value"),
        ] {
            let error = none.updated(update, 1).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        let full = (0..SETTINGS_MAX as u64).fold(none, |all, number| {
            all.updated(setting(&format!("k{number}"), Some(Setting::Flag(true)), 0), number + 1).unwrap()
        });
        assert!(full.updated(setting("one-more", Some(Setting::Flag(true)), 0), 100).is_err());
        assert!(full.updated(setting("k0", long(1), 0), 100).is_ok());
    }
}
