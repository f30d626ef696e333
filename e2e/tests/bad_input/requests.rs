//! Sandboxes that cannot be made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::programs::{program, test_image};
use serde_json::Value;

use crate::bench::{Bench, Ended, block_on, run, say, set_mode};

fn create(bench: &Bench, arguments: &[&str]) -> Ended {
    bench.openshell(&[&["vm", "create"][..], arguments].concat())
}

fn image() -> String {
    test_image().canonicalize().expect("the test image").display().to_string()
}

#[test]
fn requests_that_are_wrong_leave_nothing() {
    let bench = Bench::new();
    let _gateway = block_on(bench.serve());
    let (image, text, private) = (image(), bench.path("text.erofs"), bench.path("private.erofs"));
    fs::write(&text, vec![b'x'; 4096]).expect("write");
    fs::copy(&image, &private).expect("copy");
    set_mode(&private, 0o600);
    let (text, private) = (text.display().to_string(), private.display().to_string());
    let from = |image: &str| vec!["--name".to_string(), "dev".into(), "--from".into(), image.into()];
    let with = |flag: &str, value: &str| [from(&image), vec![flag.to_string(), value.into()]].concat();
    let named = |name: &str| vec!["--name".to_string(), name.into(), "--from".into(), image.clone()];
    for (arguments, code, words) in [
        (from("nope"), 3, ["failed to find image nope", "make guest-image"]),
        (from("/nowhere/x.erofs"), 3, ["/nowhere/x.erofs", "path of an erofs file"]),
        (from("./x.erofs"), 2, ["./x.erofs is not absolute", "whole path"]),
        (from("../x"), 2, ["../x is not absolute", "whole path"]),
        (from(&text), 2, ["text.erofs is no erofs file system", "mkfs.erofs"]),
        (from("/dev/null"), 2, ["not a regular file", "erofs file"]),
        (named("Dev_1"), 2, ["name `Dev_1`", "may hold only a-z, 0-9 and -"]),
        (named("a--b"), 2, ["name `a--b`", "two in a row"]),
        (named("abcdefghijklmnopqrst"), 2, ["name `abcdefghijklmnopqrst`", "1 to 19 characters"]),
        (with("--cpus", "0"), 2, ["cpus: `0`", "from 1 to 32"]),
        (with("--cpus", "99"), 2, ["cpus: `99`", "from 1 to 32"]),
        (with("--cpus", "two"), 2, ["cpus: `two`", "like 2 or 500m"]),
        (with("--memory", "64Mi"), 2, ["memory: 64Mi", "at least 128Mi"]),
        (with("--memory", "99999Gi"), 2, ["memory: 99999Gi is more than ", "the most of this gateway"]),
        (with("--memory", "lots"), 2, ["memory: `lots`", "like 512Mi"]),
    ] {
        create(&bench, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).refused(code, &words);
        bench.nothing_is_left();
    }
    if rustix::process::geteuid().is_root() {
        create(&bench, &["--name", "dev", "--from", &private]).refused(2, &["private.erofs", "chmod o+r"]);
    } else {
        say("not run: an image that only root can read; this process is not root");
    }
    bench.nothing_is_left();
}

#[test]
fn what_is_not_there_is_exit_3_for_every_verb() {
    let bench = Bench::new();
    let _gateway = block_on(bench.serve());
    for arguments in [
        &["vm", "get", "nope"][..],
        &["vm", "stop", "nope"],
        &["vm", "start", "nope"],
        &["vm", "delete", "nope"],
        &["vm", "exec", "nope", "--", "true"],
        &["vm", "attach", "nope"],
        &["sandbox", "get", "nope"],
        &["token", "inspect", "nope"],
    ] {
        bench.openshell(arguments).refused(3, &["`nope`", "`openshell sandbox list` shows what there is"]);
    }
    bench.nothing_is_left();
}

#[test]
fn a_program_or_library_that_is_missing_is_named() {
    for (variable, code, words) in [
        ("OPENSHELL_VM_LIBKRUNFW", 22, ["failed to find libkrunfw at /nowhere/thing", "install libkrunfw.so.5"]),
        ("OPENSHELL_VM_VMM_BIN", 47, ["failed to find openshell-vmm at /nowhere/thing", "install it beside"]),
        ("OPENSHELL_GATEWAY_AGENT_BIN", 47, ["failed to find openshell-agent at /nowhere/thing", "install it beside"]),
    ] {
        let bench = Bench::new().with(variable, Some("/nowhere/thing"));
        let _gateway = block_on(bench.serve());
        create(&bench, &["--name", "dev", "--from", &image()]).refused(code, &words);
        bench.nothing_is_left();
    }
}

