//! Services that are real programs of a real workload user: their order, readiness, restarts and end.
//!
//! The programs are started through the agent's own binary, which needs root. Where that is not to be had the tests
//! say so and pass.

#![forbid(unsafe_code)]

#[path = "services/fixture.rs"]
mod fixture;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agent::workload::ring::Stream;
use fixture::{Running, nowhere, own_program, workload_or_skip};
use proto::service::ServiceState::{Backoff, Done, Failed, Ready, Stopped};
use rustix::process::{Pid, Signal, kill_process};

/// Runs until it is told to end, and says when both happen.
const FOREVER: &str = "sh = 'trap \"say stop $N; exit 0\" TERM; say start $N; while :; do sleep 0.05; done END'\n";

fn forever(name: &str, more: &str) -> String {
    format!("{FOREVER}environment = {{ N = \"{name}\" }}\n{more}")
}

fn kill(pid: Option<i32>) {
    kill_process(Pid::from_raw(pid.expect("it runs")).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn each_starts_after_what_it_needs_and_stops_before_it() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let declarations = [
            ("web", forever("web", "requires = [\"db\", \"cache\"]")),
            ("db", forever("db", "requires = [\"disk\"]\nready = { command = [\"/bin/test\", \"-e\", \"@/served\"] }")),
            ("cache", forever("cache", "")),
            ("disk", "sh = 'say start disk END'\ntype = \"oneshot\"".to_owned()),
        ];
        let declarations = declarations.each_ref().map(|(name, text)| (*name, text.as_str()));
        let running = Running::start(fixture, &declarations, nowhere());
        running.until("db", |status| status.pid.is_some()).await;
        assert!(!running.log().contains(&"start web".to_owned()), "db does not serve yet");
        assert_eq!(running.status("web").message, "waits for `db`");
        assert!(running.services.note().contains("`web` is waiting: waits for `db`"), "{}", running.services.note());
        std::fs::write(running.path("served"), "").unwrap();
        running.services.settled(Duration::from_secs(30)).await.unwrap();
        running.reaches("web", Ready).await;
        assert_eq!(running.status("disk").state, Done);
        // It says so itself, a moment after it was started.
        while running.log().len() < 4 {
            tokio::task::yield_now().await;
        }
        let log = running.log();
        let at = |line: &str| log.iter().position(|one| one == line).unwrap_or_else(|| panic!("{line}: {log:?}"));
        assert!(at("start disk") < at("start db") && at("start db") < at("start web"), "{log:?}");
        assert_eq!(running.services.note(), "");

        running.services.stop(Duration::from_secs(10)).await;
        let log = running.log();
        assert_eq!(log[4], "stop web", "{log:?}");
        assert!(log[5..].contains(&"stop db".to_owned()) && log[5..].contains(&"stop cache".to_owned()), "{log:?}");
        for name in ["web", "db", "cache"] {
            let status = running.status(name);
            assert_eq!((status.state, status.last_exit, status.pid), (Stopped, Some(0), None), "{status:?}");
        }
    });
}

#[test]
fn all_of_a_service_has_the_time_that_it_may_take_to_stop() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let server = "trap \"sleep 0.5; say finished; exit 0\" TERM; say serving; while :; do sleep 0.05; done";
        // The shell that has started it ends at once.
        let shell = format!("sh = '({server}) & trap \"exit 0\" TERM; wait END'");
        let running = Running::start(fixture, &[("db", &shell)], nowhere());
        while running.log().is_empty() {
            tokio::task::yield_now().await;
        }
        running.services.stop(Duration::from_secs(10)).await;
        assert_eq!(running.log(), ["serving", "finished"]);
        assert_eq!(running.status("db").state, Stopped);
    });
}

#[test]
fn a_service_that_is_killed_comes_back_and_one_that_cannot_is_reported() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let declarations = [
            ("lasting", &*forever("lasting", "")),
            ("once", "sh = 'echo no luck >&2; exit 3 END'\ntype = \"oneshot\"\nrestart = \"never\"\ncritical = true"),
            ("dependent", &forever("dependent", "requires = [\"once\"]")),
            ("loose", &forever("loose", "after = [\"once\"]")),
            ("nobody", &forever("nobody", "user = \"no-such-user\"")),
        ];
        let running = Running::start(fixture, &declarations, nowhere());
        let first = running.reaches("lasting", Ready).await;
        kill(first.pid);
        let second = running.until("lasting", |status| status.restarts == 1 && status.state == Ready).await;
        assert_ne!(second.pid, first.pid);
        assert_eq!(second.last_exit, Some(137));

        let once = running.reaches("once", Failed).await;
        assert_eq!((once.last_exit, once.message.as_str()), (Some(3), "ended with code 3 before it was ready"));
        assert_eq!(running.reaches("dependent", Failed).await.message, "requires `once`, which failed");
        running.reaches("loose", Ready).await;
        let nobody = running.reaches("nobody", Failed).await;
        assert!(nobody.message.contains("`no-such-user` is neither a user in"), "{nobody:?}");
        // Failed ones are not waited for; a critical one is the end.
        running.services.settled(Duration::from_secs(30)).await.unwrap();
        let lost = running.services.lost().await;
        assert!(lost.starts_with("critical service `once` failed: ended with code 3"), "{lost}");
        assert!(lost.contains("no luck"), "{lost}");
        running.services.stop(Duration::from_secs(10)).await;
    });
}

