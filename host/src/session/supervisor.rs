//! One session, from hello to its end.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proto::budget;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::supervisor_message::Payload as FromAgent;
use proto::openshell::v1::{GatewayMessage, SessionAccepted, SessionRejected, SupervisorHello, SupervisorMessage};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use super::agent::{AgentVersion, give_up};
use super::logs::Logs;
use super::refusals::Refusals;
use super::relay::Relays;
use super::sessions::{Session, Sessions};
use crate::sandbox::decide::Event;
use crate::sandbox::phase::Phase;
use crate::sandbox::registry::Registry;
use crate::sandbox::task::{AskError, Handle};
use crate::status;

/// Messages to an agent that may wait to be read.
const OUTBOUND: usize = 16;

/// What sessions work with.
#[derive(Clone)]
pub struct Supervisors {
    /// The sandboxes.
    pub registry: Registry,
    /// Their live sessions.
    pub sessions: Sessions,
    /// Their relays.
    pub relays: Relays,
    /// What was refused on their transports.
    pub refusals: Arc<Refusals>,
    /// What they have said.
    pub logs: Logs,
    /// From the TTL.
    pub heartbeat: Duration,
}

/// What `ConnectSupervisor` answers.
pub type Outbound = mpsc::Receiver<GatewayMessage>;

impl Supervisors {
    /// Takes a new `ConnectSupervisor` stream of `sandbox_id` to its session, or to a rejection on the stream.
    ///
    /// # Errors
    /// A status where the stream does not begin with a hello of its own sandbox.
    pub async fn connect(
        &self,
        sandbox_id: Uuid,
        agent: AgentVersion,
        mut inbound: Streaming<SupervisorMessage>,
    ) -> Result<Outbound, Status> {
        let handle = self.registry.get(sandbox_id).ok_or_else(|| Status::not_found("the sandbox is gone"))?;
        // Before the hello: of another protocol, that may look like anything.
        if let Err(reason) = agent.check() {
            return Ok(self.refuse(&handle, reason));
        }
        let hello = first_message(&mut inbound).await?;
        if hello.sandbox_id != sandbox_id.to_string() {
            return Err(self.refusals.cross_sandbox(sandbox_id, "ConnectSupervisor"));
        }
        let (outbound, receiver) = mpsc::channel(OUTBOUND);
        let session = Session::new(hello.instance_id, hello.connection_epoch, outbound);
        // A guest chooses when: no line of the usual log.
        tracing::debug!(sandbox = %sandbox_id, %agent, endpoint = agent.endpoint(), epoch = hello.connection_epoch, "hello");
        // On its own: an agent that gives up while it is being admitted must not leave half a session behind.
        tokio::spawn(self.clone().live(handle, session, inbound));
        Ok(receiver)
    }

    /// Tells the agent, in case that it understands, and gives the sandbox up if it is on its way up.
    fn refuse(&self, handle: &Handle, reason: String) -> Outbound {
        self.refusals.note(handle.id, reason.clone(), std::time::Instant::now());
        let (outbound, receiver) = mpsc::channel(1);
        let rejected = SessionRejected { reason: reason.clone() };
        // There is room for one.
        drop(outbound.try_send(GatewayMessage { payload: Some(Payload::SessionRejected(rejected)) }));
        give_up(handle, reason);
        receiver
    }

    async fn live(self, handle: Handle, session: Session, inbound: Streaming<SupervisorMessage>) {
        match self.admit(&handle, &session).await {
            Ok(()) => self.serve(handle, session, inbound).await,
            Err(reason) => {
                self.refusals.note(handle.id, format!("session rejected: {reason}"), std::time::Instant::now());
                // Whoever is rejected may have left.
                drop(session.send(Payload::SessionRejected(SessionRejected { reason })).await);
            }
        }
    }

