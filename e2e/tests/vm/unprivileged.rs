//! A gateway of somebody who is not root: the jail is then made of user namespaces.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use e2e::processes::{kill, running};
use e2e::programs::{directory, test_image};
use e2e::world::World;
use libtest_mimic::Trial;

use crate::{TTL, trial};

const UID: u32 = 1000;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("unprivileged::a_user_who_is_not_root_has_sandboxes_too", not_root)]
}

async fn not_root() {
    let world = World::empty(TTL);
    let home = world.state().parent().expect("a parent").to_owned();
    let programs = copies(&home);
    let image = home.join("image.erofs");
    fs::copy(test_image(), &image).expect("copy the image");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).expect("let it be read");
    chown(&home, Some(UID), Some(UID)).expect("give the directory away");

    // What the jail is made of is read while the command runs.
    let script = "echo agent-ok; sleep 3";
    let mut command = tokio::process::Command::new("prlimit");
    command.args(["--nofile=65536:65536", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]);
    command.arg(programs.join("openshell")).args(["vm", "create", "--no-keep", "--no-tty", "--from"]).arg(&image);
    command.args(["--", "/bin/sh", "-c", script]).current_dir("/").env_clear().envs(world.environment());
    let seen = tokio::task::spawn_blocking({
        let programs = programs.clone();
        move || jail_of(&programs)
    });
    let output = command.kill_on_drop(true).output().await.expect("run the command line");
    let log = fs::read_to_string(world.state().join("gateway.log")).unwrap_or_default();
    let left = running(&programs.join("openshell-vmm"));
    for (pid, _) in running(&programs.join("openshell-gateway")) {
        kill(pid);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("agent-ok"), "{output:?}\n{log}");
    assert_eq!(left, [], "processes are left");
    let (uids, map, capabilities) = seen.await.expect("no panic").expect("a jailed child was seen");
    assert_eq!(uids, ["1000"; 4], "seen from outside it is that user");
    assert_eq!(map.split_whitespace().nth(1), Some("1000"), "a user namespace of its own: {map}");
    assert_eq!(capabilities, "0000000000000000");
    let vms = fs::read_dir(world.runtime().join("vm")).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(vms, 0, "directories are left");
}

/// The checkout may be where only root can go.
fn copies(home: &Path) -> PathBuf {
    let to = home.join("bin");
    fs::create_dir(&to).expect("make a directory");
    for name in ["openshell", "openshell-gateway", "openshell-vmm", "openshell-agent", "libkrunfw.so.5"] {
        fs::copy(directory().join(name), to.join(name)).expect("copy a program");
        fs::set_permissions(to.join(name), fs::Permissions::from_mode(0o755)).expect("let it be run");
    }
    to
}

/// Uids, uid map and effective capabilities of the jailed child that runs a sandbox, once there is one.
fn jail_of(programs: &Path) -> Option<(Vec<String>, String, String)> {
    for _ in 0..600 {
        std::thread::park_timeout(std::time::Duration::from_millis(100));
        // The trial boot's child is gone before the sandbox's comes.
        let sandbox = |line: &str| line.split(" jail ").nth(1).is_some_and(|id| id.trim().len() == 36);
        let Some((pid, _)) = running(&programs.join("openshell-vmm")).into_iter().find(|(_, line)| sandbox(line))
        else {
            continue;
        };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap_or_default();
        // Not while it is still being built.
        if field("NoNewPrivs:") == ["1"] {
            return Some((field("Uid:"), map, field("CapEff:").concat()));
        }
    }
    None
}