/// Not a test: the program that a service of the next test runs.
#[test]
fn speaker() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let speaker = UnixDatagram::unbound().unwrap();
    speaker.connect(&socket).unwrap();
    speaker.send(b"STATUS=warming up").unwrap();
    while !std::path::Path::new(&std::env::var("GO").unwrap()).exists() {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    speaker.send(b"READY=1\nSTATUS=serving").unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_service_is_ready_when_it_says_so_and_not_for_ever_on_its_way() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let place = tempfile::tempdir().unwrap();
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (program, go) = (own_program(place.path()), place.path().join("go"));
        let speaks = format!(
            "command = [{program:?}, \"--exact\", \"speaker\"]\nready = \"notify\"\nenvironment = {{ GO = {go:?} }}"
        );
        let declarations = [
            ("speaks", &*speaks),
            ("waits", &forever("waits", "requires = [\"speaks\"]")),
            ("silent", &forever("silent", "ready = \"notify\"\nstart_timeout = \"300ms\"\nrestart = \"never\"")),
        ];
        let running = Running::start(fixture, &declarations, nowhere());
        let silent = running.reaches("silent", Failed).await;
        assert_eq!((silent.message.as_str(), silent.last_exit), ("was not ready within 300ms", Some(0)));
        let speaks = running.until("speaks", |status| status.pid.is_some()).await;
        assert!(!speaks.ready && running.status("waits").pid.is_none(), "{speaks:?}");
        std::fs::write(&go, "").unwrap();
        running.reaches("waits", Ready).await;
        assert!(running.status("speaks").ready);
        assert_eq!(running.status("speaks").message, "serving");
        running.services.stop(Duration::from_secs(10)).await;
    });
}

#[test]
fn a_panic_in_a_services_task_changes_nothing_for_the_programs() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let broken = Arc::new(AtomicBool::new(false));
        let breaks = broken.clone();
        let sink = Arc::new(move |_: &str, _: Stream, bytes: &[u8]| {
            let own = bytes.starts_with(b"openshell-agent: ");
            assert!(!own || breaks.swap(true, Ordering::SeqCst), "a fault of the test's making");
        });
        let running = Running::start(fixture, &[("a", &forever("a", "")), ("b", &forever("b", ""))], sink);
        let (a, b) = (running.reaches("a", Ready).await, running.reaches("b", Ready).await);
        kill(a.pid);
        running.reaches("a", Backoff).await;
        let again = running.until("a", |status| status.restarts == 1 && status.state == Ready).await;
        assert!(broken.load(Ordering::SeqCst), "the task has panicked");
        assert_ne!(again.pid, a.pid);
        assert_eq!(running.status("b"), b);
        running.services.stop(Duration::from_secs(10)).await;
    });
}

#[test]
fn output_is_read_whether_or_not_anybody_keeps_it() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let seen = Arc::new(AtomicUsize::new(0));
        let counts = seen.clone();
        let sink = Arc::new(move |name: &str, stream: Stream, bytes: &[u8]| {
            assert_eq!((name, stream), ("loud", Stream::Out));
            // The first piece is met by a fault.
            assert!(counts.fetch_add(bytes.len(), Ordering::SeqCst) > 0, "a fault of the test's making");
        });
        let loud = "sh = 'head -c 5000000 /dev/zero; say written END'\ntype = \"oneshot\"";
        let running = Running::start(fixture, &[("loud", loud)], sink);
        running.reaches("loud", Done).await;
        assert_eq!(running.log(), ["written"]);
        while seen.load(Ordering::SeqCst) < 5_000_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn one_that_does_not_heed_its_signal_is_killed_within_the_budget() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let deaf = "sh = 'trap \"\" TERM; say deaf; while :; do sleep 0.05; done END'\nstop_timeout = \"200ms\"";
        let on_int =
            "sh = 'trap \"say int; exit 5\" INT; say on; while :; do sleep 0.05; done END'\nstop_signal = \"INT\"";
        let running = Running::start(fixture, &[("deaf", deaf), ("polite", on_int)], nowhere());
        while running.log().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.services.stop(Duration::from_secs(10)).await;
        assert_eq!(running.status("deaf").last_exit, Some(137));
        assert_eq!(running.status("polite").last_exit, Some(5));
        assert_eq!(running.status("polite").state, Stopped);
    });
}
