//! What the rotation thread does between two waits. Nothing here waits or knows a thread.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Bound, Range},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use proto::{boot::BootSpec, budget};
use rand::{RngExt as _, rngs::StdRng};
use secrecy::SecretString;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::{
    audit::Finding,
    clock::{Clock, Now},
    due::Due,
    error::RotationError,
    event::{Published, RotationEvent, Trouble},
    publish::IdentityDirectory,
    receipts::Receipts,
    schedule,
};
use crate::faults;
use crate::identity::{keys::Signer, mint::mint};

/// Sandboxes that are served in one go before commands are looked at again.
const BATCH: usize = 128;

/// Where generations come from: the store.
pub trait Generations: Send + Sync {
    /// Sets `count` generations aside, durably: none of them is ever given out again, not even after a crash. They
    /// begin at 1 and are higher than all before.
    fn reserve(&self, sandbox_id: Uuid, count: u64) -> Result<Range<u64>, String>;
}

/// What rotation works with.
pub struct Deps {
    /// Signs the tokens.
    pub signer: Signer,
    /// In whose name.
    pub gateway_id: Uuid,
    /// For how long a token is good.
    pub ttl: Duration,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Jitter and token ids.
    pub rng: StdRng,
    /// The generations.
    pub generations: Arc<dyn Generations>,
    /// Told of every publication before anybody else.
    pub receipts: Arc<Receipts>,
    /// Told of every change. That it was closed on the sending side means that the thread has ended.
    pub events: UnboundedSender<RotationEvent>,
}

/// A sandbox whose compute is about to start.
#[derive(Debug)]
pub struct Enrolment {
    /// Which.
    pub sandbox_id: Uuid,
    /// Its runtime directory, which exists.
    pub directory: PathBuf,
    /// Who reads the identity directory, where that is not the gateway's own user.
    pub owner: Option<(u32, u32)>,
    /// What the guest is told.
    pub boot_spec: BootSpec,
}

/// The newest publication of every sandbox, for readers on other threads.
pub type Shared = Arc<RwLock<HashMap<Uuid, Published>>>;
/// What does not work, for readers on other threads.
pub type Troubles = Arc<RwLock<HashMap<Uuid, Trouble>>>;

struct Entry {
    directory: IdentityDirectory,
    reserved: Range<u64>,
    exp: u64,
    failures: u32,
    /// Since when something does not work; said once.
    failing_since: Option<SystemTime>,
    lost: bool,
}

/// See the module. A gateway has it inside of its [`super::rotor::Rotor`]; by itself it is for whoever has the time in
/// hand: tests and benchmarks.
pub struct Engine {
    deps: Deps,
    entries: BTreeMap<Uuid, Entry>,
    due: Due,
    /// Last audited, when the next slice is, and how many are to be audited at once after a jump.
    cursor: Uuid,
    next_slice: Option<Instant>,
    backlog: usize,
    looked: Now,
    published: Shared,
    troubles: Troubles,
}

impl Engine {
    /// Nothing enrolled. `published` and `troubles` are kept up to date for others.
    pub fn new(deps: Deps, published: Shared, troubles: Troubles) -> Self {
        let looked = deps.clock.now();
        Self {
            deps,
            entries: BTreeMap::new(),
            due: Due::default(),
            cursor: Uuid::nil(),
            next_slice: None,
            backlog: 0,
            looked,
            published,
            troubles,
        }
    }

    /// A fresh directory with boot spec and token, or nothing at all.
    pub fn enroll(&mut self, enrolment: &Enrolment) -> Result<Published, RotationError> {
        let Enrolment { sandbox_id, directory: dir, owner, boot_spec } = enrolment;
        self.unknown(*sandbox_id)?;
        let failed = |cause| RotationError::Directory { sandbox_id: *sandbox_id, dir: dir.clone(), cause };
        let mut directory = IdentityDirectory::create(dir, *owner).map_err(failed)?;
        directory.put_boot_spec(boot_spec).map_err(failed)?;
        self.insert(*sandbox_id, directory);
        self.publish(*sandbox_id, dir).inspect_err(|_| self.forget(sandbox_id)).map(|published| self.succeed(published))
    }