    async fn admit(&self, handle: &Handle, session: &Session) -> Result<(), String> {
        if session.instance_id != handle.view().record.instance_id {
            return Err("the instance is not the current boot of this sandbox".into());
        }
        self.sessions.enter(handle.id, session.clone()).map_err(|superseded| superseded.to_string())?;
        let accepted = SessionAccepted {
            session_id: session.session_id.to_string(),
            heartbeat_interval: prost_types::Duration::try_from(self.heartbeat).ok(),
        };
        session.send(Payload::SessionAccepted(accepted)).await?;
        match handle.told(&session.instance_id, Event::SessionUp { epoch: session.epoch }).await {
            Ok(_) => Ok(()),
            Err(refused) => {
                self.sessions.leave(handle.id, session.session_id);
                Err(format!("the sandbox takes no session now: {refused:?}"))
            }
        }
    }

    async fn serve(self, handle: Handle, session: Session, mut inbound: Streaming<SupervisorMessage>) {
        let dead_after = self.heartbeat * budget::HEARTBEATS_MISSED;
        let mut beat = interval(self.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut dead_at = Instant::now() + dead_after;
        // Guests choose when sessions begin and end: no line of theirs at a level that is on by default.
        tracing::debug!(sandbox = %handle.id, session = %session.session_id, instance = session.instance_id,
            epoch = session.epoch, "session up");
        let why = loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        dead_at = Instant::now() + dead_after;
                        self.heard(handle.id, message);
                    }
                    Ok(None) => break "the agent closed it".to_string(),
                    Err(status) => break status.message().to_string(),
                },
                _ = beat.tick() => session.heartbeat(),
                () = sleep_until(dead_at) => break format!("no heartbeat for {dead_after:?}"),
                () = session.superseded() => break "superseded".to_string(),
            }
        };
        tracing::debug!(sandbox = %handle.id, session = %session.session_id, why, "session ended");
        if self.sessions.leave(handle.id, session.session_id) {
            // Late where the boot is over: nobody waits for it.
            drop(handle.told(&session.instance_id, Event::SessionLost { epoch: session.epoch }).await);
        }
    }

    fn heard(&self, sandbox_id: Uuid, message: SupervisorMessage) {
        match message.payload {
            Some(FromAgent::RelayOpenResult(result)) if !result.success => {
                self.relays.refused(sandbox_id, &result.channel_id, &result.error);
            }
            Some(FromAgent::RelayClose(close)) => {
                self.relays.refused(sandbox_id, &close.channel_id, &close.reason);
            }
            // A heartbeat has done its work by arriving; a relay that opened shows itself as a stream.
            _ => {}
        }
    }
}

async fn first_message(inbound: &mut Streaming<SupervisorMessage>) -> Result<SupervisorHello, Status> {
    let first = timeout(budget::HELLO, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no hello within {:?}", budget::HELLO)))??;
    match first.and_then(|message| message.payload) {
        Some(FromAgent::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a session is `hello`")),
    }
}

/// Why an exec cannot begin: `Unavailable` where waiting helps, else `FailedPrecondition`.
pub fn no_session(handle: &Handle) -> Status {
    let view = handle.view();
    let (name, phase) = (&handle.name, view.phase());
    let since = UNIX_EPOCH + Duration::from_millis(view.session_since_ms);
    let since = humantime::format_rfc3339_seconds(since);
    match phase {
        Phase::Ready | Phase::Provisioning | Phase::Starting => status::not_now(
            Code::Unavailable,
            format!("sandbox {name} has no session since {since} (phase {}); it connects by itself", phase.name()),
        ),
        _ => Status::failed_precondition(format!(
            "sandbox {name} is in phase {} and has no session; start it first",
            phase.name()
        )),
    }
}

/// Turns a refusal of a sandbox's task into a status for the user.
pub fn refused(handle: &Handle, verb: &str, error: AskError) -> Status {
    match error {
        AskError::AlreadySo => Status::already_exists(format!("sandbox {} is already so", handle.name)),
        AskError::Cannot(phase) => Status::failed_precondition(format!(
            "cannot {verb} sandbox {}: it is in phase {}",
            handle.name,
            phase.name()
        )),
        AskError::Late => {
            let message = format!("cannot {verb} sandbox {}: it has changed meanwhile", handle.name);
            status::not_now(Code::Aborted, message)
        }
        AskError::Gone => Status::not_found(format!("sandbox {} is gone", handle.name)),
        AskError::Store(message) => Status::internal(format!("cannot {verb} sandbox {}: {message}", handle.name)),
    }
}
