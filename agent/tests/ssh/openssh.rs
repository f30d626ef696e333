//! OpenSSH's own client programs against the server.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::workload::reaper::exited;
use rustix::process::{Pid, Signal, kill_process};

use super::fixture::{Fixture, Outcome, gone, workload_or_skip};

const USER: u32 = 1000;

/// A server on a port of this machine, and files of its clients.
struct Served {
    fixture: &'static Fixture,
    port: u16,
    directory: tempfile::TempDir,
}

impl Served {
    async fn start(fixture: &'static Fixture) -> Option<Self> {
        if !Path::new("/usr/bin/ssh").exists() {
            eprintln!("skipped: there is no /usr/bin/ssh");
            return None;
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Arc::new(fixture.server());
        fixture.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { fixture, port, directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A directory of the workload's own.
    fn workload_directory(&self) -> PathBuf {
        let path = self.path("workload");
        std::fs::create_dir(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    fn command(&self, program: &str) -> Command {
        self.command_that_says("ERROR", program)
    }

    fn command_that_says(&self, level: &str, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "User=sandbox"]);
        command.args(["-o", &format!("Port={}", self.port), "-o", &format!("LogLevel={level}")]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end. The fixture's reaper has all children of this process, so it has to start them.
    async fn run(&self, command: &mut Command) -> Outcome {
        static RUNS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let run = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (out, err) = (self.path(&format!("out.{run}")), self.path(&format!("err.{run}")));
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        let (_, mut exit) = self.fixture.reaper().spawn(command).unwrap();
        let code = exited(&mut exit).await;
        let read = |path: &Path| std::fs::read(path).unwrap();
        Outcome { code: u32::try_from(code).ok(), stdout: read(&out), stderr: read(&err) }
    }

    async fn ssh(&self, options: &[&str], arguments: &[&str]) -> Outcome {
        self.run(self.command("ssh").args(options).arg("127.0.0.1").args(arguments)).await
    }
}

#[test]
fn codes_signals_variables_and_refusals_reach_the_client() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let Some(served) = Served::start(fixture).await else { return };
        let outcome = served.ssh(&[], &["echo out; echo err >&2; exit 7"]).await;
        assert_eq!((outcome.code, outcome.text(), outcome.error()), (Some(7), "out\n".into(), "err\n".into()));
        assert_eq!(served.ssh(&[], &["kill -9 $$"]).await.code, Some(137));
        assert_eq!(served.ssh(&["-o", "SetEnv=A=1"], &["echo $A"]).await.text(), "1\n");
        let terminal = served.ssh(&["-tt"], &["tty -s && echo yes"]).await;
        assert_eq!(terminal.text(), "yes\r\n");
        // Neither hangs nor fails the command.
        let options = ["-X", "-A", "-o", "ServerAliveInterval=1"];
        let outcome = served.ssh(&options, &["sleep 2.5; echo ${DISPLAY:-none} ${SSH_AUTH_SOCK:-none}"]).await;
        assert_eq!((outcome.code, outcome.text().as_str()), (Some(0), "none none\n"), "{}", outcome.error());
    });
}

#[test]
fn bytes_go_in_and_out_and_many_programs_share_a_connection() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let Some(served) = Served::start(fixture).await else { return };
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let input = served.path("input");
        std::fs::write(&input, &bytes).unwrap();
        let mut command = served.command("ssh");
        command.args(["127.0.0.1", "cat"]).stdin(std::fs::File::open(&input).unwrap());
        let outcome = served.run(&mut command).await;
        assert!(outcome.stdout == bytes, "{} bytes of {} came back", outcome.stdout.len(), bytes.len());

        let socket = format!("ControlPath={}", served.path("control").display());
        let shared = ["-o", "ControlMaster=auto", "-o", socket.as_str()];
        let master = served.ssh(&[&shared[..], &["-o", "ControlPersist=60", "-f"]].concat(), &["true"]).await;
        assert_eq!(master.code, Some(0), "{}", master.error());
        let run = |n: u32| {
            let (served, shared) = (&served, &shared);
            async move { served.ssh(shared, &[&format!("sleep 0.3; echo {n}")]).await.text() }
        };
        let texts = tokio::join!(run(1), run(2), run(3), run(4), run(5), run(6), run(7), run(8));
        let texts = [texts.0, texts.1, texts.2, texts.3, texts.4, texts.5, texts.6, texts.7];
        assert_eq!(texts, [1, 2, 3, 4, 5, 6, 7, 8].map(|n| format!("{n}\n")));
        assert_eq!(served.ssh(&[&shared[..], &["-O", "exit"]].concat(), &[]).await.code, Some(0));
    });
}

