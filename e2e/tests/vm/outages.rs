//! Whatever ends on the host, for however long: the sandbox goes on, or comes back.

use e2e::processes::kill;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::SandboxPhase;

use crate::uptime::{TICKER, longest_gap, ticks};
use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("outages::a_gateway_that_is_started_again_and_again_is_not_missed", restarts),
        trial("outages::keys_that_are_lost_are_replaced_under_a_running_sandbox", keys_lost),
        trial("outages::a_vmm_that_is_killed_is_started_again", vmm_killed),
    ]
}

/// Long absences are cases of `recovery`; here it is how often.
async fn restarts() {
    let mut world = World::quick(TTL).await;
    let running = world.ready("running", &TICKER).await;
    let vmm = world.vmm(&running);
    let boot_id = world.api().await.sh("running", "cat /proc/sys/kernel/random/boot_id").await;
    for _ in 0..10 {
        world.down();
        world.up().await;
    }
    same_vm(&world, "after ten quick restarts", &boot_id).await;

    let status = world.gateway.take().expect("a gateway").stop().await;
    assert!(status.success(), "SIGTERM ended it with {status}");
    assert_eq!(world.vmm(&running), vmm, "SIGTERM to the gateway leaves the VM alone");
    world.up().await;
    same_vm(&world, "after a graceful restart", &boot_id).await;
    assert_eq!(world.vmm(&running), vmm);

    let gap = longest_gap(&ticks(&world.api().await, "running").await);
    println!("outages: longest gap of the main process {gap:.2} s");
    assert!(gap < 1.0, "the main process stood still for {gap:.2} s");
    world.delete("running").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Nothing of the old key is left, and nothing in the guest is told of the new one but by its token.
async fn keys_lost() {
    let mut world = World::quick(TTL).await;
    let sandbox = world.ready("running", &TICKER).await;
    let boot_id = world.api().await.sh("running", "cat /proc/sys/kernel/random/boot_id").await;
    let (vmm, before) = (world.vmm(&sandbox), key(&world).await);
    world.gateway.take().expect("a gateway").stop().await;
    std::fs::remove_dir_all(world.state().join("jwt")).expect("lose the keys");
    let refused = world.openshell(&["gateway", "init"]).await;
    assert_eq!(refused.status.code(), Some(43), "{refused:?}");
    let made = world.openshell(&["gateway", "init", "--new-keys"]).await;
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    world.up().await;
    same_vm(&world, "after the loss of all keys", &boot_id).await;
    assert_eq!(world.vmm(&sandbox), vmm);
    assert_ne!(key(&world).await, before);
    let gap = longest_gap(&ticks(&world.api().await, "running").await);
    assert!(gap < 1.0, "the main process stood still for {gap:.2} s");
    world.delete("running").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// The key of the sandbox's token.
async fn key(world: &World) -> String {
    let sandbox = world.api().await.get("running").await.expect("the sandbox");
    let annotations = sandbox.metadata.expect("metadata").annotations;
    annotations.get(proto::annotation::TOKEN_KEY).cloned().expect("a key")
}

async fn same_vm(world: &World, when: &str, boot_id: &str) {
    let began = std::time::Instant::now();
    let sandbox = world.phase("running", SandboxPhase::Ready).await;
    println!("outages: session up {:.1} s {when}", began.elapsed().as_secs_f64());
    let status = sandbox.status.expect("a status");
    assert!(status.main_process_instance_id.starts_with("1-"), "{when}: {status:?}");
    assert_eq!(status.restart_count, 0, "{when}");
    let now = world.api().await.sh("running", "cat /proc/sys/kernel/random/boot_id").await;
    assert_eq!(now, boot_id, "{when}: another boot");
}

async fn vmm_killed() {
    let world = World::quick(TTL).await;
    let first = world.ready("killed", &[]).await;
    let before = world.vmm(&first);
    kill(before.child);
    let second = world.ready_in_boot("killed", 2).await;
    let between = world.vmm(&second);
    assert!(between.child != before.child && between.keeper != before.keeper);
    kill(between.keeper);
    let third = world.ready_in_boot("killed", 3).await;
    assert_eq!(third.status.clone().expect("a status").restart_count, 2);
    assert_eq!(world.vmm_processes().len(), 2, "the child of a killed keeper died with it");
    assert_eq!(world.api().await.sh("killed", "echo up").await, "up\n");
    world.delete("killed").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
