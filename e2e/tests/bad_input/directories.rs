//! Directories that cannot be what they must be.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use e2e::api::Api;

use crate::bench::{Bench, NOBODY, as_nobody, block_on, run, say, set_mode};

const RUNTIME: &str = "OPENSHELL_RUNTIME_DIR";
const STATE: &str = "OPENSHELL_STATE_DIR";
const TMPFS_MAGIC: u64 = 0x0102_1994;

fn make(path: &Path, mode: u32) {
    fs::DirBuilder::new().mode(mode).create(path).expect("make a directory");
    set_mode(path, mode);
}

/// A directory on a disk whose path is short enough for sockets.
fn on_a_disk(bench: &Bench) -> Option<PathBuf> {
    let candidates = [bench.path("rt"), Path::new(env!("CARGO_TARGET_TMPDIR")).join("rt")];
    candidates.into_iter().find(|path| {
        let parent = path.parent().expect("a parent");
        fs::create_dir_all(parent).is_ok()
            && path.as_os_str().len() <= 50
            && rustix::fs::statfs(parent).is_ok_and(|found| found.f_type as u64 != TMPFS_MAGIC)
    })
}

#[test]
fn a_runtime_directory_on_a_disk_is_refused() {
    let bench = Bench::new();
    let Some(disk) = on_a_disk(&bench) else {
        say("not run: neither the temporary directory nor the target directory is on a disk");
        return;
    };
    let shown = disk.display().to_string();
    let bench = bench.with(RUNTIME, Some(&shown));
    bench.gateway().refused(41, &[&shown, "not on a tmpfs", RUNTIME, "/dev/shm/openshell"]);
    assert_eq!(fs::read_dir(&disk).expect("the directory itself").count(), 0);
    fs::remove_dir(&disk).expect("remove it");
}

#[test]
fn a_runtime_directory_that_others_can_enter_is_refused() {
    let bench = Bench::new();
    make(bench.runtime(), 0o755);
    let line = bench.gateway().refused(41, &["has mode 0755"]);
    assert!(line.ends_with(&format!("run: chmod 0700 {}", bench.runtime().display())), "{line}");
    // The remedy is one.
    set_mode(bench.runtime(), 0o700);
    block_on(bench.serves_once());

    let file = bench.runtime().join("file");
    fs::write(&file, "").expect("write");
    let bench = bench.with(RUNTIME, file.to_str());
    bench.gateway().refused(41, &["is not a directory", RUNTIME]);
}

#[test]
fn a_state_directory_that_cannot_be_made_or_written_is_refused() {
    let bench = Bench::new().with(STATE, Some("/proc/openshell-state"));
    let line = bench.gateway().refused(42, &["failed to create state directory /proc/openshell-state", STATE]);
    assert!(!bench.runtime().exists(), "{line}");
    // The command line that would start a gateway says the same.
    bench.openshell(&["vm", "list"]).refused(42, &["failed to create state directory /proc/openshell-state", STATE]);

    let bench = bench.with(STATE, reachable("readonly").to_str());
    let state = reachable("readonly");
    make(&state, 0o500);
    if chown(&state, Some(NOBODY), Some(NOBODY)).is_ok()
        && let Some(nobody) = as_nobody(&bench.command("openshell-gateway", &[]))
    {
        run(nobody).refused(42, &["failed to write in state directory", "make it writable", STATE]);
        // To its owner it is unwritable, to everybody else it is somebody else's.
        bench.gateway().refused(42, &[&format!("belongs to uid {NOBODY}"), STATE]);
    }
    assert_eq!(fs::read_dir(&state).expect("read").count(), 0);
    fs::remove_dir(&state).expect("remove");
}

/// Where a user that owns nothing can get to.
fn reachable(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("osb-{}-{name}", std::process::id()))
}

#[test]
fn a_second_gateway_leaves_the_first_alone() {
    let bench = Bench::new();
    let first = block_on(bench.serve());
    let shown = bench.state().display().to_string();
    let words = ["locked by another gateway", shown.as_str(), "state_dir"];
    // Over the same socket, or with a runtime directory of its own.
    bench.gateway().refused(40, &words);
    let other = format!("{}-2", bench.runtime().display());
    let mut elsewhere = bench.command("openshell-gateway", &[]);
    elsewhere.env(RUNTIME, &other);
    run(elsewhere).refused(40, &words);
    assert!(!Path::new(&other).exists(), "the second one made nothing");

    assert_eq!(bench.gateways().len(), 1);
    block_on(async {
        let api = Api::connect(&bench.socket()).await.expect("the first one still serves");
        api.client.clone().health(proto::openshell::v1::HealthRequest {}).await.expect("health");
        assert_eq!(first.stop().await.code(), Some(0));
    });
}
