//! A guest that does not come up ends in Error, and the error says why.

use e2e::programs::{probe_as_agent, test_image};
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::{Sandbox, SandboxPhase};

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("evidence::a_guest_that_never_spoke_is_no_success_whatever_its_exit_code", never_spoke),
        trial("evidence::a_guest_that_says_nothing_is_given_up_at_the_deadline", says_nothing),
    ]
}

/// A world in which guests are not booted by the agent, but by a program that does `what`.
pub(crate) fn world_of_probes(what: &str) -> World {
    let path = std::env::temp_dir().join(format!("guest-probe-{}-{what}", std::process::id()));
    probe_as_agent(&path, format!("\n{what}").as_bytes());
    World::empty(TTL).without_trial_boot().with("OPENSHELL_GATEWAY_AGENT_BIN", &path.display().to_string())
}

async fn failed(world: &mut World, name: &str) -> (Sandbox, String) {
    world.up().await;
    world.api().await.create(name, &test_image(), &[]).await.expect("create");
    let sandbox = world.phase(name, SandboxPhase::Error).await;
    let status = sandbox.status.clone().expect("a status");
    let ready = status.conditions.into_iter().find(|condition| condition.r#type == "Ready").expect("a condition");
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Error"));
    assert!(!world.token_file(&sandbox).exists(), "a sandbox in Error keeps no token");
    assert_eq!(world.vmm_processes(), [], "a sandbox in Error has no processes");
    (sandbox, ready.message)
}

/// libkrun's own exit code is 0 for a guest that never reached userland.
async fn never_spoke() {
    let mut world = world_of_probes("exit");
    let (sandbox, evidence) = failed(&mut world, "mute").await;
    let status = sandbox.status.clone().expect("a status");
    assert!(status.main_process_instance_id.starts_with("2-"), "one retry: {status:?}");
    assert_eq!(status.exit_code, None, "nobody reported one");
    assert!(evidence.contains("the vmm exited with code 0"), "{evidence}");
    assert!(evidence.contains("console:\nguest-probe: exit"), "{evidence}");
    world.delete("mute").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// The deadline leaves time for a slow machine to boot the probe, whose words are the evidence.
async fn says_nothing() {
    let mut world = world_of_probes("sleep").with("OPENSHELL_GATEWAY_PROVISIONING_DEADLINE", "30s");
    let (sandbox, evidence) = failed(&mut world, "silent").await;
    assert!(evidence.contains("no hello from the agent within 30s"), "{evidence}");
    assert!(evidence.contains("guest-probe: sleep"), "{evidence}");
    let instance = sandbox.status.expect("a status").main_process_instance_id;
    assert!(instance.starts_with("1-"), "the deadline is for all attempts: {instance}");
    world.delete("silent").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}
