//! The SSH server with a real client and real programs of a real workload user, over an in-memory stream.
//!
//! The programs are started through the agent's own binary, which needs root. Where that is not to be had the tests
//! say so and pass.

#![forbid(unsafe_code)]

#[path = "ssh/fixture.rs"]
mod fixture;
#[path = "ssh/main_process.rs"]
mod main_process;
#[path = "ssh/openssh.rs"]
mod openssh;

use std::sync::Arc;
use std::time::Duration;

use fixture::{Client, Outcome, workload_or_skip};
use proto::exec::ExecCommand;
use proto::layout::ATTACH_SUBSYSTEM;
use russh::{ChannelMsg, Sig};

fn document(argv: &[&str]) -> String {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    ExecCommand { argv, workdir: None, user: None, login: false }.encode()
}

#[test]
fn arguments_arrive_exactly_and_streams_apart() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let outcome = client.exec(&document(&["printf", "%s|", "a  b", "\"c\"", "$d", ""]), b"").await;
        assert_eq!(outcome, Outcome { code: Some(0), stdout: b"a  b|\"c\"|$d||".to_vec(), stderr: Vec::new() });
        let outcome = client.exec("echo out; echo err >&2; exit 7", b"").await;
        assert_eq!(outcome, Outcome { code: Some(7), stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() });
        let outcome = client.exec("kill -9 $$", b"").await;
        assert_eq!(outcome.code, Some(137));
        let outcome = client.exec(&document(&["/no/such/program"]), b"").await;
        assert_eq!(outcome.code, Some(127));
        assert!(outcome.error().contains("/no/such/program"), "{}", outcome.error());
        let nowhere =
            ExecCommand { argv: vec!["true".into()], workdir: Some("/no/such/dir".into()), user: None, login: false };
        let outcome = client.exec(&nowhere.encode(), b"").await;
        assert_eq!(outcome.code, Some(126));
        let outcome = client.exec(r#"{"argv":[]}"#, b"").await;
        assert_eq!(outcome.code, Some(126));
    });
}

#[test]
fn a_program_has_nothing_that_it_should_not_have() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let status = client.exec("cat /proc/self/status", b"").await.text();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(field("Uid"), "1000 1000 1000 1000");
        assert_eq!(field("Gid"), "1000 1000 1000 1000");
        assert_eq!(field("Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".to_owned(), "2".to_owned()));

        let environment = client.exec(&document(&["env"]), b"").await.text();
        let names: Vec<&str> = environment.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, ["FROM_SPEC", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);

        let descriptors = client.exec(&document(&["ls", "/proc/self/fd"]), b"").await.text();
        assert_eq!(descriptors.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);

        let identity = fixture.identity.display();
        assert!(fixture.identity_has_token().await);
        let seen = client.exec(&format!("ls -A {identity}; cat {identity}/sandbox.jwt"), b"").await;
        assert_eq!((seen.text().as_str(), seen.code), ("", Some(1)));

        let vsock = client.exec(&document(&["perl", "-e", r#"print socket(S, 40, 1, 0) ? "open" : "$!""#]), b"").await;
        assert_eq!(vsock.text(), "Operation not permitted");
        let inet = client.exec(&document(&["perl", "-e", r#"print socket(S, 2, 1, 0) ? "open" : "$!""#]), b"").await;
        assert_eq!(inet.text(), "open");
    });
}

#[test]
fn another_user_has_no_more_than_the_workload() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let run = async |user: &str, script: &str| {
            let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
            let command = ExecCommand { argv, workdir: None, user: Some(user.to_owned()), login: false };
            client.exec(&command.encode(), b"").await
        };
        assert_eq!(run("daemon", "id -u; id -G; echo $USER").await.text(), "1\n1\ndaemon\n");
        assert_eq!(run("0", "id -u; echo $HOME").await.text(), "0\n/root\n");
        let status = run("root", "cat /proc/self/status").await.text();
        for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(status.contains(line), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
        // What only its root may write, and what would start a program as the real root.
        for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"] {
            let outcome = run("root", &format!("test ! -e {path} || (: >> {path})")).await;
            let refused = outcome.code == Some(0) || outcome.error().contains("Read-only");
            assert!(refused, "{path}: {}", outcome.error());
        }
        let identity = fixture.identity.display();
        assert_eq!(run("root", &format!("ls -A {identity}")).await.text(), "");
        let outcome = run("no-such-user", "true").await;
        assert_eq!(outcome.code, Some(126));
        assert!(outcome.error().contains("`no-such-user` is neither a user in"), "{}", outcome.error());
    });
}

#[test]
fn a_terminal_is_one() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let mut channel = client.session().await;
        channel.request_pty(true, "xterm-test", 100, 40, 0, 0, &[]).await.unwrap();
        channel
            .exec(true, "tty -s && stty size && echo $TERM && read line && stty size && echo got $line")
            .await
            .unwrap();
        fixture::wait_for(&mut channel, b"xterm-test\r\n").await;
        channel.window_change(120, 50, 0, 0).await.unwrap();
        channel.data_bytes(&b"hello\n"[..]).await.unwrap();
        let outcome = fixture::outcome(&mut channel).await;
        assert!(outcome.text().ends_with("50 120\r\ngot hello\r\n"), "{:?}", outcome.text());
        assert_eq!(outcome.code, Some(0));
    });
}

#[test]
fn variables_of_an_exec_are_passed_unless_reserved() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let mut channel = client.session().await;
        for (name, value) in
            [("A", "1 2"), ("FROM_SPEC", "no"), ("OPENSHELL_TOKEN", "x"), ("OPENSHELL_PYFUNC_B64", "y")]
        {
            channel.set_env(true, name, value).await.unwrap();
        }
        channel.exec(true, "echo \"$A/$FROM_SPEC/$OPENSHELL_TOKEN/$OPENSHELL_PYFUNC_B64\"").await.unwrap();
        assert_eq!(fixture::outcome(&mut channel).await.text(), "1 2/no//y\n");
    });
}

