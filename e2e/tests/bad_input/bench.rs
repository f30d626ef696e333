//! Running the programs, and judging how they ended.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use e2e::programs::program;
use e2e::world::World;
use rustix::process::{Pid, Signal, kill_process};

/// A user that owns nothing.
pub(crate) const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);

/// One test at a time: a world that ends takes every vmm of these programs with it.
static TURN: Mutex<()> = Mutex::new(());

/// A world, and what its command lines started in the background.
pub(crate) struct Bench {
    world: World,
    environment: Vec<(String, String)>,
    _turn: MutexGuard<'static, ()>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Bench {
    /// Nothing runs and nothing exists.
    pub(crate) fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let world = World::empty(Duration::from_secs(60));
        let environment = world.environment();
        Self { world, environment, _turn: turn }
    }

    /// The same with another variable, or without one.
    pub(crate) fn with(mut self, name: &str, value: Option<&str>) -> Self {
        self.environment.retain(|(key, _)| key != name);
        self.environment.extend(value.map(|value| (name.to_string(), value.to_string())));
        self
    }

    /// A place of this test's own, on a disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.state().parent().expect("a parent").join(name)
    }

    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program(name));
        command.args(arguments).env_clear().envs(self.environment.iter().cloned());
        command
    }

    pub(crate) fn openshell(&self, arguments: &[&str]) -> Ended {
        run(self.command("openshell", arguments))
    }

    /// A gateway that is expected to end by itself.
    pub(crate) fn gateway(&self) -> Ended {
        run(self.command("openshell-gateway", &[]))
    }

    /// A gateway in the background.
    pub(crate) async fn serve(&self) -> e2e::gateway::Gateway {
        e2e::gateway::Gateway::start(&self.environment, &self.world.socket(), &self.world.log()).await
    }

    /// A gateway that starts, serves and ends as it should.
    pub(crate) async fn serves_once(&self) {
        let status = self.serve().await.stop().await;
        assert_eq!(status.code(), Some(0), "SIGTERM is an orderly end");
    }

    /// Gateways of this world.
    pub(crate) fn gateways(&self) -> Vec<Pid> {
        let ours = format!("OPENSHELL_STATE_DIR={}", self.world.state().display());
        let processes = std::fs::read_dir("/proc").expect("read /proc").flatten();
        let found = processes.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            // The kernel keeps 15 characters.
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let environment = String::from_utf8_lossy(&environment);
            let is_ours = name.trim_end() == "openshell-gatew" && environment.split('\0').any(|line| line == ours);
            is_ours.then(|| Pid::from_raw(pid)).flatten()
        });
        found.collect()
    }

    /// Ends them all and waits for it.
    pub(crate) fn end_gateways(&self, signal: Signal) {
        let deadline = Instant::now() + PATIENCE;
        for pid in self.gateways() {
            // It may have ended meanwhile.
            let _gone = kill_process(pid, signal);
        }
        while !self.gateways().is_empty() {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for the gateways to end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// No sandbox is known, and nothing of one is on the host.
    pub(crate) fn nothing_is_left(&self) {
        let list = self.openshell(&["vm", "list", "-o", "json"]);
        assert_eq!((list.code, list.stdout.trim()), (Some(0), "[]"), "{list:?}");
        assert_eq!(self.world.traces(), Vec::<String>::new());
    }
}

impl Deref for Bench {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.gateways() {
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
}

/// Runs a program to its end.
pub(crate) fn run(mut command: Command) -> Ended {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    fn read(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = vec![];
            pipe.read_to_end(&mut bytes).expect("read a pipe");
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = read(child.stdout.take().expect("a pipe"));
    let stderr = read(child.stderr.take().expect("a pipe"));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("kill");
            panic!("waited {PATIENCE:?} for {command:?} to end; it said {:?}", stderr.join());
        }
        thread::sleep(Duration::from_millis(10));
    };
    let join = |reader: thread::JoinHandle<String>| reader.join().expect("a reader");
    Ended { code: status.code(), stdout: join(stdout), stderr: join(stderr) }
}

impl Ended {
    /// It ended with `code` and one line that says `words`; returns the line.
    pub(crate) fn refused(&self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
        let [line] = errors[..] else { panic!("not one line of error: {self:?}") };
        for word in words {
            assert!(line.contains(word), "`{word}` is not in: {line}");
        }
        // What is wrong, and what to do about it.
        assert!(line.contains("; ") || line.contains(": "), "{line}");
        line.to_string()
    }
}

/// Runs a program as a user that owns nothing; nothing where this process may not become one, or where that user
/// cannot reach the program.
pub(crate) fn as_nobody(command: &Command) -> Option<Command> {
    let id = NOBODY.to_string();
    let become_nobody = |program: &std::ffi::OsStr| {
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
        nobody
    };
    let mut trial = become_nobody("test".as_ref());
    trial.arg("-x").arg(command.get_program());
    if !trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        say(&format!("not run: uid {NOBODY} cannot be used here, or cannot reach {:?}", command.get_program()));
        return None;
    }
    let mut nobody = become_nobody(command.get_program());
    nobody.args(command.get_args()).env_clear();
    nobody.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(nobody)
}

/// For whoever reads the tests' output.
#[allow(clippy::print_stdout, reason = "a test that could not run says so")]
pub(crate) fn say(words: &str) {
    println!("{words}");
}

/// Runs a test's asynchronous part.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(future)
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set permissions");
}
