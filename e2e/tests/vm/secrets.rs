//! Every token that was ever on disk, and the SSH host key, looked for wherever they must not be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use e2e::programs::test_image;
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::*;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("secrets::no_token_and_no_key_leaves_its_place_in_a_full_run", full_run)]
}

/// What a run has shown.
#[derive(Default)]
struct Seen {
    /// Secret, and what it is.
    secrets: BTreeMap<Vec<u8>, String>,
    /// Content, and where it was.
    places: BTreeMap<Vec<u8>, String>,
}

impl Seen {
    fn token(&mut self, token: &str) {
        if let Some((_, signature)) = token.rsplit_once('.')
            && signature.len() == 86
        {
            let number = self.secrets.len() / 2 + 1;
            self.secrets.entry(token.into()).or_insert(format!("token {number}"));
            self.secrets.entry(signature.into()).or_insert(format!("the signature of token {number}"));
        }
    }

    /// The fourth line of an Ed25519 key in OpenSSH's format is the first that holds nothing but secret.
    fn boot_spec(&mut self, spec: &str) {
        let key = spec.split_once("\"ssh_host_key\":\"").and_then(|(_, rest)| rest.split_once('"'));
        let lines = key.map(|(key, _)| key.split("\\n").filter(|line| !line.starts_with('-')).collect::<Vec<_>>());
        if let Some(line) = lines.and_then(|lines| lines.get(3).copied())
            && line.len() > 40
        {
            self.secrets.insert(line.into(), "the SSH host key".into());
        }
    }

    fn place(&mut self, name: impl Into<String>, content: Vec<u8>) {
        self.places.entry(content).or_insert_with(|| name.into());
    }

    fn leaks(&self) -> Vec<String> {
        let holds = |content: &[u8], secret: &[u8]| content.windows(secret.len()).any(|window| window == secret);
        // A token holds its signature.
        let needles = self.secrets.iter().filter(|(_, what)| !what.starts_with("token"));
        let pairs = needles.flat_map(|secret| self.places.iter().map(move |place| (secret, place)));
        pairs
            .filter(|((secret, _), (content, _))| holds(content, secret))
            .map(|((_, what), (_, at))| format!("{what} in {at}"))
            .collect()
    }
}

/// Looks many times a second, because a token that is replaced is gone.
struct Lookout {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    fn start(vms: PathBuf) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (shared, ended) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for round in 0_u64.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let mut seen = shared.lock().expect("no panic before");
                for vm in fs::read_dir(&vms).into_iter().flatten().flatten() {
                    seen.token(&fs::read_to_string(vm.path().join("share/sandbox.jwt")).unwrap_or_default());
                    seen.boot_spec(&fs::read_to_string(vm.path().join("share/boot.json")).unwrap_or_default());
                    if round.is_multiple_of(20) {
                        collect_files(&vm.path().join("run"), &mut seen);
                    }
                }
                if round.is_multiple_of(20) {
                    collect_processes(&mut seen);
                }
                drop(seen);
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Kept also where the same was noted under another name.
    fn note(&self, name: &str, content: impl Into<Vec<u8>>) {
        let content = [name.as_bytes(), b"\n", &content.into()].concat();
        self.seen.lock().expect("no panic before").place(name, content);
    }

    fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("no panic");
        std::mem::take(&mut self.seen.lock().expect("no panic before"))
    }
}

fn collect_processes(seen: &mut Seen) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if process.file_name().as_encoded_bytes()[0].is_ascii_digit() {
            for file in ["environ", "cmdline"] {
                let path = process.path().join(file);
                seen.place(path.display().to_string(), fs::read(&path).unwrap_or_default());
            }
        }
    }
}

/// Every file below, whole.
fn collect_files(directory: &Path, seen: &mut Seen) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect_files(&path, seen),
            Ok(kind) if kind.is_file() => {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(!name.starts_with("core"), "a core file: {}", path.display());
                let mut content = fs::read(&path).unwrap_or_default();
                if name == proto::layout::CONSOLE_FILE {
                    content = proto::console::unroll(&content);
                }
                seen.place(path.display().to_string(), content);
            }
            _ => {}
        }
    }
}

const INSIDE: &str = "
    cat /proc/cmdline /proc/self/mountinfo /proc/[0-9]*/environ /proc/[0-9]*/cmdline
    env; dmesg; cat /dev/kmsg < /dev/null & sleep 0.2; kill $! 2>/dev/null
    find / -xdev -type f -size -200k ! -path '/proc/*' ! -path '/sys/*' -newer /etc/passwd -exec cat {} +
    find /tmp /run /dev/shm /etc -type f -exec cat {} +
    find / -xdev -name 'core*' -type f -size +1M
    true
";

