//! The way to the gateway: its socket, and starting it where nobody listens there.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto::budget;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::{HealthRequest, HealthResponse};
use proto::openshell::vm::v1::operator_client::OperatorClient;
use proto::version::VERSION;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tower::service_fn;

use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::openssh::Places;
use super::starter::{Starter, Starting};
use crate::config::keys::SOCKET_VARIABLE;
use crate::config::{Config, Environment, GatewayFlags};

/// How long a gateway may take from its start to its first answer.
const START: Duration = Duration::from_secs(20);
/// How long one question for its health may take.
const HEALTH: Duration = Duration::from_secs(5);
/// How long a question about what is known may take.
const ANSWER: Duration = Duration::from_secs(10);
/// After which people are told what is waited for.
const TELL: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// A gateway that ended because another one held the state directory is started again after this time: the other
/// one may have been about to end.
const START_AGAIN: Duration = Duration::from_secs(1);

/// A client of the gateway. Its channel connects again by itself.
pub(crate) type Client = OpenShellClient<Channel>;

/// Where the gateway is, and how to start it.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) socket: PathBuf,
    /// What SSH clients of its sandboxes are told.
    pub(crate) ssh: Places,
    starter: Option<Starter>,
}

enum Reached {
    Answers(Client, HealthResponse),
    /// Nobody listens.
    Absent(io::Error),
    /// Somebody listens and does not answer.
    Silent(String),
}

impl Gateway {
    /// The one whose socket was named; else the one of the configuration, which can be started.
    pub(crate) fn find(named: Option<PathBuf>, environment: &Environment) -> Result<Self, CommandError> {
        let named = named.or_else(|| environment.variable(SOCKET_VARIABLE).map(PathBuf::from));
        let ssh = Places::of(environment, named.as_deref());
        if let Some(socket) = named {
            return Ok(Self { socket, ssh, starter: None });
        }
        let config = Config::load(&GatewayFlags::default(), environment)?;
        let starter = Starter {
            program: environment.executable_dir.join("openshell-gateway"),
            state_dir: config.gateway.state_dir.clone(),
            uid: environment.uid,
        };
        Ok(Self { socket: config.gateway.socket(), ssh, starter: Some(starter) })
    }

    /// A client of a gateway that answers, started if need be.
    pub(crate) async fn client(&self, console: &mut Console) -> Result<Client, CommandError> {
        let began = Instant::now();
        let mut told = false;
        let mut starting: Option<Starting> = None;
        loop {
            let state = match self.reach().await? {
                Reached::Answers(client, health) => {
                    if health.version != VERSION {
                        let other = &health.version;
                        console.note(&format!("note: the gateway has version {other}, this program {VERSION}")).await;
                    }
                    return Ok(client);
                }
                Reached::Absent(cause) => {
                    self.ensure_started(&mut starting, &cause)?;
                    format!("nobody listens there: {cause}")
                }
                Reached::Silent(cause) => cause,
            };
            if began.elapsed() > START {
                let waited =
                    format!("gave up after {START:?} waiting for a gateway on {}: {state}", self.socket.display());
                return Err(match &starting {
                    Some(starting) => starting.late(waited),
                    None => CommandError::new(ExitCode::GatewayUnavailable, waited),
                });
            }
            if !told && began.elapsed() > TELL {
                told = true;
                console.note(&format!("waiting for the gateway on {} …", self.socket.display())).await;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A client for what `openshell.v1` has no words for, started if need be.
    pub(crate) async fn operator(&self, console: &mut Console) -> Result<OperatorClient<Channel>, CommandError> {
        self.client(console).await?;
        Ok(OperatorClient::new(self.channel()))
    }

    /// A client of a gateway that runs; never starts one.
    pub(crate) async fn running(&self) -> Result<(Client, HealthResponse), CommandError> {
        let refused = |state: String| {
            let socket = self.socket.display();
            CommandError::new(ExitCode::GatewayUnavailable, format!("no gateway answers on {socket}: {state}"))
        };
        match self.reach().await? {
            Reached::Answers(client, health) => Ok((client, health)),
            Reached::Absent(cause) => Err(refused(cause.to_string())),
            Reached::Silent(state) => Err(refused(state)),
        }
    }

    /// Two shells may do this at once: one of the two gateways gets the lock, the other one ends, and both shells
    /// wait for the same socket.
    fn ensure_started(&self, starting: &mut Option<Starting>, cause: &io::Error) -> Result<(), CommandError> {
        let Some(starter) = &self.starter else {
            let socket = self.socket.display();
            return Err(CommandError::new(
                ExitCode::GatewayUnavailable,
                format!(
                    "no gateway listens on {socket}: {cause}; start it, or unset {SOCKET_VARIABLE} to have one started"
                ),
            ));
        };
        match starting {
            None => *starting = Some(starter.start()?),
            Some(process) => {
                if let Some(ended) = process.ended()? {
                    if ended.code() != Some(i32::from(ExitCode::StateLocked.code())) {
                        return Err(process.failure(ended));
                    }
                    if process.began.elapsed() > START_AGAIN {
                        *starting = Some(starter.start()?);
                    }
                }
            }
        }
        Ok(())
    }

    async fn reach(&self) -> Result<Reached, CommandError> {
        match UnixStream::connect(&self.socket).await {
            Ok(_) => {}
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(Reached::Absent(cause));
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Reached::Silent(format!("it does not accept connections: {cause}")));
            }
            Err(cause) => {
                let socket = self.socket.display();
                let message =
                    format!("failed to connect to the gateway on {socket}: {cause}; it serves its own user only");
                return Err(CommandError::new(ExitCode::GatewayUnavailable, message));
            }
        }
        let mut client = OpenShellClient::new(self.channel());
        match tokio::time::timeout(HEALTH, client.health(HealthRequest {})).await {
            Ok(Ok(health)) => Ok(Reached::Answers(client, health.into_inner())),
            Ok(Err(status)) => Ok(Reached::Silent(format!("it refuses: {}", status.message()))),
            Err(_) => Ok(Reached::Silent(format!("no answer within {HEALTH:?}"))),
        }
    }

    fn channel(&self) -> Channel {
        let socket = self.socket.clone();
        let connector = service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The authority is required by HTTP and means nothing on a unix socket.
        let endpoint = Endpoint::from_static("http://gateway.invalid")
            .initial_connection_window_size(budget::USER_CONNECTION_WINDOW)
            .initial_stream_window_size(budget::USER_STREAM_WINDOW);
        endpoint.connect_with_connector_lazy(connector)
    }
}

/// What a call that was made to `act` answered, in time.
pub(crate) async fn answer<T>(
    act: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CommandError> {
    answer_within(ANSWER, act, call).await
}

/// The same with a deadline of its own.
pub(crate) async fn answer_within<T>(
    deadline: Duration,
    act: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CommandError> {
    let late = |_| CommandError::new(ExitCode::Timeout, format!("failed to {act}: no answer within {deadline:?}"));
    let answer = tokio::time::timeout(deadline, call).await.map_err(late)?;
    answer.map(Response::into_inner).map_err(|status| CommandError::of_status(act, &status))
}

#[cfg(test)]
impl Gateway {
    /// One that `program` starts.
    pub(crate) fn started_by(socket: PathBuf, program: PathBuf, state_dir: PathBuf) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self { socket, ssh: Places::default(), starter: Some(Starter { program, state_dir, uid }) }
    }
}