#[test]
fn megabytes_go_through_a_program_both_ways_at_once() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let bytes: Vec<u8> = (0..8_u32 * 1024 * 1024).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let outcome = client.exec("cat", &bytes).await;
        assert!(outcome.stdout == bytes, "{} of {} bytes came back", outcome.stdout.len(), bytes.len());
    });
}

#[test]
fn input_that_nobody_reads_pauses_the_peer_and_blocks_nothing() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let mut channel = client.session().await;
        channel.exec(true, "echo ready; sleep 1000").await.unwrap();
        fixture::wait_for(&mut channel, b"ready\n").await;
        let sending = async {
            for _ in 0..12 {
                channel.data_bytes(vec![b'x'; 32 * 1024]).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), sending)
            .await
            .expect("the peer was held back before it was asked");
        let paused = async {
            loop {
                if let Some(ChannelMsg::XonXoff { client_can_do }) = channel.wait().await {
                    break client_can_do;
                }
            }
        };
        assert!(!tokio::time::timeout(Duration::from_secs(10), paused).await.expect("no word to pause"));
        assert_eq!(client.exec("echo beside", b"").await.text(), "beside\n");
    });
}

#[test]
fn a_program_ends_with_its_connection() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let mut channel = client.session().await;
        // One that ignores HUP, and its child in the same session, which ignores TERM, too.
        let script = "trap '' HUP; (trap '' TERM; echo $$; exec sleep 1000) & wait";
        channel.exec(true, script).await.unwrap();
        let pid = fixture::line(&mut channel).await.trim().parse().unwrap();
        let gone = fixture::gone(pid);
        drop(channel);
        drop(client);
        gone.await;
    });
}

#[test]
fn signals_arrive() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let mut channel = client.session().await;
        channel.exec(true, "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done").await.unwrap();
        fixture::wait_for(&mut channel, b"ready\n").await;
        channel.signal(Sig::USR1).await.unwrap();
        let outcome = fixture::outcome(&mut channel).await;
        assert_eq!((outcome.text().as_str(), outcome.code), ("caught\n", Some(3)));
    });
}

#[test]
fn an_exit_code_is_not_kept_back_by_a_child_in_the_background() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let client = Client::connect(fixture).await;
        let outcome = client.exec("sleep 30 & echo started; exit 5", b"").await;
        assert_eq!((outcome.text().as_str(), outcome.code), ("started\n", Some(5)));
        // Nor by one that is never silent.
        let outcome = client.exec("echo started; while :; do echo still here; sleep 0.02; done & exit 6", b"").await;
        assert!(outcome.text().starts_with("started\n"), "{}", outcome.text());
        assert_eq!(outcome.code, Some(6));
    });
}

#[test]
fn the_main_process_waits_for_its_watcher_and_loses_nothing() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        // Three times the ring, to a watcher that is there from the beginning.
        let (server, main) = fixture.with_main(&["sh", "-c", "read -r n; seq $n; echo err >&2; exit 4"], false, true);
        let running = tokio::spawn({
            let main = main.clone();
            async move { main.run().await }
        });
        let client = Client::connect_to(server).await;
        let outcome = client.attach(b"450000\n").await;
        let expected: String = (1..=450_000).map(|n| format!("{n}\n")).collect();
        assert!(outcome.stdout == expected.as_bytes(), "{} bytes of {}", outcome.stdout.len(), expected.len());
        assert_eq!((outcome.error().as_str(), outcome.code), ("err\n", Some(4)));
        assert_eq!(running.await.unwrap().code, 4);
        // Whoever comes later sees the end of it, and the code.
        let again = client.attach(b"").await;
        assert!(expected.as_bytes().ends_with(&again.stdout) && again.stdout.len() > 512 * 1024);
        assert_eq!(again.code, Some(4));
        main.detached().await;
    });
}

#[test]
fn the_main_process_outlives_the_connection_of_its_watcher() {
    let Some(fixture) = workload_or_skip() else { return };
    for tty in [false, true] {
        fixture.run(async |fixture| {
            let (server, main) = fixture.with_main(&["sh", "-c", "while read -r l; do echo got $l; done"], tty, true);
            let server = Arc::new(server);
            let running = tokio::spawn({
                let main = main.clone();
                async move { main.run().await }
            });
            let client = Client::connect_to(server.clone()).await;
            let mut channel = client.session().await;
            channel.request_subsystem(true, ATTACH_SUBSYSTEM).await.unwrap();
            channel.data_bytes(&b"one\n"[..]).await.unwrap();
            while !fixture::line(&mut channel).await.contains("got one") {}
            drop(channel);
            drop(client);
            main.detached().await;
            let outcome = Client::connect_to(server).await.attach(b"two\n").await;
            assert!(outcome.text().contains("got two"), "tty {tty}: {:?}", outcome.text());
            assert_eq!((outcome.code, running.await.unwrap().code), (Some(0), 0), "tty {tty}");
        });
    }
}

#[test]
fn the_main_process_runs_on_a_terminal_unwatched() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let (server, main) = fixture.with_main(&["sh", "-c", "tty -s && echo terminal; exit 9"], true, false);
        let running = tokio::spawn(async move { main.run().await });
        assert_eq!(running.await.unwrap().code, 9);
        let outcome = Client::connect_to(server).await.attach(b"").await;
        assert_eq!((outcome.text().as_str(), outcome.code), ("terminal\r\n", Some(9)));
    });
}
