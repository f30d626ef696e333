//! Calls that an agent makes because a user asks for them.

use std::time::Duration;

use proto::debug::{DebugCall, EXIT_FAILED};
use proto::openshell::vm::v1::debug_rpc_request::Call;
use proto::openshell::vm::v1::{DebugGetSandboxConfig, DebugRpcReply, DebugRpcRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::services::Api;
use crate::sandbox::task::Handle;
use crate::session::exec::{Exec, Output, Program, start};
use crate::status;

/// From the question to the answer, with a handshake between.
const ANSWER: Duration = Duration::from_secs(20);
/// The longest answer of an agent that is believed.
const ANSWER_MAX: usize = 256 * 1024;

impl Api {
    pub(super) async fn debug_rpc(&self, request: DebugRpcRequest, who: &str) -> Result<DebugRpcReply, Status> {
        let handle = self.find(&request.sandbox)?;
        let call = match request.call.ok_or_else(|| status::invalid("call", "call: name one"))? {
            Call::GetSandboxConfig(DebugGetSandboxConfig { sandbox_id }) => {
                DebugCall::GetSandboxConfig { sandbox_id: (!sandbox_id.is_empty()).then_some(sandbox_id) }
            }
            Call::Refresh(_) => DebugCall::Refresh,
            Call::ShowPrincipal(_) => DebugCall::ShowPrincipal,
            Call::ShowToken(_) => DebugCall::ShowToken,
        };
        self.ask_agent(&handle, call, who).await
    }

    /// Asks the agent of a sandbox itself.
    pub(super) async fn ask_agent(&self, handle: &Handle, call: DebugCall, who: &str) -> Result<DebugRpcReply, Status> {
        tracing::info!(sandbox = %handle.id, ?call, who, "audit: debug call");
        let host_key = self.host_keys.public(handle.id).map_err(Status::internal)?;
        let exec = Exec { program: Program::Debug(call), environment: Default::default(), terminal: None };
        let running = start(&self.supervisors, handle, host_key, &exec).await?;
        let (output, outputs) = mpsc::channel(4);
        let (_no_input, input) = mpsc::channel(1);
        // The sender ends with the call: that is how the collector learns of one that broke.
        let run = async move { running.run(input, &output).await };
        let answered = async { tokio::join!(run, collect(outputs)) };
        let late = |_| Status::deadline_exceeded(format!("sandbox {}: no answer within {ANSWER:?}", handle.name));
        let (ended, reply) = timeout(ANSWER, answered).await.map_err(late)?;
        // Too long an answer is what ended the call.
        let reply = reply?;
        ended.map(|()| reply)
    }
}

async fn collect(mut outputs: mpsc::Receiver<Output>) -> Result<DebugRpcReply, Status> {
    let (mut stdout, mut stderr, mut exit_code) = (vec![], vec![], EXIT_FAILED);
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Stdout(bytes) => stdout.extend(bytes),
            Output::Stderr(bytes) => stderr.extend(bytes),
            Output::Exit(code) => {
                exit_code = code;
                break;
            }
        }
        if stdout.len() + stderr.len() > ANSWER_MAX {
            return Err(Status::resource_exhausted(format!("the agent answers with more than {ANSWER_MAX} bytes")));
        }
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    Ok(DebugRpcReply { output: text(stdout), error: text(stderr), exit_code })
}