    /// The directory of a running VM gets a new token at once; its boot spec stays. A sandbox whose directory was
    /// there stays enrolled even if the token could not be published: the attempts go on.
    pub(super) fn adopt(
        &mut self,
        sandbox_id: Uuid,
        dir: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<Published, RotationError> {
        self.unknown(sandbox_id)?;
        let failed = |cause| RotationError::Directory { sandbox_id, dir: dir.into(), cause };
        let directory = IdentityDirectory::open(dir, owner).map_err(failed)?;
        self.insert(sandbox_id, directory);
        self.audit_one(sandbox_id);
        self.rotate(sandbox_id)
    }

    /// Takes the token away and forgets the sandbox; nothing to do for one that is not known.
    pub(super) fn withdraw(&mut self, sandbox_id: Uuid) -> Result<(), RotationError> {
        let mut entry = self.entries.remove(&sandbox_id).ok_or(RotationError::Unknown { sandbox_id })?;
        self.forget(&sandbox_id);
        let dir = entry.directory.root.clone();
        entry.directory.remove_token().map_err(|cause| RotationError::Directory { sandbox_id, dir, cause })
    }

    /// A new generation now, whatever is due.
    pub fn rotate(&mut self, sandbox_id: Uuid) -> Result<Published, RotationError> {
        let entry = self.entries.get(&sandbox_id).ok_or(RotationError::Unknown { sandbox_id })?;
        let dir = entry.directory.root.clone();
        match self.publish(sandbox_id, &dir) {
            Ok(published) => Ok(self.succeed(published)),
            Err(error) => {
                self.retry(sandbox_id, &error);
                Err(error)
            }
        }
    }

    /// The newest token itself, made now unless that was done within [`schedule::REFRESH_MIN`]: guests may ask as
    /// often as they like.
    pub(super) fn refresh(&mut self, sandbox_id: Uuid) -> Result<(Published, SecretString), RotationError> {
        let now = self.deps.clock.now().monotonic;
        let newest = self.published.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox_id).copied();
        let recent = newest.filter(|newest| now.saturating_duration_since(newest.renamed_at) < schedule::REFRESH_MIN);
        let published = match recent {
            Some(published) => published,
            None => self.rotate(sandbox_id)?,
        };
        let held = self.entries.get(&sandbox_id).and_then(|entry| entry.directory.token().cloned());
        held.map(|token| (published, token)).ok_or(RotationError::Unknown { sandbox_id })
    }

    /// Does what is due, and says for how long there is nothing to do; for ever where there is nothing at all.
    pub fn tick(&mut self) -> Option<Duration> {
        let now = self.deps.clock.now();
        self.look_at_clocks(now);
        for _ in 0..BATCH {
            let Some(sandbox_id) = self.due.pop(now.monotonic) else { break };
            // The outcome is in the events, and a failure has set its own next time.
            let _outcome = self.rotate(sandbox_id);
        }
        self.audit(now.monotonic);
        self.idle()
    }

    fn idle(&self) -> Option<Duration> {
        if self.entries.is_empty() {
            return None;
        }
        if self.backlog > 0 {
            return Some(Duration::ZERO);
        }
        let now = self.deps.clock.now().monotonic;
        let next = [self.due.next(), self.next_slice, Some(self.looked.monotonic + schedule::CLOCK_LOOK)];
        next.into_iter().flatten().min().map(|at| at.saturating_duration_since(now))
    }

    /// After a jump every token on disk may be over, or from the future: all are renewed and looked at.
    fn look_at_clocks(&mut self, now: Now) {
        let passed = now.monotonic.saturating_duration_since(self.looked.monotonic);
        if schedule::jumped((self.looked.wall, now.wall), passed) && !self.entries.is_empty() {
            let seconds = now.wall.as_secs_f64() - (self.looked.wall + passed).as_secs_f64();
            tracing::warn!(seconds, sandboxes = self.entries.len(), "wall clock jumped: all tokens are renewed");
            for sandbox_id in self.entries.keys() {
                self.due.set(*sandbox_id, now.monotonic);
            }
            self.backlog = self.entries.len();
        }
        self.looked = now;
    }

