//! The verbs against a gateway that is played here, over a real unix socket.

mod double;

use std::time::Duration;

use clap::Parser as _;
use proto::openshell::v1::{
    ExecSandboxInput, ExecSandboxRequest, SandboxPhase, exec_sandbox_event, exec_sandbox_input,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::double::{Double, Script};
use super::console::Terminals;
use super::signals::Signals;
use super::*;

struct Done {
    code: u8,
    out: String,
    err: String,
}

/// Runs one command line against `double`, with `stdin` as its whole standard input.
async fn openshell(double: &Double, stdin: &str, arguments: &[&str]) -> Done {
    let (_kept, signals) = Signals::channel();
    openshell_with(double, stdin, signals, arguments).await
}

async fn openshell_with(double: &Double, stdin: &str, signals: Signals, arguments: &[&str]) -> Done {
    let socket = double.socket.to_str().unwrap();
    let program = ["openshell", "--gateway-socket", socket];
    let line = CommandLine::try_parse_from(program.iter().chain(arguments)).unwrap();
    let (mut input, stdin_end) = tokio::io::duplex(64 * 1024);
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let (stdout, mut out_end) = tokio::io::duplex(1024 * 1024);
    let (stderr, mut err_end) = tokio::io::duplex(1024 * 1024);
    let mut console = Console::new(stdin_end, stdout, stderr, Terminals::default()).with_signals(signals);
    let environment = Environment::fixed(|_| None, |_| false, 0, "/nowhere".into());
    let outcome = run(line, &environment, &mut console).await;
    drop(console);
    let (mut out, mut err) = (String::new(), String::new());
    out_end.read_to_string(&mut out).await.unwrap();
    err_end.read_to_string(&mut err).await.unwrap();
    let code = outcome.unwrap_or_else(|error| {
        err.push_str(&format!("error: {error}\n"));
        error.code.code()
    });
    Done { code, out, err }
}

/// One deadline for a whole test: nothing here takes longer unless it hangs.
async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
}

const SMOKE: [&str; 12] = [
    "sandbox",
    "create",
    "--name",
    "smoke",
    "--from",
    "base",
    "--no-keep",
    "--no-tty",
    "--",
    "/bin/sh",
    "-lc",
    "echo agent-ok",
];

#[tokio::test]
async fn create_runs_a_command_passes_its_code_and_deletes() {
    within(async {
        let double = Double::serve(Script { output: "agent-ok\n", ..Script::default() }).await;
        let done = openshell(&double, "", &SMOKE).await;
        assert_eq!(done.out, "Created sandbox: smoke\nagent-ok\nDeleted sandbox smoke\n");
        assert_eq!((done.code, done.err.as_str()), (0, ""));
        let request = double.created().unwrap();
        assert!(request.await_main_process_attachment);
        let spec = request.spec.unwrap();
        assert_eq!((spec.command.len(), spec.tty), (3, false));
        assert_eq!(spec.template.unwrap().image, "base");
        assert_eq!(double.phase("smoke"), None);
    })
    .await;
}

#[tokio::test]
async fn a_failing_command_is_deleted_too_and_lines_stay_whole() {
    within(async {
        let double = Double::serve(Script { output: "no newline", code: 42, ..Script::default() }).await;
        let done = openshell(&double, "", &SMOKE).await;
        assert_eq!(done.out, "Created sandbox: smoke\nno newline\nDeleted sandbox smoke\n");
        assert_eq!(done.code, 42);
        assert_eq!(double.phase("smoke"), None);
    })
    .await;
}

#[tokio::test]
async fn without_no_keep_the_sandbox_stays() {
    within(async {
        let double = Double::serve(Script { code: 3, ..Script::default() }).await;
        let done = openshell(&double, "", &["vm", "create", "--name", "a", "--", "false"]).await;
        assert_eq!((done.code, done.out.as_str()), (3, "Created sandbox: a\n"));
        assert_eq!(double.phase("a"), Some(SandboxPhase::Ready));
    })
    .await;
}

#[tokio::test]
async fn a_boot_that_fails_shows_its_evidence_and_has_its_code() {
    within(async {
        let double = Double::serve(Script { boot_fails: Some("Kvm"), ..Script::default() }).await;
        let kept = openshell(&double, "", &["vm", "create", "--name", "a"]).await;
        assert_eq!(kept.code, ExitCode::Kvm.code());
        for said in ["Provisioned Kvm:", "    last line of the console", "openshell sandbox delete a"] {
            assert!(kept.err.contains(said), "{}", kept.err);
        }
        assert_eq!(double.phase("a"), Some(SandboxPhase::Error));

        let deleted = openshell(&double, "", &SMOKE).await;
        assert_eq!(deleted.code, ExitCode::Kvm.code());
        assert_eq!(deleted.out, "Created sandbox: smoke\nDeleted sandbox smoke\n");
    })
    .await;
}

