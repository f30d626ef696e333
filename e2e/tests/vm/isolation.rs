//! What the workload cannot do in the guest, what guest root cannot do to the share, and what the jail holds.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::api::Api;
use e2e::programs::{guest_probe, test_image};
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::{CreateSandboxRequest, ExecSandboxRequest, Sandbox, SandboxSpec, SandboxTemplate};

use crate::{TTL, evidence, exec, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("isolation::a_workload_sees_neither_token_nor_agent_nor_control_port", one_sandbox),
        trial("isolation::guest_root_cannot_change_the_share", guest_root_and_the_share),
        trial("isolation::guest_root_cannot_use_up_the_vmm_s_descriptors", guest_root_and_the_control_port),
    ]
}

/// One VM for everything that is only looked at.
async fn one_sandbox() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let template = SandboxTemplate { image: test_image().display().to_string(), ..Default::default() };
    let spec = SandboxSpec {
        template: Some(template),
        command: ["/bin/sh", "-c", "env > /tmp/main-environment; exec sleep 100000"].map(str::to_owned).to_vec(),
        environment: [("OF_THE_SANDBOX".to_owned(), "a value".to_owned())].into(),
        ..Default::default()
    };
    let request = CreateSandboxRequest { name: "cell".into(), spec: Some(spec), ..Default::default() };
    api.create_with(request).await.expect("create");
    let sandbox = world.phase("cell", proto::openshell::v1::SandboxPhase::Ready).await;

    unprivileged(&api).await;
    identity_directory_is_out_of_sight(&api).await;
    agent_is_out_of_reach(&api).await;
    no_control_port(&api).await;
    environments_are_made_from_nothing(&api).await;
    jail(&world, &sandbox);
    owners_and_modes(&world, &sandbox);
    world.delete("cell").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

fn fields(status: &str) -> HashMap<String, Vec<String>> {
    let pairs = status.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.split_whitespace().map(str::to_owned).collect())).collect()
}

async fn unprivileged(api: &Api) {
    let main =
        api.sh("cell", "for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" = sleep ] && cat $p/status; done; true").await;
    for (who, status) in [("exec", api.sh("cell", "cat /proc/self/status").await), ("main process", main)] {
        let fields = fields(&status);
        assert_eq!(fields["Uid"], ["1000"; 4], "{who}: {status}");
        assert_eq!(fields["Gid"], ["1000"; 4], "{who}: {status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(fields[set], ["0000000000000000"], "{who}: {set}");
        }
        assert_eq!(fields["NoNewPrivs"], ["1"], "{who}");
        assert_eq!(fields["Seccomp"], ["2"], "{who}");
        assert!(fields["Groups"].iter().all(|group| group == "1000"), "{who}: {:?}", fields["Groups"]);
    }
}

/// All of these succeed, and none of those. In one exec, as each has its price in the lab.
async fn allowed_and_refused(api: &Api, allowed: &[String], refused: &[String]) {
    let attempt = |script: &String| format!("( {script} ) > /tmp/attempt 2>&1 < /dev/null");
    let allowed = allowed.iter().map(|script| format!("{} || echo 'refused: {script}'", attempt(script)));
    let refused = refused.iter().map(|script| format!("{} && echo 'not refused: {script}'", attempt(script)));
    let script = allowed.chain(refused).chain(["true".into()]).collect::<Vec<_>>().join("\n");
    assert_eq!(api.sh("cell", &script).await, "");
}

async fn identity_directory_is_out_of_sight(api: &Api) {
    // The means work, for other files: a user namespace of its own, in which it is root, gives it nothing here.
    let allowed = ["ls -d /etc/openshell", "cat /etc/passwd /proc/self/root/etc/passwd", "unshare -Urm true"];
    let refused = [
        "ls /etc/openshell",
        "ls /etc/openshell/auth",
        "cd /etc/openshell/auth",
        "cat /etc/openshell/auth/sandbox.jwt",
        "cat /etc/openshell/auth/boot.json",
        "cat /proc/self/root/etc/openshell/auth/sandbox.jwt",
        "mount -t virtiofs identity /tmp",
        "unshare -Urm mount -t virtiofs identity /tmp",
        "unshare -Urm cat /etc/openshell/auth/sandbox.jwt",
    ];
    allowed_and_refused(api, &allowed.map(str::to_owned), &refused.map(str::to_owned)).await;
    let mounts = api.sh("cell", "cat /proc/self/mountinfo").await;
    assert!(mounts.contains(" - overlay "), "{mounts}");
    assert!(!mounts.contains("/etc/openshell/auth"), "{mounts}");
    assert!(!mounts.contains(" - virtiofs identity "), "{mounts}");
}

