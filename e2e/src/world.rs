//! A gateway with directories of its own, and what it left on the host.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proto::openshell::v1::{Sandbox, SandboxPhase};

use crate::api::Api;
use crate::gateway::Gateway;
use crate::processes::{kill, open_files, parent, running, threads};
use crate::programs::{program, test_image};
use crate::wait::{PATIENCE, until};

/// See the module.
pub struct World {
    root: PathBuf,
    runtime: PathBuf,
    /// `None` while it is down.
    pub gateway: Option<Gateway>,
    ttl: Duration,
    variables: Vec<(String, String)>,
}

/// The processes of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vmm {
    /// The keeper's process id.
    pub keeper: u32,
    /// The jailed child's.
    pub child: u32,
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

impl World {
    /// Fresh directories and no gateway yet.
    pub fn empty(ttl: Duration) -> Self {
        let unique = format!("osw-{}-{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(&unique);
        let runtime = Path::new("/dev/shm").join(&unique);
        std::fs::create_dir_all(&root).expect("make a directory");
        Self { root, runtime, gateway: None, ttl, variables: vec![] }
    }

    /// Sets a variable of the programs, in place of what they would have.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Has the gateway believe that it has seen KVM work, so that it boots no guest to find out.
    #[must_use]
    pub fn without_trial_boot(self) -> Self {
        std::fs::DirBuilder::new().mode(0o700).create(&self.runtime).expect("make the runtime directory");
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").expect("read the boot id");
        std::fs::write(self.runtime.join("kvm-works"), boot).expect("write that KVM works");
        self
    }

    /// With guests that are processes: no KVM is needed, and a boot costs nothing.
    #[must_use]
    pub fn with_fake_vmm(self) -> Self {
        let vmm = program("fake-vmm").canonicalize().expect("canonical path");
        self.with("OPENSHELL_VM_VMM_BIN", &vmm.display().to_string()).without_trial_boot()
    }

    /// A running gateway.
    pub async fn start(ttl: Duration) -> Self {
        let mut world = Self::empty(ttl);
        world.up().await;
        world
    }

    /// A running gateway that trusts in KVM.
    pub async fn quick(ttl: Duration) -> Self {
        let mut world = Self::empty(ttl).without_trial_boot();
        world.up().await;
        world
    }

    /// Starts the gateway.
    pub async fn up(&mut self) {
        self.gateway = Some(Gateway::start(&self.environment(), &self.socket(), &self.log()).await);
    }

    /// Kills the gateway with SIGKILL.
    pub fn down(&mut self) {
        self.gateway.take().expect("a running gateway").kill();
    }

    /// What the programs run with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_string()),
            ("HOME", self.root.display().to_string()),
            ("OPENSHELL_GATEWAY_LISTEN", "127.0.0.1:0".to_owned()),
            ("XDG_CONFIG_HOME", self.root.join("config").display().to_string()),
            ("OPENSHELL_STATE_DIR", self.state().display().to_string()),
            ("OPENSHELL_RUNTIME_DIR", self.runtime.display().to_string()),
            ("OPENSHELL_GATEWAY_TOKEN_TTL", format!("{}s", self.ttl.as_secs())),
            ("OPENSHELL_GATEWAY_PROVISIONING_DEADLINE", "120s".to_string()),
            ("OPENSHELL_VM_PROBE_DEADLINE", "60s".to_string()),
            ("OPENSHELL_VM_DEFAULT_MEMORY", "256Mi".to_string()),
            ("RUST_BACKTRACE", "1".to_string()),
        ];
        let pairs = pairs.into_iter().map(|(key, value)| (key.to_string(), value));
        // Where a name is there twice, the later one wins.
        pairs.chain(self.variables.iter().cloned()).collect()
    }

    /// The endpoint that the gateway has registered for the SDK.
    ///
    /// # Panics
    /// If it has registered none.
    pub fn registered_endpoint(&self) -> String {
        let metadata = self.root.join("config/openshell/gateways/local/metadata.json");
        let text = std::fs::read_to_string(&metadata).expect("a registration");
        let metadata: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        metadata["gateway_endpoint"].as_str().expect("an endpoint").to_owned()
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The user's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("gateway.sock")
    }

    /// The gateway's log, over all its lives.
    pub fn log(&self) -> PathBuf {
        self.root.join("gateway.log")
    }

    /// A sandbox's runtime directory.
    pub fn places(&self, sandbox: &Sandbox) -> PathBuf {
        self.runtime.join("vm").join(&sandbox.metadata.as_ref().expect("metadata").id)
    }

    /// Where the token is while there is one.
    pub fn token_file(&self, sandbox: &Sandbox) -> PathBuf {
        self.places(sandbox).join(proto::layout::SHARE_DIR).join(proto::layout::TOKEN_FILE)
    }

    /// What the guest has written to its console.
    pub fn console(&self, sandbox: &Sandbox) -> String {
        let file = self.places(sandbox).join(proto::layout::RUN_DIR).join(proto::layout::CONSOLE_FILE);
        let ring = proto::console::unroll(&std::fs::read(file).unwrap_or_default());
        String::from_utf8_lossy(&ring).into_owned()
    }

    /// The token that is on disk now.
    pub fn token(&self, sandbox: &Sandbox) -> String {
        let file = self.token_file(sandbox);
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {}: {error}", file.display()))
    }

    /// The user's client.
    ///
    /// # Panics
    /// If no gateway serves.
    pub async fn api(&self) -> Api {
        Api::connect(&self.socket()).await.expect("the gateway serves")
    }

    /// Runs the command line to its end.
    pub async fn openshell(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("openshell"));
        command.args(arguments).env_clear().envs(self.environment());
        tokio::task::spawn_blocking(move || command.output().expect("run openshell")).await.expect("join")
    }

    /// Waits for a phase.
    ///
    /// # Panics
    /// At the deadline, with what the sandbox was instead.
    pub async fn phase(&self, name: &str, wanted: SandboxPhase) -> Sandbox {
        let api = self.api().await;
        let mut last = None;
        let reached = async {
            until(&format!("{name} to be {wanted:?}"), 2 * PATIENCE, async || {
                let sandbox = api.get(name).await.ok()?;
                let status = sandbox.status.clone().unwrap_or_default();
                let phase = status.phase();
                let connected = status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
                let reached = phase == wanted && (wanted != SandboxPhase::Ready || connected);
                assert!(phase != SandboxPhase::Error || reached, "{name} is in Error: {:#?}", status.conditions);
                last = Some(sandbox);
                reached.then(|| last.clone()).flatten()
            })
            .await
        };
        reached.await
    }

    /// Creates a sandbox of the test image and waits until it is ready.
    pub async fn ready(&self, name: &str, command: &[&str]) -> Sandbox {
        self.api().await.create(name, &test_image(), command).await.expect("create");
        self.phase(name, SandboxPhase::Ready).await
    }

    /// Waits until a sandbox of the given boot is ready.
    ///
    /// # Panics
    /// At the deadline, or if it ends in Error.
    pub async fn ready_in_boot(&self, name: &str, boot: u32) -> Sandbox {
        let api = self.api().await;
        until(&format!("{name} to be ready in boot {boot}"), 2 * PATIENCE, async || {
            let status = api.get(name).await.ok()?.status?;
            status.main_process_instance_id.starts_with(&format!("{boot}-")).then_some(())
        })
        .await;
        self.phase(name, SandboxPhase::Ready).await
    }

    /// Deletes a sandbox and waits until the gateway does not know it any more.
    pub async fn delete(&self, name: &str) {
        let api = self.api().await;
        api.delete(name).await.unwrap_or_else(|status| panic!("delete {name}: {status:?}"));
        until(&format!("{name} to be gone"), PATIENCE, async || api.get(name).await.err()).await;
    }

    /// The keeper and the jailed child of a sandbox.
    ///
    /// # Panics
    /// If they do not run.
    pub fn vmm(&self, sandbox: &Sandbox) -> Vmm {
        let id = &sandbox.metadata.as_ref().expect("metadata").id;
        let processes = self.vmm_processes();
        let child = processes.iter().find(|(_, line)| line.contains(" jail ") && line.contains(id.as_str()));
        let (child, _) = child.unwrap_or_else(|| panic!("no jailed child of {id} among {processes:?}"));
        Vmm { keeper: parent(*child).expect("a parent"), child: *child }
    }

    /// Gateways of this world, whoever started them.
    pub fn gateway_processes(&self) -> Vec<u32> {
        let gateway = program("openshell-gateway").canonicalize().expect("canonical path");
        let variable = format!("OPENSHELL_RUNTIME_DIR={}", self.runtime.display());
        let ours = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
        };
        running(&gateway).into_iter().map(|(pid, _)| pid).filter(ours).collect()
    }

    /// The end of the gateway's log and of every console: what one wants to see of a test that failed.
    pub fn last_words(&self) -> String {
        let tail = |text: &str, lines: usize| {
            let all = text.lines().collect::<Vec<_>>();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        let mut words = String::new();
        for log in [self.log(), self.state().join("gateway.log")] {
            if let Ok(text) = std::fs::read_to_string(&log) {
                words += &format!("--- {}\n{}\n", log.display(), tail(&text, 50));
            }
        }
        for vm in std::fs::read_dir(self.runtime.join("vm")).into_iter().flatten().flatten() {
            let ring = vm.path().join(proto::layout::RUN_DIR).join(proto::layout::CONSOLE_FILE);
            let text = proto::console::unroll(&std::fs::read(&ring).unwrap_or_default());
            words += &format!("--- {}\n{}\n", ring.display(), tail(&String::from_utf8_lossy(&text), 25));
            let exit = std::fs::read_to_string(ring.with_file_name(proto::layout::EXIT_FILE)).unwrap_or_default();
            words += &format!("exit record: {exit:?}\n");
        }
        for (pid, line) in self.vmm_processes() {
            words += &format!("--- {pid}: {line}\n{}", threads(pid));
        }
        words
    }

    /// Everything of this world that is still on the host: processes, mounts, files. Empty once all is deleted.
    pub fn traces(&self) -> Vec<String> {
        let mut traces =
            self.vmm_processes().into_iter().map(|(pid, line)| format!("process {pid}: {line}")).collect::<Vec<_>>();
        let runtime = self.runtime.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        traces.extend(mounts.lines().filter(|line| line.contains(&runtime)).map(|line| format!("mount {line}")));
        let vms = std::fs::read_dir(self.runtime.join("vm")).into_iter().flatten().flatten();
        traces.extend(vms.map(|entry| format!("file {}", entry.path().display())));
        traces
    }

    /// Keepers and jailed children, but for those that are surely of another world: their own spec is not on their
    /// command line, but a keeper holds its lock, and it is its child's parent.
    pub fn vmm_processes(&self) -> Vec<(u32, String)> {
        let all = running(&self.vmm_program().canonicalize().expect("canonical path"));
        let lock = Path::new(proto::layout::RUN_DIR).join(proto::layout::RUN_LOCK);
        let elsewhere =
            |pid: u32| open_files(pid).iter().any(|file| file.ends_with(&lock) && !file.starts_with(&self.runtime));
        all.into_iter().filter(|(pid, _)| !elsewhere(*pid) && !parent(*pid).is_some_and(elsewhere)).collect()
    }

    /// What keeps the VMs of this world: `openshell-vmm`, or whatever a variable puts in its place.
    fn vmm_program(&self) -> PathBuf {
        let named = self.variables.iter().rfind(|(name, _)| name == "OPENSHELL_VM_VMM_BIN");
        named.map_or_else(|| program("openshell-vmm"), |(_, path)| path.into())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A vmm that is ending leaves a record.
            std::thread::park_timeout(Duration::from_millis(500));
            eprintln!("{}", self.last_words());
        }
        self.gateway.take();
        for pid in self.gateway_processes() {
            kill(pid);
        }
        // What a failed test left running; a test that passed has left nothing.
        for (pid, _) in self.vmm_processes() {
            kill(pid);
        }
        drop(std::fs::remove_dir_all(&self.runtime));
        drop(std::fs::remove_dir_all(&self.root));
    }
}
