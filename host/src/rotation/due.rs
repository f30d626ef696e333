//! What is due, by time.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use uuid::Uuid;

/// At most one time per sandbox, in order. A look costs what is due, not what is there.
#[derive(Debug, Default)]
pub struct Due {
    order: BTreeSet<(Instant, Uuid)>,
    times: HashMap<Uuid, Instant>,
}

impl Due {
    /// Sets or replaces the time of a sandbox.
    pub fn set(&mut self, sandbox_id: Uuid, at: Instant) {
        self.remove(&sandbox_id);
        self.times.insert(sandbox_id, at);
        self.order.insert((at, sandbox_id));
    }

    /// Forgets a sandbox.
    pub fn remove(&mut self, sandbox_id: &Uuid) {
        if let Some(at) = self.times.remove(sandbox_id) {
            self.order.remove(&(at, *sandbox_id));
        }
    }

    /// Takes out the earliest sandbox whose time has come.
    pub fn pop(&mut self, now: Instant) -> Option<Uuid> {
        let (_, sandbox_id) = *self.order.first().filter(|(at, _)| *at <= now)?;
        self.remove(&sandbox_id);
        Some(sandbox_id)
    }

    /// When there is something to do.
    pub fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn earliest_first_one_time_each() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        let mut due = Due::default();
        due.set(a, at(3));
        due.set(b, at(2));
        due.set(c, at(1));
        due.set(a, at(0));
        due.remove(&b);
        assert_eq!(due.next(), Some(at(0)));
        assert_eq!(due.pop(at(0)), Some(a));
        assert_eq!(due.pop(at(0)), None);
        assert_eq!(due.pop(at(5)), Some(c));
        assert_eq!((due.pop(at(5)), due.next()), (None, None));
    }
}
