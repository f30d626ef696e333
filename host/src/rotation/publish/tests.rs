use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use proto::boot::DEFAULT_USER;
use uuid::Uuid;

use super::*;
use crate::rotation::audit::{Difference, Finding};

/// On a tmpfs, as in earnest.
fn runtime_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

pub(in crate::rotation) fn boot_spec(sandbox_id: Uuid) -> BootSpec {
    BootSpec {
        sandbox_id,
        instance_id: format!("1-{sandbox_id}"),
        hostname: "box".into(),
        endpoint: "vsock://2:5100".into(),
        endpoints: vec![],
        wall_time_ms: 0,
        ssh_host_key: String::from("HOST KEY").into(),
        user: DEFAULT_USER,
        main: None,
        needs_session: false,
        environment: Default::default(),
        services: Vec::new(),
        workdir: None,
        image_main: Default::default(),
    }
}

fn secret(text: &str) -> SecretString {
    text.to_owned().into()
}

fn published(root: &Path) -> IdentityDirectory {
    let mut directory = IdentityDirectory::create(root, None).unwrap();
    directory.put_boot_spec(&boot_spec(Uuid::nil())).unwrap();
    directory.put_token(&secret("token one")).unwrap();
    directory
}

fn token(root: &Path) -> String {
    fs::read_to_string(root.join("share/sandbox.jwt")).unwrap()
}

#[test]
fn exactly_two_files_and_nothing_staged() {
    let root = runtime_dir();
    let mut directory = published(root.path());
    directory.put_token(&secret("token two")).unwrap();
    assert_eq!(token(root.path()), "token two");
    let mut names: Vec<_> = fs::read_dir(root.path().join("share")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["boot.json", "sandbox.jwt"]);
    assert_eq!(fs::read_dir(root.path().join("stage")).unwrap().count(), 0);
    for name in names {
        assert_eq!(fs::metadata(root.path().join("share").join(name)).unwrap().mode() & 0o7777, 0o400);
    }
    assert_eq!(directory.inspect(), Ok(Finding::Sound));
    assert!(!format!("{directory:?}").contains("token two"));
    directory.remove_token().unwrap();
    directory.remove_token().unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::Sound), "no token is expected any more");
}

#[test]
fn a_boot_begins_with_an_empty_directory() {
    let root = runtime_dir();
    drop(published(root.path()));
    fs::write(root.path().join("stage/sandbox.jwt"), "half").unwrap();
    let directory = IdentityDirectory::create(root.path(), None).unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::Sound));
    assert_eq!(fs::read_dir(root.path().join("share")).unwrap().count(), 0);
}

#[test]
fn adopted_with_its_boot_spec_and_over_a_leftover_in_the_stage() {
    let root = runtime_dir();
    drop(published(root.path()));
    fs::write(root.path().join("stage/sandbox.jwt"), "half").unwrap();
    let inode = fs::metadata(root.path().join("share")).unwrap().ino();
    let mut directory = IdentityDirectory::open(root.path(), None).unwrap();
    assert_eq!(directory.boot_spec().unwrap().hostname, "box");
    directory.put_token(&secret("token two")).unwrap();
    assert_eq!(token(root.path()), "token two");
    assert_eq!(fs::metadata(root.path().join("share")).unwrap().ino(), inode);
    assert_eq!(directory.inspect(), Ok(Finding::Sound));
}

#[test]
fn never_on_a_disk() {
    let refused = IdentityDirectory::create(Path::new("/proc"), None).unwrap_err();
    assert_eq!(refused, PublishError::NotTmpfs { path: "/proc".into() });
    assert!(is_tmpfs(Path::new("/nonexistent")).is_err());
}

