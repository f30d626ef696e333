//! What operators do to a running sandbox: refresh, revoke, secrets, configuration, calls of its agent. With the real
//! command line where there is one.

use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::programs::{program, test_image};
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::budget;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::*;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("operator::an_exec_lives_through_ten_rotations_and_ends_with_its_lease", leases),
        trial("operator::a_revocation_is_followed_and_leaves_an_exec_alone", revocation),
        trial("operator::secrets_are_in_the_programs_of_their_sandbox_alone", secrets),
        trial("operator::an_agent_makes_calls_for_its_operator_and_for_nobody_else", debug_calls),
    ]
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

async fn openshell(world: &World, arguments: &[&str]) -> (i32, String, String) {
    said(&world.openshell(arguments).await)
}

/// Output of an exec that says something every 0.2 s, until it ends.
async fn talker(api: &Api, name: &str) -> tokio::task::JoinHandle<Instant> {
    let mut events =
        api.exec_stream(name, &["/bin/sh", "-c", "while :; do echo .; sleep 0.2; done"]).await.expect("exec");
    tokio::spawn(async move {
        while let Ok(Some(event)) = events.message().await {
            assert!(!matches!(event.payload, Some(Payload::Exit(_))), "the exec ended by itself");
        }
        Instant::now()
    })
}