async fn full_run() {
    let mut world = World::empty(TTL).without_trial_boot().with("OPENSHELL_GATEWAY_LOG", "debug");
    let lookout = Lookout::start(world.runtime().join("vm"));
    world.up().await;
    let mut api = world.api().await;
    let image = world.state().join("image.erofs");
    fs::copy(test_image(), &image).expect("copy the image");
    api.create("open", &image, &["/bin/sh", "-c", "env; sleep 100000"]).await.expect("create");
    let sandbox = world.phase("open", SandboxPhase::Ready).await;
    let reply = |what: &str, reply: &dyn std::fmt::Debug| lookout.note(what, format!("{reply:?}"));
    reply("Get", &sandbox);
    let inside = api.exec("open", &["/bin/sh", "-c", INSIDE]).await.expect("exec");
    assert!(inside.stdout.contains("init=") && inside.stdout.contains("HOME=/"), "{}", inside.stdout);
    lookout.note("the guest", inside.stdout + &inside.stderr);

    // Each adoption publishes a new generation; the waits between them are another test's.
    for _ in 0..3 {
        world.down();
        world.up().await;
        world.phase("open", SandboxPhase::Ready).await;
    }
    api = world.api().await;
    let watching = tokio::spawn(watch(world.api().await, lookout.seen.clone()));
    reply("annotations", &api.token("open").await);
    reply("List", &api.client.clone().list_sandboxes(ListSandboxesRequest::default()).await.expect("list"));
    reply("GetGatewayInfo", &api.client.clone().get_gateway_info(GetGatewayInfoRequest {}).await.expect("info"));
    let inspected = world.openshell(&["token", "inspect", "open"]).await;
    assert!(inspected.status.success(), "{inspected:?}");
    lookout.note("token inspect", inspected.stdout);
    reply("an error", &api.exec("none", &["true"]).await.expect_err("no such sandbox"));
    reply("an error", &api.create("open", &test_image(), &[]).await.expect_err("the name is taken"));
    reply("an error", &api.create("other", Path::new("/no/image"), &[]).await.expect_err("no such image"));

    // Again, now that there were several tokens.
    let inside = api.exec("open", &["/bin/sh", "-c", INSIDE]).await.expect("exec");
    lookout.note("the guest, later", inside.stdout + &inside.stderr);
    api.stop("open").await.expect("stop");
    reply("Get", &world.phase("open", SandboxPhase::Stopped).await);
    // What a gateway that was killed while it stopped a sandbox left there is taken away by the next one.
    world.down();
    fs::write(world.token_file(&sandbox), "left behind").expect("write a token");
    world.up().await;
    api = world.api().await;
    until("the token of a stopped sandbox to go", Duration::from_secs(10), async || {
        (!world.token_file(&sandbox).exists()).then_some(())
    })
    .await;
    api.start("open").await.expect("start");
    let started = world.ready_in_boot("open", 2).await;
    reply("Get", &started);
    let inside = api.exec("open", &["/bin/sh", "-c", INSIDE]).await.expect("exec");
    lookout.note("the guest in its second boot", inside.stdout + &inside.stderr);
    // An error with evidence: the vmm is gone, and the next one has no image.
    fs::remove_file(&image).expect("remove the image");
    e2e::processes::kill(world.vmm(&started).child);
    reply("Get", &world.phase("open", SandboxPhase::Error).await);
    let got = world.openshell(&["vm", "get", "open", "-o", "json"]).await;
    lookout.note("vm get", [got.stdout, got.stderr].concat());
    watching.abort();
    {
        let mut seen = lookout.seen.lock().expect("no panic before");
        seen.place("the gateway's log", fs::read(world.log()).expect("read the log"));
        for directory in ["run", "stage", "ctl"] {
            collect_files(&world.places(&sandbox).join(directory), &mut seen);
        }
        collect_state(&world.state(), &mut seen);
    }
    world.delete("open").await;
    let mut seen = lookout.end();

    let tokens = seen.secrets.values().filter(|what| what.starts_with("token")).count();
    assert!(tokens >= 5, "only {tokens} tokens were seen");
    assert!(seen.secrets.values().any(|what| what == "the SSH host key"));
    for kind in ["Watch", "Get", "List", "the guest", "the guest, later", "the guest in its second boot"] {
        assert!(seen.places.values().any(|place| place == kind), "{kind} was not looked at");
    }
    assert!(seen.places.len() > 40, "only {} places were looked at", seen.places.len());
    assert_eq!(seen.leaks(), Vec::<String>::new());
    println!("secrets: {tokens} tokens, {} places", seen.places.len());
    // The search finds what is there.
    let secret = seen.secrets.keys().next().expect("a secret").clone();
    let signature = secret.rsplit(|byte| *byte == b'.').next().expect("its end").to_vec();
    seen.place("here", [b"x".to_vec(), signature, b"y".to_vec()].concat());
    assert_eq!(seen.leaks().len(), 1);
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Notes every change.
async fn watch(api: e2e::api::Api, seen: Arc<Mutex<Seen>>) {
    let request = WatchSandboxRequest {
        sandbox: "open".into(),
        follow_status: true,
        follow_logs: true,
        follow_events: true,
        ..Default::default()
    };
    let mut changes = api.client.clone().watch_sandbox(request).await.expect("watch").into_inner();
    while let Ok(Some(event)) = changes.message().await {
        seen.lock().expect("no panic before").place("Watch", format!("{event:?}").into());
    }
}

/// The store, the log of a gateway, the keys.
fn collect_state(state: &Path, seen: &mut Seen) {
    let database = state.join("gateway.db");
    assert!(database.metadata().is_ok_and(|data| data.len() > 0), "{} is empty", database.display());
    collect_files(state, seen);
}
