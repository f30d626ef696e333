//! The control connection: hello, heartbeats, Sync, the report of the main process's exit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proto::openshell::v1::{
    GatewayMessage, GetSandboxProviderEnvironmentRequest, ReportMainProcessExitRequest, SupervisorHeartbeat,
    SupervisorHello, SupervisorMessage, gateway_message, supervisor_message,
};
use proto::{budget, fault};
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::time::{Instant as Tick, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::backoff::Backoff;
use super::connection::{Client, Closed, Pings, open};
use super::endpoint::{Endpoint, Endpoints};
use super::sync::sync;
use super::{RelayOrder, Session};
use crate::console::RateLimit;
use crate::faults;
use crate::sys::clock;

/// Words to the gateway that wait to be sent; a session that does not take them is as good as dead.
const OUTBOX: usize = 64;
/// Between two attempts to report an exit on a session that refuses it.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
static LOST: RateLimit = RateLimit::new(Duration::from_secs(10));
static NO_SECRETS: RateLimit = RateLimit::new(Duration::from_secs(10));

/// A session that ended, and how well it went.
struct Ended {
    why: String,
    /// It was accepted and had a heartbeat: the next attempt may be soon.
    good: bool,
    /// The gateway does not want this agent.
    rejected: bool,
}

impl Ended {
    fn early(why: impl Into<String>) -> Self {
        Self { why: why.into(), good: false, rejected: false }
    }
}

/// Connects for ever, to where it worked last or else to the next place. Ends only with its runtime.
pub async fn run(session: Arc<Session>, endpoints: Endpoints, relays: mpsc::Sender<RelayOrder>) {
    let mut backoff = Backoff::default();
    loop {
        let ended = connect(&session, endpoints.current(), &relays).await;
        if ended.good {
            backoff.reset();
        } else if ended.rejected {
            backoff.slow_down();
        }
        if let Some(suppressed) = LOST.admit(Instant::now()) {
            tracing::warn!(suppressed, "no session: {}", ended.why);
        }
        // The other places are tried at once: they are not those that failed.
        if ended.good || endpoints.give_up_current() {
            sleep(backoff.next(rand::random())).await;
        }
    }
}

async fn connect(session: &Arc<Session>, endpoint: &Endpoint, relays: &mpsc::Sender<RelayOrder>) -> Ended {
    session.refresh_token();
    let hello = async {
        let (client, closed) = open(endpoint, session, Pings::Never).await.map_err(Ended::early)?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        greet(session, endpoint, client, closed, outbox, messages).await
    };
    match timeout(budget::HELLO, hello).await {
        Ok(Ok(live)) => live.serve(session, relays).await,
        Ok(Err(ended)) => ended,
        Err(_) => Ended::early(format!("{endpoint} did not answer the hello within {:?}", budget::HELLO)),
    }
}

/// The hello and its answer.
async fn greet(
    session: &Arc<Session>,
    endpoint: &Endpoint,
    mut client: Client,
    closed: Closed,
    outbox: mpsc::Sender<SupervisorMessage>,
    messages: mpsc::Receiver<SupervisorMessage>,
) -> Result<Live, Ended> {
    let hello = SupervisorHello {
        sandbox_id: session.spec.sandbox_id.to_string(),
        instance_id: session.spec.instance_id.clone(),
        connection_epoch: session.epoch.fetch_add(1, Ordering::Relaxed) + 1,
    };
    let _ = outbox.try_send(message(supervisor_message::Payload::Hello(hello)));
    let presented = session.tokens.generation();
    let refused = |status: Status| {
        session.heed(&status, presented);
        Ended {
            rejected: matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition),
            ..Ended::early(format!("the gateway refused ConnectSupervisor: {}", brief(&status)))
        }
    };
    let mut inbox =
        client.openshell.connect_supervisor(ReceiverStream::new(messages)).await.map_err(refused)?.into_inner();
    match inbox.message().await.map_err(refused)?.and_then(|message| message.payload) {
        Some(gateway_message::Payload::SessionAccepted(accepted)) => {
            let interval = accepted.heartbeat_interval.and_then(|interval| Duration::try_from(interval).ok());
            let interval = interval.filter(|interval| !interval.is_zero()).unwrap_or(Duration::from_secs(15));
            let uptime_us = clock::since_boot().as_micros();
            tracing::info!(session = accepted.session_id, %endpoint, ?interval, uptime_us, "session accepted");
            Ok(Live { client, closed, outbox, inbox, interval, beats: 0 })
        }
        Some(gateway_message::Payload::SessionRejected(rejected)) => {
            Err(Ended { rejected: true, ..Ended::early(format!("the gateway rejected it: {}", rejected.reason)) })
        }
        _ => Err(Ended::early("the gateway did not answer the hello with a session")),
    }
}

/// An accepted session.
struct Live {
    client: Client,
    closed: Closed,
    outbox: mpsc::Sender<SupervisorMessage>,
    inbox: Streaming<GatewayMessage>,
    interval: Duration,
    beats: u64,
}

