//! A gateway process of a test's own.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::api::Api;
use crate::programs::program;
use crate::wait::{PATIENCE, until};

/// Runs until it is ended or dropped.
pub struct Gateway {
    child: Child,
}

impl Gateway {
    /// Starts one with `environment` and waits until it serves on `socket`. Its log is appended to `log`.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn start(environment: &[(String, String)], socket: &Path, log: &Path) -> Self {
        let mut gateway = Self::spawn(environment, log);
        until("the gateway to serve", PATIENCE, async || {
            if let Some(status) = gateway.child.try_wait().expect("wait for the gateway") {
                let words = std::fs::read_to_string(log).unwrap_or_default();
                panic!("the gateway ended with {status} instead of serving:\n{words}");
            }
            let api = Api::connect(socket).await.ok()?;
            api.client.clone().health(proto::openshell::v1::HealthRequest {}).await.ok()
        })
        .await;
        gateway
    }

    /// Starts one and waits for nothing.
    pub fn spawn(environment: &[(String, String)], log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("open the gateway's log");
        let child = Command::new(program("openshell-gateway"))
            .env_clear()
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log)
            .spawn()
            .expect("start openshell-gateway");
        Self { child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("signal the gateway");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("wait for the gateway");
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(Duration::from_secs(30)).await
    }

    /// Waits for its end.
    pub async fn ended(&mut self, deadline: Duration) -> ExitStatus {
        until("the gateway to end", deadline, async || self.child.try_wait().expect("wait for the gateway")).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ended already, or a test that failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
