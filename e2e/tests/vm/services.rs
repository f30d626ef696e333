//! Services of a guest: those of its image and those that it was created with, in their order, back after their end,
//! and refused where they make no sense.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::programs::{guest_probe, test_image};
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::*;
use serde_json::Value;

use crate::{TTL, trial};

/// Eight runs, and the pauses between them: about a minute.
const CRASH_LOOP: Duration = Duration::from_secs(110);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("services::start_in_order_come_back_and_stop_in_reverse", in_order),
        trial("services::that_cannot_run_are_refused_or_reported", refused_or_reported),
    ]
}

/// A service that adds its name to a file, and then runs until it is told to end.
fn lasting(name: &str, then: &str, more: &str) -> String {
    let script = format!("echo {name} >> /tmp/log; {then} trap 'exit 0' TERM; while :; do sleep 0.1; done");
    format!("command = [\"/bin/sh\", \"-c\", {script:?}]\n{more}\n")
}

/// An image with nothing but busybox, guest-probe and these declarations.
fn image(world: &World, name: &str, services: &[(&str, String)]) -> PathBuf {
    let tree = world.state().join(format!("{name}.tree"));
    let make = |path: &str| {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(tree.join(path)).expect("make a directory");
    };
    for directory in ["bin", "etc/openshell/services.d", "opt", "home", "proc", "sys", "dev", "run", "tmp"] {
        make(directory);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox is installed"), tree.join("bin/busybox")).expect("copy busybox");
    for applet in ["sh", "sleep", "echo", "cat", "kill"] {
        symlink("busybox", tree.join("bin").join(applet)).expect("make a link");
    }
    fs::copy(guest_probe(), tree.join("bin/guest-probe")).expect("copy the probe");
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nsandbox:x:1000:1000::/tmp:/bin/sh\n")
        .expect("write");
    for (service, text) in services {
        fs::write(tree.join(format!("etc/openshell/services.d/{service}.toml")), text).expect("write a declaration");
    }
    let file = world.state().join(format!("{name}.erofs"));
    let made = Command::new("mkfs.erofs").args(["--all-root", "--quiet"]).arg(&file).arg(&tree).output();
    let made = made.expect("run mkfs.erofs");
    assert!(made.status.success(), "{made:?}");
    file
}

/// A request with services, for a sandbox of `image`.
fn request(name: &str, image: &Path, command: &[&str], services: &[(&str, String)]) -> CreateSandboxRequest {
    let key = |service: &str| format!("{}{service}", proto::annotation::SERVICE);
    let annotations: HashMap<_, _> = services.iter().map(|(service, text)| (key(service), text.clone())).collect();
    let template = SandboxTemplate { image: image.display().to_string(), ..Default::default() };
    let command = command.iter().map(ToString::to_string).collect();
    let spec = SandboxSpec { template: Some(template), command, ..Default::default() };
    CreateSandboxRequest { name: name.into(), spec: Some(spec), annotations, ..Default::default() }
}

/// What `openshell vm services` says of one of them.
async fn service(world: &World, sandbox: &str, name: &str) -> Option<Value> {
    let output = world.openshell(&["vm", "services", sandbox, "-o", "json"]).await;
    let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
    services.into_iter().find(|service| service["name"] == name)
}

async fn until_service(
    world: &World,
    (sandbox, name): (&str, &str),
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> Value {
    until(&format!("service {name} {what}"), CRASH_LOOP, async || {
        service(world, sandbox, name).await.filter(|service| holds(service))
    })
    .await
}

async fn in_order() {
    let world = World::quick(TTL).await;
    let disk = "{ cat /proc/self/status; guest-probe vsock; } > /tmp/confined; echo disk >> /tmp/log";
    let of_image = [
        ("db", lasting("db", "sleep 1; guest-probe notify READY=1;", "ready = \"notify\"\nrequires = [\"disk\"]")),
        ("disk", format!("command = [\"/bin/sh\", \"-c\", {disk:?}]\ntype = \"oneshot\"")),
    ];
    let image = image(&world, "served", &of_image);
    let web = lasting(
        "web",
        "",
        "requires = [\"image:db\"]\nready = { command = [\"/bin/busybox\", \"test\", \"-e\", \"/tmp/log\"] }",
    );
    let main = ["/bin/sh", "-c", "cat /tmp/log > /tmp/seen; sleep 100000"];
    let api = world.api().await;
    api.create_with(request("served", &image, &main, &[("web", web)])).await.expect("create");
    world.phase("served", SandboxPhase::Ready).await;
    until_service(&world, ("served", "web"), "to be ready", |service| service["state"] == "ready").await;
    // The main process waits for all of them.
    let seen = until("the main process", Duration::from_secs(20), async || {
        let seen = api.sh("served", "cat /tmp/seen 2>/dev/null || true").await;
        (!seen.is_empty()).then_some(seen)
    });
    assert_eq!(seen.await, "disk\ndb\nweb\n");
    // A service is confined like every program.
    let confined = api.sh("served", "cat /tmp/confined").await;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(confined.lines().any(|one| one == line), "{line}: {confined}");
    }
    assert!(confined.contains("vsock stream: refused") && confined.contains("unix stream: made"), "{confined}");
    let disk = service(&world, "served", "disk").await.expect("it is listed");
    assert!(disk["state"] == "done" && disk["last_exit"] == 0 && disk["pid"].is_null(), "{disk}");
    assert_eq!(disk["declared_in"], "/etc/openshell/services.d/disk.toml");

    let db = service(&world, "served", "db").await.expect("it is listed");
    api.sh("served", &format!("kill -9 {}", db["pid"])).await;
    let again = until_service(&world, ("served", "db"), "to come back", |service| {
        service["restarts"] == 1 && service["ready"] == true
    });
    let again = again.await;
    assert_ne!(again["pid"], db["pid"]);
    assert_eq!(again["last_exit"], 137, "{again}");
    let table = world.openshell(&["vm", "services", "served"]).await;
    assert!(String::from_utf8_lossy(&table.stdout).starts_with("NAME  STATE"), "{table:?}");

    api.stop("served").await.expect("stop");
    let stopped = world.phase("served", SandboxPhase::Stopped).await;
    let console = world.console(&stopped);
    let at = |words: &str| console.find(words).unwrap_or_else(|| panic!("no `{words}` on the console:\n{console}"));
    assert!(at("service stopped service=\"web\" code=0") < at("service stopped service=\"db\" code=0"), "{console}");
    world.delete("served").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn refused_or_reported() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let flaky = "command = [\"/bin/sh\", \"-c\", \"exit 3\"]\noptional = true".to_owned();
    api.create_with(request("flaky", &test_image(), &[], &[("flaky", flaky)])).await.expect("create");
    world.phase("flaky", SandboxPhase::Ready).await;

    refused_at_create(&world).await;
    refused_at_boot(&world).await;
    lost(&world).await;

    let given_up = until_service(&world, ("flaky", "flaky"), "to be given up", |service| service["state"] == "failed");
    let given_up = given_up.await;
    let message = given_up["message"].as_str().expect("a message");
    assert!(message.contains("crash loop: 8 short runs") && message.contains("code 3"), "{given_up}");
    assert_eq!(given_up["restarts"], 7, "{given_up}");
    // It is said, and the sandbox lives.
    let said = until("the condition", TTL, async || {
        let status = world.phase("flaky", SandboxPhase::Ready).await.status.expect("a status");
        let condition = status.conditions.into_iter().find(|condition| condition.r#type == "ServicesReady")?;
        condition.message.contains("crash loop").then_some(condition)
    });
    let said = said.await;
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "NotReady"));
    assert_eq!(api.sh("flaky", "echo alive").await, "alive\n");
    world.delete("flaky").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn refused_at_create(world: &World) {
    let file = |name: &str, on: &str| {
        let path = world.state().join(format!("{name}.toml"));
        fs::write(&path, format!("command = [\"a\"]\nrequires = [\"{on}\"]\n")).expect("write a declaration");
        path.display().to_string()
    };
    let (a, b) = (file("a", "b"), file("b", "a"));
    let refused = world.openshell(&["vm", "create", "--name", "never", "--service", &a, "--service", &b]).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(
        words.contains("a.toml:2: services wait for each other: `a` (a.toml:2) for `b` (b.toml:2) for `a`"),
        "{words}"
    );
    assert!(world.api().await.get("never").await.is_err(), "nothing was made");
}

async fn refused_at_boot(world: &World) {
    let on = |name: &str| format!("command = [\"/bin/sh\"]\n\nafter = [\"{name}\"]\n");
    let image = image(world, "cycle", &[("one", on("two")), ("two", on("one"))]);
    world.api().await.create("cycle", &image, &[]).await.expect("create");
    let status = world.phase("cycle", SandboxPhase::Error).await.status.expect("a status");
    let evidence = &status.conditions.iter().find(|condition| condition.r#type == "Ready").expect("one").message;
    for words in ["failed to read the services", "/etc/openshell/services.d/one.toml:3: services wait for each other"] {
        assert!(evidence.contains(words), "{evidence}");
    }
    world.delete("cycle").await;
}

/// A sandbox that cannot be without a service ends with it, and says so.
async fn lost(world: &World) {
    let disk = "command = [\"/bin/sh\", \"-c\", \"echo no medium >&2; exit 4\"]\ntype = \"oneshot\"\nrestart = \"never\"\ncritical = true";
    let request = request("lost", &test_image(), &["/bin/sleep", "100000"], &[("disk", disk.to_owned())]);
    world.api().await.create_with(request).await.expect("create");
    let status = world.phase("lost", SandboxPhase::Error).await.status.expect("a status");
    let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready").expect("one");
    assert_eq!(ready.reason, "ServiceFailed");
    let words = "critical service `disk` failed: ended with code 4 before it was ready; its last words: no medium";
    assert!(ready.message.contains(words), "{}", ready.message);
    assert!(status.main_process_instance_id.starts_with("1-"), "no further boot: {status:?}");
    world.delete("lost").await;
}
