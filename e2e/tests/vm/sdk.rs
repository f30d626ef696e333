//! The published Python SDK, unchanged, on a real sandbox.

use std::path::Path;

use e2e::programs::{default_image, repository, test_image};
use e2e::world::World;
use libtest_mimic::Trial;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("sdk::found_by_its_registration_with_certificates", registered),
        trial("sdk::in_clear_text_by_its_address", clear_text),
    ]
}

async fn registered() {
    let world = World::quick(TTL).await;
    // Python is in this one.
    check(&world, &default_image(), None).await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

async fn clear_text() {
    let mut world = World::empty(TTL).without_trial_boot().with("OPENSHELL_GATEWAY_DISABLE_TLS", "true");
    world.up().await;
    let endpoint = world.registered_endpoint();
    let address = endpoint.strip_prefix("http://").unwrap_or_else(|| panic!("{endpoint} is no clear text"));
    check(&world, &test_image(), Some(address)).await;
}

async fn check(world: &World, image: &Path, endpoint: Option<&str>) {
    let sdk = repository().join("target/sdk");
    let python = std::fs::read_to_string(sdk.join("python")).expect("e2e/setup/sdk has been run");
    let mut command = tokio::process::Command::new(Path::new(python.trim()));
    command.arg(repository().join("e2e/sdk/check.py")).arg(image.canonicalize().expect("canonical path"));
    command.args(endpoint).env_clear().envs(world.environment()).env("PYTHONPATH", sdk.join("site"));
    let output = command.kill_on_drop(true).output().await.expect("run python");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.ends_with("sdk: all of it works\n"), "{stdout}\n{output:?}");
}
