//! Who needs the data connection now. An idle sandbox has none: it would cost the gateway more than all else that it
//! holds of the sandbox, and both sides a Sync with every heartbeat.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// A count of those who need it; clones are the same count.
#[derive(Debug, Clone)]
pub struct Demand(watch::Sender<usize>);

impl Default for Demand {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

/// One who needs it, until dropped.
#[derive(Debug)]
pub struct Needed(watch::Sender<usize>);

impl Drop for Needed {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Demand {
    /// From now on, until the result is dropped.
    pub fn need(&self) -> Needed {
        self.0.send_modify(|count| *count += 1);
        Needed(self.0.clone())
    }

    /// Whether anybody does.
    pub fn is_there(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Resolves once somebody does.
    pub async fn arises(&self) {
        // The sender is held here: it cannot be closed.
        let _ = self.0.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Resolves once nobody has for so long.
    pub async fn ceases_for(&self, quiet: Duration) {
        let mut count = self.0.subscribe();
        loop {
            let _ = count.wait_for(|count| *count == 0).await;
            if timeout(quiet, count.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_ceases_when_nobody_needs_it() {
        let demand = Demand::default();
        assert!(timeout(Duration::ZERO, demand.arises()).await.is_err());
        let (first, second) = (demand.need(), demand.clone().need());
        demand.arises().await;
        drop(first);
        assert!(timeout(Duration::ZERO, demand.ceases_for(Duration::ZERO)).await.is_err(), "one still needs it");
        drop(second);
        demand.ceases_for(Duration::ZERO).await;
        assert!(!demand.is_there());
        assert!(timeout(Duration::ZERO, demand.ceases_for(Duration::MAX)).await.is_err(), "it has to be quiet first");
    }
}
