//! How everybody but its task holds a sandbox: questions in, snapshots out.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::requests::{ConfigureError, RevokeError};
use crate::rotation::event::Published;
use crate::sandbox::decide::Event;
use crate::sandbox::document::{Configuration, Update};
use crate::sandbox::phase::Phase;
use crate::sandbox::record::{MainRuns, Record};
use crate::sandbox::view::View;

/// Why an ask was not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// It is already as asked.
    AlreadySo,
    /// Not from this phase.
    Cannot(Phase),
    /// The word came from an earlier boot, or too late.
    Late,
    /// The sandbox is gone.
    Gone,
    /// The store failed.
    Store(String),
}

/// What can be asked of the task.
pub(super) enum Command {
    Ask {
        event: Event,
        instance: Option<String>,
        /// What is to be known of it, if it leads to `Error`.
        why: Option<String>,
        reply: oneshot::Sender<Result<Arc<View>, AskError>>,
    },
    MainRuns {
        instance: String,
        runs: MainRuns,
        reply: oneshot::Sender<()>,
    },
    Revoke(oneshot::Sender<Result<Published, RevokeError>>),
    Configure(Update, oneshot::Sender<Result<Configuration, ConfigureError>>),
}

/// How everybody else holds a sandbox.
#[derive(Clone)]
pub struct Handle {
    /// Identity.
    pub id: Uuid,
    /// Name.
    pub name: String,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
}

impl Handle {
    pub(super) fn new(record: &Record, commands: mpsc::Sender<Command>, view: watch::Receiver<Arc<View>>) -> Self {
        Self { id: record.id, name: record.name.clone(), commands, view }
    }

    /// The latest snapshot.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Snapshots as they come; closes when the sandbox is gone.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Start, stop or delete.
    ///
    /// # Errors
    /// Typed; see [`AskError`].
    pub async fn ask(&self, event: Event) -> Result<Arc<View>, AskError> {
        self.send(event, None, None).await
    }

    /// What the agent of one boot says.
    ///
    /// # Errors
    /// [`AskError::Late`] where `instance` is not the current boot.
    pub async fn told(&self, instance: &str, event: Event) -> Result<Arc<View>, AskError> {
        self.send(event, Some(instance.to_string()), None).await
    }

    /// What the agent of one boot says of the runs of its main process. Returns once it is so; of another boot, or where
    /// the sandbox is gone, it changes nothing.
    pub async fn main_runs(&self, instance: &str, runs: MainRuns) {
        if self.view.borrow().record.main == runs {
            return;
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::MainRuns { instance: instance.to_owned(), runs, reply };
        if self.commands.send(command).await.is_ok() {
            let _gone = answer.await;
        }
    }

    /// Publishes a new token and refuses all before it.
    ///
    /// # Errors
    /// [`RevokeError`]; nothing is revoked then.
    pub async fn revoke(&self) -> Result<Published, RevokeError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Revoke(reply)).await.map_err(|_| RevokeError::Gone)?;
        answer.await.map_err(|_| RevokeError::Gone)?
    }

    /// Changes the configuration; the answer is the new one.
    ///
    /// # Errors
    /// [`ConfigureError`]; nothing has changed then.
    pub async fn configure(&self, update: Update) -> Result<Configuration, ConfigureError> {
        let gone = || ConfigureError::Failed(AskError::Gone);
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Configure(update, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// The agent of one boot is one that the gateway cannot speak with; `why` is for people.
    ///
    /// # Errors
    /// [`AskError::Late`] where `instance` is not the current boot, or was up already.
    pub async fn agent_refused(&self, instance: &str, why: String) -> Result<Arc<View>, AskError> {
        self.send(Event::AgentRefused, Some(instance.to_string()), Some(why)).await
    }

    /// The agent of one boot gives the sandbox up; `why` is for people.
    ///
    /// # Errors
    /// [`AskError::Late`] where `instance` is not the current boot, or is on its way out already.
    pub async fn given_up(&self, instance: &str, why: String) -> Result<Arc<View>, AskError> {
        self.send(Event::GivenUp, Some(instance.to_string()), Some(why)).await
    }

    async fn send(&self, event: Event, instance: Option<String>, why: Option<String>) -> Result<Arc<View>, AskError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask { event, instance, why, reply }).await.map_err(|_| AskError::Gone)?;
        answer.await.map_err(|_| AskError::Gone)?
    }
}