    fn audit(&mut self, now: Instant) {
        let interval = budget::audit_interval(self.deps.ttl);
        let Some(slice) = schedule::audit_slice(self.entries.len(), interval) else {
            self.next_slice = None;
            self.backlog = 0;
            return;
        };
        let at = *self.next_slice.get_or_insert(now + slice.every);
        let count = if self.backlog > 0 { self.backlog.min(BATCH) } else { slice.count };
        if self.backlog == 0 && at > now {
            return;
        }
        for _ in 0..count {
            let after = (Bound::Excluded(self.cursor), Bound::Unbounded);
            let next = self.entries.range(after).next().or_else(|| self.entries.first_key_value());
            let Some((sandbox_id, _)) = next else { break };
            self.cursor = *sandbox_id;
            self.audit_one(self.cursor);
        }
        self.backlog = self.backlog.saturating_sub(count);
        self.next_slice = Some(now + slice.every);
    }

    fn audit_one(&mut self, sandbox_id: Uuid) {
        let Some(entry) = self.entries.get_mut(&sandbox_id) else { return };
        let audited = entry.directory.inspect().and_then(|finding| match finding {
            Finding::Sound | Finding::DirectoryLost => Ok(finding),
            Finding::Healable(differences) => {
                entry.directory.heal(&differences)?;
                Ok(Finding::Healable(differences))
            }
        });
        let event = match audited {
            Ok(Finding::DirectoryLost) if entry.lost => None,
            Ok(Finding::DirectoryLost) => {
                entry.lost = true;
                Some(RotationEvent::DirectoryLost { sandbox_id, exp: entry.exp, since: UNIX_EPOCH + self.looked.wall })
            }
            Ok(Finding::Healable(differences)) => {
                let what: Vec<_> = differences.iter().map(ToString::to_string).collect();
                entry.recovered();
                Some(RotationEvent::Healed { sandbox_id, what: what.join(", ") })
            }
            Ok(Finding::Sound) if entry.lost => {
                entry.recovered();
                Some(RotationEvent::Healed { sandbox_id, what: "the directory was away and is back".into() })
            }
            Ok(Finding::Sound) if entry.failing_since.is_some() && entry.failures == 0 => {
                entry.recovered();
                Some(RotationEvent::Healed { sandbox_id, what: "the directory could not be inspected".into() })
            }
            Ok(Finding::Sound) => None,
            Err(cause) => {
                let error = RotationError::Audit { sandbox_id, dir: entry.directory.root.clone(), cause };
                entry.fail(sandbox_id, &error, self.looked)
            }
        };
        self.tell(event);
    }

    fn publish(&mut self, sandbox_id: Uuid, dir: &Path) -> Result<Published, RotationError> {
        let entry = self.entries.get_mut(&sandbox_id).ok_or(RotationError::Unknown { sandbox_id })?;
        if entry.reserved.is_empty() {
            let reserved = self.deps.generations.reserve(sandbox_id, budget::GENERATION_BLOCK);
            entry.reserved = reserved.map_err(|cause| RotationError::Generations { sandbox_id, cause })?;
        }
        let generation = entry.reserved.start;
        let jti = uuid::Builder::from_random_bytes(self.deps.rng.random()).into_uuid();
        let Deps { signer, gateway_id, ttl, clock, .. } = &self.deps;
        let minted = mint(signer, gateway_id, sandbox_id, generation, jti, clock.now().unix(), *ttl);
        faults::crash(faults::AFTER_MINT);
        let put = entry.directory.put_token(&minted.token);
        put.map_err(|cause| RotationError::Publish { sandbox_id, dir: dir.into(), cause })?;
        let renamed_at = clock.now().monotonic;
        self.deps.receipts.published(sandbox_id, generation, renamed_at);
        // A generation is used up by the rename, not by the attempt.
        entry.reserved.start += 1;
        entry.exp = minted.claims.exp;
        let claims = minted.claims;
        Ok(Published { sandbox_id, generation, iat: claims.iat, exp: claims.exp, jti, renamed_at })
    }

