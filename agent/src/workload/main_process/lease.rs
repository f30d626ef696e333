//! Who types: one attachment at a time has the input of the main process. Two that type into one shell would each see
//! commands that nobody wrote.

use tokio::sync::watch;

/// Held by a reader's number until it leaves, or until another one takes it.
#[derive(Debug)]
pub(super) struct Lease {
    holder: watch::Sender<Option<u64>>,
}

impl Default for Lease {
    fn default() -> Self {
        Self { holder: watch::Sender::new(None) }
    }
}

impl Lease {
    /// Gets it where it is free; true where `reader` has it then.
    pub(super) fn claim(&self, reader: u64) -> bool {
        self.holder.send_if_modified(|holder| holder.is_none() && holder.replace(reader).is_none());
        self.is_held_by(reader)
    }

    /// Gets it whoever has it.
    pub(super) fn take(&self, reader: u64) {
        self.holder.send_replace(Some(reader));
    }

    /// Gives it back, where `reader` has it.
    pub(super) fn leave(&self, reader: u64) {
        self.holder.send_if_modified(|holder| *holder == Some(reader) && holder.take().is_some());
    }

    pub(super) fn is_held_by(&self, reader: u64) -> bool {
        *self.holder.borrow() == Some(reader)
    }

    /// Resolves when `reader` has it.
    pub(super) async fn got(&self, reader: u64) {
        let _ = self.holder.subscribe().wait_for(|holder| *holder == Some(reader)).await;
    }

    /// Resolves when `reader`, which has it, has it no more.
    pub(super) async fn lost(&self, reader: u64) {
        let _ = self.holder.subscribe().wait_for(|holder| *holder != Some(reader)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_it_until_it_leaves_or_another_takes_it() {
        let lease = Lease::default();
        assert!(lease.claim(1) && lease.claim(1) && !lease.claim(2));
        lease.leave(2);
        assert!(lease.is_held_by(1), "not his to give");
        lease.take(2);
        lease.lost(1).await;
        assert!(!lease.claim(1) && lease.claim(2));
        lease.leave(2);
        assert!(lease.claim(1));
    }
}