#[test]
fn whatever_is_done_to_the_files_is_found_and_healed() {
    use Difference::*;
    type Damage = fn(&Path);
    let cases: &[(&str, Damage, Difference)] = &[
        ("removed", |s| fs::remove_file(s.join("sandbox.jwt")).unwrap(), Missing("sandbox.jwt")),
        ("emptied", |s| rewrite(&s.join("sandbox.jwt"), ""), Content("sandbox.jwt")),
        ("truncated", |s| rewrite(&s.join("sandbox.jwt"), "token"), Content("sandbox.jwt")),
        ("replaced", |s| rewrite(&s.join("sandbox.jwt"), "token two"), Content("sandbox.jwt")),
        ("binary", |s| fs::write(s.join("boot.json"), b"\xff").unwrap(), Content("boot.json")),
        ("opened", |s| chmod(&s.join("boot.json"), 0o444), Permissions("boot.json")),
        (
            "linked",
            |s| {
                fs::rename(s.join("sandbox.jwt"), s.join("../stage/kept")).unwrap();
                std::os::unix::fs::symlink("../stage/kept", s.join("sandbox.jwt")).unwrap();
            },
            NotRegular("sandbox.jwt"),
        ),
        (
            "made a directory",
            |s| {
                fs::remove_file(s.join("sandbox.jwt")).unwrap();
                fs::create_dir_all(s.join("sandbox.jwt/x")).unwrap();
            },
            NotRegular("sandbox.jwt"),
        ),
        ("accompanied", |s| fs::write(s.join("more"), "").unwrap(), Unexpected("more".into())),
        ("opened up", |s| chmod(s, 0o777), SharePermissions),
        ("unstaged", |s| fs::remove_dir_all(s.join("../stage")).unwrap(), Stage),
    ];
    for (case, damage, expected) in cases {
        let root = runtime_dir();
        let mut directory = published(root.path());
        damage(&root.path().join("share"));
        let Ok(Finding::Healable(found)) = directory.inspect() else { panic!("{case}: not found") };
        assert_eq!(found, std::slice::from_ref(expected), "{case}");
        directory.heal(&found).unwrap();
        assert_eq!(directory.inspect(), Ok(Finding::Sound), "{case}");
        assert_eq!(token(root.path()), "token one", "{case}");
        directory.put_token(&secret("token two")).unwrap();
        assert_eq!(token(root.path()), "token two", "{case}");
    }
}

#[test]
fn a_removed_or_replaced_directory_is_lost() {
    let root = runtime_dir();
    let share = root.path().join("share");
    let mut directory = published(root.path());
    fs::rename(&share, root.path().join("moved")).unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::DirectoryLost));
    fs::create_dir(&share).unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::DirectoryLost));
    // A guest that still has it gets its tokens there.
    directory.put_token(&secret("token two")).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("moved/sandbox.jwt")).unwrap(), "token two");
    fs::remove_dir_all(&share).unwrap();
    fs::rename(root.path().join("moved"), &share).unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::Sound));

    fs::remove_dir_all(&share).unwrap();
    assert_eq!(directory.inspect(), Ok(Finding::DirectoryLost));
    let error = directory.put_token(&secret("token three")).unwrap_err();
    assert!(error.to_string().starts_with("failed to put in place "), "{error}");
}

#[test]
fn the_owner_gets_a_directory_that_it_cannot_write() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root gives files away; where the gateway is the owner the other tests hold.
    }
    let root = runtime_dir();
    let mut directory = IdentityDirectory::create(root.path(), Some((61_234, 61_235))).unwrap();
    directory.put_token(&secret("token")).unwrap();
    for (name, mode) in [("share", 0o500), ("share/sandbox.jwt", 0o400)] {
        let metadata = fs::metadata(root.path().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (61_234, 61_235, mode), "{name}");
    }
    let stage = fs::metadata(root.path().join("stage")).unwrap();
    assert_eq!((stage.uid(), stage.mode() & 0o7777), (0, 0o700));
    std::os::unix::fs::chown(root.path().join("share/sandbox.jwt"), Some(0), None).unwrap();
    let found = Finding::Healable(vec![Difference::Permissions("sandbox.jwt")]);
    assert_eq!(directory.inspect().unwrap(), found);
}

#[test]
fn a_boot_spec_that_nobody_would_read_is_refused() {
    let root = runtime_dir();
    let mut directory = IdentityDirectory::create(root.path(), None).unwrap();
    let mut spec = boot_spec(Uuid::nil());
    spec.environment.insert("BIG".into(), "x".repeat(BOOT_SPEC_MAX));
    let error = directory.put_boot_spec(&spec).unwrap_err();
    assert!(matches!(error, PublishError::BootSpec { .. }), "{error}");
    assert_eq!(fs::read_dir(root.path().join("share")).unwrap().count(), 0);
}

/// As somebody who does not care for permissions, and without changing them.
fn rewrite(path: &Path, content: &str) {
    chmod(path, 0o600);
    fs::write(path, content).unwrap();
    chmod(path, 0o400);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
