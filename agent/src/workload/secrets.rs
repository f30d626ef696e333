//! The secrets of the sandbox's providers. They come by the session, and are nowhere but in this memory and in the
//! environment of the programs that are started with them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::timeout;

/// See the module.
#[derive(Debug)]
pub struct Secrets {
    held: Mutex<BTreeMap<String, SecretString>>,
    /// Of what is held; 0 before the first time.
    revision: watch::Sender<u64>,
    expected: bool,
}

impl Secrets {
    /// Nothing is held. `expected`: programs are to wait until something is.
    pub fn new(expected: bool) -> Self {
        Self { held: Mutex::default(), revision: watch::Sender::new(0), expected }
    }

    /// Of what is held; 0 for nothing.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// They came.
    pub fn take(&self, environment: BTreeMap<String, SecretString>, revision: u64) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = environment;
        self.revision.send_replace(revision);
    }

    /// What programs get that are started now.
    pub fn environment(&self) -> BTreeMap<String, SecretString> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until they have come, where there are any.
    ///
    /// # Errors
    /// They did not come within `deadline`.
    pub async fn arrived(&self, deadline: Duration) -> Result<(), String> {
        if !self.expected {
            return Ok(());
        }
        let mut revision = self.revision.subscribe();
        match timeout(deadline, revision.wait_for(|revision| *revision != 0)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("the sandbox's secrets did not come from the gateway within {deadline:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_wait_for_secrets_that_are_expected() {
        let none = Secrets::new(false);
        assert_eq!(none.arrived(Duration::ZERO).await, Ok(()));
        let some = Secrets::new(true);
        let late = some.arrived(Duration::ZERO).await.unwrap_err();
        assert!(late.contains("did not come"), "{late}");
        some.take([("A".to_owned(), "geheim".into())].into(), 3);
        assert_eq!(some.arrived(Duration::ZERO).await, Ok(()));
        assert_eq!((some.revision(), some.environment().len()), (3, 1));
        assert!(!format!("{some:?}").contains("geheim"));
    }
}
