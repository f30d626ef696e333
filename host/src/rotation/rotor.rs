//! The rotation thread, and the handle by which the rest of the gateway speaks to it.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use secrecy::SecretString;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use super::engine::{Deps, Enrolment, Generations};
use super::{
    engine::{Engine, Shared, Troubles},
    error::RotationError,
    event::{Published, Trouble},
};

/// How long a command may take: a durable write of the store and a batch of publications before it.
pub const REPLY: Duration = Duration::from_secs(10);
/// How long an ending gateway waits for the thread.
pub const SHUTDOWN: Duration = Duration::from_secs(2);
/// Commands that are carried out before due tokens are looked at again.
const COMMANDS: usize = 32;

type Reply<T> = oneshot::Sender<Result<T, RotationError>>;

enum Command {
    Enroll(Box<Enrolment>, Reply<Published>),
    Adopt { sandbox_id: Uuid, directory: PathBuf, owner: Option<(u32, u32)>, reply: Reply<Published> },
    Withdraw(Uuid, Reply<()>),
    Rotate(Uuid, Reply<Published>),
    Refresh(Uuid, Reply<(Published, SecretString)>),
    Stop,
}

/// Starts rotation.
#[derive(Debug)]
pub struct Rotor;

/// The handle; cheap to clone. With the last one the thread ends. Tokens stay where they are: the VMs live on.
#[derive(Debug, Clone)]
pub struct Rotation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    commands: Sender<Command>,
    published: Shared,
    troubles: Troubles,
    /// Taken by the one who waits for the end. The receiver is closed when the thread has ended.
    thread: Mutex<Option<(JoinHandle<()>, Receiver<()>)>>,
}

impl Rotor {
    /// Starts the thread.
    pub fn spawn(deps: Deps) -> Result<Rotation, RotationError> {
        let (commands, orders) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let (published, troubles) = (Shared::default(), Troubles::default());
        let engine = Engine::new(deps, published.clone(), troubles.clone());
        let thread = thread::Builder::new()
            .name("rotation".into())
            .spawn(move || {
                run(engine, &orders);
                drop(alive);
            })
            .map_err(|error| RotationError::Spawn { cause: error.to_string() })?;
        let thread = Mutex::new(Some((thread, ended)));
        Ok(Rotation(Arc::new(Inner { commands, published, troubles, thread })))
    }
}

impl Rotation {
    /// Makes the identity directory of a sandbox that is about to start. Boot spec and first token are on disk when
    /// this returns; after an error nothing is enrolled.
    pub async fn enroll(&self, enrolment: Enrolment) -> Result<Published, RotationError> {
        self.ask("enroll a sandbox", |reply| Command::Enroll(Box::new(enrolment), reply)).await
    }

    /// Takes over the identity directory of a VM that kept running while no gateway was there. A new token is on disk
    /// when this returns. After [`RotationError::Directory`] nothing is enrolled, and the sandbox has to be restarted
    /// onto a fresh directory; after other errors the attempts go on.
    pub async fn adopt(
        &self,
        sandbox_id: Uuid,
        directory: PathBuf,
        owner: Option<(u32, u32)>,
    ) -> Result<Published, RotationError> {
        self.ask("adopt a sandbox", |reply| Command::Adopt { sandbox_id, directory, owner, reply }).await
    }

    /// Takes the token of a stopped sandbox away and forgets the sandbox.
    pub async fn withdraw(&self, sandbox_id: Uuid) -> Result<(), RotationError> {
        self.ask("withdraw a token", |reply| Command::Withdraw(sandbox_id, reply)).await
    }

    /// Publishes a new generation now.
    pub async fn rotate_now(&self, sandbox_id: Uuid) -> Result<Published, RotationError> {
        self.ask("rotate a token", |reply| Command::Rotate(sandbox_id, reply)).await
    }

    /// The newest token itself, for the sandbox that it is of. It is a new one unless there was one just now.
    pub async fn refresh(&self, sandbox_id: Uuid) -> Result<(Published, SecretString), RotationError> {
        self.ask("refresh a token", |reply| Command::Refresh(sandbox_id, reply)).await
    }

    /// What is in a sandbox's directory. Does not ask the thread.
    pub fn published(&self, sandbox_id: Uuid) -> Option<Published> {
        self.0.published.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox_id).copied()
    }

    /// What keeps a sandbox from new tokens now. Does not ask the thread.
    pub fn trouble(&self, sandbox_id: Uuid) -> Option<Trouble> {
        self.0.troubles.read().unwrap_or_else(PoisonError::into_inner).get(&sandbox_id).cloned()
    }

    /// Ends the thread and waits for it, at most [`SHUTDOWN`]. Idempotent; later commands fail.
    pub fn shutdown(&self) -> Result<(), RotationError> {
        self.0.shutdown()
    }

    async fn ask<T>(&self, act: &'static str, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, RotationError> {
        let (reply, answer) = oneshot::channel();
        self.0.commands.send(command(reply)).map_err(|_| RotationError::Stopped)?;
        match tokio::time::timeout(REPLY, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(RotationError::Stopped),
            Err(_) => Err(RotationError::Deadline { waited: REPLY, act }),
        }
    }
}

impl Inner {
    fn shutdown(&self) -> Result<(), RotationError> {
        let Some((thread, ended)) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let _already_ended = self.commands.send(Command::Stop);
        if ended.recv_timeout(SHUTDOWN) == Err(RecvTimeoutError::Timeout) {
            return Err(RotationError::Deadline { waited: SHUTDOWN, act: "end" });
        }
        thread.join().map_err(|_| RotationError::Stopped)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::warn!(%error, "rotation did not end in order");
        }
    }
}

/// Rotates what is due, then waits for the next time or a command, whichever comes first.
fn run(mut engine: Engine, orders: &Receiver<Command>) {
    loop {
        let first = match engine.tick() {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(idle) => orders.recv_timeout(idle),
        };
        let mut next = match first {
            Ok(command) => Ok(command),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for _ in 0..COMMANDS {
            match next {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => break,
                Ok(command) => obey(&mut engine, command),
            }
            next = orders.try_recv();
        }
        // What was taken out beyond the limit is not lost.
        match next {
            Ok(Command::Stop) => return,
            Ok(command) => obey(&mut engine, command),
            Err(_) => {}
        }
    }
}

fn obey(engine: &mut Engine, command: Command) {
    match command {
        Command::Enroll(enrolment, reply) => {
            let sandbox_id = enrolment.sandbox_id;
            let outcome = engine.enroll(&enrolment);
            let enrolled = outcome.is_ok();
            // Whoever gave up waiting will not start this sandbox.
            if reply.send(outcome).is_err()
                && enrolled
                && let Err(error) = engine.withdraw(sandbox_id)
            {
                tracing::warn!(%error, "token of a sandbox that nobody waits for");
            }
        }
        // Whoever does not wait for an answer finds it in the events.
        Command::Adopt { sandbox_id, directory, owner, reply } => {
            let _unheard = reply.send(engine.adopt(sandbox_id, &directory, owner));
        }
        Command::Withdraw(sandbox_id, reply) => {
            let _unheard = reply.send(engine.withdraw(sandbox_id));
        }
        Command::Rotate(sandbox_id, reply) => {
            let _unheard = reply.send(engine.rotate(sandbox_id));
        }
        Command::Refresh(sandbox_id, reply) => {
            let _unheard = reply.send(engine.refresh(sandbox_id));
        }
        Command::Stop => {}
    }
}

#[cfg(test)]
mod tests;
