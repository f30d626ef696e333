//! SSH connections that outlive an exec.

use std::sync::Arc;

use bytes::Bytes;
use host::sandbox::task::Handle;
use proto::boot::BootSpec;
use proto::layout::{BOOT_SPEC_FILE, SHARE_DIR};
use proto::openshell::v1::exec_sandbox_event::Payload as Event;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::relay_frame::Payload as Frame;
use proto::openshell::v1::{ExecSandboxRequest, RelayFrame};
use proto::relay::data_frame;
use russh::server::{Auth, ChannelOpenHandle, Config, Msg, Session, run_stream};
use russh::{Channel, ChannelId};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::agent::{Agent, Talk, init};
use crate::stage::{PATIENCE, Stage};

/// Answers every exec with `done`.
struct Done;

impl russh::server::Handler for Done {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        session.data(channel, Bytes::from_static(b"done"))?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

/// Serves SSH on the next relay that is ordered, until it is aborted.
async fn serve(stage: &Stage, handle: &Handle, agent: &Agent, talk: &mut Talk) -> JoinHandle<()> {
    let Some(Payload::RelayOpen(open)) = talk.next_order().await else { panic!("no relay was ordered") };
    let (send, frames) = agent.relay(init(&open.channel_id)).await.expect("a relay");
    let key = host_key(stage, handle);
    tokio::spawn(ssh(key, send, frames))
}

/// As the boot spec hands it over.
fn host_key(stage: &Stage, handle: &Handle) -> russh::keys::PrivateKey {
    let control = stage.vm_socket(handle.id);
    let places = control.parent().and_then(|ctl| ctl.parent()).expect("its directory");
    let spec = std::fs::read(places.join(SHARE_DIR).join(BOOT_SPEC_FILE)).expect("a boot spec");
    let spec: BootSpec = serde_json::from_slice(&spec).expect("JSON");
    russh::keys::PrivateKey::from_openssh(spec.ssh_host_key.expose_secret()).expect("a key")
}

async fn ssh(key: russh::keys::PrivateKey, send: mpsc::Sender<RelayFrame>, mut frames: Streaming<RelayFrame>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (mut read, mut write) = tokio::io::split(near);
    let inwards = async {
        while let Ok(Some(RelayFrame { payload: Some(Frame::Data(data)), .. })) = frames.message().await {
            write.write_all(&data).await.expect("the server reads");
        }
    };
    let outwards = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            send.send(data_frame(Bytes::copy_from_slice(&buffer[..count]))).await.expect("an open relay");
        }
    };
    let config = Config { keys: vec![key], ..Config::default() };
    let serving = async { drop(run_stream(Arc::new(config), far, Done).await.expect("SSH").await) };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
        () = serving => {}
    }
}

async fn exec(stage: &Stage) -> Result<Vec<u8>, Status> {
    let request = ExecSandboxRequest { sandbox: "mine".into(), command: vec!["x".into()], ..Default::default() };
    let mut events = stage.user().await.exec_sandbox(request).await?.into_inner();
    let mut out = vec![];
    while let Some(event) = timeout(PATIENCE, events.message()).await.expect("an event")? {
        match event.payload {
            Some(Event::Stdout(chunk)) => out.extend(chunk.data),
            Some(Event::Exit(exit)) => assert_eq!(exit.exit_code, 0),
            _ => {}
        }
    }
    Ok(out)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_relay_serves_one_exec_after_another() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut talk = agent.session(1).await;
    let (first, server) = tokio::join!(exec(&stage), serve(&stage, &mine, &agent, &mut talk));
    assert_eq!(first.expect("the first"), b"done");
    // Nobody would answer a second order.
    for _ in 0..3 {
        assert_eq!(exec(&stage).await.expect("the next"), b"done");
    }
    // One that broke meanwhile costs a new relay, and nothing else.
    server.abort();
    let (again, server) = tokio::join!(exec(&stage), serve(&stage, &mine, &agent, &mut talk));
    assert_eq!(again.expect("over a new one"), b"done");

    // Another session begins with none.
    let mut talk = agent.session(2).await;
    let (other, _server) = tokio::join!(exec(&stage), serve(&stage, &mine, &agent, &mut talk));
    assert_eq!(other.expect("in the next session"), b"done");
    timeout(PATIENCE, server).await.expect("the connection of the session before ends").expect("join");
}
