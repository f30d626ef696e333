//! What counts as back.

use std::time::{Duration, Instant, SystemTime};

use e2e::api::Api;
use proto::annotation;
use proto::openshell::v1::{Sandbox, SandboxPhase};

use crate::Runtime;
use crate::cases::{Boot, Case};
use crate::column::Column;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// An RPC or an exec that takes longer has failed; a later one may not.
const ANSWER: Duration = Duration::from_secs(10);
/// How far the clocks of guest and host may be apart, as seen by whole seconds.
const CLOCK: u64 = 1;

/// A sandbox before something happened to it.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    name: &'static str,
    instance: String,
    generation: u64,
}

impl Before {
    /// As the gateway has it now.
    pub(crate) async fn now(column: &Column, name: &'static str) -> Result<Self, String> {
        Ok(Self::of(name, &get(&api(column).await?, name).await?))
    }

    /// As it was when the gateway said this.
    pub(crate) fn of(name: &'static str, sandbox: &Sandbox) -> Self {
        let generation = number(sandbox, annotation::TOKEN_GENERATION);
        Self { name, instance: instance(sandbox), generation }
    }

    /// Waits until it is there again as the case wants it. How long that took, counted from `since`, the end of the
    /// cause.
    pub(crate) async fn back(&self, column: &Column, case: Case, since: Instant) -> Result<Duration, String> {
        // Late is another failure than never.
        let patience = 3 * column.bound();
        loop {
            let missing = match self.look(column, case).await {
                Ok(()) => return Ok(since.elapsed()),
                Err(Missing::ForEver(why)) => return Err(format!("{}: {why}", self.name)),
                Err(Missing::Yet(why)) => why,
            };
            if since.elapsed() > patience {
                return Err(format!("{}: after {patience:.1?} {missing}", self.name));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self, column: &Column, case: Case) -> Result<(), Missing> {
        let api = api(column).await?;
        let sandbox = get(&api, self.name).await?;
        self.is_right_boot(&sandbox, case.boot())?;
        is_ready(&sandbox)?;
        self.has_presented_a_valid_token(&sandbox, case.renews())?;
        if column.runtime == Runtime::Vm {
            answers(&api, self.name).await?;
        }
        Ok(())
    }

    fn is_right_boot(&self, sandbox: &Sandbox, wanted: Boot) -> Result<(), Missing> {
        let now = instance(sandbox);
        let counter = |instance: &str| instance.split('-').next().and_then(|boot| boot.parse().ok()).unwrap_or(0_u64);
        match (wanted, counter(&now).saturating_sub(counter(&self.instance))) {
            (Boot::Same, _) if now == self.instance => Ok(()),
            (Boot::Next, 1) => Ok(()),
            (Boot::Next, 0) => Err(Missing::Yet("it was not started again".into())),
            _ => Err(Missing::ForEver(format!("was {}, is {now}", self.instance))),
        }
    }

    /// The one that is published now: what was presented before a rotation may be over.
    fn has_presented_a_valid_token(&self, sandbox: &Sandbox, renewed: bool) -> Result<(), Missing> {
        let published = number(sandbox, annotation::TOKEN_GENERATION);
        let seen = number(sandbox, annotation::TOKEN_SEEN);
        let least = self.generation + u64::from(renewed);
        if published < least {
            return Err(Missing::Yet(format!("token {published} was not renewed")));
        }
        if seen < published {
            return Err(Missing::Yet(format!("token {published} was not presented, {seen} was the last one")));
        }
        let expires =
            annotation(sandbox, annotation::TOKEN_EXPIRES).and_then(|text| humantime::parse_rfc3339(text).ok());
        match expires {
            Some(expires) if expires > SystemTime::now() => Ok(()),
            _ => Err(Missing::Yet(format!("token {published} is over"))),
        }
    }
}

/// Why it does not count as back.
enum Missing {
    /// It may be so a moment later.
    Yet(String),
    /// Waiting does not help.
    ForEver(String),
}

impl From<String> for Missing {
    fn from(why: String) -> Self {
        Self::Yet(why)
    }
}

/// A connection of its own for each look: the one before may lead to a gateway that is gone.
pub(crate) async fn api(column: &Column) -> Result<Api, String> {
    in_time("connect", Api::connect(&column.world.socket())).await
}

/// The gateway's word on a sandbox.
pub(crate) async fn get(api: &Api, name: &str) -> Result<Sandbox, String> {
    in_time("GetSandbox", api.get(name)).await
}

/// The answer, if there is one in time.
pub(crate) async fn in_time<T, E: std::fmt::Display>(
    what: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| format!("{what}: {error}")),
        Err(_) => Err(format!("{what}: no answer within {ANSWER:?}")),
    }
}

/// Phase and condition.
pub(crate) fn is_connected(sandbox: &Sandbox) -> bool {
    let status = sandbox.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
    status.phase() == SandboxPhase::Ready && ready
}

fn is_ready(sandbox: &Sandbox) -> Result<(), Missing> {
    let phase = sandbox.status.clone().unwrap_or_default().phase();
    match phase {
        SandboxPhase::Error | SandboxPhase::Completed => Err(Missing::ForEver(format!("is {phase:?}"))),
        _ if is_connected(sandbox) => Ok(()),
        _ => Err(Missing::Yet(format!("is {phase:?} without a session"))),
    }
}

/// A command runs, and the guest's clock is the host's.
async fn answers(api: &Api, name: &str) -> Result<(), Missing> {
    let began = wall();
    let finished = in_time("exec", api.exec(name, &["/bin/sh", "-c", "echo back; date +%s"])).await?;
    let told = finished.stdout.strip_prefix("back\n").and_then(|seconds| seconds.trim().parse::<u64>().ok());
    match told {
        Some(guest) if (began - CLOCK..=wall() + CLOCK).contains(&guest) => Ok(()),
        Some(guest) => Err(Missing::Yet(format!("the guest's clock is off by {} s", guest.abs_diff(wall())))),
        None => Err(Missing::Yet(format!("exec: {finished:?}"))),
    }
}

fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn instance(sandbox: &Sandbox) -> String {
    sandbox.status.clone().unwrap_or_default().main_process_instance_id
}

fn annotation<'a>(sandbox: &'a Sandbox, key: &str) -> Option<&'a String> {
    sandbox.metadata.as_ref()?.annotations.get(key)
}

fn number(sandbox: &Sandbox, key: &str) -> u64 {
    annotation(sandbox, key).and_then(|text| text.parse().ok()).unwrap_or(0)
}
