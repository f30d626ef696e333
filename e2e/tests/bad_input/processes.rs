//! Gateways that come and go, and who may speak to them.

use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::Value;

use crate::bench::{Bench, NOBODY, as_nobody, block_on, run, set_mode};

#[test]
fn the_status_tells_whether_a_gateway_runs_and_never_starts_one() {
    let bench = Bench::new();
    let socket = bench.socket().display().to_string();
    for arguments in [&["gateway", "status"][..], &["gateway", "status", "-o", "json"]] {
        bench.openshell(arguments).refused(8, &["no gateway answers on", &socket]);
    }
    assert!(bench.gateways().is_empty());
    let gateway = block_on(bench.serve());
    let up = bench.openshell(&["gateway", "status"]);
    assert_eq!((up.code, up.stdout.contains("healthy"), up.stdout.contains(&socket)), (Some(0), true, true), "{up:?}");
    let up = bench.openshell(&["gateway", "status", "-o", "json"]);
    let status: Value = serde_json::from_str(&up.stdout).expect("JSON");
    let wanted = serde_json::json!({
        "status": "healthy", "version": proto::version::VERSION, "socket": socket, "drivers": ["vm"]
    });
    assert_eq!(status, wanted);
    gateway.kill();
    bench.openshell(&["gateway", "status"]).refused(8, &["no gateway answers on", &socket]);
}

#[test]
fn a_socket_on_which_nobody_listens_is_replaced() {
    let bench = Bench::new();
    block_on(bench.serve()).kill();
    assert!(bench.socket().exists(), "SIGKILL leaves the socket file");
    assert!(UnixStream::connect(bench.socket()).is_err());
    // A gateway that was named is not started.
    let named = bench.socket().display().to_string();
    bench.openshell(&["--gateway-socket", &named, "vm", "list"]).refused(8, &[&named, "OPENSHELL_GATEWAY_SOCKET"]);
    assert!(bench.gateways().is_empty());
    bench.nothing_is_left();
    assert_eq!(bench.gateways().len(), 1, "the command line started one");
    bench.end_gateways(Signal::TERM);
}

#[test]
fn two_shells_at_once_start_one_gateway() {
    let bench = Bench::new();
    let both = std::thread::scope(|scope| {
        let list = || bench.openshell(&["vm", "list", "-o", "json"]);
        let shells = [scope.spawn(list), scope.spawn(list), scope.spawn(list)];
        shells.map(|shell| shell.join().expect("a shell"))
    });
    for ended in both {
        assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "[]"), "{ended:?}");
    }
    assert_eq!(bench.gateways().len(), 1);
    bench.end_gateways(Signal::TERM);
}

#[test]
fn a_gateway_starts_again_on_the_same_directories_after_any_end() {
    let bench = Bench::new();
    block_on(async {
        for _ in 0..3 {
            bench.serve().await.kill();
        }
        bench.serves_once().await;
        bench.serves_once().await;
    });
    let keys = std::fs::read_to_string(bench.log()).expect("the log");
    let mut kids = keys.lines().filter_map(|line| line.split_once("kid=")?.1.split(' ').next()).collect::<Vec<_>>();
    assert_eq!(kids.len(), 5, "five starts: {keys}");
    kids.dedup();
    assert_eq!(kids.len(), 1, "all with the same key");
}

#[test]
fn another_user_is_refused() {
    let bench = Bench::new();
    let _gateway = block_on(bench.serve());
    let socket = bench.socket().display().to_string();
    let status = bench.command("openshell", &["--gateway-socket", &socket, "gateway", "status"]);
    let Some(nobody) = as_nobody(&status) else { return };
    run(nobody).refused(8, &[&socket, "Permission denied", "serves its own user only"]);
    // Permissions are not all that guards it.
    set_mode(bench.runtime(), 0o711);
    set_mode(&bench.socket(), 0o666);
    run(as_nobody(&status).expect("as before")).refused(8, &[&socket, "it refuses: "]);
    let log = std::fs::read_to_string(bench.log()).expect("the log");
    assert!(log.contains("audit: refused") && log.contains(&format!("uid={NOBODY}")), "{log}");
    // Root and the owner are the same here; the owner is still served.
    assert_eq!(run(status).code, Some(0));
}
