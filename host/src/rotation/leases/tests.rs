use std::{future::Future, pin::pin, task::Poll};

use super::*;

const BOX: Uuid = Uuid::from_u128(1);
const LEEWAY: Duration = Duration::from_secs(3);
const NOW: u64 = 1_800_000_000;

fn claims(generation: u64, exp: u64) -> Claims {
    Claims {
        sub: String::new(),
        iss: String::new(),
        aud: String::new(),
        sandbox_id: BOX,
        iat: NOW,
        exp,
        jti: Uuid::nil(),
        generation,
    }
}

fn wall(unix: u64) -> Duration {
    Duration::from_secs(unix)
}

#[test]
fn terms() {
    for (wall_now, exp, expected) in [
        (NOW, NOW + 30, 33),
        (NOW + 20, NOW + 30, 13),
        (NOW + 32, NOW + 30, 1),
        (NOW + 33, NOW + 30, 0),
        (NOW + 3 * 86400, NOW + 30, 0),
        // Set back by an hour: not longer than a whole life.
        (NOW - 3600, NOW + 30, 33),
    ] {
        let expected = Duration::from_secs(expected);
        assert_eq!(term(&claims(1, exp), LEEWAY, wall(wall_now)), expected, "{wall_now} {exp}");
    }
}

/// Whether it is over, without waiting.
async fn over(lease: &Lease) -> Option<LeaseEnd> {
    let mut ended = pin!(lease.ended());
    std::future::poll_fn(|context| {
        Poll::Ready(match ended.as_mut().poll(context) {
            Poll::Ready(end) => Some(end),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn extended_by_newer_tokens_only() {
    let lease = Connections::new().open(BOX).unwrap();
    assert_eq!(over(&lease).await, None);
    assert!(!lease.0.term.borrow().used);
    lease.extend(&claims(5, NOW + 30), LEEWAY, wall(NOW));
    let deadline = lease.0.term.borrow().deadline;
    lease.extend(&claims(4, NOW + 20), LEEWAY, wall(NOW));
    assert_eq!((lease.0.term.borrow().deadline, lease.generation()), (deadline, 5));
    lease.extend(&claims(6, NOW + 45), LEEWAY, wall(NOW));
    assert!(lease.0.term.borrow().deadline > deadline + Duration::from_secs(10));
    assert_eq!((over(&lease).await, lease.generation()), (None, 6));
}

#[tokio::test]
async fn ends_with_its_token() {
    let lease = Connections::new().open(BOX).unwrap();
    let waiting = tokio::spawn({
        let lease = lease.clone();
        async move { lease.ended().await }
    });
    tokio::task::yield_now().await;
    // The wait is for the new deadline, which has come, and no longer for the first request.
    lease.extend(&claims(1, NOW + 30), LEEWAY, wall(NOW + 33));
    assert_eq!(waiting.await.unwrap(), LeaseEnd::Expired);
}

#[tokio::test]
async fn a_connection_that_says_nothing_ends() {
    let lease = Connections::new().open(BOX).unwrap();
    lease.0.term.send_modify(|term| term.deadline = Instant::now());
    assert_eq!(lease.ended().await, LeaseEnd::NeverUsed);
    lease.close(CloseReason::Shutdown);
    lease.close(CloseReason::Deleted);
    assert_eq!(lease.ended().await, LeaseEnd::Closed(CloseReason::Shutdown));
}

#[tokio::test]
async fn closed_by_sandbox_and_by_floor() {
    let connections = Connections::new();
    let [old, new, unused] = [(); 3].map(|()| connections.open(BOX).unwrap());
    let other = connections.open(Uuid::from_u128(2)).unwrap();
    old.extend(&claims(6, NOW + 30), LEEWAY, wall(NOW));
    new.extend(&claims(7, NOW + 30), LEEWAY, wall(NOW));
    connections.close_below(BOX, 7);
    let revoked = Some(LeaseEnd::Closed(CloseReason::Revoked));
    assert_eq!([over(&old).await, over(&unused).await, over(&new).await], [revoked, revoked, None]);
    connections.close_all(BOX, CloseReason::Deleted);
    assert_eq!(over(&new).await, Some(LeaseEnd::Closed(CloseReason::Deleted)));
    assert_eq!(over(&other).await, None);
}

#[tokio::test]
async fn at_most_so_many_per_vm() {
    let connections = Connections::new();
    let mut leases: Vec<_> = (0..CONNECTIONS_PER_VM).map(|_| connections.open(BOX).unwrap()).collect();
    assert_eq!(connections.open(BOX).unwrap_err(), NotOpened::TooMany(BOX));
    connections.open(Uuid::from_u128(2)).unwrap();
    let clone = leases[0].clone();
    drop(leases.remove(0));
    assert!(connections.open(BOX).is_err(), "a clone is the same connection");
    drop(clone);
    leases.push(connections.open(BOX).unwrap());
    drop(leases);
    assert!(connections.0.open.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_tries_tokens_out_is_cut_off_and_waits() {
    let connections = Connections::new();
    let (flooded, quiet) = (connections.open(BOX).unwrap(), connections.open(BOX).unwrap());
    for _ in 1..REFUSALS_PER_CONNECTION {
        flooded.refused();
    }
    assert_eq!(over(&flooded).await, None);
    flooded.refused();
    assert_eq!(over(&flooded).await, Some(LeaseEnd::Closed(CloseReason::Flooded)));
    assert_eq!(over(&quiet).await, None, "what is open stays");
    assert_eq!(connections.open(BOX).unwrap_err(), NotOpened::Flooded(BOX));
    assert!(connections.open(Uuid::from_u128(99)).is_ok(), "of others nothing is kept");
    assert!(!connections.0.is_paused(BOX, Instant::now() + FLOOD_PAUSE));
    assert!(connections.open(BOX).is_ok());
}
