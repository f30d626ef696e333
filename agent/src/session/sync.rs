//! One `Sync`: presents the bearer on a connection, and learns what the gateway wants the agent to know.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proto::budget;
use proto::openshell::vm::v1::SyncReply;
use tonic::{Code, Status};

use super::connection::Client;
use super::{Session, Stop};
use crate::sys::{clock, processes};

/// A wall clock is stepped only for more than this, plus what the round trip leaves unsure.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(100);
/// The grace of a stop order that names none.
const DEFAULT_GRACE: Duration = budget::STOP_GUEST;

/// Syncs, and once more where the gateway has published what was not held yet: it says so, or has revoked what was.
/// A revocation that overtakes a Sync costs no connection, and with it no exec.
pub(super) async fn sync(client: &mut Client, session: &Arc<Session>) -> Result<SyncReply, Status> {
    let held = session.tokens.generation();
    let reply = match sync_once(client, session).await {
        Err(refusal) if refusal.code() == Code::Unauthenticated && session.tokens.generation() > held => {
            sync_once(client, session).await?
        }
        other => other?,
    };
    if reply.published_generation <= session.tokens.generation() || !session.refresh_token() {
        return Ok(reply);
    }
    let reply = sync_once(client, session).await?;
    session.tick.send_modify(|tick| *tick += 1);
    Ok(reply)
}

async fn sync_once(client: &mut Client, session: &Arc<Session>) -> Result<SyncReply, Status> {
    let (sent, generation) = (Instant::now(), session.tokens.generation());
    let request = session.sync_request();
    let reply = tokio::time::timeout(budget::UNARY, client.vm.sync(request))
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no answer to Sync within {:?}", budget::UNARY)))?
        .inspect_err(|status| session.heed(status, generation))?
        .into_inner();
    let round_trip = sent.elapsed();
    if session.presented.fetch_max(generation, Ordering::Relaxed) < generation {
        tracing::info!(
            generation,
            round_trip_us = round_trip.as_micros(),
            resident_kib = processes::resident_kib(),
            wakeups = processes::wakeups(),
            "presented a new token"
        );
    }
    session.logs.taken(reply.log_sequence);
    step_clock(&reply, round_trip);
    if let Some(order) = &reply.stop {
        let grace = order.grace.and_then(|grace| Duration::try_from(grace).ok()).unwrap_or(DEFAULT_GRACE);
        let stop = Stop { grace, reason: order.reason.clone() };
        session.stop.send_if_modified(|known| known.is_none() && known.replace(stop).is_none());
    }
    Ok(reply)
}

fn step_clock(reply: &SyncReply, round_trip: Duration) {
    let Some(host) = reply.wall_time.as_ref().and_then(since_epoch) else { return };
    let guest = clock::wall();
    let Some(to) = correction(guest, host, round_trip) else { return };
    match clock::set_wall(to) {
        Ok(()) => tracing::info!(from = ?guest, ?to, "stepped the clock"),
        Err(error) => tracing::warn!(%error, "failed to step the clock"),
    }
}

fn since_epoch(time: &prost_types::Timestamp) -> Option<Duration> {
    Some(Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?))
}

/// What the guest's clock is to be set to, if it is off by more than can be told from here. The host's time was
/// taken somewhere within the round trip: half of it is the best guess. A host's clock that goes back is followed, to
/// before the boot, too: a guest that stayed ahead of its host would be set back again with each heartbeat.
fn correction(guest: Duration, host: Duration, round_trip: Duration) -> Option<Duration> {
    let now = host + round_trip / 2;
    (guest.abs_diff(now) > CLOCK_TOLERANCE + round_trip).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_stepped_only_when_it_is_surely_off() {
        let ms = Duration::from_millis;
        const DAYS: u64 = 3 * 24 * 3600 * 1000;
        for (guest, host, round_trip, to) in [
            (1000, 1000, 0, None),
            (1100, 1000, 0, None),
            (1101, 1000, 0, Some(1000)),
            (899, 1000, 0, Some(1000)),
            (1000, 1200, 200, None),
            (1000, 1201, 200, Some(1301)),
            (9000, 1000, 200, Some(1100)),
            // Set by root of the guest, days ahead and days behind.
            (DAYS + 9000, 9000, 20, Some(9010)),
            (DAYS - 9000, 2 * DAYS, 20, Some(2 * DAYS + 10)),
        ] {
            let stepped = correction(ms(guest), ms(host), ms(round_trip));
            assert_eq!(stepped, to.map(ms), "{guest} {host} {round_trip}");
        }
    }
}
