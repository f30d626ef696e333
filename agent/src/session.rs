//! The session with the gateway: a connection that is always there, and one for bytes that is there when it is needed.
//! Both come back by themselves.
//!
//! ```text
//!  control thread, runtime of its own          main thread
//!  ┌──────────────────────────────┐  Tick    ┌──────────────────────────┐
//!  │ control: hello, heartbeats,  │─────────►│ data: Sync, relay streams,│
//!  │ Sync, exit report, token     │  Relay   │ relay ─► ssh / loopback  │
//!  └──────────────────────────────┘─────────►└──────────────────────────┘
//! ```
//!
//! Whatever a workload does to the data connection, or to the main thread, control keeps its beat. Each side
//! reconnects with full jitter and never gives up.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use proto::boot::BootSpec;
use proto::openshell::v1::{RelayOpen, SupervisorMessage};
use proto::openshell::vm::v1::SyncRequest;
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};

use demand::Demand;

use crate::logs::Logs;
use crate::token::holder::{Found, RefreshError, Tokens};
use crate::workload::main_process::Runs;
use crate::workload::secrets::Secrets;

pub mod backoff;
mod connection;
mod control;
mod data;
pub mod debug;
pub mod demand;
pub mod endpoint;
mod logs;
mod pacing;
mod relay;
mod sync;

pub use control::run as run_control;
pub use data::{Relays, run as run_data};

/// The sandbox is to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// How long its processes may take.
    pub grace: Duration,
    /// For the console.
    pub reason: String,
}

/// What the gateway's user is to know of the services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Those that are not as they should be.
    pub note: String,
    /// Why the sandbox is given up, if it is.
    pub fault: String,
}

/// What the gateway asks of the data connection. `answer` leads to the session that asked.
#[derive(Debug)]
pub enum RelayOrder {
    /// Open one.
    Open {
        /// Which, and where to.
        open: RelayOpen,
        /// Where result and failure are reported.
        answer: mpsc::Sender<SupervisorMessage>,
    },
    /// End one.
    Close {
        /// Which.
        channel_id: String,
    },
}

/// What both connections and the supervisor share.
#[derive(Debug)]
pub struct Session {
    /// Who this guest is, and where its gateway.
    pub spec: Arc<BootSpec>,
    /// The bearer.
    pub tokens: Tokens,
    /// Rises with every connection of this boot.
    pub epoch: AtomicU64,
    /// Rises with every heartbeat: the data connection syncs then, too.
    pub tick: watch::Sender<u64>,
    /// Who needs the data connection.
    pub demand: Demand,
    /// Set once, by whichever connection hears it first.
    pub stop: watch::Sender<Option<Stop>>,
    /// The exit code to report, once there is one.
    pub main_exit: watch::Sender<Option<i32>>,
    /// The runs of the main process, where there is one.
    pub main_runs: Option<watch::Sender<Runs>>,
    /// Whether the gateway has taken that report.
    pub reported: watch::Sender<bool>,
    /// The highest generation that the gateway has accepted.
    pub presented: AtomicU64,
    /// What came from the gateway for the workload.
    pub secrets: Arc<Secrets>,
    /// What the gateway is told of the services with every Sync.
    pub told: watch::Sender<Told>,
    /// What the sandbox says.
    pub logs: Logs,
    /// Whether a token could be read last time: a change is worth a line, a repetition is not.
    pub token_fault: std::sync::Mutex<Option<String>>,
}

impl Session {
    /// Nothing connected yet.
    pub fn new(spec: Arc<BootSpec>, tokens: Tokens, secrets: Arc<Secrets>) -> Self {
        Self {
            spec,
            tokens,
            epoch: AtomicU64::new(0),
            tick: watch::Sender::new(0),
            demand: Demand::default(),
            stop: watch::Sender::new(None),
            main_exit: watch::Sender::new(None),
            main_runs: None,
            reported: watch::Sender::new(false),
            presented: AtomicU64::new(0),
            secrets,
            told: watch::Sender::default(),
            logs: Logs::default(),
            token_fault: std::sync::Mutex::new(None),
        }
    }

    /// What a Sync tells the gateway.
    fn sync_request(&self) -> SyncRequest {
        let Told { note, fault } = self.told.borrow().clone();
        SyncRequest {
            provider_env_revision: self.secrets.revision(),
            services_note: note,
            fault,
            main_process: self.main_runs.as_ref().map(|runs| runs.borrow().message()),
        }
    }

    /// Resolves with the next change of the main process's runs.
    async fn runs_changed(runs: &mut Option<watch::Receiver<Runs>>) {
        let changed = match runs {
            Some(runs) => runs.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending().await
        }
    }

    /// An answer of the gateway that is a refusal of a request with a bearer of that generation. One of the bearer
    /// itself has it read again.
    pub fn heed(&self, refusal: &Status, generation: u64) {
        if refusal.code() == Code::Unauthenticated {
            self.tokens.forget(generation);
            self.refresh_token();
        }
    }

    /// Reads the token file. True where a newer token is held now, which both connections then have to present.
    pub fn refresh_token(&self) -> bool {
        let began = Instant::now();
        let result = self.tokens.refresh(began);
        if let Ok(Found::Newer(generation)) = &result {
            tracing::info!(generation, read_us = began.elapsed().as_micros(), "read a new token");
        }
        let fault = result.as_ref().err().map(RefreshError::to_string);
        let mut last = self.token_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != fault {
            match &fault {
                Some(fault) => tracing::warn!(held = self.tokens.generation(), "{fault}"),
                None => tracing::info!(held = self.tokens.generation(), "the token can be read again"),
            }
            *last = fault;
        }
        matches!(result, Ok(Found::Newer(_)))
    }
}
