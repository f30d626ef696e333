//! Waiting for a level, with a deadline that says what was waited for.

use std::time::{Duration, Instant};

/// Everything is slower in the lab; a deadline is for telling "never" from "not yet".
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Polls `level` until it gives something.
///
/// # Panics
/// At the deadline, with `what`.
pub async fn until<T>(what: &str, deadline: Duration, mut level: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = level().await {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
