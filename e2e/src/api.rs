//! A client of the gateway's unix sockets, made from the contract alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use proto::budget;
use proto::openshell::v1::exec_sandbox_event::Payload;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::*;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use tower::service_fn;

/// Connects to a unix socket.
///
/// # Errors
/// Nobody listens there.
pub async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket: PathBuf = socket.into();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // As the command line has it: a client that does not read is not sent megabytes.
    Endpoint::from_static("http://gateway")
        .initial_stream_window_size(budget::USER_STREAM_WINDOW)
        .initial_connection_window_size(budget::USER_CONNECTION_WINDOW)
        .connect_with_connector(connect)
        .await
}

/// The local user's client.
#[derive(Clone)]
pub struct Api {
    /// The generated client, for whatever has no shorthand here.
    pub client: OpenShellClient<Channel>,
}

/// What a finished exec left.
#[derive(Debug, PartialEq, Eq)]
pub struct Finished {
    /// Standard output, lossy.
    pub stdout: String,
    /// Standard error, lossy.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        Ok(Self { client: OpenShellClient::new(channel(socket).await?) })
    }

    /// Creates a sandbox of the test image with `command` as its main process.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn create(&self, name: &str, image: &Path, command: &[&str]) -> Result<Sandbox, Status> {
        let template = SandboxTemplate { image: image.display().to_string(), ..Default::default() };
        let spec = SandboxSpec {
            template: Some(template),
            command: command.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let request = CreateSandboxRequest { name: name.into(), spec: Some(spec), ..Default::default() };
        self.create_with(request).await
    }

    /// Creates a sandbox.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn create_with(&self, request: CreateSandboxRequest) -> Result<Sandbox, Status> {
        Ok(self.client.clone().create_sandbox(request).await?.into_inner().sandbox.expect("a sandbox"))
    }

    /// Gets a sandbox.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn get(&self, name: &str) -> Result<Sandbox, Status> {
        let request = GetSandboxRequest { name: name.into(), ..Default::default() };
        Ok(self.client.clone().get_sandbox(request).await?.into_inner().sandbox.expect("a sandbox"))
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn stop(&self, name: &str) -> Result<(), Status> {
        let request = StopSandboxRequest { name: name.into(), ..Default::default() };
        self.client.clone().stop_sandbox(request).await.map(drop)
    }

    /// Starts a sandbox.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn start(&self, name: &str) -> Result<(), Status> {
        let request = StartSandboxRequest { name: name.into(), ..Default::default() };
        self.client.clone().start_sandbox(request).await.map(drop)
    }

    /// Deletes a sandbox.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn delete(&self, name: &str) -> Result<DeletionOutcome, Status> {
        let request = DeleteSandboxRequest { name: name.into(), ..Default::default() };
        Ok(self.client.clone().delete_sandbox(request).await?.into_inner().outcome())
    }

    /// Opens a stream to a port on the sandbox's loopback: what goes there, and what comes.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn forward(
        &self,
        name: &str,
        port: u16,
    ) -> Result<(mpsc::Sender<TcpForwardFrame>, Streaming<TcpForwardFrame>), Status> {
        let target = TcpRelayTarget { host: "127.0.0.1".into(), port: port.into() };
        let target = Some(tcp_forward_init::Target::Tcp(target));
        let init = TcpForwardInit { sandbox: name.into(), target, ..Default::default() };
        let (frames, requests) = mpsc::channel(1);
        let init = TcpForwardFrame { payload: Some(tcp_forward_frame::Payload::Init(init)) };
        frames.send(init).await.map_err(|_| Status::internal("nobody takes it"))?;
        let replies = self.client.clone().forward_tcp(ReceiverStream::new(requests)).await?;
        Ok((frames, replies.into_inner()))
    }

    /// Starts an exec and returns its events.
    ///
    /// # Errors
    /// The gateway's.
    pub async fn exec_stream(&self, name: &str, command: &[&str]) -> Result<Streaming<ExecSandboxEvent>, Status> {
        let request = ExecSandboxRequest {
            sandbox: name.into(),
            command: command.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        Ok(self.client.clone().exec_sandbox(request).await?.into_inner())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// The gateway's, or a stream that ends without an exit.
    pub async fn exec(&self, name: &str, command: &[&str]) -> Result<Finished, Status> {
        collect(self.exec_stream(name, command).await?).await
    }

    /// Runs a shell command to its end and returns its output; anything but exit 0 is a failure.
    ///
    /// # Panics
    /// If it fails.
    pub async fn sh(&self, name: &str, script: &str) -> String {
        let finished = self.exec(name, &["/bin/sh", "-c", script]).await;
        let finished = finished.unwrap_or_else(|status| panic!("exec in {name} of `{script}`: {status:?}"));
        assert_eq!(finished.code, 0, "exec in {name} of `{script}`: {finished:?}");
        finished.stdout
    }

    /// What the gateway tells about the sandbox's token: generation, expiry, delay and so on.
    pub async fn token(&self, name: &str) -> HashMap<String, String> {
        let sandbox = self.get(name).await.expect("the sandbox exists");
        let annotations = sandbox.metadata.unwrap_or_default().annotations.into_iter();
        annotations.filter_map(|(key, value)| Some((key.strip_prefix("openshell.token/")?.into(), value))).collect()
    }
}

/// Reads an exec's events to their end.
///
/// # Errors
/// The gateway's, or a stream that ends without an exit.
pub async fn collect(mut events: Streaming<ExecSandboxEvent>) -> Result<Finished, Status> {
    let (mut stdout, mut stderr) = (vec![], vec![]);
    while let Some(event) = events.message().await? {
        match event.payload {
            Some(Payload::Stdout(chunk)) => stdout.extend(chunk.data),
            Some(Payload::Stderr(chunk)) => stderr.extend(chunk.data),
            Some(Payload::Exit(exit)) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return Ok(Finished { stdout: text(stdout), stderr: text(stderr), code: exit.exit_code });
            }
            None => {}
        }
    }
    Err(Status::internal("the exec's events ended without an exit"))
}
