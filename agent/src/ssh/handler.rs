//! One SSH connection: its channels, and what they ask for.

use std::collections::HashMap;
use std::sync::Arc;

use proto::layout::{ATTACH_SUBSYSTEM, ATTACH_TAKING_INPUT_SUBSYSTEM, SFTP_SUBSYSTEM};
use proto::{budget, fault};
use russh::server::{Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig};
use rustix::process::Signal;
use tokio::sync::mpsc;

use super::exec::{Peer, exec};
use super::forward::Forwards;
use super::stdin::{Flow, Source, queue};
use super::user::become_other;
use super::{CHANNELS_MAX, DebugAnswer, Services, attach, debug};
use crate::faults;
use crate::workload::command::Command;
use crate::workload::process::{Process, Terminal};

/// Words to a running program that wait for its task. A flood of resizes is not worth more.
const EVENTS: usize = 32;
/// A word to a running program, beside its input.
#[derive(Debug)]
pub(super) enum Event {
    Resize((u16, u16)),
    Signal(Signal),
}

/// What a channel is so far.
struct Slot {
    /// Until something runs on it.
    writer: Option<ChannelWriteHalf<Msg>>,
    variables: Vec<(String, String)>,
    terminal: Option<Terminal>,
    /// From then on. Dropped, it tells the program's task that its user has gone.
    running: Option<Running>,
}

struct Running {
    stdin: Source,
    events: mpsc::Sender<Event>,
}

pub(super) struct Handler {
    services: Arc<Services>,
    channels: HashMap<ChannelId, Slot>,
    forwards: Forwards,
}

impl Handler {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { services, channels: HashMap::new(), forwards: Forwards::new() }
    }

    /// Starts what was asked for, and answers the request. A program that cannot be started answers by its exit code
    /// and a line of error output, like any that fails.
    fn run(
        &mut self,
        channel: ChannelId,
        command: Result<Command, String>,
        user: Option<String>,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some((slot, writer)) = self.channels.get_mut(&channel).and_then(|slot| {
            let writer = slot.writer.take()?;
            Some((slot, writer))
        }) else {
            return session.channel_failure(channel);
        };
        let (peer, running) = link(writer, session);
        let (terminal, variables) = (slot.terminal.take(), std::mem::take(&mut slot.variables));
        let workload = self.services.workload.clone();
        slot.running = Some(running);
        session.channel_success(channel)?;
        tokio::spawn(async move {
            let start = |command: Command| {
                let other = user.as_deref().map(|user| become_other(&workload, user)).transpose()?;
                Process::start(other.as_ref().unwrap_or(&workload), &command, &variables, terminal.as_ref())
            };
            // What asks for a program comes with the session, and so do they.
            let secrets = workload.secrets.arrived(budget::UNARY).await;
            if peer.events.is_closed() {
                return;
            }
            exec(peer, secrets.and(command).and_then(start), workload.clone()).await;
        });
        Ok(())
    }

    fn attach(&mut self, channel: ChannelId, take: bool, session: &mut Session) -> Result<(), russh::Error> {
        let slot = self.channels.get_mut(&channel);
        let (Some(slot), Some(main)) = (slot, &self.services.main) else { return session.channel_failure(channel) };
        let Some(writer) = slot.writer.take() else { return session.channel_failure(channel) };
        let (peer, running) = link(writer, session);
        slot.running = Some(running);
        session.channel_success(channel)?;
        tokio::spawn(attach::attach(peer, main.clone(), slot.terminal.take(), take));
        Ok(())
    }

    fn debug(&mut self, channel: ChannelId, answer: DebugAnswer, session: &mut Session) -> Result<(), russh::Error> {
        let Some(slot) = self.channels.get_mut(&channel) else { return session.channel_failure(channel) };
        let Some(writer) = slot.writer.take() else { return session.channel_failure(channel) };
        let (peer, running) = link(writer, session);
        slot.running = Some(running);
        session.channel_success(channel)?;
        tokio::spawn(debug::debug(peer, answer));
        Ok(())
    }

    fn tell(&self, channel: ChannelId, event: Event) {
        if let Some(running) = self.channels.get(&channel).and_then(|slot| slot.running.as_ref()) {
            let _ = running.events.try_send(event);
        }
    }

    fn stdin(&self, channel: ChannelId) -> Option<&Source> {
        Some(&self.channels.get(&channel)?.running.as_ref()?.stdin)
    }
}

