//! Identity directories on a tmpfs, an engine that fills them, and what an audit of one costs.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::identity::keys::Signer;
use host::rotation::audit::Finding;
use host::rotation::clock::{Clock, SystemClock};
use host::rotation::engine::Engine;
use host::rotation::event::RotationEvent;
use host::rotation::publish::IdentityDirectory;
use host::rotation::receipts::Receipts;
use host::rotation::rotor::{Deps, Enrolment, Generations};
use proto::boot::{BootSpec, DEFAULT_USER};
use proto::budget;
use proto::layout::{BOOT_SPEC_FILE, SHARE_DIR, TOKEN_FILE};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustix::process::{Resource, getrlimit};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::row::{Bar, Row, each, in_turns};

/// How many the rows speak of.
const MANY: usize = 10_000;
/// Descriptors that are left for everything else.
const SPARE: u64 = 500;
const PAIRS: usize = 7;

/// Ten thousand, or as many as the limit of descriptors lets one process hold, at two each.
pub(crate) fn many() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    MANY.min((limit.saturating_sub(SPARE) / 2) as usize)
}

/// Runtime directories below one on a tmpfs, removed in the end.
pub(crate) struct Place(TempDir);

/// An engine of its own thread's, which is this one.
pub(crate) struct Rotation {
    pub(crate) engine: Engine,
    root: PathBuf,
    events: UnboundedReceiver<RotationEvent>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").expect("a tmpfs at /dev/shm"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn sandbox(&self, sandbox_id: Uuid) -> PathBuf {
        self.path().join(sandbox_id.to_string())
    }

    pub(crate) fn rotation(&self, clock: Arc<dyn Clock>) -> Rotation {
        let (events, told) = tokio::sync::mpsc::unbounded_channel();
        let deps = Deps {
            signer: Signer::new(ed25519_dalek::SigningKey::from_bytes(&[7; 32])),
            gateway_id: Uuid::from_u128(1),
            ttl: budget::TTL_DEFAULT,
            clock,
            rng: StdRng::seed_from_u64(1),
            generations: Arc::new(Endless),
            receipts: Arc::new(Receipts::new()),
            events,
        };
        let engine = Engine::new(deps, Arc::default(), Arc::default());
        Rotation { engine, root: self.path().into(), events: told }
    }
}

impl Rotation {
    /// Sandboxes with directories of their own.
    pub(crate) fn enroll(&mut self, count: usize) -> Vec<Uuid> {
        let mut enroll = |_| {
            let enrolment = enrolment(&self.root);
            self.engine.enroll(&enrolment).expect("enroll");
            enrolment.sandbox_id
        };
        let enrolled = (0..count).map(&mut enroll).collect();
        self.forget_events();
        enrolled
    }

    /// What a gateway would log. Outside of any measurement.
    pub(crate) fn next_event(&mut self) -> Option<RotationEvent> {
        self.events.try_recv().ok()
    }

    pub(crate) fn forget_events(&mut self) {
        while self.next_event().is_some() {}
    }
}

/// A sandbox that nobody has heard of, with its runtime directory.
pub(crate) fn enrolment(root: &Path) -> Enrolment {
    let sandbox_id = Uuid::new_v4();
    let directory = root.join(sandbox_id.to_string());
    fs::create_dir(&directory).expect("make a directory");
    Enrolment { sandbox_id, directory, owner: None, boot_spec: boot_spec(sandbox_id) }
}

fn boot_spec(sandbox_id: Uuid) -> BootSpec {
    BootSpec {
        sandbox_id,
        instance_id: format!("1-{sandbox_id}"),
        hostname: "bench".into(),
        endpoint: "vsock://2:5100".into(),
        endpoints: vec![],
        wall_time_ms: 0,
        ssh_host_key: "a key has about four hundred bytes ".repeat(12).into(),
        user: DEFAULT_USER,
        main: None,
        needs_session: false,
        environment: [].into(),
        services: Vec::new(),
        workdir: None,
        image_main: Default::default(),
    }
}

/// Generations without a store: a block of them lasts for two days at the default TTL.
struct Endless;

impl Generations for Endless {
    fn reserve(&self, _: Uuid, _: u64) -> Result<Range<u64>, String> {
        Ok(1..u64::MAX)
    }
}

/// The audit's own look at each, next to reading both files of each.
pub(crate) fn measure() {
    let (place, count) = (Place::new(), many());
    let mut rotation = place.rotation(Arc::new(SystemClock));
    let enrolled = rotation.enroll(count);
    // The engine's own would be two descriptors more for each.
    drop(rotation);
    let roots: Vec<_> = enrolled.iter().map(|id| place.sandbox(*id)).collect();
    let shares: Vec<_> = roots.iter().map(|root| root.join(SHARE_DIR)).collect();
    let held: Vec<_> = roots.iter().map(|root| IdentityDirectory::open(root, None).expect("open")).collect();

    let ours = || {
        each(count, || {
            for directory in &held {
                assert_eq!(directory.inspect(), Ok(Finding::Sound));
            }
        })
    };
    let theirs = || {
        each(count, || {
            for share in &shares {
                for name in [TOKEN_FILE, BOOT_SPEC_FILE] {
                    let file = share.join(name);
                    std::hint::black_box(fs::metadata(&file).expect("stat"));
                    std::hint::black_box(fs::read(&file).expect("read"));
                }
            }
        })
    };
    in_turns(1, ours, theirs);
    let pairs = in_turns(PAIRS, ours, theirs);
    eprintln!("audit: {} pairs of {count} directories each", pairs.len());
    Row {
        name: "audit",
        of: format!("one audit of {count} directories, per directory"),
        against: "one stat and one read of the two files in each",
        unit: "us",
        pairs,
        bar: Bar::None,
    }
    .print();
}
