//! A place between a guest and its gateway where the connections can be held up, cut and squeezed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to bytes, of connections that are there and of those that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// They pass.
    Open,
    /// Those of the guest are not read.
    ToGatewayHeld,
    /// Those of the gateway are not read.
    ToGuestHeld,
    /// None are read.
    Held,
    /// Each is written by itself.
    ByteByByte,
}

/// Who loses a connection of which the other one hears nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loser {
    /// The gateway; the guest's end stays open and silent.
    Gateway,
    /// The guest; the gateway's end stays open and silent.
    Guest,
}

/// Ends with all of its connections when dropped.
#[derive(Debug)]
pub struct Cut {
    passage: watch::Sender<Passage>,
    lost: watch::Sender<Option<(usize, Loser)>>,
    opened: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Direction {
    ToGateway,
    ToGuest,
}

impl Passage {
    fn holds(self, direction: Direction) -> bool {
        match direction {
            Direction::ToGateway => matches!(self, Self::ToGatewayHeld | Self::Held),
            Direction::ToGuest => matches!(self, Self::ToGuestHeld | Self::Held),
        }
    }
}

impl Cut {
    /// Takes the place of the gateway's socket, which is moved aside. Connections that are there already are not touched.
    ///
    /// # Panics
    /// The socket cannot be moved or bound.
    pub fn before(socket: &Path) -> Self {
        let behind = socket.with_extension("behind");
        std::fs::rename(socket, &behind).expect("move the gateway's socket aside");
        let listener = UnixListener::bind(socket).expect("listen in its place");
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(socket, everybody).expect("let the vmm in");
        let (passage, lost) = (watch::Sender::new(Passage::Open), watch::Sender::new(None));
        let opened = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, behind, passage.clone(), lost.clone(), opened.clone()));
        Self { passage, lost, opened, _connections: connections }
    }

    /// From now on.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }

    /// Every connection that is there now is lost to one side, for good.
    pub fn lose(&self, loser: Loser) {
        self.lost.send_replace(Some((self.opened(), loser)));
    }

    /// How many connections there have been.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: UnixListener,
    behind: std::path::PathBuf,
    passage: watch::Sender<Passage>,
    lost: watch::Sender<Option<(usize, Loser)>>,
    opened: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((guest, _)) = listener.accept().await else { return };
        let number = opened.fetch_add(1, Ordering::Relaxed);
        let (behind, passage, mut lost) = (behind.clone(), passage.clone(), lost.subscribe());
        connections.spawn(async move {
            let Ok(gateway) = UnixStream::connect(&behind).await else { return };
            let (from_guest, to_guest) = guest.into_split();
            let (from_gateway, to_gateway) = gateway.into_split();
            // Halves are given back when a pump is dropped: what is to stay open is kept here, beside the pumps.
            let (mut up, mut down) = ((from_guest, to_gateway), (from_gateway, to_guest));
            let lost = async {
                let mine = |lost: &Option<(usize, Loser)>| lost.is_some_and(|(before, _)| number < before);
                let lost = lost.wait_for(mine).await.ok().and_then(|lost| *lost);
                lost.map(|(_, loser)| loser)
            };
            let loser = tokio::select! {
                _ = async {
                    tokio::join!(
                        pump(&mut up.0, &mut up.1, passage.subscribe(), Direction::ToGateway),
                        pump(&mut down.0, &mut down.1, passage.subscribe(), Direction::ToGuest),
                    )
                } => return,
                loser = lost => loser,
            };
            let ((from_guest, to_gateway), (from_gateway, to_guest)) = (up, down);
            let _silent = match loser {
                Some(Loser::Gateway) => {
                    drop((from_gateway, to_gateway));
                    (from_guest, to_guest)
                }
                Some(Loser::Guest) => {
                    drop((from_guest, to_guest));
                    (from_gateway, to_gateway)
                }
                None => return,
            };
            std::future::pending::<()>().await;
        });
    }
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut passage: watch::Receiver<Passage>,
    direction: Direction,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(now) = passage.wait_for(|passage| !passage.holds(direction)).await.map(|passage| *passage) else {
            return;
        };
        let read = tokio::select! {
            changed = passage.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = from.read(&mut buffer) => read,
        };
        let Ok(length @ 1..) = read else { break };
        let size = if now == Passage::ByteByByte { 1 } else { length };
        for part in buffer[..length].chunks(size) {
            if to.write_all(part).await.is_err() {
                return;
            }
        }
    }
    let _gone = to.shutdown().await;
}
