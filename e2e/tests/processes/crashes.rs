//! A gateway that is killed at every step between a mint and the end of a revocation.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::wait::until;
use e2e::world::World;
use proto::openshell::v1::{Sandbox, SandboxPhase};

use crate::stage::{SOON, TTL, accepted, delivered, world};

/// On disk a sandbox's reservation is always beyond what was published.
fn reserved(state: &Path, sandbox: &Sandbox) -> u64 {
    let id = &sandbox.metadata.as_ref().expect("metadata").id;
    let store = rusqlite::Connection::open(state.join("gateway.db")).expect("open the store");
    let question = "SELECT reserved FROM generations WHERE sandbox_id = ?1";
    store.query_row(question, [id], |row| row.get::<_, i64>(0)).expect("a reservation").unsigned_abs()
}

/// Has the gateway die at `point` of what the verb begins; how the verb ended.
async fn die_at(world: &mut World, point: &str, verb: &str) -> bool {
    std::fs::write(world.state().join("faults"), format!("{point}\n")).expect("switch the fault on");
    let ended =
        world.openshell(&["--gateway-socket", &world.socket().display().to_string(), "token", verb, "box"]).await;
    let mut gateway = world.gateway.take().expect("a gateway");
    let status = gateway.ended(SOON).await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}: {status}");
    ended.status.success()
}

async fn back(world: &mut World, sandbox: &Sandbox, point: &str) {
    world.up().await;
    world.phase("box", SandboxPhase::Ready).await;
    delivered(world, "box", &format!("after {point}")).await;
    let token = world.token(sandbox);
    assert!(accepted(world, sandbox, &token).await, "{point}: the token on disk is not good");
    let stage = world.places(sandbox).join(proto::layout::STAGE_DIR);
    assert_eq!(std::fs::read_dir(stage).expect("the stage").count(), 0, "{point}: something is left in the stage");
    let status = world.api().await.get("box").await.expect("it exists").status.expect("a status");
    assert!(status.main_process_instance_id.starts_with("1-"), "{point}: restarted: {status:?}");
    let generation: u64 = world.api().await.token("box").await["generation"].parse().expect("a number");
    let reserved = reserved(&world.state(), sandbox);
    assert!(generation < reserved, "{point}: generation {generation}, reserved up to {reserved}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_a_good_token_whenever_its_gateway_dies() {
    let mut world = world().await;
    let sandbox = world.ready("box", &[]).await;
    for point in ["after-mint", "after-stage", "after-rename", "after-nudge", "after-receipt"] {
        let done = world.openshell(&["token", "refresh", "box"]).await;
        assert!(done.status.success(), "{done:?}");
        let (before, began) = (world.token(&sandbox), Instant::now());
        die_at(&mut world, &format!("crash-{point}"), "refresh").await;
        let left = world.token(&sandbox);
        let renamed = !matches!(point, "after-mint" | "after-stage");
        assert_eq!(left != before, renamed, "{point}: the file holds the old token or the new one");
        back(&mut world, &sandbox, point).await;
        // Replaced by the adoption's, and good to its own end, which a slow machine may have reached.
        let young = began.elapsed() < TTL / 2;
        assert!(accepted(&world, &sandbox, &left).await || !young, "{point}: what was on disk is not good any more");
    }
    world.delete("box").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_was_stored_holds_whenever_its_gateway_dies() {
    let mut world = world().await;
    let sandbox = world.ready("box", &[]).await;
    for (point, told, revoked) in
        [("before-floor", false, false), ("after-floor", false, true), ("after-close", true, true)]
    {
        delivered(&world, "box", "before a revocation").await;
        let stolen = world.token(&sandbox);
        let success = die_at(&mut world, &format!("crash-{point}"), "revoke").await;
        assert_eq!(success, told, "{point}: whoever asked was told something else");
        back(&mut world, &sandbox, point).await;
        assert_eq!(accepted(&world, &sandbox, &stolen).await, !revoked, "{point}");
    }
    // And one that nobody disturbs.
    let stolen = world.token(&sandbox);
    let done = world.openshell(&["token", "revoke", "box"]).await;
    assert!(done.status.success(), "{done:?}");
    assert!(!accepted(&world, &sandbox, &stolen).await);
    let mut thief = tokio::time::interval(Duration::from_millis(500));
    until("the agent to follow", SOON, async || {
        thief.tick().await;
        let token = world.token(&sandbox);
        accepted(&world, &sandbox, &token).await.then_some(())
    })
    .await;
    delivered(&world, "box", "after a revocation").await;
    world.delete("box").await;
}
