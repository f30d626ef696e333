//! Worlds whose guests are processes of this machine.

use std::time::Duration;

use e2e::programs::{program, test_image};
use e2e::world::World;
use proto::openshell::v1::{Sandbox, SandboxPhase};

/// A running gateway that believes in the fake vmm.
pub(crate) async fn world(ttl: Duration) -> World {
    let vmm = program("fake-vmm").canonicalize().expect("canonical path");
    let mut world = World::empty(ttl).with("OPENSHELL_VM_VMM_BIN", &vmm.display().to_string()).without_trial_boot();
    world.up().await;
    world
}

/// Sandboxes with a session each, named after their numbers.
pub(crate) async fn connected(world: &World, numbers: std::ops::Range<usize>) -> Vec<Sandbox> {
    let api = world.api().await;
    let mut sandboxes = vec![];
    for number in numbers {
        let name = format!("fake-{number}");
        api.create(&name, &test_image(), &[]).await.expect("create");
        sandboxes.push(world.phase(&name, SandboxPhase::Ready).await);
    }
    sandboxes
}
