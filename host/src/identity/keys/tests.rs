use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use super::*;
use crate::identity::secret_dir::Secrets;

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
    assert_eq!(
        Keys::load(&place.dir).unwrap_err(),
        KeyError::Missing { dir: place.dir.clone(), secrets: Secrets::SigningKeys }
    );
    assert!(!place.dir.exists());
}

#[test]
fn partial_is_refused_by_name_and_left_alone() {
    for name in [SIGNING_FILE, PUBLIC_FILE, KEY_ID_FILE] {
        let place = made();
        fs::remove_file(place.dir.join(name)).unwrap();
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert_eq!(
            error,
            KeyError::Partial { dir: place.dir.clone(), secrets: Secrets::SigningKeys, missing: name.into() }
        );
        assert!(error.to_string().contains("as a whole from a backup"), "{error}");
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

/// The public key of another directory, as PEM.
fn stranger() -> String {
    fs::read_to_string(made().dir.join(PUBLIC_FILE)).unwrap()
}

#[test]
fn tokens_of_further_public_keys_count() {
    let place = made();
    let verify = place.dir.join(VERIFY_DIR);
    fs::create_dir(&verify).unwrap();
    assert!(Keys::load(&place.dir).unwrap().retired().is_empty());
    let key = stranger();
    for name in ["one.pem", "the-same-again.pem"] {
        fs::write(verify.join(name), &key).unwrap();
    }
    fs::copy(place.dir.join(PUBLIC_FILE), verify.join("own.pem")).unwrap();
    let keys = Keys::load(&place.dir).unwrap();
    let kid = key_id(&VerifyingKey::from_public_key_pem(&key).unwrap());
    assert_eq!(keys.retired(), [&kid]);
    assert_eq!(keys.ring().key_ids().count(), 2);
    assert!(keys.belong_to(&[kid]) && keys.belong_to(&[]) && !keys.belong_to(&["0".repeat(32)]));
}

#[test]
fn what_is_no_public_key_is_refused_by_name() {
    let secret = fs::read_to_string(made().dir.join(SIGNING_FILE)).unwrap();
    let small_order = {
        let mut point = [0_u8; 32];
        point[0] = 1;
        VerifyingKey::from_bytes(&point).unwrap().to_public_key_pem(LineEnding::LF).unwrap()
    };
    let long = stranger() + &"\n".repeat(4 * 1024);
    for (name, content, what) in [
        ("notes.txt", stranger(), "is not named *.pem"),
        (".pem", stranger(), "is not named *.pem"),
        ("a.pem", "x".into(), "is not an Ed25519 public key in PEM"),
        ("a.pem", secret, "is not an Ed25519 public key in PEM"),
        ("a.pem", small_order, "is a key of small order"),
        ("a.pem", long, "is longer than 4096 bytes"),
    ] {
        let place = made();
        let path = place.dir.join(VERIFY_DIR).join(name);
        fs::create_dir(place.dir.join(VERIFY_DIR)).unwrap();
        fs::write(&path, content).unwrap();
        let error = Keys::load_or_create(&place.dir).unwrap_err();
        assert!(matches!(&error, KeyError::Verify { path: at, .. } if *at == path), "{error}");
        assert!(error.to_string().contains(what) && error.to_string().contains("remove it"), "{error}");
    }
    let place = made();
    fs::create_dir_all(place.dir.join(VERIFY_DIR).join("a.pem")).unwrap();
    assert!(Keys::load(&place.dir).unwrap_err().to_string().contains("is not a regular file"));
    let place = made();
    fs::write(place.dir.join(VERIFY_DIR), "").unwrap();
    assert!(Keys::load(&place.dir).unwrap_err().to_string().contains("is not a directory"));
}

#[test]
fn further_keys_are_few_and_nobody_else_adds_any() {
    let place = made();
    let verify = place.dir.join(VERIFY_DIR);
    fs::create_dir(&verify).unwrap();
    let key = stranger();
    for number in 0..16 {
        fs::write(verify.join(format!("{number}.pem")), &key).unwrap();
    }
    Keys::load(&place.dir).unwrap();
    fs::write(verify.join("more.pem"), &key).unwrap();
    let error = Keys::load(&place.dir).unwrap_err().to_string();
    assert!(error.contains("has 17 keys, and 16 may be there"), "{error}");
    fs::remove_file(verify.join("more.pem")).unwrap();
    for path in [verify.clone(), verify.join("3.pem")] {
        let before = fs::metadata(&path).unwrap().mode() & 0o7777;
        chmod(&path, before | 0o020);
        assert!(matches!(Keys::load(&place.dir), Err(KeyError::Exposed { path: at, .. }) if at == path));
        chmod(&path, before);
    }
    Keys::load(&place.dir).unwrap();
}

#[test]
fn a_replacement_keeps_the_public_halves_of_good_keys_only() {
    let retired = |place: &Place, known: &[&str]| {
        let known = known.iter().map(ToString::to_string).collect::<Vec<_>>();
        to_retire(&place.dir, &known).key_ids().map(str::to_owned).collect::<Vec<_>>()
    };
    let place = made();
    let kid = Keys::load(&place.dir).unwrap().kid().to_owned();
    assert_eq!(retired(&place, &[&kid]), [&*kid]);
    assert!(retired(&place, &["another"]).is_empty(), "another state directory's");
    fs::remove_file(place.dir.join(SIGNING_FILE)).unwrap();
    assert_eq!(retired(&place, &[&kid]), [&*kid], "what is lost is only the private half");
    assert!(retired(&place, &["another"]).is_empty());
    let place = made();
    chmod(&place.dir.join(SIGNING_FILE), 0o644);
    assert!(retired(&place, &[]).is_empty(), "others may hold that key");

    let place = made();
    let old = Keys::load(&place.dir).unwrap();
    let fresh = Fresh::make(&place.dir).unwrap();
    fresh.replace(&place.dir, old.ring()).unwrap();
    let new = Keys::load(&place.dir).unwrap();
    assert_eq!((new.kid(), new.retired()), (fresh.kid(), vec![old.kid()]));
    assert!(place.dir.with_extension("new").join(SIGNING_FILE).exists(), "what was replaced stays beside it");
    Keys::clear_leftover(&place.dir).unwrap();
    assert!(!place.dir.with_extension("new").exists());
    assert!(!format!("{fresh:?}").contains("PRIVATE"), "{fresh:?}");
    let mode = |name: &str| fs::metadata(place.dir.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode(VERIFY_DIR), mode(&format!("{VERIFY_DIR}/{}.pem", old.kid()))), (0o700, 0o600));
}
