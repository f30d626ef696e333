use secrecy::ExposeSecret as _;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use proto::budget::TTL_MIN;
use rand::SeedableRng as _;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    identity::{ring::Ring, verify::Verifier},
    rotation::{clock::ManualClock, publish::tests::boot_spec},
};

pub(in crate::rotation) const START: u64 = 1_800_000_000;
const SECOND: Duration = Duration::from_secs(1);

/// A store that can fail.
#[derive(Default)]
pub(in crate::rotation) struct Counter {
    next: Mutex<HashMap<Uuid, u64>>,
    broken: AtomicBool,
}

impl Generations for Counter {
    fn reserve(&self, sandbox_id: Uuid, count: u64) -> Result<Range<u64>, String> {
        if self.broken.load(Ordering::Relaxed) {
            return Err("database is locked".into());
        }
        let mut next = self.next.lock().unwrap();
        let from = next.entry(sandbox_id).or_insert(1);
        *from += count;
        Ok(*from - count..*from)
    }
}

pub(in crate::rotation) fn signing_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[3; 32])
}

struct Bench {
    root: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Arc<Counter>,
    events: UnboundedReceiver<RotationEvent>,
    engine: Engine,
}

fn bench() -> Bench {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (clock, store) = (Arc::new(ManualClock::at(START)), Arc::new(Counter::default()));
    let (engine, events) = engine(clock.clone(), store.clone());
    Bench { root, clock, store, events, engine }
}

fn engine(clock: Arc<ManualClock>, generations: Arc<Counter>) -> (Engine, UnboundedReceiver<RotationEvent>) {
    let (events, heard) = unbounded_channel();
    let deps = Deps {
        signer: Signer::new(signing_key()),
        gateway_id: Uuid::nil(),
        ttl: TTL_MIN,
        clock,
        rng: StdRng::seed_from_u64(1),
        generations,
        receipts: Arc::default(),
        events,
    };
    (Engine::new(deps, Shared::default(), Troubles::default()), heard)
}

impl Bench {
    fn dir(&self, id: Uuid) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    fn share(&self, id: Uuid) -> PathBuf {
        self.dir(id).join("share")
    }

    fn enroll(&mut self, number: u128) -> Uuid {
        let sandbox_id = Uuid::from_u128(number);
        let directory = self.dir(sandbox_id);
        fs::create_dir(&directory).unwrap();
        let enrolment = Enrolment { sandbox_id, directory, owner: None, boot_spec: boot_spec(sandbox_id) };
        self.engine.enroll(&enrolment).unwrap();
        sandbox_id
    }

    /// Another gateway takes over, with the same store.
    fn restart(&mut self) {
        (self.engine, self.events) = engine(self.clock.clone(), self.store.clone());
    }

    /// What a gateway thinks of the token that is on disk.
    fn generation(&self, id: Uuid) -> Option<u64> {
        let mut ring = Ring::new();
        ring.insert(signing_key().verifying_key()).unwrap();
        let verifier = Verifier::new(ring, Uuid::nil(), budget::leeway(TTL_MIN), budget::TTL_MAX);
        let token = fs::read_to_string(self.share(id).join("sandbox.jwt")).ok()?;
        let claims = verifier.verify(&token, self.clock.now().unix()).ok()?;
        (claims.sandbox_id == id).then_some(claims.generation)
    }

    /// Time passes as the thread would see it: it wakes when it asked to.
    fn run(&mut self, time: Duration) {
        let end = self.clock.now().monotonic + time;
        loop {
            let now = self.clock.now().monotonic;
            let idle = self.engine.tick().unwrap_or(time).max(Duration::from_millis(1));
            if now + idle > end {
                self.clock.advance(end - now);
                return;
            }
            self.clock.advance(idle);
        }
    }

    fn heard(&mut self) -> Vec<RotationEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// All but publications.
    fn incidents(&mut self) -> Vec<RotationEvent> {
        self.heard().into_iter().filter(|event| !matches!(event, RotationEvent::Published(_))).collect()
    }
}

#[test]
fn a_token_on_disk_is_never_older_than_its_schedule() {
    let mut bench = bench();
    let ids: Vec<_> = (1..=20).map(|number| bench.enroll(number)).collect();
    for _ in 0..120 {
        bench.run(SECOND);
        for id in &ids {
            let published = bench.engine.published.read().unwrap()[id];
            let age = bench.clock.now().monotonic - published.renamed_at;
            assert!(age <= budget::rotate_until(TTL_MIN) + Duration::from_millis(1), "{age:?}");
            assert_eq!(bench.generation(*id), Some(published.generation));
            assert_eq!(bench.engine.deps.receipts.latest(*id).unwrap().published, published.generation);
        }
    }
    let published = bench.heard().len();
    assert!((20 * 8..=20 * 10).contains(&published), "{published} in two minutes");
}