#[test]
fn an_agent_that_no_guest_can_run_is_named() {
    let bench = Bench::new();
    let (script, dynamic, other) = (bench.path("script"), bench.path("dynamic"), bench.path("other"));
    fs::write(&script, "#!/bin/sh\necho 'openshell-agent 0.1.0 (protocol 1-1)'\n").expect("write");
    fs::copy("/bin/true", &dynamic).expect("copy");
    let mut program = fs::read(program("openshell-agent")).expect("read the agent");
    // `e_machine`: RISC-V.
    program[18..20].copy_from_slice(&243_u16.to_le_bytes());
    fs::write(&other, program).expect("write");
    let mut bench = bench;
    for (path, words) in [
        (&script, ["is not a 64-bit ELF program", "openshell.gateway.agent_bin"]),
        (&dynamic, ["is linked dynamically", "static openshell-agent that came with gateway"]),
        (&other, ["is a program for riscv", "static openshell-agent that came with gateway"]),
    ] {
        set_mode(path, 0o755);
        bench = bench.with("OPENSHELL_GATEWAY_AGENT_BIN", path.to_str());
        let gateway = block_on(bench.serve());
        let line = create(&bench, &["--name", "dev", "--from", &image()]).refused(26, &words);
        assert!(line.contains(&path.display().to_string()), "{line}");
        bench.nothing_is_left();
        assert_eq!(block_on(gateway.stop()).code(), Some(0));
        let log = fs::read_to_string(bench.log()).expect("the log");
        assert!(log.lines().any(|line| line.contains("guests cannot be booted") && line.contains(words[0])), "{log}");
    }
    let bench = bench.with("OPENSHELL_GATEWAY_AGENT_BIN", None);
    block_on(bench.serves_once());
    let log = fs::read_to_string(bench.log()).expect("the log");
    let line = log.lines().find(|line| line.contains("guests get this agent")).expect("the agent at the start");
    for word in ["sha256=", "version=", "protocol=", "openshell-agent"] {
        assert!(line.contains(word), "{line}");
    }
}

/// What the vmm itself says of this machine; nothing where a guest boots.
fn verdict(bench: &Bench) -> Option<(i32, Value)> {
    let (agent, libkrunfw) = (program("openshell-agent"), program("libkrunfw.so.5"));
    let mut probe = bench.command("openshell-vmm", &["probe", "--json", "--deadline", "60"]);
    probe.arg("--agent").arg(agent).arg("--libkrunfw").arg(libkrunfw);
    let ended = run(probe);
    if ended.code == Some(0) {
        return None;
    }
    let failure = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    Some((ended.code.expect("an exit code"), failure))
}

#[test]
fn a_machine_that_cannot_boot_a_guest_is_told_so() {
    let bench = Bench::new();
    let Some((code, failure)) = verdict(&bench) else {
        say("not run: KVM works on this machine");
        return;
    };
    assert!([23, 24].contains(&code), "neither KVM nor the jail: {code} {failure}");
    let words = ["message", "remedy"].map(|key| failure[key].as_str().expect("a text"));
    assert!(!words[1].is_empty(), "no remedy: {failure}");
    say(&format!("this machine: {}", words[0]));
    let _gateway = block_on(bench.serve());
    let image = image();
    for arguments in [&["--name", "dev", "--from"][..], &["--no-keep", "--from"]] {
        let arguments = [arguments, &[&image, "--", "true"]].concat();
        create(&bench, &arguments).refused(code, &words);
        bench.nothing_is_left();
    }
}