async fn agent_is_out_of_reach(api: &Api) {
    let all_of = |process: &str| {
        let files = ["environ", "mem", "maps", "cmdline", "status", "mountinfo"];
        let files = files.map(|file| format!("exec 3< /proc/{process}/{file}"));
        let directories = ["root", "cwd", "fd", "task"].map(|directory| format!("ls /proc/{process}/{directory}/"));
        [&files[..], &directories[..], &[format!("kill -0 {process}")]].concat()
    };
    allowed_and_refused(api, &all_of("$$"), &all_of("1")).await;
    let visible = api.sh("cell", "cat /proc/[0-9]*/status | grep ^Uid:").await;
    assert!(!visible.is_empty());
    assert!(visible.lines().all(|line| line.split_whitespace().skip(1).all(|id| id == "1000")), "{visible}");
}

async fn no_control_port(api: &Api) {
    let request = ExecSandboxRequest {
        sandbox: "cell".into(),
        command: ["/bin/sh", "-c", "cat > /tmp/probe && chmod +x /tmp/probe"].map(str::to_owned).to_vec(),
        stdin: std::fs::read(guest_probe()).expect("read the probe"),
        ..Default::default()
    };
    let finished = exec::run(api, request).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let answers = api.sh("cell", "/tmp/probe vsock").await;
    for kind in ["stream", "datagram"] {
        assert!(answers.contains(&format!("vsock {kind}: refused: ")), "{answers}");
        assert!(answers.contains(&format!("unix {kind}: made")), "{answers}");
        assert!(answers.contains(&format!("inet {kind}: made")), "{answers}");
    }
}

async fn environments_are_made_from_nothing(api: &Api) {
    // One of them is what the image says.
    let common = ["HOME", "IMAGE_SAYS", "LANG", "LOGNAME", "OF_THE_SANDBOX", "PATH", "SHELL", "USER"];
    // What the shell itself adds.
    let shells = ["PWD", "SHLVL", "OLDPWD", "_"];
    for (who, script) in [("exec", "env"), ("main process", "cat /tmp/main-environment")] {
        let text = api.sh("cell", script).await;
        let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect::<BTreeSet<_>>();
        let expected = common.into_iter().collect::<BTreeSet<_>>();
        let names = names.into_iter().filter(|name| !shells.contains(name)).collect::<BTreeSet<_>>();
        assert_eq!(names, expected, "{who}");
        assert!(text.contains("OF_THE_SANDBOX=a value\n"), "{who}: {text}");
    }
}

/// The vmm as the host sees it.
fn jail(world: &World, sandbox: &Sandbox) {
    let vmm = world.vmm(sandbox);
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", vmm.child);
        String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))).into_owned()
    };
    let status = read("status");
    let fields = fields(&status);
    for ids in ["Uid", "Gid"] {
        let distinct = fields[ids].iter().collect::<BTreeSet<_>>();
        assert_eq!(distinct.len(), 1, "{ids}: {distinct:?}");
        assert!(!["0", "1000"].contains(&fields[ids][0].as_str()), "{ids}: {distinct:?}");
    }
    assert!(fields["Groups"].iter().all(|group| *group == fields["Gid"][0]), "{:?}", fields["Groups"]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(fields[set], ["0000000000000000"], "{set}");
    }
    assert_eq!(fields["NoNewPrivs"], ["1"]);

    let limits = read("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().take(2).map(|number| number.parse::<u64>().expect("a number")).collect::<Vec<_>>()
    };
    assert!(limit("Max open files").iter().all(|limit| *limit >= 65_536), "{limits}");
    assert_eq!(limit("Max core file size"), [0, 0]);

    for namespace in ["mnt", "ipc", "uts", "net"] {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{namespace}")).expect("a namespace");
        assert_ne!(of(&vmm.child.to_string()), of("self"), "{namespace}");
    }

    let mounts = read("mountinfo");
    let points = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).map(|parts| (parts[4], parts[5]));
    let points = points.collect::<HashMap<_, _>>();
    let names = points.keys().copied().collect::<BTreeSet<_>>();
    assert_eq!(names, BTreeSet::from(["/", "/image", "/share", "/ctl", "/proc/self/fd"]), "{mounts}");
    for (point, options) in &points {
        assert!(options.split(',').any(|option| option == "ro"), "{point} is {options}");
    }

    let token = world.token(sandbox);
    for pid in [vmm.child, vmm.keeper] {
        let of = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).expect("read");
        assert_eq!(of("environ"), b"", "process {pid} has an environment");
        let line = String::from_utf8(of("cmdline")).expect("text");
        let words = line.trim_end_matches('\0').split('\0').collect::<Vec<_>>();
        assert!(words.len() <= 3 && words.iter().all(|word| !token.contains(word)), "{words:?}");
    }
}