fn link(writer: ChannelWriteHalf<Msg>, session: &Session) -> (Peer, Running) {
    let (stdin, input) = queue();
    let (events, inbox) = mpsc::channel(EVENTS);
    (Peer { writer, handle: session.handle(), input, events: inbox }, Running { stdin, events })
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // A channel that this side closed first gets no `channel_close`.
        self.channels.retain(|_, slot| slot.running.as_ref().is_none_or(|running| !running.events.is_closed()));
        if self.channels.len() >= CHANNELS_MAX {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // The reading half would queue input a second time: it comes by `data`.
        let (_, writer) = channel.split();
        let id = writer.id();
        self.channels.insert(id, Slot { writer: Some(writer), variables: Vec::new(), terminal: None, running: None });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.forwards.connect(channel, (host, port), reply, session.handle()).await;
        Ok(())
    }

    async fn tcpip_forward(&mut self, host: &str, port: &mut u32, session: &mut Session) -> Result<bool, Self::Error> {
        let bound = self.forwards.listen(host, *port, session.handle()).await;
        *port = bound.unwrap_or(*port);
        Ok(bound.is_some())
    }

    async fn cancel_tcpip_forward(&mut self, host: &str, port: u32, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.forwards.cancel(host, port))
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn agent_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<bool, Self::Error> {
        session.channel_failure(channel)?;
        Ok(false)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.channels.get_mut(&channel) {
            Some(slot) if slot.running.is_none() => {
                let kind = if term.is_empty() { "xterm" } else { term }.to_owned();
                slot.terminal = Some(Terminal { kind, size: size(columns, rows) });
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        faults::arm(name, value);
        faults::reach(fault::SSH);
        match self.channels.get_mut(&channel) {
            Some(slot) if has_room(&slot.variables, name, value) => {
                slot.variables.push((name.to_owned(), value.to_owned()));
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = Command::from_exec(data, &self.services.workload.user);
        self.run(channel, command, Command::user_of_exec(data), session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        let command = Command::login_shell(&self.services.workload.user);
        self.run(channel, Ok(command), None, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match name {
            ATTACH_SUBSYSTEM => return self.attach(channel, false, session),
            ATTACH_TAKING_INPUT_SUBSYSTEM => return self.attach(channel, true, session),
            SFTP_SUBSYSTEM => return self.run(channel, Ok(Command::sftp_server()), None, session),
            _ => {}
        }
        match debug::answer(&self.services, name) {
            Some(answer) => self.debug(channel, answer, session),
            None => session.channel_failure(channel),
        }
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.tell(channel, Event::Resize(size(columns, rows)));
        session.channel_success(channel)
    }

    async fn signal(&mut self, channel: ChannelId, name: Sig, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(signal) = signal(&name) {
            self.tell(channel, Event::Signal(signal));
        }
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let Some(stdin) = self.stdin(channel) else { return Ok(()) };
        if stdin.push(data) == Flow::Pause {
            session.xon_xoff_request(channel, false)?;
            session.flush()?;
        }
        stdin.room().await;
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(stdin) = self.stdin(channel) {
            stdin.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&channel);
        Ok(())
    }
}

fn has_room(variables: &[(String, String)], name: &str, value: &str) -> bool {
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    variables.len() < budget::ENVIRONMENT_MAX && bytes + name.len() + value.len() <= budget::ENVIRONMENT_BYTES_MAX
}

fn size(columns: u32, rows: u32) -> (u16, u16) {
    let clamp = |cells| u16::try_from(cells).unwrap_or(u16::MAX);
    (clamp(columns), clamp(rows))
}

fn signal(name: &Sig) -> Option<Signal> {
    Some(match name {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_bounded_in_number_and_in_bytes() {
        let pair = |bytes: usize| ("A".to_owned(), "x".repeat(bytes - 1));
        assert!(has_room(&[], "A", &"x".repeat(budget::ENVIRONMENT_BYTES_MAX - 1)));
        assert!(!has_room(&[], "A", &"x".repeat(budget::ENVIRONMENT_BYTES_MAX)));
        assert!(has_room(&[pair(budget::ENVIRONMENT_BYTES_MAX - 2)], "A", "x"));
        assert!(!has_room(&[pair(budget::ENVIRONMENT_BYTES_MAX - 2)], "A", "xx"));
        assert!(has_room(&vec![pair(1); budget::ENVIRONMENT_MAX - 1], "A", ""));
        assert!(!has_room(&vec![pair(1); budget::ENVIRONMENT_MAX], "A", ""));
    }
}
