//! Key directories that are not whole, not private, not this gateway's or not there, and how they are made.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;

use crate::bench::{Bench, block_on, set_mode};

/// What `gateway init` answers to scripts.
fn init(bench: &Bench, arguments: &[&str]) -> Value {
    let ended = bench.openshell(&[&["gateway", "init", "-o", "json"][..], arguments].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn states(made: &Value) -> Vec<&str> {
    made["parts"].as_array().expect("parts").iter().map(|part| part["state"].as_str().expect("a state")).collect()
}

/// Every file below the state directory with its content.
fn content(bench: &Bench) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let (mut files, mut todo) = (vec![], vec![bench.state()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("list").flatten() {
            match entry.file_type().expect("a type").is_dir() {
                true => todo.push(entry.path()),
                false => files.push((entry.path(), fs::read(entry.path()).expect("read"))),
            }
        }
    }
    files.sort();
    files
}

/// The value of `name` in the line of the last start.
fn started_with(bench: &Bench, name: &str) -> String {
    let log = fs::read_to_string(bench.log()).expect("the log");
    let line = log.lines().rfind(|line| line.contains("gateway starts")).expect("a start");
    let value = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {line}")).1;
    value.split(' ').next().unwrap_or_default().trim_matches('"').to_owned()
}

#[test]
fn init_makes_everything_once_and_a_gateway_starts_with_it() {
    let bench = Bench::new();
    let made = init(&bench, &[]);
    assert_eq!(states(&made), ["new"; 4], "{made}");
    let keys = ["jwt/signing.pem", "jwt/public.pem", "jwt/kid", "tls/ca.crt", "tls/server.key", "tls/client.crt"];
    for name in keys.into_iter().chain(["gateway.db", "ssh_host.seed"]) {
        let file = fs::metadata(bench.state().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(file.mode() & 0o7777, 0o600, "{name}");
    }
    for name in ["", "jwt", "tls"] {
        assert_eq!(fs::metadata(bench.state().join(name)).expect("a directory").mode() & 0o7777, 0o700, "{name}");
    }
    let before = content(&bench);
    let again = init(&bench, &[]);
    assert_eq!(states(&again), ["already there"; 4], "{again}");
    assert_eq!((&again["kid"], &again["gateway_id"]), (&made["kid"], &made["gateway_id"]));
    let shown = bench.openshell(&["gateway", "init"]);
    assert!(shown.stdout.contains("signing keys") && shown.stdout.contains("already there: "), "{shown:?}");
    assert!(content(&bench) == before, "what is there is left alone");

    block_on(bench.serves_once());
    assert_eq!(started_with(&bench, "kid"), made["kid"]);
    assert_eq!(started_with(&bench, "gateway"), made["gateway_id"]);
}

#[test]
fn init_of_a_running_gateway_s_directory_is_refused() {
    let bench = Bench::new();
    let _gateway = block_on(bench.serve());
    for arguments in [&["gateway", "init"][..], &["gateway", "init", "--new-keys"]] {
        bench.openshell(arguments).refused(40, &["is locked by another gateway", "stop that one"]);
    }
}

#[test]
fn init_refuses_what_is_incomplete_and_names_what_is_missing() {
    let bench = Bench::new();
    init(&bench, &[]);
    for (name, remedy) in [("jwt/kid", "--new-keys"), ("tls/ca.key", "remove it to have new certificates made")] {
        let (file, away) = (bench.state().join(name), bench.path("away"));
        fs::rename(&file, &away).expect("move it away");
        let missing = format!("{} missing", file.file_name().expect("a name").display());
        bench.openshell(&["gateway", "init"]).refused(43, &[&missing, "from a backup", remedy]);
        fs::rename(&away, &file).expect("put it back");
    }
    // What never was is made.
    fs::remove_dir_all(bench.state().join("tls")).expect("remove");
    assert_eq!(states(&init(&bench, &[])), ["already there", "already there", "new", "already there"]);
}

#[test]
fn a_state_directory_without_its_keys_is_refused_until_new_ones_are_asked_for() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let (keys, kid) = (bench.state().join("jwt"), started_with(&bench, "kid"));
    let away = bench.path("away");
    fs::rename(&keys, &away).expect("move it away");
    let words = [&*keys.display().to_string(), &kid, "was copied", "openshell gateway init --new-keys"];
    bench.gateway().refused(43, &words);
    bench.openshell(&["gateway", "init"]).refused(43, &words);
    assert!(!keys.exists(), "nothing is made in its place");
    fs::rename(&away, &keys).expect("put it back");
    block_on(bench.serves_once());

    fs::remove_dir_all(&keys).expect("remove");
    let made = init(&bench, &["--new-keys"]);
    assert_eq!(states(&made), ["already there", "new", "already there", "already there"]);
    assert_eq!(made["verify_kids"], Value::Array(vec![]));
    block_on(bench.serves_once());
    assert_eq!(started_with(&bench, "kid"), made["kid"]);
    assert_ne!(made["kid"], kid.as_str());
}

#[test]
fn new_keys_keep_what_the_old_one_has_signed_good() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let old = started_with(&bench, "kid");
    assert_eq!(started_with(&bench, "verify_kids"), "");
    let made = init(&bench, &["--new-keys"]);
    assert_eq!(made["verify_kids"], Value::from(vec![old.clone()]));
    assert!(bench.state().join("jwt/verify").join(format!("{old}.pem")).is_file());
    assert!(!bench.state().join("jwt.new").exists(), "the old private key is gone");
    block_on(bench.serves_once());
    assert_eq!(
        (started_with(&bench, "kid").as_str(), started_with(&bench, "verify_kids")),
        (made["kid"].as_str().expect("a kid"), old)
    );
}

#[test]
fn keys_of_another_gateway_are_refused_as_a_whole() {
    let bench = Bench::new();
    init(&bench, &[]);
    let own = fs::read_to_string(bench.state().join("jwt/kid")).expect("read");
    fs::rename(bench.state(), bench.path("first")).expect("move it away");
    let foreign = init(&bench, &[]);
    fs::rename(bench.path("first/jwt"), bench.path("own")).expect("move it away");
    fs::rename(bench.state().join("jwt"), bench.path("first/jwt")).expect("move it");
    fs::remove_dir_all(bench.state()).expect("remove");
    fs::rename(bench.path("first"), bench.state()).expect("put it back");
    let found = foreign["kid"].as_str().expect("a kid");
    bench.gateway().refused(43, &[found, own.trim(), "is not the key of this state directory", "--new-keys"]);
    // Whoever replaced it on purpose kept the public half.
    fs::create_dir(bench.state().join("jwt/verify")).expect("make a directory");
    fs::copy(bench.path("own/public.pem"), bench.state().join("jwt/verify/before.pem")).expect("copy");
    block_on(bench.serves_once());
    assert_eq!(started_with(&bench, "kid"), found);
    fs::remove_dir_all(bench.state().join("jwt/verify")).expect("remove");
    block_on(bench.serves_once());
    fs::create_dir(bench.state().join("jwt/verify")).expect("make a directory");
    fs::write(bench.state().join("jwt/verify/notes"), "x").expect("write");
    bench.gateway().refused(43, &["jwt/verify/notes", "is not named *.pem", "remove it"]);
}

#[test]
fn a_half_written_key_directory_is_refused_and_left_alone() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let keys = bench.state().join("jwt");
    for name in ["signing.pem", "public.pem", "kid"] {
        let (file, away) = (keys.join(name), bench.path("away"));
        fs::rename(&file, &away).expect("move it away");
        let shown = keys.display().to_string();
        bench.gateway().refused(43, &[&shown, &format!("{name} missing"), "from a backup", "gateway init --new-keys"]);
        assert!(!file.exists(), "nothing is made in its place");
        fs::rename(&away, &file).expect("put it back");
    }
    // The command line passes the reason on, with the gateway's last words.
    let away = bench.path("away");
    fs::rename(keys.join("kid"), &away).expect("move it away");
    let ended = bench.openshell(&["vm", "list"]);
    assert_eq!(ended.code, Some(43), "{ended:?}");
    assert!(ended.stderr.contains("kid missing"), "{ended:?}");
    fs::rename(&away, keys.join("kid")).expect("put it back");
    block_on(bench.serves_once());
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let keys = bench.state().join("jwt");
    for (path, bad, good, remedy) in [
        (keys.join("signing.pem"), 0o644, 0o600, "chmod 0600"),
        (keys.join("public.pem"), 0o622, 0o600, "chmod 0600"),
        (keys.clone(), 0o755, 0o700, "chmod 0700"),
    ] {
        set_mode(&path, bad);
        let shown = path.display().to_string();
        bench.gateway().refused(43, &[&shown, &format!("has permissions {bad:04o}"), remedy]);
        set_mode(&path, good);
    }
    let seed = bench.state().join("ssh_host.seed");
    set_mode(&seed, 0o640);
    bench.gateway().refused(43, &["ssh_host.seed", "mode 640"]);
    set_mode(&seed, 0o600);
    fs::write(&seed, "short").expect("write");
    bench.gateway().refused(43, &["ssh_host.seed", "not 32 bytes long", "restore it from a copy"]);
}

