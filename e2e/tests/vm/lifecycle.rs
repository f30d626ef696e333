//! Exit codes, one gateway for all shells, and nothing left behind.

use std::os::unix::fs::PermissionsExt as _;

use e2e::programs::{program, test_image};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::SandboxPhase;
use proto::version::VERSION;
use proto::vmm::{Ended, ExitRecord};

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("lifecycle::a_command_runs_and_its_sandbox_is_deleted", smoke),
        trial("lifecycle::two_shells_start_one_gateway", two_shells),
        trial("lifecycle::a_sandbox_has_the_processors_and_the_memory_that_it_asked_for", resources),
        trial("lifecycle::the_main_process_s_exit_code_is_the_sandbox_s", exit_codes),
        trial("lifecycle::an_agent_of_another_version_and_the_same_protocol_is_served", other_versions),
    ]
}

/// As a user would begin: no gateway runs, and KVM is untried.
async fn smoke() {
    let world = World::empty(TTL);
    let image = test_image().canonicalize().expect("canonical path").display().to_string();
    let command = ["--no-keep", "--no-tty", "--", "/bin/sh", "-lc", "echo agent-ok"];
    let arguments = ["sandbox", "create", "--name", "smoke", "--from", &image].into_iter().chain(command);
    let output = world.openshell(&arguments.collect::<Vec<_>>()).await;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(stdout, "Created sandbox: smoke\nagent-ok\nDeleted sandbox smoke\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(world.gateway_processes().len(), 1);
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn two_shells() {
    let world = World::empty(TTL).without_trial_boot();
    let (one, two) = tokio::join!(world.openshell(&["vm", "list"]), world.openshell(&["vm", "list"]));
    assert!(one.status.success() && two.status.success(), "{one:?} {two:?}");
    assert_eq!(world.gateway_processes().len(), 1, "{one:?} {two:?}");
    let third = world.openshell(&["vm", "list"]).await;
    assert!(third.status.success(), "{third:?}");
    assert_eq!(world.gateway_processes().len(), 1);
}

async fn resources() {
    let mut world = World::empty(TTL).without_trial_boot().with("OPENSHELL_VM_MAX_CPUS", "2");
    world.up().await;
    let image = test_image().display().to_string();
    let script = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo";
    let mut arguments = vec!["vm", "create", "--no-keep", "--no-tty", "--from", &image];
    arguments.extend(["--cpus", "2", "--memory", "384Mi", "--", "/bin/sh", "-c", script]);
    let output = world.openshell(&arguments).await;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(stdout.lines().nth(1), Some("2"), "{output:?}");
    let memory = stdout.lines().nth(2).and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    // The kernel keeps some for itself, and libkrun rounds up.
    assert!(memory.is_some_and(|kib| (350..=400).contains(&(kib / 1024))), "{output:?}");
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn exit_codes() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let image = test_image().display().to_string();
    let cli = |script: &'static str| {
        let arguments = ["vm", "create", "--no-keep", "--no-tty", "--from", &image, "--", "/bin/sh", "-c", script];
        let (world, arguments) = (&world, arguments.map(str::to_owned));
        async move { world.openshell(&arguments.each_ref().map(String::as_str)).await }
    };
    let kept = async {
        api.create("kept", &test_image(), &["/bin/sh", "-c", "exit 42"]).await.expect("create");
        world.phase("kept", SandboxPhase::Completed).await
    };
    let (kept, seven) = tokio::join!(kept, cli("echo out; echo err >&2; exit 7"));
    let killed = cli("kill -TERM $$").await;

    assert_eq!(kept.status.clone().expect("a status").exit_code, Some(42));
    let record = std::fs::read(world.places(&kept).join("run/exit.json")).expect("an exit record");
    let record: ExitRecord = serde_json::from_slice(&record).expect("a sound exit record");
    assert_eq!(record.ended, Ended::Exited(42), "{record:?}");
    assert_eq!(record.instance_id, kept.status.clone().expect("a status").main_process_instance_id);
    assert!(!world.token_file(&kept).exists(), "a sandbox that has ended needs no token");

    assert_eq!(seven.status.code(), Some(7), "{seven:?}");
    assert!(String::from_utf8_lossy(&seven.stdout).contains("\nout\n"), "{seven:?}");
    assert!(String::from_utf8_lossy(&seven.stderr).contains("err\n"), "{seven:?}");
    assert_eq!(killed.status.code(), Some(128 + 15), "{killed:?}");

    world.delete("kept").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// An older and a newer agent, which are this one but for the version that they say wherever they say it. What an older
/// gateway does not serve, an agent does without: that is tested with a gateway that serves nothing optional.
async fn other_versions() {
    for version in ["0.0.9", "9.9.9"] {
        assert_eq!(version.len(), VERSION.len(), "a version of the same length takes its place");
        let mut agent = std::fs::read(program("openshell-agent")).expect("read the agent");
        let places = agent.windows(VERSION.len()).enumerate().filter(|(_, word)| *word == VERSION.as_bytes());
        for place in places.map(|(place, _)| place).collect::<Vec<_>>() {
            agent[place..place + version.len()].copy_from_slice(version.as_bytes());
        }
        let path = std::env::temp_dir().join(format!("agent-{}-{version}", std::process::id()));
        std::fs::write(&path, agent).expect("write the agent");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("make it a program");
        let path = path.display().to_string();
        let mut world = World::empty(TTL).without_trial_boot().with("OPENSHELL_GATEWAY_AGENT_BIN", &path);
        world.up().await;
        let sandbox = world.ready("other", &["/bin/sh", "-c", "echo main; sleep 1000"]).await;
        assert_eq!(world.api().await.sh("other", "echo exec").await, "exec\n");
        assert!(world.console(&sandbox).contains(&format!("version=\"{version}\"")), "another agent booted");
        world.delete("other").await;
        assert_eq!(world.traces(), Vec::<String>::new());
    }
}
