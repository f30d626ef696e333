//! The signing keys, and the store's word for which they are.
//!
//! The store and the key directory are two places, and a state directory may be copied without the one or with another
//! one's. The store therefore knows the id of the key; what does not fit it is refused at the start, not by the first
//! sandbox.

use std::path::Path;

use super::StartError;
use crate::identity::keys::{Fresh, KeyError, Keys, to_retire};
use crate::store::sqlite::SqliteStore;

/// The signing keys, in the state directory.
pub(super) const DIR: &str = "jwt";
/// The certificates, in the state directory.
pub(super) const CERTIFICATES_DIR: &str = "tls";

/// Reads the keys that the store knows; makes them where it knows none yet.
pub(super) fn open(dir: &Path, store: &SqliteStore) -> Result<Keys, StartError> {
    let known = store.signing_keys()?;
    let keys = match (Keys::load(dir), known.first()) {
        (Err(KeyError::Missing { .. }), Some(kid)) => Err(KeyError::Lost { dir: dir.into(), kid: kid.clone() }),
        (Err(KeyError::Missing { .. }), None) => Keys::load_or_create(dir),
        (loaded, _) => loaded,
    }?;
    if !keys.belong_to(&known) {
        let (found, kid) = (keys.kid().to_owned(), known.join(" or "));
        return Err(KeyError::Other { dir: dir.into(), found, kid }.into());
    }
    // New ones whose making was cut short, or of a store that did not know its key yet, or replaced by hand with the
    // public half of the known one kept.
    if known != [keys.kid()] {
        store.settle_signing_key(keys.kid())?;
    }
    Keys::clear_leftover(dir)?;
    Ok(keys)
}

/// Makes new keys in the place of whatever is there.
///
/// In this order a crash at any step leaves a state directory that starts, or one that is refused as before:
///
/// 1. The store knows the new id besides the old one. Until the next step the old keys, if they are there, are good.
/// 2. The directory is exchanged, in one rename. From here on the new keys are good, because the store knows them.
/// 3. The store forgets the old id. Not before: until the exchange a start needs it.
/// 4. The old directory, private key and all, is removed; the next start does it, too.
pub(super) fn renew(dir: &Path, store: &SqliteStore) -> Result<Keys, StartError> {
    let retired = to_retire(dir, &store.signing_keys()?);
    let fresh = Fresh::make(dir)?;
    store.allow_signing_key(fresh.kid())?;
    fresh.replace(dir, &retired)?;
    open(dir, store)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        temp: tempfile::TempDir,
        store: SqliteStore,
    }

    fn place() -> Place {
        let temp = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(temp.path()).unwrap();
        Place { temp, store }
    }

    impl Place {
        fn dir(&self) -> std::path::PathBuf {
            self.temp.path().join(DIR)
        }

        fn open(&self) -> Result<Keys, String> {
            open(&self.dir(), &self.store).map_err(|error| error.to_string())
        }

        fn renew(&self) -> Keys {
            renew(&self.dir(), &self.store).unwrap()
        }

        fn remove(&self) {
            std::fs::remove_dir_all(self.dir()).unwrap();
        }
    }

    #[test]
    fn a_key_directory_that_is_lost_is_told_from_one_that_never_was() {
        let place = place();
        let first = place.open().unwrap();
        assert_eq!(place.store.signing_keys().unwrap(), [first.kid()]);
        place.remove();
        let error = place.open().unwrap_err();
        for words in [first.kid(), &place.dir().display().to_string(), "gateway init --new-keys", "was copied"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(!place.dir().exists());
        let second = place.renew();
        assert_ne!(second.kid(), first.kid());
        assert!(second.retired().is_empty(), "nothing is left of the first");
        assert_eq!(place.open().unwrap().kid(), second.kid());
    }

    #[test]
    fn tokens_of_a_key_that_is_replaced_count_on() {
        let place = place();
        let first = place.open().unwrap();
        let second = place.renew();
        assert_eq!(second.retired(), [first.kid()]);
        assert_eq!(place.store.signing_keys().unwrap(), [second.kid()]);
        let third = place.renew();
        assert_eq!(third.retired().len(), 2);
        assert_eq!(std::fs::read_dir(place.temp.path()).unwrap().count(), 4, "gateway.db with its log, and jwt");
    }

    #[test]
    fn keys_of_another_state_directory_are_refused_unless_the_own_one_counts_too() {
        let (one, other) = (place(), place());
        let (own, foreign) = (one.open().unwrap(), other.open().unwrap());
        std::fs::rename(one.dir(), one.temp.path().join("own")).unwrap();
        std::fs::rename(other.dir(), one.dir()).unwrap();
        let error = one.open().unwrap_err();
        for words in [own.kid(), foreign.kid(), "is not the key of this state directory"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert_eq!(one.store.signing_keys().unwrap(), [own.kid()]);
        assert!(renew_retires(&one).is_empty(), "a foreign key is not kept");

        std::fs::create_dir(one.dir().join("verify")).unwrap();
        std::fs::copy(one.temp.path().join("own/public.pem"), one.dir().join("verify/mine.pem")).unwrap();
        assert_eq!(one.open().unwrap().kid(), foreign.kid());
        assert_eq!(one.store.signing_keys().unwrap(), [foreign.kid()]);
    }

    fn renew_retires(place: &Place) -> Vec<String> {
        let ring = to_retire(&place.dir(), &place.store.signing_keys().unwrap());
        ring.key_ids().map(str::to_owned).collect()
    }

    #[test]
    fn a_replacement_may_be_cut_short_anywhere() {
        for (kept, steps) in [(true, 1), (true, 2), (true, 3), (false, 1), (false, 2), (false, 3)] {
            let place = place();
            let old = place.open().unwrap();
            if !kept {
                place.remove();
            }
            let fresh = Fresh::make(&place.dir()).unwrap();
            place.store.allow_signing_key(fresh.kid()).unwrap();
            if steps > 1 {
                fresh.replace(&place.dir(), &to_retire(&place.dir(), &[old.kid().into()])).unwrap();
            }
            if steps > 2 {
                place.store.settle_signing_key(fresh.kid()).unwrap();
            }
            match place.open() {
                Ok(keys) => {
                    assert_eq!(keys.kid(), if steps > 1 { fresh.kid() } else { old.kid() });
                    assert_eq!(place.store.signing_keys().unwrap(), [keys.kid()]);
                    assert!(!place.dir().with_extension("new").exists(), "the old private key is gone");
                }
                Err(error) => {
                    assert!(!kept && steps == 1 && error.contains(old.kid()), "{kept} {steps}: {error}");
                    place.renew();
                }
            }
            place.open().unwrap();
        }
    }
}
