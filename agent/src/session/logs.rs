//! Log lines to the gateway: bursts on the data connection.
//!
//! A burst is one `PushSandboxLogs` of a few batches, and its answer says that they have been taken. So no more is on
//! its way than one burst, of which a stream's window is sent ahead; relays and Syncs of the connection have the rest
//! of its window. No stream stays open while there is nothing to say.
//!
//! Each burst begins with a Sync, whose reply names the last line that the gateway has: a gateway that was started
//! again gets all that is still kept, and one that has taken lines whose answer was lost gets none of them twice. The
//! Syncs of the control connection tell the same with each heartbeat, so that a gateway that has forgotten everything is
//! noticed although nothing new is said.
//!
//! What programs say, warnings and gaps are worth a data connection; what else the agent says waits for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::log::{
    BATCH_BYTES, BATCH_LINES, FIELD_BOOT, FIELD_CONTINUES, FIELD_MISSING, FIELD_REASON, FIELD_SEQUENCE, TARGET_GAP,
};
use proto::openshell::v1::{PushSandboxLogsRequest, SandboxLogLine};
use proto::{budget, fault};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::Session;
use super::connection::Client;
use super::control::brief;
use super::sync::sync;
use crate::console::RateLimit;
use crate::faults;
use crate::logs::{Entry, Gap, Line};

/// For how long lines are gathered.
const GATHER: Duration = Duration::from_millis(200);
/// Batches in one burst.
const BURST: usize = 8;
/// After a burst that was not taken.
const PAUSE: Duration = Duration::from_secs(1);
/// After one that the gateway does not know what to do with.
const LONG_PAUSE: Duration = Duration::from_secs(60);
static NOT_TAKEN: RateLimit = RateLimit::new(Duration::from_secs(10));

/// Sends for ever. Dropped, it ends.
pub(super) async fn run(session: Arc<Session>, client: watch::Receiver<Option<Client>>) {
    restarted(PAUSE, || send(session.clone(), client.clone())).await;
}

/// A defect in here costs nobody else anything: it is reported and begun again.
async fn restarted<F: Future<Output = ()> + Send + 'static>(pause: Duration, mut begin: impl FnMut() -> F) {
    let mut running = JoinSet::new();
    loop {
        running.spawn(begin());
        let ended = running.join_next().await;
        tracing::error!(?ended, "the task that sends log lines ended");
        sleep(pause).await;
    }
}

async fn send(session: Arc<Session>, mut client: watch::Receiver<Option<Client>>) {
    let (mut written, mut taken, mut hurry) = (session.logs.written(), session.logs.known(), session.logs.hurried());
    loop {
        faults::reach(fault::LOGS);
        // Before the look, so that what comes between look and wait is not missed.
        let (end, known) = (*written.borrow_and_update(), *taken.borrow_and_update());
        let there = client.borrow_and_update().is_some();
        let pressing = end.pressing > known || (*hurry.borrow_and_update() && end.last > known);
        let waiting = there && end.last > known;
        if !pressing && !waiting {
            let gone = tokio::select! {
                changed = written.changed() => changed.is_err(),
                changed = taken.changed() => changed.is_err(),
                changed = client.changed() => changed.is_err(),
                changed = hurry.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
            continue;
        }
        let needed = pressing.then(|| session.demand.need());
        tokio::select! {
            () = sleep(GATHER) => {}
            _ = hurry.wait_for(|hurry| *hurry) => {}
        }
        let Ok(connected) = client.wait_for(Option::is_some).await.map(|client| client.clone()) else { return };
        let Some(mut connected) = connected else { continue };
        let outcome = burst(&session, &mut connected).await;
        drop(needed);
        if let Err(status) = outcome {
            if pressing && let Some(suppressed) = NOT_TAKEN.admit(Instant::now()) {
                tracing::info!(suppressed, "the gateway did not take log lines: {}", brief(&status));
            }
            let pause = if status.code() == Code::Unimplemented { LONG_PAUSE } else { PAUSE };
            tokio::select! {
                () = sleep(pause) => {}
                _ = client.changed() => {}
            }
        }
    }
}

/// Sends what comes after the lines that the gateway has, which it is asked for: it may have taken those whose answer
/// was lost, or have forgotten all.
async fn burst(session: &Arc<Session>, client: &mut Client) -> Result<(), Status> {
    let mut taken = sync(client, session).await?.log_sequence;
    let mut batches = vec![];
    while batches.len() < BURST {
        let entries = session.logs.after(taken, BATCH_LINES, BATCH_BYTES);
        let Some(last) = entries.last().map(Entry::last) else { break };
        taken = last;
        let logs = entries.into_iter().map(|entry| message(session, entry)).collect();
        batches.push(PushSandboxLogsRequest { sandbox_id: session.spec.sandbox_id.to_string(), logs });
    }
    if !batches.is_empty() {
        let presented = session.tokens.generation();
        let push = client.openshell.push_sandbox_logs(tokio_stream::iter(batches));
        timeout(budget::UNARY, push)
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer within {:?}", budget::UNARY)))?
            .inspect_err(|status| session.heed(status, presented))?;
    }
    session.logs.taken(taken);
    Ok(())
}

fn message(session: &Session, entry: Entry) -> SandboxLogLine {
    let number = |sequence: u64| {
        let boot = session.spec.instance_id.clone();
        [(FIELD_BOOT.to_owned(), boot), (FIELD_SEQUENCE.to_owned(), sequence.to_string())]
    };
    match entry {
        Entry::Line(Line { sequence, at, level, target, source, message, continues }) => SandboxLogLine {
            event_time: Some(timestamp(at)),
            level: level.to_owned(),
            target: target.to_owned(),
            message: message.into(),
            source: source.to_string(),
            fields: number(sequence)
                .into_iter()
                .chain(continues.then(|| (FIELD_CONTINUES.to_owned(), "true".to_owned())))
                .collect(),
            ..Default::default()
        },
        Entry::Gap(Gap { first, last, source, reason }) => {
            let missing = last - first + 1;
            let facts =
                [(FIELD_MISSING.to_owned(), missing.to_string()), (FIELD_REASON.to_owned(), reason.name().to_owned())];
            SandboxLogLine {
                event_time: Some(timestamp(crate::sys::clock::wall())),
                level: "WARN".to_owned(),
                target: TARGET_GAP.to_owned(),
                message: format!("{missing} lines are missing: {reason}"),
                source: source.to_string(),
                fields: number(last).into_iter().chain(facts).collect(),
                ..Default::default()
            }
        }
    }
}

fn timestamp(at: Duration) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: i64::try_from(at.as_secs()).unwrap_or(0), nanos: at.subsec_nanos() as i32 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_panic_is_not_the_end() {
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        let task = tokio::spawn(restarted(Duration::from_millis(1), move || {
            let number = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(number > 2, "panics three times");
                std::future::pending().await
            }
        }));
        let fourth = async {
            while begun.load(Ordering::Relaxed) < 4 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), fourth).await.expect("begun a fourth time");
        assert!(!task.is_finished());
        task.abort();
    }
}
