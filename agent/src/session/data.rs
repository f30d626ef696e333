//! The data connection: relay streams, log lines, and a Sync of its own, by which its lease is extended. It is there
//! while it is needed, and for a while after that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::{budget, fault};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::backoff::Backoff;
use super::connection::{Client, Closed, Pings, open};
use super::control::brief;
use super::demand::Demand;
use super::endpoint::Endpoints;
use super::relay;
use super::sync::sync;
use super::{RelayOrder, Session};
use crate::console::RateLimit;
use crate::faults;
use crate::ssh::Server;

/// Relays that may be open at a time. Each costs at most its buffers and what it starts.
pub(super) const RELAYS_MAX: usize = 64;
/// It is kept for this long after it was needed: a prompt and the next command are one piece of work.
const IDLE: Duration = Duration::from_secs(60);
static LOST: RateLimit = RateLimit::new(Duration::from_secs(10));

/// The relays of a boot, and the orders for them. They outlive a connection, and a panic of whoever keeps it.
#[derive(Debug)]
pub struct Relays {
    orders: mpsc::Receiver<RelayOrder>,
    open: HashMap<String, AbortHandle>,
}

impl Relays {
    /// None yet.
    pub fn new(orders: mpsc::Receiver<RelayOrder>) -> Self {
        Self { orders, open: HashMap::new() }
    }
}

/// Keeps the connection, and serves relay orders. Ends when nobody can give orders any more.
pub async fn run(session: Arc<Session>, endpoints: Endpoints, relays: &mut Relays, ssh: Arc<Server>) {
    let client = watch::Sender::new(None);
    let subscriber = client.subscribe();
    let mut logs = JoinSet::new();
    logs.spawn(super::logs::run(session.clone(), subscriber.clone()));
    tokio::select! {
        () = keep_connected(&session, &endpoints, &client) => {}
        () = serve_orders(relays, &session.demand, &subscriber, &ssh) => {}
    }
}

async fn keep_connected(session: &Arc<Session>, endpoints: &Endpoints, current: &watch::Sender<Option<Client>>) {
    let mut backoff = Backoff::default();
    let mut tick = session.tick.subscribe();
    loop {
        // Not before control has found a gateway: one of the two is enough to look for it.
        if *tick.borrow() == 0 && tick.changed().await.is_err() {
            return;
        }
        session.demand.arises().await;
        let endpoint = endpoints.current();
        let opening = async {
            let (mut client, closed) = open(endpoint, session, Pings::WhileActive).await?;
            sync(&mut client, session).await.map_err(|status| format!("Sync was refused: {}", brief(&status)))?;
            Ok((client, closed))
        };
        let why = match timeout(budget::HELLO, opening).await {
            Ok(Ok((client, closed))) => {
                let opened = Instant::now();
                current.send_replace(Some(client.clone()));
                let why = hold(session, client, closed, &mut tick, current).await;
                current.send_replace(None);
                let Some(why) = why else { continue };
                // One that is closed as soon as it is open is no success.
                if opened.elapsed() > budget::RECONNECT_MAX {
                    backoff.reset();
                }
                why
            }
            Ok(Err(why)) => why,
            Err(_) => format!("{endpoint} did not answer the first Sync within {:?}", budget::HELLO),
        };
        if let Some(suppressed) = LOST.admit(Instant::now()) {
            tracing::warn!(suppressed, "no data connection: {why}");
        }
        sleep(backoff.next(rand::random())).await;
    }
}

/// Syncs with every tick until the connection is of no use any more; returns why it was lost, or nothing where nobody
/// needs it.
async fn hold(
    session: &Arc<Session>,
    mut client: Client,
    mut closed: Closed,
    tick: &mut watch::Receiver<u64>,
    current: &watch::Sender<Option<Client>>,
) -> Option<String> {
    let idle = session.demand.ceases_for(IDLE);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            changed = tick.changed() => {
                faults::reach(fault::DATA);
                if changed.is_err() {
                    return Some("the agent is ending".to_owned());
                }
                if let Err(status) = sync(&mut client, session).await {
                    return Some(format!("the gateway refused Sync: {}", brief(&status)));
                }
            }
            _ = &mut closed => return Some("the connection was closed".to_owned()),
            () = &mut idle => {
                // First taken away, then looked at once more: whoever needs it says so before taking it.
                current.send_replace(None);
                if !session.demand.is_there() {
                    return None;
                }
                current.send_replace(Some(client.clone()));
                idle.set(session.demand.ceases_for(IDLE));
            }
        }
    }
}

async fn serve_orders(
    Relays { orders, open }: &mut Relays,
    demand: &Demand,
    client: &watch::Receiver<Option<Client>>,
    ssh: &Arc<Server>,
) {
    while let Some(order) = orders.recv().await {
        open.retain(|_, relay| !relay.is_finished());
        match order {
            RelayOrder::Open { open: order, answer } => {
                if open.len() >= RELAYS_MAX {
                    let error = Err(format!("{RELAYS_MAX} relays are open, and that is the most"));
                    let _ = answer.try_send(relay::result(order.channel_id, error));
                    continue;
                }
                let channel_id = order.channel_id.clone();
                let needed = demand.need();
                let relay = relay::run(order, answer, client.clone(), ssh.clone());
                let task = tokio::spawn(async move {
                    relay.await;
                    drop(needed);
                });
                // A second relay of the same name takes the first one's place: the gateway has forgotten that one.
                if let Some(former) = open.insert(channel_id, task.abort_handle()) {
                    former.abort();
                }
            }
            RelayOrder::Close { channel_id } => {
                if let Some(relay) = open.remove(&channel_id) {
                    relay.abort();
                }
            }
        }
    }
}