#[test]
fn many_at_once_are_served_in_batches() {
    let mut bench = bench();
    for number in 0..2 * BATCH as u128 {
        bench.enroll(number + 1);
    }
    bench.heard();
    bench.clock.advance(20 * SECOND);
    assert_eq!(bench.engine.tick(), Some(Duration::ZERO));
    assert_eq!(bench.heard().len(), BATCH);
    assert!(bench.engine.tick().is_some_and(|idle| idle > Duration::ZERO));
    assert_eq!(bench.heard().len(), BATCH);
    assert!(bench.engine.due.next().unwrap() > bench.clock.now().monotonic);
}

#[test]
fn nothing_to_do_without_sandboxes() {
    let mut bench = bench();
    assert_eq!(bench.engine.tick(), None);
    let id = bench.enroll(1);
    assert!(bench.engine.tick().is_some_and(|idle| idle > Duration::ZERO));
    bench.engine.withdraw(id).unwrap();
    assert_eq!(bench.engine.withdraw(id), Err(RotationError::Unknown { sandbox_id: id }));
    assert_eq!(bench.engine.tick(), None);
    assert!(!bench.share(id).join("sandbox.jwt").exists());
    assert!(bench.engine.published.read().unwrap().is_empty());
    assert_eq!(bench.engine.rotate(id), Err(RotationError::Unknown { sandbox_id: id }));
}

#[test]
fn generations_rise_over_blocks_and_gateways() {
    let mut bench = bench();
    let id = bench.enroll(1);
    assert_eq!(bench.generation(id), Some(1));
    for _ in 0..300 {
        bench.engine.rotate(id).unwrap();
    }
    assert_eq!(bench.generation(id), Some(301));
    bench.restart();
    let dir = bench.dir(id);
    let boot = fs::read(dir.join("share/boot.json")).unwrap();
    let published = bench.engine.adopt(id, &dir, None).unwrap();
    assert_eq!((published.generation, bench.generation(id)), (513, Some(513)));
    assert_eq!(fs::read(dir.join("share/boot.json")).unwrap(), boot);
    assert_eq!(bench.engine.adopt(id, &dir, None), Err(RotationError::AlreadyEnrolled { sandbox_id: id }));
}

#[test]
fn a_gateway_with_another_key_gives_a_running_sandbox_a_newer_token_of_it() {
    let mut bench = bench();
    let id = bench.enroll(1);
    bench.restart();
    let new = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
    bench.engine.deps.signer = Signer::new(new.clone());
    let (dir, old) = (bench.dir(id), bench.generation(id).unwrap());
    bench.engine.adopt(id, &dir, None).unwrap();
    assert_eq!(bench.generation(id), None, "no token of the old key is on disk");
    let mut ring = Ring::new();
    ring.insert(new.verifying_key()).unwrap();
    let verifier = Verifier::new(ring, Uuid::nil(), budget::leeway(TTL_MIN), budget::TTL_MAX);
    let token = fs::read_to_string(bench.share(id).join("sandbox.jwt")).unwrap();
    let claims = verifier.verify(&token, bench.clock.now().unix()).unwrap();
    // That is what the agent goes by; signatures it does not check.
    assert!(claims.generation > old, "{} after {old}", claims.generation);
}

#[test]
fn adoption_goes_on_although_the_store_is_away() {
    let mut bench = bench();
    let id = bench.enroll(1);
    bench.restart();
    bench.store.broken.store(true, Ordering::Relaxed);
    let dir = bench.dir(id);
    assert!(matches!(bench.engine.adopt(id, &dir, None), Err(RotationError::Generations { .. })));
    bench.run(3 * SECOND);
    assert_eq!(bench.heard().len(), 1, "said once");
    assert_eq!(bench.generation(id), Some(1), "the old one stays");
    bench.store.broken.store(false, Ordering::Relaxed);
    bench.run(6 * SECOND);
    assert!(bench.generation(id) > Some(256));
    let missing = Uuid::from_u128(2);
    let nowhere = bench.engine.adopt(missing, &bench.root.path().join("none"), None);
    assert!(matches!(nowhere, Err(RotationError::Directory { .. })));
    assert!(!bench.engine.entries.contains_key(&missing));
}

#[test]
fn a_failed_enrolment_leaves_nothing() {
    let mut bench = bench();
    bench.store.broken.store(true, Ordering::Relaxed);
    let sandbox_id = Uuid::from_u128(1);
    let directory = bench.dir(sandbox_id);
    fs::create_dir(&directory).unwrap();
    let enrolment = Enrolment { sandbox_id, directory, owner: None, boot_spec: boot_spec(sandbox_id) };
    let error = bench.engine.enroll(&enrolment).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("failed to reserve generations for sandbox {sandbox_id}: database is locked")
    );
    assert_eq!((bench.engine.tick(), bench.heard()), (None, vec![]));
    assert!(!bench.share(sandbox_id).join("sandbox.jwt").exists());
}

