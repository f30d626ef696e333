//! Delivery, observed: which generation was published, and which has been presented.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Publications per sandbox whose times are kept until they are presented.
const HISTORY: usize = 8;

/// From the rename of a token to its first presentation.
pub type Delay = Duration;

/// What is known of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The newest generation in the directory.
    pub published: u64,
    /// When it was put there.
    pub published_at: Instant,
    /// The highest generation that was presented, and when it first was.
    pub seen: Option<(u64, Instant)>,
    /// How long the newest presented generation took.
    pub last_delay: Option<Delay>,
    /// The oldest publication that is newer than what was presented; nothing once the newest has been.
    pub unseen_since: Option<Instant>,
}

impl Receipt {
    /// For how long the agent has been without a token that is there for it.
    pub fn unseen_for(&self, now: Instant) -> Option<Duration> {
        self.unseen_since.map(|since| now.saturating_duration_since(since))
    }
}

/// All sandboxes. Shared by the thread that publishes and the tasks that see tokens presented.
#[derive(Debug, Default)]
pub struct Receipts {
    sandboxes: Mutex<HashMap<Uuid, Deliveries>>,
}

#[derive(Debug, Default)]
struct Deliveries {
    published: VecDeque<(u64, Instant)>,
    seen: Option<(u64, Instant)>,
    last_delay: Option<Delay>,
}

impl Receipts {
    /// Nothing published yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token was renamed into place.
    pub fn published(&self, sandbox_id: Uuid, generation: u64, at: Instant) {
        let mut sandboxes = self.lock();
        let deliveries = sandboxes.entry(sandbox_id).or_default();
        deliveries.published.push_back((generation, at));
        if deliveries.published.len() > HISTORY {
            deliveries.published.pop_front();
        }
        // The agent can be faster than the thread that tells us.
        if let Some((seen, seen_at)) = deliveries.seen
            && seen == generation
        {
            deliveries.last_delay = Some(seen_at.saturating_duration_since(at));
        }
    }

    /// A verified token of that generation was presented. The delay since its rename, if this is the first time.
    pub fn presented(&self, sandbox_id: Uuid, generation: u64, at: Instant) -> Option<Delay> {
        let mut sandboxes = self.lock();
        let deliveries = sandboxes.entry(sandbox_id).or_default();
        if deliveries.seen.is_some_and(|(seen, _)| seen >= generation) {
            return None;
        }
        deliveries.seen = Some((generation, at));
        let (_, published_at) = deliveries.published.iter().find(|(published, _)| *published == generation)?;
        let delay = at.saturating_duration_since(*published_at);
        deliveries.last_delay = Some(delay);
        Some(delay)
    }

    /// What is known of a sandbox; nothing before its first publication.
    pub fn latest(&self, sandbox_id: Uuid) -> Option<Receipt> {
        self.lock().get(&sandbox_id)?.receipt()
    }

    /// The sandbox has stopped.
    pub fn forget(&self, sandbox_id: &Uuid) {
        self.lock().remove(sandbox_id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Deliveries>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliveries {
    fn receipt(&self) -> Option<Receipt> {
        let (published, published_at) = *self.published.back()?;
        let seen = self.seen.map_or(0, |(generation, _)| generation);
        let unseen = self.published.iter().find(|(generation, _)| *generation > seen);
        Some(Receipt {
            published,
            published_at,
            seen: self.seen,
            last_delay: self.last_delay,
            unseen_since: unseen.map(|(_, at)| *at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOX: Uuid = Uuid::from_u128(1);

    #[test]
    fn first_presentation_gives_the_delay() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let receipts = Receipts::new();
        assert_eq!(receipts.latest(BOX), None);
        receipts.published(BOX, 1, at(0));
        assert_eq!(receipts.presented(BOX, 1, at(2)), Some(Duration::from_secs(2)));
        assert_eq!(receipts.presented(BOX, 1, at(3)), None);
        receipts.published(BOX, 2, at(10));
        receipts.published(BOX, 3, at(20));
        assert_eq!(receipts.presented(BOX, 1, at(21)), None);
        let latest = receipts.latest(BOX).unwrap();
        assert_eq!((latest.published, latest.seen), (3, Some((1, at(2)))));
        assert_eq!(latest.unseen_for(at(25)), Some(Duration::from_secs(15)));
        assert_eq!(receipts.presented(BOX, 3, at(26)), Some(Duration::from_secs(6)));
        assert_eq!(receipts.latest(BOX).unwrap().unseen_since, None);
        receipts.forget(&BOX);
        assert_eq!(receipts.latest(BOX), None);
    }

    #[test]
    fn an_agent_that_is_faster_than_the_report() {
        let now = Instant::now();
        let receipts = Receipts::new();
        assert_eq!(receipts.presented(BOX, 1, now), None);
        receipts.published(BOX, 1, now - Duration::from_millis(1));
        assert_eq!(receipts.latest(BOX).unwrap().last_delay, Some(Duration::from_millis(1)));
        assert_eq!(receipts.latest(BOX).unwrap().unseen_since, None);
    }

    #[test]
    fn old_times_are_dropped() {
        let now = Instant::now();
        let receipts = Receipts::new();
        for generation in 1..100 {
            receipts.published(BOX, generation, now);
        }
        assert_eq!(receipts.sandboxes.lock().unwrap()[&BOX].published.len(), HISTORY);
    }
}
