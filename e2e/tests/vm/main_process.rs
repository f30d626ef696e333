//! The main process: restarts, its one end, who types, and the words of its image.

use std::time::{Duration, Instant};

use e2e::programs::test_image;
use e2e::pty::Terminal;
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::*;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("main::a_crash_loop_ends_in_an_error_that_says_how_to_go_on", crash_loop),
        trial("main::one_types_detaches_and_comes_back", terminal),
    ]
}

async fn openshell(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let output = world.openshell(arguments).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

fn request(name: &str, command: &[&str], change: impl FnOnce(&mut SandboxSpec)) -> CreateSandboxRequest {
    let template = SandboxTemplate { image: test_image().display().to_string(), ..Default::default() };
    let command = command.iter().map(ToString::to_string).collect();
    let mut spec = SandboxSpec { template: Some(template), command, ..Default::default() };
    change(&mut spec);
    CreateSandboxRequest { name: name.into(), spec: Some(spec), ..Default::default() }
}

async fn crash_loop() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let failing = ["/bin/sh", "-c", "echo $IMAGE_SAYS$OPENSHELL_IMAGE; exit 3"];
    let looping = request("looping", &failing, |spec| spec.set_restart_policy(SandboxRestartPolicy::OnFailure));
    api.create_with(looping).await.expect("create");
    // From here on, before anything of it is up.
    let (console, waited, ended) = tokio::join!(
        openshell(&world, &["vm", "console", "looping", "--follow"]),
        openshell(&world, &["vm", "wait", "looping"]),
        async {
            world.phase("looping", SandboxPhase::Ready).await;
            let status = until("a restart", Duration::from_secs(30), async || {
                let status = api.get("looping").await.ok()?.status?;
                (status.restart_count > 0 && status.next_restart_time.is_some()).then_some(status)
            })
            .await;
            assert!(status.main_process_started_time.is_some(), "{status:?}");
            let resting = status.conditions.iter().find(|condition| condition.r#type == "MainProcessRunning");
            assert!(resting.is_some_and(|resting| resting.message.contains("code 3")), "{status:?}");
            // Beside it, one that ends well.
            let well = request("well", &["/bin/sh", "-c", "exit 42"], |_| {});
            api.create_with(well).await.expect("create");
            openshell(&world, &["vm", "wait", "well"]).await
        },
    );
    assert_eq!(ended.0, 42, "{ended:?}");
    assert_eq!(waited.0, 6, "{waited:?}");
    for word in ["CrashLoop", "8 times", "code 3", "openshell vm start looping"] {
        assert!(waited.2.contains(word), "{}", waited.2);
    }
    assert_eq!(console.0, 0, "{}", console.2);
    assert!(console.1.contains("main process started") && console.1.contains("last words"), "{}", console.1);
    let sandbox = api.get("looping").await.expect("it is there");
    let status = sandbox.status.expect("a status");
    assert_eq!((status.phase(), status.exit_code, status.restart_count), (SandboxPhase::Error, Some(3), 7));
    let (code, after, _) = openshell(&world, &["vm", "console", "looping"]).await;
    assert!(code == 0 && after == console.1, "it reads otherwise after the end");

    // The remedy; and the image's word is heard, but not a reserved one.
    assert_eq!(openshell(&world, &["vm", "start", "looping"]).await.0, 0);
    let (code, out, _) =
        openshell(&world, &["vm", "exec", "looping", "--", "sh", "-c", "echo $IMAGE_SAYS$OPENSHELL_IMAGE"]).await;
    assert_eq!((code, out.as_str()), (0, "hello\n"));
    world.delete("looping").await;
    world.delete("well").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn terminal() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    api.create_with(request("shell", &["/bin/sh"], |spec| spec.tty = true)).await.expect("create");
    world.phase("shell", SandboxPhase::Ready).await;
    let mut first = Terminal::openshell(&world, &["vm", "attach", "shell"]);
    first.type_in(b"echo one $((40 + 2))\n");
    first.shows("one 42").await;

    let mut second = Terminal::openshell(&world, &["vm", "attach", "shell"]);
    second.shows("somebody else has the input").await;
    second.shows("one 42").await;
    second.type_in(b"echo two $((40 + 2))\n");
    first.type_in(b"echo three $((40 + 2))\n");
    second.shows("three 42").await;
    assert!(!second.screen().contains("two 42"), "{}", second.screen());

    // Ctrl-P Ctrl-Q.
    first.type_in(b"\x10\x11");
    assert_eq!(first.ends().await, Some(0));
    assert!(first.screen().contains("detached from sandbox `shell`"), "{}", first.screen());
    until("the input to be free", Duration::from_secs(20), async || {
        second.type_in(b"echo four $((40 + 2))\n");
        tokio::time::sleep(Duration::from_secs(1)).await;
        second.screen().contains("four 42").then_some(())
    })
    .await;
    let mut third = Terminal::openshell(&world, &["vm", "attach", "--take-input", "shell"]);
    second.shows("somebody else took the input").await;
    third.type_in(b"echo five $((40 + 2))\n");
    third.shows("five 42").await;

    // An idle shell hangs up at once; nobody waits for the grace of a stop.
    let began = Instant::now();
    assert_eq!(openshell(&world, &["vm", "stop", "shell"]).await.0, 0);
    let took = began.elapsed();
    println!("main: an idle shell on a terminal is stopped in {:.2} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (code, _, err) = openshell(&world, &["vm", "wait", "shell"]).await;
    assert!(code == 5 && err.contains("was stopped"), "{code} {err}");
    world.delete("shell").await;
    assert_eq!(openshell(&world, &["vm", "wait", "shell"]).await.0, 3);
    assert_eq!(world.traces(), Vec::<String>::new());
}
