//! Key directories that are not whole, not private or not this gateway's.

use std::fs;

use crate::bench::{Bench, block_on, set_mode};

#[test]
fn a_half_written_key_directory_is_refused_and_left_alone() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let keys = bench.state().join("jwt");
    for name in ["signing.pem", "public.pem", "kid"] {
        let (file, away) = (keys.join(name), bench.path("away"));
        fs::rename(&file, &away).expect("move it away");
        let shown = keys.display().to_string();
        bench
            .gateway()
            .refused(43, &[&shown, &format!("{name} missing"), "restore it from a backup", "remove the directory"]);
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