#[tokio::test]
async fn a_command_whose_stream_breaks_is_deleted_and_is_no_success() {
    within(async {
        let double = Double::serve(Script { output: "begun\n", breaks: true, ..Script::default() }).await;
        let done = openshell(&double, "", &SMOKE).await;
        assert_eq!(done.code, ExitCode::StreamLost.code());
        assert!(done.out.ends_with("Deleted sandbox smoke\n"), "{}", done.out);
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_command_is_deleted() {
    within(async {
        let double = Double::serve(Script { output: "begun\n", hangs: true, ..Script::default() }).await;
        let (sender, signals) = Signals::channel();
        let interrupt = async {
            double.attached().await;
            // The second and third change nothing.
            for signal in [ExitCode::Interrupted, ExitCode::Interrupted, ExitCode::Terminated] {
                sender.send(signal).unwrap();
            }
        };
        let (done, ()) = tokio::join!(openshell_with(&double, "", signals, &SMOKE), interrupt);
        assert_eq!(done.code, ExitCode::Interrupted.code());
        assert!(done.out.starts_with("Created sandbox: smoke\n"), "{}", done.out);
        assert!(done.out.ends_with("Deleted sandbox smoke\n"), "{}", done.out);
        assert_eq!(double.phase("smoke"), None);
    })
    .await;
}

#[tokio::test]
async fn exec_takes_a_user_and_variables_from_a_file() {
    within(async {
        let double = Double::serve(Script::default()).await;
        openshell(&double, "", &["vm", "create", "--name", "a"]).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vars").display().to_string();
        std::fs::write(&file, "A=1\nB=2\n").unwrap();
        let line = ["vm", "exec", "a", "-u", "root", "--env-file", &file, "-e", "B=3", "--", "env"];
        assert_eq!(openshell(&double, "", &line).await.code, 0);
        let environment = double.started().unwrap().environment;
        assert_eq!(double.user().as_deref(), Some("root"));
        assert_eq!((environment["A"].as_str(), environment["B"].as_str(), environment.len()), ("1", "3", 2));
        // Whoever names none says nothing.
        assert_eq!(openshell(&double, "", &["vm", "exec", "a", "--", "env"]).await.code, 0);
        assert_eq!(double.user(), None);
    })
    .await;
}

#[tokio::test]
async fn exec_streams_input_to_its_end() {
    within(async {
        let double = Double::serve(Script { echoes: true, code: 7, ..Script::default() }).await;
        openshell(&double, "", &["vm", "create", "--name", "a"]).await;
        let text = "line\n".repeat(10_000);
        let done = openshell(&double, &text, &["vm", "exec", "a", "-w", "/tmp", "--env", "K=V=W", "--", "cat"]).await;
        assert_eq!((done.code, done.out.len()), (7, text.len()), "{}", done.err);
        let start = double.started().unwrap();
        assert_eq!((start.workdir.as_str(), start.environment["K"].as_str()), ("/tmp", "V=W"));
        assert_eq!(start.command, ["cat"]);
    })
    .await;
}

#[tokio::test]
async fn many_short_lines_wait_for_a_paused_terminal() {
    within(async {
        const LINES: usize = 100_000;
        let double = Double::serve(Script { output: "\n", repeats: LINES, ..Script::default() }).await;
        openshell(&double, "", &["vm", "create", "--name", "dev"]).await;
        let environment = Environment::fixed(|_| None, |_| false, 0, "/nowhere".into());
        let gateway = Gateway::find(Some(double.socket.clone()), &environment).unwrap();
        let (mut client, _) = gateway.running().await.unwrap();
        let start = ExecSandboxRequest { sandbox: "dev".into(), ..ExecSandboxRequest::default() };
        let input = tokio_stream::once(ExecSandboxInput { payload: Some(exec_sandbox_input::Payload::Start(start)) });
        let mut events = client.exec_sandbox_interactive(input).await.unwrap().into_inner();
        // As long as it takes to fill whatever can be filled.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut lines = 0;
        loop {
            match events.message().await.unwrap().unwrap().payload.unwrap() {
                exec_sandbox_event::Payload::Stdout(stdout) => lines += stdout.data.len(),
                exec_sandbox_event::Payload::Exit(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(lines, LINES);
    })
    .await;
}

#[tokio::test]
async fn lifecycle_verbs_wait_and_say_one_line() {
    within(async {
        let double = Double::serve(Script::default()).await;
        let told = async |arguments: &[&str]| {
            let done = openshell(&double, "", arguments).await;
            (done.code, done.out)
        };
        assert_eq!(told(&["vm", "create", "--name", "a"]).await, (0, "Created sandbox: a\n".into()));
        assert_eq!(told(&["vm", "create", "--name", "a"]).await.0, ExitCode::AlreadyExists.code());
        assert_eq!(told(&["vm", "stop", "a"]).await, (0, "Stopped sandbox a\n".into()));
        let inspected = told(&["token", "inspect", "a"]).await;
        assert_eq!(inspected, (0, "no token: sandbox a is Stopped\n".into()));
        assert_eq!(told(&["vm", "start", "a"]).await, (0, "Started sandbox a\n".into()));
        let (code, listed) = told(&["vm", "list"]).await;
        assert!(code == 0 && listed.starts_with("NAME  PHASE"), "{listed}");
        let (_, json) = told(&["vm", "get", "a", "-o", "json"]).await;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["name"], &json["phase"]), (&"a".into(), &"Ready".into()));
        assert_eq!(told(&["vm", "delete", "a"]).await, (0, "Deleted sandbox a\n".into()));
        assert_eq!(told(&["vm", "delete", "a"]).await.0, ExitCode::NotFound.code());
        assert_eq!(told(&["vm", "delete", "--if-exists", "a"]).await, (0, "Sandbox a does not exist\n".into()));
        assert_eq!(told(&["vm", "list", "-o", "json"]).await, (0, "[]\n".into()));
        assert_eq!(told(&["gateway", "status"]).await.0, 0);
    })
    .await;
}

#[tokio::test]
async fn without_a_gateway_there_is_one_line_and_a_code() {
    within(async {
        let double = Double::nowhere();
        for arguments in [["gateway", "status"], ["vm", "list"]] {
            let done = openshell(&double, "", &arguments).await;
            assert_eq!(done.code, ExitCode::GatewayUnavailable.code());
            assert_eq!(done.err.lines().count(), 1, "{}", done.err);
        }
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_ends_at_once_is_quoted_with_its_code() {
    use std::os::unix::fs::PermissionsExt as _;
    within(async {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("openshell-gateway");
        std::fs::write(&program, "#!/bin/sh\necho \"args: $*\"\necho 'the store is damaged' >&2\nexit 44\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let gateway = Gateway::started_by(dir.path().join("none.sock"), program, dir.path().join("state"));
        let mut console = Console::new(tokio::io::empty(), tokio::io::sink(), tokio::io::sink(), Terminals::default());
        let error = gateway.client(&mut console).await.unwrap_err();
        assert_eq!(error.code, ExitCode::StoreCorrupt);
        assert!(error.message.contains("\n  args: --detached\n  the store is damaged"), "{error}");
        let log = std::fs::metadata(dir.path().join("state/gateway.log")).unwrap();
        assert_eq!(log.permissions().mode() & 0o7777, 0o600);
    })
    .await;
}

#[test]
fn command_lines() {
    let parse = |line: &str| CommandLine::try_parse_from(line.split(' ')).map_err(|error| error.kind());
    CommandLine::command().debug_assert();
    for line in [
        "openshell vm create",
        "openshell sandbox create --name a --from b --cpus 2 --memory 1Gi --tty --no-keep -- bash -l",
        "openshell vm exec -t a -w /tmp -- ls -l",
        "openshell vm exec a --timeout 5s -- ls",
        "openshell vm exec -u www a --env-file vars -- ls",
        "openshell vm ssh a",
        "openshell vm ssh a -- -L 8080:localhost:80 ls -l",
        "openshell vm ssh-config",
        "openshell vm ssh-config a b",
        "openshell vm ssh-proxy a",
        "openshell vm cp src a:/tmp/src",
        "openshell vm forward a 8080:80 9000 -L 1:2 -R 9000:3000",
        "openshell vm delete a b c --if-exists",
        "openshell --gateway-socket /s vm list -o json",
        "openshell vm list --gateway-socket /s",
        "openshell gateway run --state-dir /s --token-ttl 30s",
        "openshell gateway status -o json",
        "openshell token inspect a",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).map(|_| ()));
    }
    for line in [
        "openshell",
        "openshell vm",
        "openshell vm create a",
        "openshell vm create --no-keep",
        "openshell vm exec a",
        "openshell vm exec a -e novalue -- ls",
        "openshell vm exec a -e =v -- ls",
        "openshell vm exec a -u é -- ls",
        "openshell vm cp a:src",
        "openshell vm forward a 80:x",
        "openshell vm delete",
        "openshell vm stop",
        "openshell vm stop a --timeout 0s",
        "openshell gateway run --no-such-key 1",
        "openshell vm list -o yaml",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}