#[test]
fn without_root_and_user_namespaces_a_create_says_what_to_allow() {
    let bench = Bench::new();
    // An ordinary user of a user namespace in which there may be no further one.
    let script =
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --ambient-caps=-all -- \"$@\"";
    let confined = |command: &Command| {
        let mut confined = Command::new("unshare");
        confined.args(["--user", "--map-user=65534", "--map-group=65534", "--keep-caps", "sh", "-c", script, "sh"]);
        confined.arg(command.get_program()).args(command.get_args()).env_clear();
        confined.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        confined
    };
    let trial = run(confined(&Command::new("true")));
    if trial.code != Some(0) {
        say(&format!("not run: a user namespace without further ones cannot be made here: {}", trial.stderr.trim()));
        return;
    }
    let mut gateway = confined(&bench.command("openshell-gateway", &["--detached"]));
    let log = fs::File::create(bench.log()).expect("make the log");
    let mut gateway = gateway.stdout(log.try_clone().expect("duplicate")).stderr(log).spawn().expect("start a gateway");
    block_on(e2e::wait::until("the socket", e2e::wait::PATIENCE, async || bench.socket().exists().then_some(())));
    // To a gateway in there, root out here is its own user.
    let ended = create(&bench, &["--name", "dev", "--from", &image()]);
    let line = ended.refused(24, &[]);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if limit.is_none_or(|limit| limit >= 65_536) {
        assert!(line.contains("max_user_namespaces"), "{line}");
    } else {
        say(&format!("as far as it got: the limit of open files on this machine is {limit:?}: {line}"));
    }
    bench.nothing_is_left();
    gateway.kill().expect("end it");
    gateway.wait().expect("wait");
}

/// A vmm that lets every machine pass and then starts nothing.
fn vmm_without_vms(bench: &Bench) -> PathBuf {
    let path = bench.path("vmm");
    let answer = r#"{"failed":{"kind":"libkrun","message":"no VM today","remedy":"come back tomorrow"}}"#;
    let script = format!("#!/bin/sh\nif [ \"$1\" = run ]; then cat >/dev/null; echo '{answer}'; fi\n");
    fs::write(&path, script).expect("write");
    set_mode(&path, 0o755);
    path
}

#[test]
fn a_boot_that_fails_leaves_a_sandbox_with_evidence_that_can_be_deleted() {
    let bench = Bench::new();
    let vmm = vmm_without_vms(&bench);
    let bench = bench.with("OPENSHELL_VM_VMM_BIN", vmm.to_str());
    let gateway = block_on(bench.serve());
    let image = image();
    let arguments = ["--name", "dev", "--from", &image, "--", "true"];
    let ended = create(&bench, &arguments);
    assert_eq!(ended.code, Some(25), "{ended:?}");
    for words in ["no VM today; come back tomorrow", "`dev` is kept for inspection", "openshell sandbox delete dev"] {
        assert!(ended.stderr.contains(words), "`{words}` is not in {ended:?}");
    }
    // The name is taken now, also over a restart of the gateway.
    create(&bench, &arguments).refused(4, &["sandbox named dev exists", "choose another name"]);
    gateway.kill();
    let _gateway = block_on(bench.serve());
    create(&bench, &arguments).refused(4, &["sandbox named dev exists", "choose another name"]);
    shape(&bench);
    bench.openshell(&["vm", "stop", "dev"]).refused(5, &["cannot stop sandbox dev", "phase Error"]);
    // Its directory keeps the evidence until the delete, and nothing runs.
    assert!(bench.vmm_processes().is_empty());
    let deleted = bench.openshell(&["vm", "delete", "dev"]);
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    bench.nothing_is_left();

    let unkept = create(&bench, &["--name", "smoke", "--no-keep", "--from", &image, "--", "true"]);
    assert_eq!(unkept.code, Some(25), "{unkept:?}");
    bench.nothing_is_left();
}

/// What scripts read.
fn shape(bench: &Bench) {
    let list = bench.openshell(&["vm", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&list.stdout).unwrap_or_else(|error| panic!("{error}: {list:?}"));
    let [sandbox] = &list.as_array().expect("an array")[..] else { panic!("not one sandbox: {list}") };
    let mut keys = sandbox.as_object().expect("an object").keys().map(String::as_str).collect::<Vec<_>>();
    keys.sort_unstable();
    let documented = [
        "boot",
        "command",
        "conditions",
        "cpus",
        "created",
        "exit_code",
        "host_key_fingerprint",
        "id",
        "image",
        "labels",
        "main_started",
        "memory",
        "name",
        "next_restart",
        "phase",
        "resource_version",
        "restart_policy",
        "restarts",
        "tty",
    ];
    assert_eq!(keys, documented);
    assert_eq!(
        (&sandbox["name"], &sandbox["phase"], &sandbox["exit_code"]),
        (&"dev".into(), &"Error".into(), &Value::Null)
    );
    assert_eq!(sandbox["conditions"][0]["reason"], "Libkrun");
    let get = bench.openshell(&["vm", "get", "dev", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&get.stdout).expect("JSON"), *sandbox);
    assert!(Path::new(sandbox["image"].as_str().expect("a path")).is_absolute());
}
