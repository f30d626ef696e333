//! A gateway with one guest that is a process.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use e2e::api::channel;
use e2e::wait::until;
use e2e::world::World;
use proto::openshell::v1::Sandbox;
use proto::openshell::vm::v1::SyncRequest;
use proto::openshell::vm::v1::vm_client::VmClient;
use tokio::sync::{Mutex, MutexGuard};
use tonic::{Code, Request};

/// The token's life: the shortest that there is.
pub(crate) const TTL: Duration = Duration::from_secs(30);
/// For what takes a moment.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One test at a time: a world that ends takes every vmm of these programs with it.
static TURN: Mutex<()> = Mutex::const_new(());

/// See the module.
pub(crate) struct Stage {
    world: World,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Nothing runs yet.
    pub(crate) async fn empty() -> Self {
        let _turn = TURN.lock().await;
        Self { world: World::empty(TTL).with_fake_vmm(), _turn }
    }
}

impl Deref for Stage {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

/// With a gateway.
pub(crate) async fn world() -> Stage {
    let mut stage = Stage::empty().await;
    stage.up().await;
    stage
}

/// Whether the gateway accepts this bearer from that sandbox.
pub(crate) async fn accepted(world: &World, sandbox: &Sandbox, token: &str) -> bool {
    let socket = world.places(sandbox).join("ctl/gateway.sock");
    let mut client = VmClient::new(channel(&socket).await.expect("connect"));
    let mut request = Request::new(SyncRequest::default());
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    match client.sync(request).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
            false
        }
    }
}

/// Waits until the newest token that is published was presented.
pub(crate) async fn delivered(world: &World, name: &str, what: &str) {
    until(&format!("{name} to present the newest token {what}"), SOON, async || {
        let token = world.api().await.token(name).await;
        (token.get("seen-generation")? == token.get("generation")?).then_some(())
    })
    .await;
}

/// How often the log says `words`.
pub(crate) fn said(world: &World, words: &str) -> usize {
    std::fs::read_to_string(world.log()).expect("read the log").matches(words).count()
}
