//! The promises of the product on real microVMs. Started by `e2e/run-with-kvm --test vm [FILTER]`, which finds or
//! makes a place where KVM works; anywhere else every test says that it did not run.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a runner's results are its output")]

use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

#[path = "vm/cuts.rs"]
mod cuts;
#[path = "vm/evidence.rs"]
mod evidence;
#[path = "vm/exec.rs"]
mod exec;
#[path = "vm/hunt.rs"]
mod hunt;
#[path = "vm/identity.rs"]
mod identity;
#[path = "vm/isolation.rs"]
mod isolation;
#[path = "vm/lifecycle.rs"]
mod lifecycle;
#[path = "vm/load.rs"]
mod load;
#[path = "vm/logs.rs"]
mod logs;
#[path = "vm/main_process.rs"]
mod main_process;
#[path = "vm/operator.rs"]
mod operator;
#[path = "vm/outages.rs"]
mod outages;
#[path = "vm/panics.rs"]
mod panics;
#[path = "vm/relay.rs"]
mod relay;
#[path = "vm/sdk.rs"]
mod sdk;
#[path = "vm/secrets.rs"]
mod secrets;
#[path = "vm/services.rs"]
mod services;
#[path = "vm/ssh.rs"]
mod ssh;
#[path = "vm/tokens.rs"]
mod tokens;
#[path = "vm/unprivileged.rs"]
mod unprivileged;
#[path = "vm/uptime.rs"]
mod uptime;

/// The token's life in all these tests: the shortest that there is.
const TTL: Duration = Duration::from_secs(30);
/// No test takes this long; one that does hangs.
const TEST_DEADLINE: Duration = Duration::from_secs(300);

fn main() {
    let mut arguments = Arguments::from_args();
    // The lab has one processor, and tests measure times.
    arguments.test_threads = Some(1);
    let trials = [
        lifecycle::trials(),
        evidence::trials(),
        isolation::trials(),
        exec::trials(),
        ssh::trials(),
        relay::trials(),
        cuts::trials(),
        logs::trials(),
        tokens::trials(),
        identity::trials(),
        operator::trials(),
        main_process::trials(),
        outages::trials(),
        secrets::trials(),
        services::trials(),
        sdk::trials(),
        unprivileged::trials(),
        hunt::trials(),
        load::trials(),
        panics::trials(),
    ];
    // Several parts of names, with commas between them: a lab for each would cost half a minute.
    let wanted = arguments.filter.take().unwrap_or_default();
    let wanted = |trial: &Trial| wanted.split(',').any(|part| trial.name().contains(part));
    let trials = trials.into_iter().flatten().filter(wanted).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    conclusion.exit();
}

/// A test that needs KVM.
fn trial<F: Future<Output = ()> + 'static>(name: &str, test: fn() -> F) -> Trial {
    let told = name.to_owned();
    Trial::ignorable_test(name, move || {
        if !matches!(std::env::var("OPENSHELL_E2E").as_deref(), Ok("here" | "lab")) {
            let reason = "not started by e2e/run-with-kvm, so nobody knows whether KVM works here";
            println!("skipped {told}: {reason}");
            return Ok(Completion::ignored_with(reason));
        }
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| Failed::from(format!("failed to make a runtime: {error}")))?;
        runtime.block_on(async {
            let test = test();
            tokio::pin!(test);
            tokio::select! {
                () = &mut test => {}
                () = tokio::time::sleep(TEST_DEADLINE) => panic!("{told} did not end within {TEST_DEADLINE:?}"),
            }
        });
        println!("{told}: {:.1} s", began.elapsed().as_secs_f64());
        Ok(Completion::Completed)
    })
}
