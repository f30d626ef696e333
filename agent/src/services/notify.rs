//! The notify socket of one run: datagrams of `NAME=value` lines (sd_notify), of which this side knows `READY=1` and
//! `STATUS=…`.
//!
//! The file belongs to the service's user and nobody else may write to it; a message counts only where the kernel says
//! that it came from that user. A new run gets a new socket: a late word of an earlier one reaches nobody.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Uid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Longer messages are cut, as those who speak this protocol know.
const MESSAGE_MAX: usize = 4096;
/// Of a status.
const STATUS_MAX: usize = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    user: Uid,
}

/// What one message says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) ready: bool,
    pub(super) status: Option<String>,
}

impl NotifySocket {
    /// In `directory`, which is made where it is not there.
    pub(super) fn bind(directory: &Path, service: &str, uid: u32) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let path = directory.join(format!("{service}.sock"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        // Before anybody else can write: a message without credentials counts for nothing.
        sockopt::set_socket_passcred(&socket, true)?;
        let user = Uid::from_raw(uid);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        rustix::fs::chown(&path, Some(user), None)?;
        Ok(Self { socket, path, user })
    }

    /// For `NOTIFY_SOCKET`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message of the service's user.
    pub(super) async fn next(&self) -> Word {
        loop {
            match self.socket.async_io(Interest::READABLE, || self.receive()).await {
                Ok((sender, message)) if sender == Some(self.user) => return parse(&message),
                Ok(_) => {}
                // A socket that cannot be read will not become better by reading.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// There is room for credentials and for nothing else: the kernel closes descriptors that somebody sends along.
    fn receive(&self) -> io::Result<(Option<Uid>, Vec<u8>)> {
        let mut message = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
        message.truncate(received.bytes);
        let sender = control.drain().find_map(|one| match one {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.uid),
            _ => None,
        });
        Ok((sender, message))
    }
}

fn parse(message: &[u8]) -> Word {
    let text = String::from_utf8_lossy(message);
    let mut word = Word::default();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => word.ready = true,
            Some(("STATUS", status)) => {
                word.status = Some(status.chars().filter(|c| !c.is_control()).take(STATUS_MAX).collect());
            }
            _ => {}
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram as Sender;

    use super::*;

    #[test]
    fn messages_are_lines_of_which_two_are_known() {
        let word = |ready, status: Option<&str>| Word { ready, status: status.map(str::to_owned) };
        for (message, expected) in [
            ("READY=1", word(true, None)),
            ("STATUS=loading \u{1b}[2J\nREADY=1\nMAINPID=7", word(true, Some("loading [2J"))),
            ("READY=0\nSTOPPING=1\n=\n", word(false, None)),
            ("", word(false, None)),
        ] {
            assert_eq!(parse(message.as_bytes()), expected, "{message:?}");
        }
        assert!(parse(b"STATUS=\xff\nREADY=1").ready);
        assert_eq!(
            parse(format!("STATUS={}", "ä".repeat(4000)).as_bytes()).status.unwrap().chars().count(),
            STATUS_MAX
        );
    }

    #[tokio::test]
    async fn only_the_services_user_is_heard_and_a_new_run_hears_no_late_word() {
        let directory = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let bind = |uid| NotifySocket::bind(&directory.path().join("a/b"), "db", uid);
        let first = bind(own).unwrap();
        let mode = fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let speaker = Sender::unbound().unwrap();
        speaker.connect(first.path()).unwrap();
        speaker.send(b"READY=1").unwrap();
        assert!(first.next().await.ready);
        let second = bind(own).unwrap();
        speaker.send(b"STATUS=late").unwrap();
        speaker.connect(second.path()).unwrap();
        speaker.send(b"STATUS=new").unwrap();
        assert_eq!(second.next().await.status.as_deref(), Some("new"));
        if rustix::process::geteuid().is_root() {
            // Root may write to any file, and is not the user.
            let others = bind(4242).unwrap();
            speaker.connect(others.path()).unwrap();
            speaker.send(b"READY=1").unwrap();
            let heard = tokio::time::timeout(std::time::Duration::from_millis(100), others.next()).await;
            assert!(heard.is_err(), "{heard:?}");
        }
    }
}