async fn leases() {
    let world = World::quick(TTL).await;
    world.ready("leases", &[]).await;
    let api = world.api().await;
    let talker = talker(&api, "leases").await;
    let mut shell = Command::new(program("openshell"))
        .args(["vm", "ssh", "leases", "--", "while :; do echo .; sleep 0.2; done"])
        .env_clear()
        .envs(world.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run openshell");
    let mut word = [0];
    let mut words = shell.stdout.take().expect("a pipe");
    words.read_exact(&mut word).expect("a word of the shell");
    // Nobody reads more, and it is not to be ended by that.
    let words = std::thread::spawn(move || std::io::copy(&mut words, &mut std::io::sink()));
    for round in 1..=10 {
        let (code, out, err) = openshell(&world, &["token", "refresh", "leases", "-o", "json"]).await;
        assert_eq!(code, 0, "{err}");
        let generation = serde_json::from_str::<serde_json::Value>(&out).expect("JSON")["generation"].as_u64();
        until(&format!("rotation {round} to be presented"), TTL, async || {
            let seen: u64 = api.token("leases").await.get("seen-generation")?.parse().ok()?;
            (Some(seen) >= generation).then_some(())
        })
        .await;
        assert!(!talker.is_finished(), "the exec ended in rotation {round}");
        assert_eq!(shell.try_wait().expect("look"), None, "the SSH shell ended in rotation {round}");
    }
    // From now on a Sync extends nothing, as if it did not come.
    let faults = world.state().join("faults");
    std::fs::write(&faults, "sync-unheard\n").expect("switch the fault on");
    let began = Instant::now();
    let ended = tokio::time::timeout(TTL + budget::leeway(TTL) + Duration::from_secs(10), talker).await;
    let ended = ended.expect("the exec outlived every token that was presented").expect("join");
    until("the SSH shell to end with the exec", Duration::from_secs(10), async || {
        shell.try_wait().expect("look").filter(|status| !status.success())
    })
    .await;
    words.join().expect("a thread").expect("read");
    std::fs::remove_file(&faults).expect("switch the fault off");
    let lived = ended.duration_since(began);
    println!("operator: without Sync an exec lives {:.1} s with a TTL of {TTL:?}", lived.as_secs_f64());
    // The last token was presented some time before.
    assert!(
        lived > budget::rotate_from(TTL) && lived < TTL + budget::leeway(TTL) + Duration::from_secs(2),
        "{lived:?}"
    );
    world.phase("leases", SandboxPhase::Ready).await;
    assert_eq!(api.sh("leases", "echo back").await, "back\n");
    world.delete("leases").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn revocation() {
    let world = World::quick(TTL).await;
    let sandbox = world.ready("revoked", &[]).await;
    let api = world.api().await;
    let talker = talker(&api, "revoked").await;
    let stolen = world.token(&sandbox);
    let (code, out, err) = openshell(&world, &["token", "revoke", "revoked"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Revoked the tokens of sandbox revoked"), "{out}");
    let socket = crate::tokens::vm_socket(&world, &sandbox);
    let status = crate::tokens::sync(&socket, Some(&stolen)).await.expect_err("a revoked token");
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
    // Connections of earlier tokens are closed after 5 s: not those of an agent that follows.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!talker.is_finished(), "the exec of an agent that follows ended");
    talker.abort();
    world.delete("revoked").await;

    let (code, _, err) = openshell(&world, &["token", "revoke", "nope"]).await;
    assert_eq!(code, 3, "{err}");
}

/// `openshell secret set`, with the value on standard input.
fn set_secret(world: &World, provider: &str, key: &str, value: &str) -> (i32, String, String) {
    let mut command = Command::new(program("openshell"));
    command.args(["secret", "set", provider, key]).env_clear().envs(world.environment());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run openshell");
    child.stdin.take().expect("a pipe").write_all(value.as_bytes()).expect("write");
    said(&child.wait_with_output().expect("wait"))
}

async fn secrets() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let (code, out, err) = set_secret(&world, "git", "GIT_TOKEN", "geheim-4711\n");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("mode 0600, not encrypted"), "{out}");
    let template = SandboxTemplate { image: test_image().display().to_string(), ..Default::default() };
    let spec = SandboxSpec {
        template: Some(template),
        providers: vec!["git".into()],
        command: ["/bin/sh", "-c", "echo main $GIT_TOKEN >/tmp/main; sleep 1000"].map(str::to_owned).into(),
        ..Default::default()
    };
    let request = CreateSandboxRequest { name: "with".into(), spec: Some(spec), ..Default::default() };
    let (with, _without) = tokio::join!(
        async {
            api.create_with(request).await.expect("create");
            world.phase("with", SandboxPhase::Ready).await
        },
        world.ready("without", &[])
    );
    assert_eq!(api.sh("with", "echo exec $GIT_TOKEN").await, "exec geheim-4711\n");
    assert_eq!(api.sh("with", "cat /tmp/main").await, "main geheim-4711\n", "the main process waited for it");
    assert_eq!(api.sh("without", "echo none $GIT_TOKEN").await, "none\n");
    let in_the_boot_spec = std::fs::read_to_string(world.places(&with).join("share/boot.json")).expect("read");
    assert!(!in_the_boot_spec.contains("geheim"), "a secret in the boot spec");

    assert_eq!(set_secret(&world, "git", "GIT_TOKEN", "neu-0815").0, 0);
    until("the agent to hold the new value", 3 * budget::heartbeat(TTL), async || {
        (api.sh("with", "echo $GIT_TOKEN").await == "neu-0815\n").then_some(())
    })
    .await;
    let log = std::fs::read_to_string(world.log()).expect("read the log");
    let console = world.console(&with);
    for secret in ["geheim-4711", "neu-0815"] {
        assert!(!log.contains(secret) && !console.contains(secret), "{secret} in a log");
    }
    let (code, out, _) = openshell(&world, &["secret", "list"]).await;
    assert!(code == 0 && out.contains("GIT_TOKEN") && out.contains("with") && !out.contains("neu"), "{out}");
    let (code, _, err) = openshell(&world, &["secret", "remove", "git"]).await;
    assert_eq!(code, 5, "removed though in use: {err}");
    assert!(err.contains("is used by with"), "{err}");
    world.delete("with").await;
    world.delete("without").await;
    assert_eq!(openshell(&world, &["secret", "remove", "git"]).await.0, 0);
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn debug_calls() {
    let world = World::quick(TTL).await;
    let (one, two) = tokio::join!(world.ready("one", &[]), world.ready("two", &[]));
    let api = world.api().await;
    let id = |sandbox: &Sandbox| sandbox.metadata.clone().expect("metadata").id;
    let debug = async |call: &[&str]| {
        let arguments: Vec<_> = ["sandbox", "debug-rpc", "one"].iter().chain(call).copied().collect();
        openshell(&world, &arguments).await
    };
    let json = |out: &str| serde_json::from_str::<serde_json::Value>(out).unwrap_or_else(|e| panic!("{e}: {out}"));

    let (code, out, err) = debug(&["show-principal"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(json(&out)["sandbox_id"], id(&one).as_str());
    let (code, out, err) = debug(&["show-token"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(json(&out)["claims"]["sandbox_id"], id(&one).as_str());
    let token = world.token(&one);
    assert!(!out.contains(token.rsplit('.').next().expect("a signature")), "the signature is shown");
    let (code, _, err) = debug(&["refresh"]).await;
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = debug(&["get-sandbox-config", "--sandbox-id", &id(&one)]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(json(&out)["workspace"], "default");
    let (code, out, err) = debug(&["get-sandbox-config", "--sandbox-id", &id(&two)]).await;
    assert_eq!((code, out.as_str()), (7, ""));
    assert!(err.contains("PermissionDenied: cross-sandbox access denied"), "{err}");
    let log = std::fs::read_to_string(world.log()).expect("read the log");
    assert!(log.contains("audit: debug call") && log.contains("names another sandbox"), "not audited");

    // In the guest there is nobody to ask.
    let agents = "/opt/openshell/bin/openshell-agent /init.krun";
    let asked = api
        .sh("one", &format!("for agent in {agents}; do [ -x $agent ] && {{ $agent debug-rpc show-token 2>&1; echo $?; }}; done; true"))
        .await;
    println!("operator: in the guest: {asked:?}");
    assert!(!asked.contains("eyJ"), "a token: {asked}");
    for line in asked.lines() {
        assert!(line.contains("no identity here") || line == "7", "{asked}");
    }
    assert!(asked.contains("no identity here"), "no agent was found to ask: {asked}");
    world.delete("one").await;
    world.delete("two").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