impl Live {
    async fn serve(mut self, session: &Arc<Session>, relays: &mpsc::Sender<RelayOrder>) -> Ended {
        session.tick.send_modify(|tick| *tick += 1);
        let mut main_exit = session.main_exit.subscribe();
        let mut told = session.told.subscribe();
        let mut runs = session.main_runs.as_ref().map(|runs| runs.subscribe());
        let (wake, mut woken) = mpsc::channel(1);
        let chores = chores(session.clone(), self.client.clone(), &mut woken);
        tokio::pin!(chores);
        let _ = wake.try_send(());
        let mut dead = Tick::now() + self.interval * budget::HEARTBEATS_MISSED;
        let why = loop {
            let due = session.tokens.reread_at(Instant::now(), self.interval);
            tokio::select! {
                message = self.inbox.message() => match message {
                    Ok(Some(message)) => {
                        if self.hear(message, session, relays) {
                            dead = Tick::now() + self.interval * budget::HEARTBEATS_MISSED;
                            let _ = wake.try_send(());
                        }
                    }
                    Ok(None) => break "the gateway ended the session".to_owned(),
                    Err(status) => break format!("the session broke: {}", brief(&status)),
                },
                fault = &mut chores => break fault,
                () = sleep_until(dead) => {
                    break format!("no heartbeat in {:?}", self.interval * budget::HEARTBEATS_MISSED);
                }
                () = sleep_until(due.into()) => {
                    if session.refresh_token() {
                        session.tick.send_modify(|tick| *tick += 1);
                        let _ = wake.try_send(());
                    }
                }
                Ok(()) = main_exit.changed() => { let _ = wake.try_send(()); }
                Ok(()) = told.changed() => { let _ = wake.try_send(()); }
                // Not more often than the delays of restarts let it.
                () = Session::runs_changed(&mut runs) => { let _ = wake.try_send(()); }
                _ = &mut self.closed => break "the connection was closed".to_owned(),
            }
        };
        Ended { why, good: self.beats > 0, rejected: false }
    }

    /// True for a heartbeat.
    fn hear(&mut self, message: GatewayMessage, session: &Session, relays: &mpsc::Sender<RelayOrder>) -> bool {
        match message.payload {
            Some(gateway_message::Payload::Heartbeat(_)) => {
                faults::reach(fault::CONTROL);
                self.beats += 1;
                let _ = self.outbox.try_send(message_heartbeat());
                session.refresh_token();
                session.tick.send_modify(|tick| *tick += 1);
                return true;
            }
            Some(gateway_message::Payload::RelayOpen(open)) => {
                let channel_id = open.channel_id.clone();
                let order = RelayOrder::Open { open, answer: self.outbox.clone() };
                if relays.try_send(order).is_err() {
                    let error = Err("the agent has more relays to open than it can".to_owned());
                    let _ = self.outbox.try_send(super::relay::result(channel_id, error));
                }
            }
            Some(gateway_message::Payload::RelayClose(close)) => {
                let _ = relays.try_send(RelayOrder::Close { channel_id: close.channel_id });
            }
            _ => {}
        }
        false
    }
}

/// What follows a heartbeat: Sync, and the report of an exit that is not reported yet. Beside the loop that hears,
/// so that a slow answer does not delay a relay. Ends with the reason why the connection is of no use.
async fn chores(session: Arc<Session>, mut client: Client, woken: &mut mpsc::Receiver<()>) -> String {
    loop {
        if woken.recv().await.is_none() {
            return "the session is over".to_owned();
        }
        // Taken before the Sync, which then tells of the last run: the gateway reads the report by it. A code that comes
        // while it is on its way is for the next one.
        let code = *session.main_exit.borrow();
        let reply = match sync(&mut client, &session).await {
            Ok(reply) => reply,
            Err(status) => {
                return format!("the gateway refused Sync: {}", brief(&status));
            }
        };
        if reply.provider_env_revision != session.secrets.revision()
            && let Err(why) = fetch_secrets(&session, &mut client).await
            && let Some(suppressed) = NO_SECRETS.admit(Instant::now())
        {
            tracing::warn!(suppressed, "{why}");
        }
        if let Some(exit_code) = code
            && !*session.reported.borrow()
            && let Err(why) = report(&session, &mut client, exit_code).await
        {
            tracing::warn!(exit_code, "{why}");
            sleep(REPORT_PAUSE).await;
        }
    }
}

/// Level-triggered: the next Sync tells again that something else is held than there is.
async fn fetch_secrets(session: &Session, client: &mut Client) -> Result<(), String> {
    let request = GetSandboxProviderEnvironmentRequest { sandbox_id: session.spec.sandbox_id.to_string() };
    let answer = timeout(budget::UNARY, client.openshell.get_sandbox_provider_environment(request)).await;
    let answer = answer.map_err(|_| format!("no answer to the question for secrets within {:?}", budget::UNARY))?;
    let reply = answer.map_err(|status| format!("failed to get the secrets: {}", brief(&status)))?.into_inner();
    let environment: BTreeMap<_, _> =
        reply.environment.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect();
    tracing::info!(revision = reply.provider_env_revision, variables = environment.len(), "got the secrets");
    session.secrets.take(environment, reply.provider_env_revision);
    // The gateway learns by the next Sync that they have come.
    session.tick.send_modify(|tick| *tick += 1);
    Ok(())
}

async fn report(session: &Session, client: &mut Client, exit_code: i32) -> Result<(), String> {
    let request = ReportMainProcessExitRequest {
        sandbox_id: session.spec.sandbox_id.to_string(),
        instance_id: session.spec.instance_id.clone(),
        exit_code,
    };
    match timeout(budget::UNARY, client.openshell.report_main_process_exit(request)).await {
        Ok(Ok(_)) => {
            session.reported.send_replace(true);
            Ok(())
        }
        Ok(Err(status)) => Err(format!("failed to report the main process's exit: {}", brief(&status))),
        Err(_) => Err(format!("no answer to the report of the main process's exit within {:?}", budget::UNARY)),
    }
}

/// Code and message; the rest of a status may repeat what was sent.
pub(super) fn brief(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn message_heartbeat() -> SupervisorMessage {
    message(supervisor_message::Payload::Heartbeat(SupervisorHeartbeat {}))
}

pub(super) fn message(payload: supervisor_message::Payload) -> SupervisorMessage {
    SupervisorMessage { payload: Some(payload) }
}
