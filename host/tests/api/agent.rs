//! What the program in the guest would say, said by a test.

use std::path::Path;

use host::sandbox::task::Handle;
use proto::budget::RELAY_CREDIT;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::open_shell_client::OpenShellClient;
use proto::openshell::v1::supervisor_message::Payload as Said;
use proto::openshell::v1::{
    GatewayMessage, RelayFrame, RelayInit, ReportMainProcessExitRequest, SupervisorHeartbeat, SupervisorHello,
    SupervisorMessage, relay_frame,
};
use proto::openshell::vm::v1::vm_client::VmClient;
use proto::openshell::vm::v1::{SyncReply, SyncRequest};
use proto::relay::flow::{self, Incoming, Outgoing};
use proto::version::{AGENT_VERSION_KEY, PROTOCOL, PROTOCOL_KEY, VERSION};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::stage::{PATIENCE, Stage, channel};

/// One connection of one boot.
pub(crate) struct Agent {
    pub(crate) sandbox_id: String,
    pub(crate) instance_id: String,
    pub(crate) token: String,
    pub(crate) protocol: Option<String>,
    channel: Channel,
}

/// A session stream.
pub(crate) struct Talk {
    pub(crate) say: mpsc::Sender<SupervisorMessage>,
    heard: Streaming<GatewayMessage>,
}

impl Agent {
    /// Connects to the sandbox's own socket with the token on disk.
    pub(crate) async fn of(stage: &Stage, handle: &Handle) -> Self {
        let socket = stage.vm_socket(handle.id);
        Self::at(&socket, handle, stage.token(handle.id)).await
    }

    pub(crate) async fn at(socket: &Path, handle: &Handle, token: String) -> Self {
        Self {
            sandbox_id: handle.id.to_string(),
            instance_id: handle.view().record.instance_id.clone(),
            token,
            protocol: Some(PROTOCOL.to_string()),
            channel: channel(socket).await,
        }
    }

    /// The same connection with another token.
    pub(crate) fn with_token(&self, token: String) -> Self {
        Self {
            sandbox_id: self.sandbox_id.clone(),
            instance_id: self.instance_id.clone(),
            token,
            protocol: self.protocol.clone(),
            channel: self.channel.clone(),
        }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", format!("Bearer {}", self.token).parse().expect("ASCII"));
        metadata.insert(AGENT_VERSION_KEY, VERSION.parse().expect("ASCII"));
        if let Some(protocol) = &self.protocol {
            metadata.insert(PROTOCOL_KEY, protocol.parse().expect("ASCII"));
        }
        request
    }

    pub(crate) fn client(&self) -> OpenShellClient<Channel> {
        OpenShellClient::new(self.channel.clone())
    }

    pub(crate) async fn sync(&self) -> Result<SyncReply, Status> {
        self.sync_holding(0).await
    }

    /// With secrets of this revision.
    pub(crate) async fn sync_holding(&self, provider_env_revision: u64) -> Result<SyncReply, Status> {
        self.sync_telling(SyncRequest { provider_env_revision, ..Default::default() }).await
    }

    /// With this state of the guest.
    pub(crate) async fn sync_telling(&self, told: SyncRequest) -> Result<SyncReply, Status> {
        let mut client = VmClient::new(self.channel.clone());
        client.sync(self.request(told)).await.map(tonic::Response::into_inner)
    }

    /// Opens a session stream with `first` as its first message; nothing where that is `None`.
    pub(crate) async fn open(&self, first: Option<Said>) -> Result<Talk, Status> {
        let (say, said) = mpsc::channel(16);
        if let Some(first) = first {
            say.send(SupervisorMessage { payload: Some(first) }).await.expect("room");
        }
        let opened = self.client().connect_supervisor(self.request(ReceiverStream::new(said))).await?;
        Ok(Talk { say, heard: opened.into_inner() })
    }

    pub(crate) fn hello(&self, epoch: u64) -> Said {
        Said::Hello(SupervisorHello {
            sandbox_id: self.sandbox_id.clone(),
            instance_id: self.instance_id.clone(),
            connection_epoch: epoch,
        })
    }

    /// A session that was accepted.
    pub(crate) async fn session(&self, epoch: u64) -> Talk {
        let mut talk = self.open(Some(self.hello(epoch))).await.expect("a session");
        match talk.next().await {
            Some(Payload::SessionAccepted(_)) => talk,
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// The reason for which a hello is rejected.
    pub(crate) async fn rejected(&self, epoch: u64) -> String {
        let mut talk = self.open(Some(self.hello(epoch))).await.expect("a stream");
        match talk.next().await {
            Some(Payload::SessionRejected(rejected)) => rejected.reason,
            other => panic!("not rejected: {other:?}"),
        }
    }

    /// Opens a relay stream that begins with `first`.
    pub(crate) async fn relay(
        &self,
        first: relay_frame::Payload,
    ) -> Result<(mpsc::Sender<RelayFrame>, Streaming<RelayFrame>), Status> {
        let (send, frames) = mpsc::channel(16);
        send.send(RelayFrame { payload: Some(first), ..Default::default() }).await.expect("room");
        let opened = self.client().relay_stream(self.request(ReceiverStream::new(frames))).await?;
        Ok((send, opened.into_inner()))
    }

    /// Opens a relay stream as an agent does that counts credit.
    pub(crate) async fn counted_relay(&self, channel_id: &str) -> Result<(Incoming, Outgoing), Status> {
        let first = RelayInit { channel_id: channel_id.into(), credit: RELAY_CREDIT };
        let (send, frames) = self.relay(relay_frame::Payload::Init(first)).await?;
        let (end, incoming, outgoing) = flow::end();
        tokio::spawn(flow::carry(end, frames, send, RELAY_CREDIT));
        Ok((incoming, outgoing))
    }

    pub(crate) async fn report(&self, code: i32) -> Result<(), Status> {
        let report = ReportMainProcessExitRequest {
            sandbox_id: self.sandbox_id.clone(),
            instance_id: self.instance_id.clone(),
            exit_code: code,
        };
        self.client().report_main_process_exit(self.request(report)).await.map(drop)
    }
}

impl Talk {
    /// The next message; `None` at the end of the stream, however it ends.
    pub(crate) async fn next(&mut self) -> Option<Payload> {
        let message = timeout(PATIENCE, self.heard.message()).await;
        message.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for a message")).ok().flatten()?.payload
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn next_order(&mut self) -> Option<Payload> {
        loop {
            match self.next().await {
                Some(Payload::Heartbeat(_)) => {}
                other => return other,
            }
        }
    }

    pub(crate) async fn send(&self, said: Said) {
        self.say.send(SupervisorMessage { payload: Some(said) }).await.expect("an open session");
    }

    pub(crate) async fn beat(&self) {
        self.send(Said::Heartbeat(SupervisorHeartbeat {})).await;
    }
}

/// The first frame of a relay, as of an agent that does not count credit.
pub(crate) fn init(channel_id: &str) -> relay_frame::Payload {
    relay_frame::Payload::Init(RelayInit { channel_id: channel_id.into(), credit: 0 })
}
