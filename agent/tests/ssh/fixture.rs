//! A workload, a server in front of it, and a client.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use agent::ssh::{Server, TRANSPORT_INBOUND};
use agent::workload::main_process::MainProcess;
use agent::workload::reaper::Reaper;
use proto::boot::{MainProcess as MainSpec, RestartPolicy};
use proto::layout;
use russh::client::{self, Handle, Msg};
use russh::keys::{Algorithm, PrivateKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use secrecy::SecretString;

#[path = "../workload/programs.rs"]
mod programs;

use programs::{Programs, or_skip};

pub(crate) struct Fixture {
    programs: Programs,
    host_key: SecretString,
    pub(crate) identity: PathBuf,
}

pub(crate) fn workload_or_skip() -> Option<&'static Fixture> {
    static FIXTURE: OnceLock<Result<Fixture, String>> = OnceLock::new();
    or_skip(FIXTURE.get_or_init(Fixture::new))
}

impl Fixture {
    fn new() -> Result<Self, String> {
        let programs = Programs::new(&[("FROM_SPEC", "1"), ("OPENSHELL_X", "2")])?;
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let host_key = key.to_openssh(Default::default()).unwrap().to_string().into();
        let identity = programs.workload.identity.clone();
        Ok(Self { programs, host_key, identity })
    }

    /// Runs a test with a deadline. What it spawns runs on the thread that owns the mounts.
    pub(crate) fn run(&'static self, test: impl AsyncFnOnce(&'static Self)) {
        self.programs.run(test(self));
    }

    /// As the agent sees it.
    pub(crate) async fn identity_has_token(&self) -> bool {
        let token = self.identity.join(layout::TOKEN_FILE);
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.spawn(async move { answer.send(token.exists()).unwrap() });
        answered.await.unwrap()
    }

    /// Runs beside the tests, on the thread that owns the mounts.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.programs.spawn(task);
    }

    /// Starts and awaits every child of this process.
    pub(crate) fn reaper(&self) -> &Reaper {
        &self.programs.workload.reaper
    }

    pub(crate) fn server(&self) -> Server {
        Server::new(&self.host_key, self.programs.workload.clone(), None, None).unwrap()
    }

    pub(crate) fn with_main(&self, argv: &[&str], tty: bool, await_attachment: bool) -> (Server, Arc<MainProcess>) {
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        self.with_spec(MainSpec { argv, tty, await_attachment, restart: RestartPolicy::Never })
    }

    pub(crate) fn with_spec(&self, main: MainSpec) -> (Server, Arc<MainProcess>) {
        let main = Arc::new(MainProcess::new(main, self.programs.workload.clone()));
        (Server::new(&self.host_key, self.programs.workload.clone(), Some(main.clone()), None).unwrap(), main)
    }
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

pub(crate) struct Client {
    handle: Handle<Trusting>,
}

#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Outcome {
    pub(crate) code: Option<u32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Client {
    pub(crate) async fn connect(fixture: &Fixture) -> Self {
        Self::connect_to(fixture.server()).await
    }

    pub(crate) async fn connect_to(server: impl Into<Arc<Server>>) -> Self {
        // As large as the relay makes it; a smaller one lets two sides block each other that both write.
        let (near, far) = tokio::io::duplex(TRANSPORT_INBOUND);
        let server = server.into();
        tokio::spawn(async move { server.serve(far).await });
        let mut handle = client::connect_stream(Arc::default(), near, Trusting).await.unwrap();
        assert!(handle.authenticate_none(layout::SSH_USER).await.unwrap().success());
        Self { handle }
    }

    pub(crate) async fn session(&self) -> Channel<Msg> {
        self.handle.channel_open_session().await.unwrap()
    }

    /// Runs a program with this input, to its end.
    pub(crate) async fn exec(&self, command: &str, input: &[u8]) -> Outcome {
        let channel = self.session().await;
        channel.exec(true, command).await.unwrap();
        converse(channel, input).await
    }

    pub(crate) async fn attach(&self, input: &[u8]) -> Outcome {
        let channel = self.session().await;
        channel.request_subsystem(true, layout::ATTACH_SUBSYSTEM).await.unwrap();
        converse(channel, input).await
    }
}

async fn converse(channel: Channel<Msg>, input: &[u8]) -> Outcome {
    let (mut read, write) = channel.split();
    let sending = async {
        // One whose program has ended takes nothing more.
        let _ = write.data(input).await;
        let _ = write.eof().await;
        std::future::pending::<()>().await;
    };
    let mut sending = pin!(sending);
    let mut outcome = Outcome::default();
    loop {
        tokio::select! {
            () = &mut sending => {}
            message = read.wait() => match message {
                Some(message) => outcome.hear(message),
                None => return outcome,
            },
        }
    }
}

impl Outcome {
    fn hear(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::Data { data } => self.stdout.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, ext: 1 } => self.stderr.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => self.code = Some(exit_status),
            _ => {}
        }
    }
}

/// All that still comes on a channel.
pub(crate) async fn outcome(channel: &mut Channel<Msg>) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(message) = channel.wait().await {
        outcome.hear(message);
    }
    outcome
}

/// Until the output ends with this.
pub(crate) async fn wait_for(channel: &mut Channel<Msg>, end: &[u8]) -> Vec<u8> {
    let mut outcome = Outcome::default();
    while !outcome.stdout.ends_with(end) {
        let message = channel.wait().await;
        outcome.hear(message.unwrap_or_else(|| panic!("ended with {:?}", outcome.text())));
    }
    outcome.stdout
}

pub(crate) async fn line(channel: &mut Channel<Msg>) -> String {
    String::from_utf8(wait_for(channel, b"\n").await).unwrap()
}

/// Resolves when the process has ended. Taken hold of at once.
pub(crate) fn gone(pid: i32) -> impl Future<Output = ()> {
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    async move {
        let wait = move || poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 1);
    }
}