fn owners_and_modes(world: &World, sandbox: &Sandbox) {
    let of = |path: &Path| {
        let data = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (data.mode() & 0o7777, data.uid())
    };
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.vmm(sandbox).child)).expect("a status");
    let jail: u32 = fields(&status)["Uid"][0].parse().expect("a number");
    let own = rustix::process::geteuid().as_raw();
    for file in ["sandbox.jwt", "boot.json"] {
        assert_eq!(of(&world.places(sandbox).join("share").join(file)), (0o400, jail), "{file}");
    }
    for directory in [world.runtime(), &world.state(), &world.state().join("jwt"), &world.places(sandbox).join("run")] {
        assert_eq!(of(directory), (0o700, own), "{}", directory.display());
    }
    assert_eq!(of(&world.socket()).0, 0o600);
}

async fn guest_root_and_the_share() {
    let mut world = evidence::world_of_probes("share");
    world.up().await;
    let sandbox = world.api().await.create("root", &test_image(), &[]).await.expect("create");
    let share = world.places(&sandbox).join("share");
    until("the identity directory", Duration::from_secs(5), async || world.token_file(&sandbox).exists().then_some(()))
        .await;
    let before = contents(&share);
    let done = "share: 26 attempts";
    until("guest root's attempts", Duration::from_secs(60), async || {
        world.console(&sandbox).contains(done).then_some(())
    })
    .await;
    let console = world.console(&sandbox);
    let token = before["sandbox.jwt"].0.len();
    assert!(console.contains(&format!("share: read {token} bytes")), "{console}");
    assert_eq!(console.matches("share: refused: ").count(), 26, "{console}");
    assert!(!console.contains("SUCCEEDED"), "{console}");
    // A rotation may have come in between; what the guest might have done has not.
    let after = contents(&share);
    assert_eq!(before.keys().collect::<BTreeSet<_>>(), after.keys().collect::<BTreeSet<_>>());
    assert_eq!(before["boot.json"], after["boot.json"]);
    assert_eq!(before["sandbox.jwt"].1, after["sandbox.jwt"].1);
    assert!(after["sandbox.jwt"].0.starts_with("eyJ"));
    world.delete("root").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn guest_root_and_the_control_port() {
    let mut world = evidence::world_of_probes("connections");
    world.up().await;
    let sandbox = world.api().await.create("many", &test_image(), &[]).await.expect("create");
    let began = async || world.console(&sandbox).contains("guest-probe: ").then(|| world.vmm(&sandbox));
    let vmm = until("the guest", Duration::from_secs(30), began).await;
    until("two thousand connections", Duration::from_secs(90), async || {
        world.console(&sandbox).contains("connections: one more").then_some(())
    })
    .await;
    let console = world.console(&sandbox);
    assert!(console.contains("connections: 2048 made, 0 refused"), "{console}");
    assert!(console.contains("connections: one more made"), "{console}");
    assert_eq!(world.vmm(&sandbox), vmm, "the vmm was started again");
    world.delete("many").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Content, and mode, owner and links, of every file.
fn contents(share: &Path) -> HashMap<String, (String, [u64; 4])> {
    let files = std::fs::read_dir(share).expect("list the share").flatten();
    files
        .map(|file| {
            let data = file.metadata().expect("metadata");
            let facts = [data.mode().into(), data.uid().into(), data.gid().into(), data.nlink()];
            let content = std::fs::read_to_string(file.path()).expect("read");
            (file.file_name().to_string_lossy().into_owned(), (content, facts))
        })
        .collect()
}