#[test]
fn a_foreign_key_is_refused() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let keys = bench.state().join("jwt");
    let own = |name: &str| fs::read(keys.join(name)).expect("read");
    let (signing, public, kid) = (own("signing.pem"), own("public.pem"), own("kid"));
    // Another gateway's, made the same way.
    fs::rename(bench.state(), bench.path("first")).expect("move it away");
    block_on(bench.serves_once());
    fs::rename(bench.state(), bench.path("second")).expect("move it away");
    fs::rename(bench.path("first"), bench.state()).expect("put it back");
    let foreign = |name: &str| fs::read(bench.path("second/jwt").join(name)).expect("read");

    for (name, content, restored, words) in [
        ("signing.pem", foreign("signing.pem"), &signing, "public.pem is not the public half of signing.pem"),
        ("public.pem", foreign("public.pem"), &public, "public.pem is not the public half of signing.pem"),
        ("kid", foreign("kid"), &kid, "kid does not name the key in signing.pem"),
        ("signing.pem", b"rubbish".to_vec(), &signing, "signing.pem is not an Ed25519 private key"),
    ] {
        fs::write(keys.join(name), content).expect("write");
        bench.gateway().refused(43, &[words, "from a backup"]);
        fs::write(keys.join(name), restored).expect("write");
    }
    block_on(bench.serves_once());
}