#[test]
fn sftp_and_scp_have_the_rights_of_the_workload() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let Some(served) = Served::start(fixture).await else { return };
        let far = served.workload_directory();
        let near = served.path("near");
        std::fs::create_dir_all(near.join("tree/deep")).unwrap();
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(near.join("tree/deep/a b"), &bytes).unwrap();
        std::fs::set_permissions(near.join("tree/deep/a b"), std::fs::Permissions::from_mode(0o750)).unwrap();

        let remote = |path: &str| format!("127.0.0.1:{}/{path}", far.display());
        let scp = async |from: &OsStr, to: &OsStr| {
            served.run(served.command("scp").args(["-rp"]).args([from, to])).await
        };
        let outcome = scp(near.join("tree").as_os_str(), OsStr::new(&remote("up"))).await;
        assert_eq!(outcome.code, Some(0), "{}", outcome.error());
        let sent = far.join("up/deep/a b").metadata().unwrap();
        assert_eq!((sent.uid(), sent.gid(), sent.mode() & 0o777), (USER, USER, 0o750));
        let outcome = scp(OsStr::new(&remote("up")), near.join("down").as_os_str()).await;
        assert_eq!(outcome.code, Some(0), "{}", outcome.error());
        assert!(std::fs::read(near.join("down/deep/a b")).unwrap() == bytes);

        let batch = served.path("batch");
        let script = "cd {far}\nmkdir d\nrename up d/moved\nln -s d link\nls -l\nchmod 700 d\nget d/moved/deep/* {near}/got\n\
            -rm /etc/passwd\n-put {near}/got /etc/got\nrm link\nrmdir none\n";
        let script = script.replace("{far}", &far.display().to_string()).replace("{near}", &near.display().to_string());
        std::fs::write(&batch, script).unwrap();
        let outcome = served.run(served.command("sftp").arg("-b").arg(&batch).arg("127.0.0.1")).await;
        // The last line fails, and a batch that fails ends with 1.
        assert_eq!(outcome.code, Some(1), "{}", outcome.error());
        let (listed, refused) = (outcome.text(), outcome.error());
        assert!(listed.contains("link") && listed.contains(" d"), "{listed}");
        assert_eq!(refused.matches("ermission denied").count(), 2, "{refused}");
        assert!(std::fs::read(near.join("got")).unwrap() == bytes);
        assert_eq!(far.join("d").metadata().unwrap().mode() & 0o777, 0o700);
        assert!(!far.join("link").exists() && Path::new("/etc/passwd").exists() && !Path::new("/etc/got").exists());
    });
}

#[test]
fn ports_of_the_guest_are_reached_and_no_others() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let Some(served) = Served::start(fixture).await else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).unwrap();
            write!(stream, "heard {heard}").unwrap();
        });
        let input = served.path("input");
        std::fs::write(&input, "you").unwrap();
        let mut command = served.command("ssh");
        command.args(["-W", &target, "127.0.0.1"]).stdin(std::fs::File::open(&input).unwrap());
        let outcome = served.run(&mut command).await;
        assert_eq!(outcome.text(), "heard you", "{}", outcome.error());
        answering.join().unwrap();
        for (place, why) in [("192.0.2.1:80", "administratively prohibited"), (target.as_str(), "connect failed")] {
            let outcome = served.run(served.command_that_says("INFO", "ssh").args(["-W", place, "127.0.0.1"])).await;
            assert!(outcome.code == Some(255) && outcome.error().contains(why), "{place}: {}", outcome.error());
        }
    });
}

#[test]
fn a_port_of_the_guest_leads_back_as_long_as_the_connection_lasts() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let Some(served) = Served::start(fixture).await else { return };
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = here.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            for stream in here.incoming().take(2) {
                let mut stream = stream.unwrap();
                let mut heard = [0; 4];
                stream.read_exact(&mut heard).unwrap();
                stream.write_all(&heard).unwrap();
            }
        });
        let said = served.path("said");
        let mut command = served.command_that_says("INFO", "ssh");
        command.args(["-N", "-R", &format!("127.0.0.1:0:{local}"), "127.0.0.1"]);
        command.stderr(std::fs::File::create(&said).unwrap());
        let (pid, _) = served.fixture.reaper().spawn(&mut command).unwrap();
        let port = allocated(&said).await;
        for word in [b"ping", b"pong"] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(word).unwrap();
            // The agent's thread has to go on meanwhile.
            let heard = tokio::task::spawn_blocking(move || {
                let mut heard = [0; 4];
                stream.read_exact(&mut heard).map(|()| heard)
            });
            assert_eq!(&heard.await.unwrap().unwrap(), word);
        }
        answering.join().unwrap();
        end(pid).await;
        while TcpStream::connect(("127.0.0.1", port)).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for refused in ["127.0.0.1:80", "0.0.0.0:0"] {
            let forward = format!("{refused}:{local}");
            let options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", &forward];
            let outcome = served.ssh(&options, &[]).await;
            assert_eq!(outcome.code, Some(255), "{refused}: {}", outcome.error());
        }
    });
}

/// The port of which OpenSSH says that the server has chosen it.
async fn allocated(said: &Path) -> u16 {
    loop {
        let text = std::fs::read_to_string(said).unwrap();
        let port = text.split_once("Allocated port ").and_then(|(_, rest)| rest.split_once(' ')?.0.parse().ok());
        match port {
            Some(port) => return port,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn end(pid: Pid) {
    let gone = gone(pid.as_raw_nonzero().get());
    kill_process(pid, Signal::TERM).unwrap();
    gone.await;
}