#[test]
fn failures_are_said_once_and_retried_without_end() {
    let mut bench = bench();
    let id = bench.enroll(1);
    bench.heard();
    bench.engine.entries.get_mut(&id).unwrap().reserved = 0..0;
    bench.store.broken.store(true, Ordering::Relaxed);
    bench.run(20 * 60 * SECOND);
    let heard = bench.heard();
    assert!(matches!(&heard[..], [RotationEvent::Failed { sandbox_id, .. }] if *sandbox_id == id), "{heard:?}");
    assert_eq!(bench.generation(id), None, "over, but still there");
    assert!(bench.share(id).join("sandbox.jwt").exists());
    bench.store.broken.store(false, Ordering::Relaxed);
    bench.run(6 * SECOND);
    assert_eq!(bench.heard().len(), 1);
    assert_eq!(bench.generation(id), Some(257));
    bench.engine.entries.get_mut(&id).unwrap().reserved = 0..0;
    bench.store.broken.store(true, Ordering::Relaxed);
    bench.run(30 * SECOND);
    assert_eq!(bench.incidents().len(), 1, "a new failure is said anew");
}

#[test]
fn an_audit_heals_within_its_interval() {
    let mut bench = bench();
    let ids: Vec<_> = (1..=50).map(|number| bench.enroll(number)).collect();
    bench.run(SECOND);
    bench.incidents();
    for id in &ids {
        fs::remove_file(bench.share(*id).join("sandbox.jwt")).unwrap();
        fs::set_permissions(bench.share(*id).join("boot.json"), fs::Permissions::from_mode(0o644)).unwrap();
    }
    bench.run(budget::audit_interval(TTL_MIN));
    for id in &ids {
        assert!(bench.generation(*id).is_some());
        let what = "sandbox.jwt was missing, boot.json had another owner or other permissions".into();
        let healed = RotationEvent::Healed { sandbox_id: *id, what };
        assert!(bench.engine.entries[id].failing_since.is_none());
        assert_eq!(bench.engine.entries[id].directory.inspect(), Ok(Finding::Sound), "{healed:?}");
    }
    assert_eq!(bench.incidents().len(), 50);
    bench.run(2 * budget::audit_interval(TTL_MIN));
    assert_eq!(bench.incidents(), []);
}

#[test]
fn a_lost_directory_is_said_once_and_before_its_token_ends() {
    let mut bench = bench();
    let id = bench.enroll(1);
    let exp = bench.engine.published.read().unwrap()[&id].exp;
    fs::remove_dir_all(bench.share(id)).unwrap();
    bench.run(budget::audit_interval(TTL_MIN));
    bench.engine.tick();
    let since = UNIX_EPOCH + bench.engine.looked.wall;
    assert_eq!(bench.incidents(), [RotationEvent::DirectoryLost { sandbox_id: id, exp, since }]);
    assert_eq!(bench.engine.troubles.read().unwrap()[&id].reason, "IdentityDirectoryLost");
    bench.run(60 * SECOND);
    assert_eq!(bench.heard(), [], "neither again, nor as a failure to publish");
    bench.engine.withdraw(id).unwrap();
    assert!(bench.engine.troubles.read().unwrap().is_empty());
    fs::remove_dir(bench.dir(id).join("stage")).unwrap();
    fs::remove_dir(bench.dir(id)).unwrap();
    bench.enroll(1);
    assert!(bench.generation(id) > Some(1), "restarted onto a fresh one");
}

#[test]
fn a_jump_renews_everything() {
    let mut bench = bench();
    let ids: Vec<_> = (1..=300).map(|number| bench.enroll(number)).collect();
    bench.run(SECOND);
    for wall in [START + 3 * 86_400, START + 3 * 86_400 - 3_600] {
        bench.clock.set_wall(Duration::from_secs(wall));
        assert_eq!(bench.generation(ids[0]), None);
        bench.run(SECOND + Duration::from_millis(10));
        assert!(ids.iter().all(|id| bench.generation(*id).is_some()), "{wall}");
        assert_eq!(bench.engine.backlog, 0);
    }
    assert_eq!(bench.incidents(), []);
}

#[test]
fn a_sandbox_that_asks_gets_one_new_token_a_second() {
    let mut bench = bench();
    let id = bench.enroll(1);
    bench.run(2 * SECOND);
    let (first, token) = bench.engine.refresh(id).unwrap();
    let in_the_file = fs::read_to_string(bench.share(id).join("sandbox.jwt")).unwrap();
    assert_eq!((first.generation, token.expose_secret()), (2, in_the_file.as_str()));
    for _ in 0..1000 {
        let (again, same) = bench.engine.refresh(id).unwrap();
        assert_eq!((again, same.expose_secret()), (first, token.expose_secret()));
    }
    bench.run(schedule::REFRESH_MIN);
    assert_eq!(bench.engine.refresh(id).unwrap().0.generation, 3);
    assert!(matches!(bench.engine.refresh(Uuid::from_u128(9)), Err(RotationError::Unknown { .. })));
}
