use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use super::*;

struct Place {
    _temp: tempfile::TempDir,
    dir: PathBuf,
}

fn place() -> Place {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("jwt");
    Place { _temp: temp, dir }
}

fn made() -> Place {
    let place = place();
    Keys::load_or_create(&place.dir).unwrap();
    place
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn made_once_then_left_alone() {
    let place = place();
    let made = Keys::load_or_create(&place.dir).unwrap();
    let before = fs::read(place.dir.join(SIGNING_FILE)).unwrap();
    let again = Keys::load_or_create(&place.dir).unwrap();
    assert_eq!(made.kid(), again.kid());
    assert_eq!(before, fs::read(place.dir.join(SIGNING_FILE)).unwrap());
    assert_eq!(again.ring().key_ids().collect::<Vec<_>>(), [again.kid()]);

    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&place.dir), 0o700);
    for name in [SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE] {
        assert_eq!(mode(&place.dir.join(name)), 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(place.dir.parent().unwrap()).unwrap().count(), 1, "nothing beside the key directory");
}

#[test]
fn debug_shows_the_key_id_alone() {
    let place = made();
    let keys = Keys::load(&place.dir).unwrap();
    let pem = fs::read_to_string(place.dir.join(SIGNING_FILE)).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    assert_eq!(format!("{keys:?}"), format!("Keys {{ kid: {:?}, .. }}", keys.kid()));
    assert!(!format!("{:?}", keys.signer()).contains(secret));
}

#[test]
fn a_leftover_of_a_killed_gateway_is_replaced() {
    let place = place();
    let leftover = place.dir.with_extension("new");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join(SIGNING_FILE), "half").unwrap();
    Keys::load_or_create(&place.dir).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn load_alone_makes_nothing() {
    let place = place();
    assert_eq!(Keys::load(&place.dir).unwrap_err(), KeyError::Missing { dir: place.dir.clone() });
    assert!(!place.dir.exists());
}

#[test]
fn partial_is_refused_by_name_and_left_alone() {
    for name in [SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE] {
        let place = made();
        fs::remove_file(place.dir.join(name)).unwrap();
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert_eq!(error, KeyError::Partial { dir: place.dir.clone(), missing: name.into() });
        assert!(error.to_string().contains("restore it from a backup"), "{error}");
        assert_eq!(fs::read_dir(&place.dir).unwrap().count(), 2);
    }
    let place = place();
    fs::create_dir(&place.dir).unwrap();
    chmod(&place.dir, 0o700);
    let error = Keys::load_or_create(&place.dir).unwrap_err();
    assert!(error.to_string().contains("signing.pem and public.pem and kid missing"), "{error}");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let other = made();
    for name in [PUBLIC_FILE, KEY_ID_FILE, SIGNING_FILE] {
        let place = made();
        fs::copy(other.dir.join(name), place.dir.join(name)).unwrap();
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert!(matches!(error, KeyError::Foreign { .. }), "{name}: {error}");
    }
}

#[test]
fn what_is_no_ed25519_key_is_refused() {
    // An RSA key's algorithm identifier; the body does not matter.
    let rsa = "-----BEGIN PRIVATE KEY-----\nMBwCAQAwDQYJKoZIhvcNAQEBBQAECAABAgMEBQYH\n-----END PRIVATE KEY-----\n";
    for (name, content) in [(SIGNING_FILE, rsa), (SIGNING_FILE, ""), (PUBLIC_FILE, "x"), (KEY_ID_FILE, "../kid")] {
        let place = made();
        fs::write(place.dir.join(name), content).unwrap();
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert!(matches!(&error, KeyError::Foreign { path, .. } if *path == place.dir.join(name)), "{error}");
    }
    let place = made();
    fs::remove_file(place.dir.join(SIGNING_FILE)).unwrap();
    std::os::unix::fs::symlink("/dev/null", place.dir.join(SIGNING_FILE)).unwrap();
    assert!(matches!(Keys::load(&place.dir).unwrap_err(), KeyError::Foreign { .. }));
    let place = self::place();
    fs::write(&place.dir, "").unwrap();
    assert!(matches!(Keys::load_or_create(&place.dir).unwrap_err(), KeyError::Foreign { .. }));
}

#[test]
fn what_others_can_read_or_replace_is_refused() {
    for (name, mode) in [("", 0o750), (SIGNING_FILE, 0o640), (SIGNING_FILE, 0o604), (PUBLIC_FILE, 0o620)] {
        let place = made();
        let path = if name.is_empty() { place.dir.clone() } else { place.dir.join(name) };
        chmod(&path, mode);
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert!(matches!(&error, KeyError::Exposed { path: at, .. } if *at == path), "{name}: {error}");
        assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
    }
    let place = made();
    chmod(&place.dir.join(PUBLIC_FILE), 0o644);
    Keys::load(&place.dir).unwrap();
}
