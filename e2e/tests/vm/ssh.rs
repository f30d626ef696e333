//! Shell, files and ports of a sandbox, with the clients that people use.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use e2e::api::Api;
use e2e::programs::{default_image, program};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::SandboxPhase;
use proto::openshell::v1::exec_sandbox_event::Payload;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{TTL, trial};

/// For one command in the lab.
const PATIENCE: Duration = Duration::from_secs(40);
/// Far more than any buffer between a guest and a caller that does not read.
const NUMBERS: u32 = 400_000;
/// Answers each connection once.
const ECHO: &str = "import socket\ns=socket.create_server(('127.0.0.1',7777))\nprint('up',flush=True)\n\
    while True:\n c,_=s.accept()\n c.sendall(b'got '+c.recv(100))\n c.close()\n";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("ssh::people_use_their_own_clients", one_sandbox)]
}

/// A sandbox and the configuration that was printed for it.
struct Clients {
    world: World,
    config: PathBuf,
    directory: PathBuf,
}

async fn one_sandbox() {
    let clients = Clients::of_new_sandbox().await;
    shells(&clients).await;
    files(&clients).await;
    ports(&clients).await;
    users_and_variables(&clients).await;
    a_caller_who_does_not_read(&clients).await;
    the_same_key_after_a_restart(&clients).await;
    clients.world.delete("work").await;
    assert_eq!(clients.world.traces(), Vec::<String>::new());
}

impl Clients {
    async fn of_new_sandbox() -> Self {
        let world = World::quick(TTL).await;
        world.api().await.create("work", &default_image(), &[]).await.expect("create");
        world.phase("work", SandboxPhase::Ready).await;
        let directory = world.state().join("clients");
        std::fs::create_dir_all(&directory).expect("make a directory");
        let printed = world.openshell(&["vm", "ssh-config", "work"]).await;
        let printed = succeeded("ssh-config", &printed);
        assert!(
            printed.contains("Host openshell-work\n") && printed.contains("HostKeyAlias openshell-work\n"),
            "{printed}"
        );
        let config = directory.join("config");
        std::fs::write(&config, printed).expect("write the configuration");
        Self { world, config, directory }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.world.environment());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// A client with the printed configuration.
    async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let config = self.config.display().to_string();
        let arguments = [&["-F", config.as_str()], arguments].concat();
        end(program, &mut self.command(program, &arguments)).await
    }

    async fn vm(&self, arguments: &[&str]) -> Output {
        let arguments = [&["vm"], arguments].concat();
        end(arguments[1], &mut self.command(program("openshell"), &arguments)).await
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

async fn end(what: &str, command: &mut Command) -> Output {
    let output = timeout(PATIENCE, command.output()).await.unwrap_or_else(|_| panic!("{what} took over {PATIENCE:?}"));
    output.unwrap_or_else(|error| panic!("run {what}: {error}"))
}

fn succeeded(what: &str, output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {:?}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

async fn shells(clients: &Clients) {
    let output = clients.run("ssh", &["openshell-work", "id -un; echo err >&2; exit 7"]).await;
    let streams = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*streams.0, &*streams.1), (Some(7), "sandbox\n", "err\n"));
    let output = clients.vm(&["ssh", "work", "--", "-tt", "tty -s && echo terminal"]).await;
    assert_eq!(succeeded("vm ssh", &output), "terminal\r\n");
    let output = clients.vm(&["ssh", "none"]).await;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

async fn files(clients: &Clients) {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::create_dir_all(clients.directory.join("tree/deep")).expect("make a tree");
    std::fs::write(clients.directory.join("tree/deep/a b"), &bytes).expect("write a file");
    let back =
        |name: &str| std::fs::read(clients.directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));

    succeeded("scp up", &clients.run("scp", &["-r", &clients.path("tree"), "openshell-work:/tmp/scp"]).await);
    succeeded("scp down", &clients.run("scp", &["-r", "openshell-work:/tmp/scp", &clients.path("scp")]).await);
    assert!(back("scp/deep/a b") == bytes, "scp");

    let batch = format!("cd /tmp/scp\nrename deep d\nget \"d/a b\" {}\n", clients.path("sftp"));
    std::fs::write(clients.directory.join("batch"), batch).expect("write a batch");
    succeeded("sftp", &clients.run("sftp", &["-b", &clients.path("batch"), "openshell-work"]).await);
    assert!(back("sftp") == bytes, "sftp");

    let shell = format!("ssh -F {}", clients.config.display());
    let tree = clients.path("tree/");
    let rsync = ["-a", "-e", &shell, &tree, "openshell-work:/tmp/rsync/"];
    succeeded("rsync", &end("rsync", &mut clients.command("rsync", &rsync)).await);
    let listed =
        clients.run("ssh", &["openshell-work", "cmp '/tmp/rsync/deep/a b' '/tmp/scp/d/a b' && echo same"]).await;
    assert_eq!(succeeded("cmp", &listed), "same\n");

    succeeded("cp up", &clients.vm(&["cp", &clients.path("tree"), "work:/tmp/cp"]).await);
    succeeded("cp down", &clients.vm(&["cp", "work:/tmp/cp/deep/a b", &clients.path("cp")]).await);
    assert!(back("cp") == bytes, "cp");
}

