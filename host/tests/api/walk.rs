//! Lifecycles at random, with a driver that fails now and then: no record is lost, and every sandbox can be deleted.

use host::sandbox::decide::Event;
use host::sandbox::driver::ComputeDriver as _;
use host::sandbox::task::Handle;
use proto::vmm::Ended;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::driver::Call;
use crate::stage::{Stage, removed, request};

const WALKS: u64 = 40;
const STEPS: u32 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn no_failure_of_the_driver_loses_a_sandbox_or_keeps_one() {
    let mut walks = JoinSet::new();
    for seed in 0..WALKS {
        walks.spawn(walk(seed));
    }
    while let Some(walked) = walks.join_next().await {
        walked.expect("a walk");
    }
}

async fn walk(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stage = Stage::up().await;
    for call in [Call::Prepare, Call::Start, Call::Kill, Call::Remove] {
        for nth in 1..=3 {
            if rng.random_bool(0.3) {
                stage.driver.fail(call, nth);
            }
        }
    }
    let dev = stage.registry.create(&request("dev")).await.expect("create");
    let mut said = vec![];
    for _ in 0..STEPS {
        said.push(step(&stage, &dev, &mut rng).await);
        let kept = stage.store.has(dev.id) && stage.registry.get(dev.id).is_some();
        assert!(kept, "seed {seed}: the sandbox was lost after {said:?}");
    }
    // Accepted from wherever it is, and carried out whatever fails on the way.
    dev.ask(Event::Delete).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?} to a delete after {said:?}"));
    removed(&stage, &dev).await;
    assert!(!stage.store.has(dev.id), "seed {seed}: its record is left after {said:?}");
    let left = stage.driver.is_running(dev.id) || !stage.driver.found().is_empty();
    assert!(!left, "seed {seed}: its compute or its files are left after {said:?}");
    assert_eq!(stage.rotation.published(dev.id), None, "seed {seed}: a token is left after {said:?}");
}

/// One thing that happens; what came of it, for the message of a failure.
async fn step(stage: &Stage, dev: &Handle, rng: &mut StdRng) -> String {
    let instance = dev.view().record.instance_id.clone();
    let event = match rng.random_range(0..9) {
        0 | 1 => Event::Start,
        2 => Event::Stop,
        3 => Event::SessionLost { epoch: 1 },
        4 => Event::MainExited(3),
        5 => Event::DirectoryLost,
        6 => {
            stage.driver.end(dev.id, Ended::Signalled(9));
            return "ended".into();
        }
        7 => Event::AgentRefused,
        _ => Event::SessionUp { epoch: 1 },
    };
    let outcome = match event {
        Event::Start | Event::Stop | Event::DirectoryLost => dev.ask(event).await,
        _ => dev.told(&instance, event).await,
    };
    match outcome {
        Ok(view) => format!("{event:?} -> {:?}", view.phase()),
        Err(error) => format!("{event:?} -> {error:?}"),
    }
}