    fn succeed(&mut self, published: Published) -> Published {
        let sandbox_id = published.sandbox_id;
        if let Some(entry) = self.entries.get_mut(&sandbox_id) {
            (entry.failures, entry.failing_since) = (0, None);
        }
        let jitter = self.deps.rng.random();
        self.due.set(sandbox_id, published.renamed_at + schedule::rotate_after(self.deps.ttl, jitter));
        self.published.write().unwrap_or_else(PoisonError::into_inner).insert(sandbox_id, published);
        self.tell(Some(RotationEvent::Published(published)));
        published
    }

    fn retry(&mut self, sandbox_id: Uuid, error: &RotationError) {
        let now = self.deps.clock.now();
        let Some(entry) = self.entries.get_mut(&sandbox_id) else { return };
        entry.failures = entry.failures.saturating_add(1);
        let delay = schedule::retry_after(entry.failures, self.deps.rng.random());
        self.due.set(sandbox_id, now.monotonic + delay);
        let event = if !entry.lost && matches!(entry.directory.inspect(), Ok(Finding::DirectoryLost)) {
            entry.lost = true;
            Some(RotationEvent::DirectoryLost { sandbox_id, exp: entry.exp, since: UNIX_EPOCH + now.wall })
        } else {
            entry.fail(sandbox_id, error, now)
        };
        self.tell(event);
    }

    fn unknown(&self, sandbox_id: Uuid) -> Result<(), RotationError> {
        if self.entries.contains_key(&sandbox_id) {
            return Err(RotationError::AlreadyEnrolled { sandbox_id });
        }
        Ok(())
    }

    /// Takes on a directory that is there; its first token comes with the first [`Self::rotate`].
    pub fn insert(&mut self, sandbox_id: Uuid, directory: IdentityDirectory) {
        if self.entries.is_empty() {
            self.looked = self.deps.clock.now();
        }
        let entry = Entry { directory, reserved: 0..0, exp: 0, failures: 0, failing_since: None, lost: false };
        self.entries.insert(sandbox_id, entry);
    }

    fn forget(&mut self, sandbox_id: &Uuid) {
        self.entries.remove(sandbox_id);
        self.due.remove(sandbox_id);
        self.deps.receipts.forget(sandbox_id);
        self.published.write().unwrap_or_else(PoisonError::into_inner).remove(sandbox_id);
        self.troubles.write().unwrap_or_else(PoisonError::into_inner).remove(sandbox_id);
    }

    fn note(&self, event: &RotationEvent) {
        let mut troubles = self.troubles.write().unwrap_or_else(PoisonError::into_inner);
        let (sandbox_id, trouble) = match event {
            // What was healed is not why publishing fails, if it does.
            RotationEvent::Healed { sandbox_id, .. }
                if self.entries.get(sandbox_id).is_some_and(|e| e.failures > 0) =>
            {
                return;
            }
            RotationEvent::Published(Published { sandbox_id, .. }) | RotationEvent::Healed { sandbox_id, .. } => {
                troubles.remove(sandbox_id);
                return;
            }
            RotationEvent::Failed { sandbox_id, error, since } => {
                (*sandbox_id, Trouble { reason: "PublishFailed", message: error.clone(), since: *since })
            }
            RotationEvent::DirectoryLost { sandbox_id, since, .. } => {
                let message =
                    "the identity directory was removed or replaced; the sandbox is restarted onto a fresh one";
                (*sandbox_id, Trouble { reason: "IdentityDirectoryLost", message: message.into(), since: *since })
            }
        };
        troubles.insert(sandbox_id, trouble);
    }

    /// A gateway that does not listen any more is about to end.
    fn tell(&self, event: Option<RotationEvent>) {
        if let Some(event) = event {
            self.note(&event);
            let _unheard = self.deps.events.send(event);
        }
    }
}

impl Entry {
    /// The event of a failure, unless it was already said, or is part of a loss that was.
    fn fail(&mut self, sandbox_id: Uuid, error: &RotationError, now: Now) -> Option<RotationEvent> {
        if self.failing_since.is_some() {
            return None;
        }
        let since = UNIX_EPOCH + now.wall;
        self.failing_since = Some(since);
        (!self.lost).then(|| RotationEvent::Failed { sandbox_id, error: error.to_string(), since })
    }

    /// The directory is as it should be. An attempt to publish that failed is not over by that.
    fn recovered(&mut self) {
        self.lost = false;
        if self.failures == 0 {
            self.failing_since = None;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
