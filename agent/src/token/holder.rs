//! The token that is held, and when to look for the next one.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::{budget, layout};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use uuid::Uuid;

use super::claims::{self, Claims, ClaimsError};
use super::reader::{ReadError, read_listed};

/// The tokens of one sandbox. Both connections take their bearer here.
#[derive(Debug)]
pub struct Tokens {
    directory: PathBuf,
    sandbox: Uuid,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    token: Option<(SecretString, Claims)>,
    first_seen: Option<Instant>,
    last_read: Option<Instant>,
}

/// Header and claims of a token as they stand in it. Without the signature they are good for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The first segment.
    pub header: String,
    /// The second.
    pub claims: String,
}

/// What a look into the directory found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A token of this generation, newer than what was held.
    Newer(u64),
    /// What is held already.
    Same,
}

/// Why the held token stays. It stays in every case: until it expires it is better than none.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Not read.
    #[error(transparent)]
    Read(ReadError),
    /// Read, but not a token of this sandbox.
    #[error("{file} in {}: {cause}", directory.display(), file = layout::TOKEN_FILE)]
    Claims {
        /// Of which directory.
        directory: PathBuf,
        /// Why not.
        cause: ClaimsError,
    },
    /// Read, and older than what is held.
    #[error("{file} in {} is of generation {found}, but {held} is held", directory.display(), file = layout::TOKEN_FILE)]
    Older {
        /// Of which directory.
        directory: PathBuf,
        /// Its generation.
        found: u64,
        /// The one held.
        held: u64,
    },
}

impl Tokens {
    /// Holds nothing yet.
    pub fn new(directory: impl Into<PathBuf>, sandbox: Uuid) -> Self {
        Self { directory: directory.into(), sandbox, held: Mutex::default() }
    }

    /// The identity directory.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// Reads the file again, and takes what is in it unless it is older.
    pub fn refresh(&self, now: Instant) -> Result<Found, RefreshError> {
        self.held().last_read = Some(now);
        let content =
            read_listed(&self.directory, layout::TOKEN_FILE, budget::TOKEN_FILE_MAX).map_err(RefreshError::Read)?;
        let (token, claims) = self.parse(content)?;
        let mut held = self.held();
        match held.token.as_ref().map(|(_, claims)| claims.generation) {
            Some(generation) if generation > claims.generation => {
                let (directory, found) = (self.directory.clone(), claims.generation);
                Err(RefreshError::Older { directory, found, held: generation })
            }
            Some(generation) if generation == claims.generation => Ok(Found::Same),
            _ => {
                held.token = Some((token, claims));
                held.first_seen = Some(now);
                Ok(Found::Newer(claims.generation))
            }
        }
    }

    fn parse(&self, content: SecretSlice<u8>) -> Result<(SecretString, Claims), RefreshError> {
        let refused = |cause| RefreshError::Claims { directory: self.directory.clone(), cause };
        let text = std::str::from_utf8(content.expose_secret()).map_err(|_| refused(ClaimsError::Segments))?;
        let claims = claims::parse(text, self.sandbox).map_err(refused)?;
        Ok((SecretString::from(text), claims))
    }

    /// The value of `authorization`, never indexed by HPACK and never shown by `Debug`.
    pub fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        let held = self.held();
        let (token, _) = held.token.as_ref()?;
        let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose_secret())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The gateway has refused a token of this generation. If it is the one held, whatever the directory holds is better, an older token too. Otherwise one
    /// that was put there by mistake, of a generation that does not exist yet, would keep the true ones out.
    pub fn forget(&self, generation: u64) {
        let mut held = self.held();
        if held.token.as_ref().is_some_and(|(_, claims)| claims.generation <= generation) {
            held.token = None;
        }
    }

    /// The parts of the token held that may be seen.
    pub fn shown(&self) -> Option<Shown> {
        let held = self.held();
        let (token, _) = held.token.as_ref()?;
        let mut segments = token.expose_secret().split('.').map(str::to_owned);
        Some(Shown { header: segments.next()?, claims: segments.next()? })
    }

    /// The generation held; 0 where none is.
    pub fn generation(&self) -> u64 {
        self.held().token.as_ref().map_or(0, |(_, claims)| claims.generation)
    }

    /// When to look again though nobody said so.
    pub fn reread_at(&self, now: Instant, pause: Duration) -> Instant {
        let held = self.held();
        let life = held.token.as_ref().map(|(_, claims)| claims.life);
        reread_at(now, held.first_seen.zip(life), held.last_read, pause)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token is due at its share of life after it was first seen, by the monotonic clock; once due, it is looked for
/// every `pause`, and so is the first one.
fn reread_at(now: Instant, seen: Option<(Instant, Duration)>, last_read: Option<Instant>, pause: Duration) -> Instant {
    let due = seen.map_or(now, |(first_seen, life)| first_seen + budget::reread_at(life));
    last_read.map_or(due, |last| due.max(last + pause))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const SANDBOX: Uuid = Uuid::from_u128(7);

    fn publish(directory: &std::path::Path, generation: u64) {
        let payload = format!(r#"{{"sandbox_id":"{SANDBOX}","gen":{generation},"iat":100,"exp":130}}"#);
        let token = ["{}", &payload, "s"].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        std::fs::write(directory.join(layout::TOKEN_FILE), token).unwrap();
    }

    #[test]
    fn what_was_refused_is_replaced_by_whatever_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(directory.path(), SANDBOX);
        publish(directory.path(), 1000);
        assert_eq!(tokens.refresh(Instant::now()).unwrap(), Found::Newer(1000));
        publish(directory.path(), 7);
        assert!(matches!(tokens.refresh(Instant::now()), Err(RefreshError::Older { .. })));
        tokens.forget(999);
        assert!(tokens.bearer().is_some(), "another one was refused");
        tokens.forget(1000);
        assert!(tokens.bearer().is_none());
        assert_eq!(tokens.refresh(Instant::now()).unwrap(), Found::Newer(7));
    }

    #[test]
    fn only_newer_generations_replace_the_held_one() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(directory.path(), SANDBOX);
        let now = Instant::now();
        assert!(matches!(tokens.refresh(now), Err(RefreshError::Read(ReadError::NotListed { .. }))));
        assert!(tokens.bearer().is_none());
        publish(directory.path(), 5);
        assert_eq!(tokens.refresh(now).unwrap(), Found::Newer(5));
        assert_eq!(tokens.refresh(now).unwrap(), Found::Same);
        publish(directory.path(), 4);
        assert!(matches!(tokens.refresh(now), Err(RefreshError::Older { found: 4, held: 5, .. })));
        assert_eq!(tokens.generation(), 5);
        std::fs::write(directory.path().join(layout::TOKEN_FILE), "half a tok").unwrap();
        assert!(matches!(tokens.refresh(now), Err(RefreshError::Claims { cause: ClaimsError::Segments, .. })));
        assert_eq!(tokens.generation(), 5);
        let bearer = tokens.bearer().unwrap();
        assert!(bearer.is_sensitive() && !format!("{bearer:?} {tokens:?}").contains("Bearer"));
    }

    #[test]
    fn a_token_is_due_by_the_monotonic_clock() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let (life, pause) = (seconds(30), seconds(2));
        let at = |seen, last_read| reread_at(start, seen, last_read, pause);
        assert_eq!(at(None, None), start);
        assert_eq!(at(None, Some(start)), start + pause);
        assert_eq!(at(Some((start, life)), Some(start)), start + seconds(18));
        assert_eq!(at(Some((start, life)), Some(start + seconds(18))), start + seconds(20));
    }
}