/// The first line of error output that has `mark` in it.
async fn line_with(child: &mut Child, mark: &str) -> String {
    let mut lines = BufReader::new(child.stderr.as_mut().expect("piped")).lines();
    let found = async {
        loop {
            let line = lines.next_line().await.expect("read").unwrap_or_else(|| panic!("no line with `{mark}`"));
            if line.contains(mark) {
                return line;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no line with `{mark}`"))
}

async fn ports(clients: &Clients) {
    let api = clients.world.api().await;
    let mut listening = api.exec_stream("work", &["python3", "-c", ECHO]).await.expect("exec");
    let first = timeout(PATIENCE, listening.message()).await.expect("in time").expect("an event");
    assert!(matches!(first.expect("an event").payload, Some(Payload::Stdout(_))), "no word of the guest's server");

    let mut forward =
        clients.command(program("openshell"), &["vm", "forward", "work", "0:7777"]).spawn().expect("start");
    let line = line_with(&mut forward, " leads to port 7777").await;
    let address = line.split(' ').next().unwrap_or_default().to_owned();
    for word in ["one", "two"] {
        assert_eq!(answered(&address, word).await, format!("got {word}"));
    }
    drop(forward);

    let here = TcpListener::bind("127.0.0.1:0").expect("listen");
    let local = here.local_addr().expect("an address").port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = here.accept().expect("a connection");
        stream.write_all(b"from the host").expect("write");
    });
    let arguments = ["vm", "forward", "work", "-R", &format!("0:{local}")];
    let mut reverse = clients.command(program("openshell"), &arguments).spawn().expect("start");
    let line = line_with(&mut reverse, "Allocated port").await;
    let port = line.split(' ').nth(2).expect("a port").to_owned();
    let script = format!("import socket;print(socket.create_connection(('127.0.0.1',{port})).recv(100).decode())");
    let heard = api.exec("work", &["python3", "-c", &script]).await.expect("exec");
    assert_eq!((heard.stdout.as_str(), heard.code), ("from the host\n", 0), "{}", heard.stderr);
    answering.join().expect("the host's side");
}

async fn answered(address: &str, word: &str) -> String {
    let (address, word) = (address.to_owned(), word.to_owned());
    let talk = move || {
        let mut stream = TcpStream::connect(&address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        stream.write_all(word.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    };
    tokio::task::spawn_blocking(talk).await.expect("join")
}

async fn users_and_variables(clients: &Clients) {
    let script = "id -u; grep -h ^Cap /proc/self/status | sort -u -k2 | wc -l; ls /etc/openshell/auth";
    let output = clients.vm(&["exec", "-u", "root", "work", "--", "sh", "-c", script]).await;
    // All sets are the same, and so empty; and there is nothing to list.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n", "{output:?}");
    let script = ": > /proc/sys/kernel/core_pattern";
    let output = clients.vm(&["exec", "-u", "0", "work", "--", "sh", "-c", script]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"), "{output:?}");
    let output = clients.vm(&["exec", "-u", "nobody-here", "work", "--", "true"]).await;
    assert_eq!(output.status.code(), Some(126), "{output:?}");

    std::fs::write(clients.directory.join("vars"), "# two\nA=1\nB=2\n").expect("write a file");
    let arguments = ["exec", "--env-file", &clients.path("vars"), "-e", "B=3", "work", "--", "sh", "-c", "echo $A$B"];
    assert_eq!(succeeded("exec", &clients.vm(&arguments).await), "13\n");
}

async fn a_caller_who_does_not_read(clients: &Clients) {
    let api = clients.world.api().await;
    let timed = async |api: &Api| {
        let began = Instant::now();
        assert_eq!(api.exec("work", &["true"]).await.expect("exec").code, 0);
        began.elapsed()
    };
    timed(&api).await;
    let warm = timed(&api).await;
    let mut unread = api.exec_stream("work", &["seq", "1", &NUMBERS.to_string()]).await.expect("exec");
    let cold = timed(&api).await;
    let beside = timed(&api).await;
    println!("ssh: exec warm {warm:?}, with a new connection {cold:?}, beside one that is not read {beside:?}");
    let mut received = 0;
    let exit = loop {
        let event = timeout(PATIENCE, unread.message()).await.expect("in time").expect("an event");
        match event.expect("an exit before the end").payload {
            Some(Payload::Stdout(chunk)) => received += chunk.data.len(),
            Some(Payload::Exit(exit)) => break exit.exit_code,
            _ => {}
        }
    };
    let expected: usize = (1..=NUMBERS).map(|number| number.to_string().len() + 1).sum();
    assert_eq!((exit, received), (0, expected));
}

async fn the_same_key_after_a_restart(clients: &Clients) {
    let known = known_hosts(&clients.config);
    let before = std::fs::read(&known).expect("a file of known hosts");
    let shown = clients.world.api().await.get("work").await.expect("get").host_key_fingerprint;
    succeeded("stop", &clients.vm(&["stop", "work"]).await);
    clients.world.phase("work", SandboxPhase::Stopped).await;
    let refused = clients.run("ssh", &["openshell-work", "true"]).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(255) && words.contains("start it first"), "{words}");
    succeeded("start", &clients.vm(&["start", "work"]).await);
    clients.world.phase("work", SandboxPhase::Ready).await;
    assert_eq!(succeeded("ssh", &clients.run("ssh", &["openshell-work", "echo again"]).await), "again\n");
    assert_eq!(std::fs::read(&known).expect("a file of known hosts"), before);
    assert_eq!(clients.world.api().await.get("work").await.expect("get").host_key_fingerprint, shown);
    let fingerprint =
        end("ssh-keygen", &mut clients.command("ssh-keygen", &["-lf", &known.display().to_string()])).await;
    assert!(succeeded("ssh-keygen", &fingerprint).contains(&shown), "{shown}");
}

fn known_hosts(config: &Path) -> PathBuf {
    let text = std::fs::read_to_string(config).expect("the configuration");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("UserKnownHostsFile ")).expect("the option");
    line.trim_matches('"').into()
}
