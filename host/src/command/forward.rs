//! `openshell sandbox forward`

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use proto::openshell::v1::TcpRelayTarget;
use proto::openshell::v1::tcp_forward_init::Target;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Named;
use super::connect::{Client, Gateway};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::{get, openssh, tunnel};

/// Connections that are carried at a time; each is a relay, of which an agent has 64. More wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// After a connection that could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Forward {
    #[command(flatten)]
    sandbox: Named,
    /// A port of this machine's loopback, and the port of the sandbox's that it leads to
    #[arg(value_name = "LOCAL:REMOTE", value_parser = ports)]
    ports: Vec<Ports>,
    /// The same
    #[arg(short = 'L', value_name = "LOCAL:REMOTE", value_parser = ports)]
    local: Vec<Ports>,
    /// A port of the sandbox's loopback (from 1024; 0 for any), and the port of this machine's that it leads to
    #[arg(short = 'R', value_name = "REMOTE:LOCAL", value_parser = ports)]
    remote: Vec<Ports>,
}

/// Where it is listened, and where that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    listen: u16,
    target: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let (listen, target) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok();
    match (port(listen), port(target)) {
        (Some(listen), Some(target)) if target != 0 => Ok(Ports { listen, target }),
        _ => Err("write two ports like 8080:80, or one that is the same on both sides".to_owned()),
    }
}

impl Forward {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let name = &self.sandbox.name;
        if self.ports.is_empty() && self.local.is_empty() && self.remote.is_empty() {
            let message = format!("failed to forward ports of sandbox `{name}`: none is named; write one like 8080:80");
            return Err(CommandError::new(ExitCode::Usage, message));
        }
        let mut client = gateway.client(console).await?;
        get::sandbox(&mut client, name).await?;
        let mut listening = JoinSet::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        for ports in self.ports.iter().chain(&self.local) {
            let listener = listen(name, *ports).await?;
            let local = listener.local_addr().map_or(ports.listen, |address| address.port());
            console.note(&format!("127.0.0.1:{local} leads to port {} of sandbox `{name}`", ports.target)).await;
            listening.spawn(accept(listener, client.clone(), name.clone(), ports.target, places.clone()));
        }
        let mut reverse = self.reverse(gateway, console).await?;
        tokio::select! {
            signal = signals.next() => Ok(signal.code()),
            ended = wait(&mut reverse) => Err(reverse_ended(name, ended)),
        }
    }

    /// OpenSSH listens in the sandbox; nothing where that is not wanted.
    async fn reverse(&self, gateway: &Gateway, console: &mut Console) -> Result<Option<Child>, CommandError> {
        if self.remote.is_empty() {
            return Ok(None);
        }
        let name = &self.sandbox.name;
        openssh::know(gateway, name, console).await?;
        let mut arguments = openssh::arguments(&gateway.ssh, name);
        arguments.extend(["-N", "-o", "ExitOnForwardFailure=yes"].map(OsString::from));
        for Ports { listen, target } in &self.remote {
            arguments.extend([OsString::from("-R"), format!("127.0.0.1:{listen}:127.0.0.1:{target}").into()]);
        }
        arguments.push(openssh::host(name).into());
        let mut command = tokio::process::Command::new("ssh");
        command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
        command.spawn().map(Some).map_err(|cause| openssh::missing("ssh", &cause))
    }
}

async fn listen(name: &str, Ports { listen, target }: Ports) -> Result<TcpListener, CommandError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, listen)).await.map_err(|cause| {
        let act = format!("forward 127.0.0.1:{listen} to port {target} of sandbox `{name}`");
        CommandError::new(ExitCode::Failed, format!("failed to {act}: {cause}; choose another port, or 0 for any"))
    })
}

/// For ever. A connection that fails is told of and stops no other.
async fn accept(listener: TcpListener, client: Client, sandbox: String, port: u16, places: Arc<Semaphore>) {
    let mut open = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors, most likely: some come back.
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let (mut client, sandbox) = (client.clone(), sandbox.clone());
        open.spawn(async move {
            if let Err(error) = carry(&mut client, &sandbox, port, stream).await {
                eprintln!("{error}");
            }
            drop(place);
        });
        while open.try_join_next().is_some() {}
    }
}

async fn carry(client: &mut Client, sandbox: &str, port: u16, stream: TcpStream) -> Result<(), CommandError> {
    let (from, mut to) = stream.into_split();
    let target = TcpRelayTarget { host: String::new(), port: port.into() };
    tunnel::carry(client, sandbox, Target::Tcp(target), from, &mut to).await
}

async fn wait(reverse: &mut Option<Child>) -> std::io::Result<ExitStatus> {
    match reverse {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn reverse_ended(name: &str, ended: std::io::Result<ExitStatus>) -> CommandError {
    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    let remedy = "its message above says why; ports of a sandbox begin at 1024";
    CommandError::new(ExitCode::Failed, format!("failed to listen in sandbox `{name}`: ssh ended ({how}); {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!(ports("8080:80"), Ok(Ports { listen: 8080, target: 80 }));
        assert_eq!(ports("8080"), Ok(Ports { listen: 8080, target: 8080 }));
        assert_eq!(ports("0:80"), Ok(Ports { listen: 0, target: 80 }));
        for text in ["", "0", "80:0", "a:80", "80:65536", "1:2:3", "host:1"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
