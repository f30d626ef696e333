//! Why a sandbox is given up, and how its compute ended.

use proto::boot::RestartPolicy;
use proto::last_words::LastWords;
use proto::vmm::{Ended, ExitRecord, FailureKind};

use super::Owner;
use crate::sandbox::decide::Event;
use crate::sandbox::driver::DriverReason;
use crate::sandbox::record::Record;

/// How much of the console goes into the evidence of a failure.
const CONSOLE_LINES: usize = 12;

impl Owner {
    /// How the main process ended, where the gateway was away for longer than the agent tried to report it: the guest's
    /// exit code, together with the agent's last words on the console that name the same. Either alone is no word of the
    /// agent's.
    pub(super) fn unreported_end(&self, exit: Option<&ExitRecord>) -> Option<LastWords> {
        let Some(ExitRecord { ended: Ended::Exited(code), .. }) = exit else { return None };
        let said = LastWords::find(&self.deps.driver.console_tail(self.record.id, CONSOLE_LINES))?;
        (said.exit_code.clamp(0, 255) == *code).then_some(said)
    }

    /// Why the sandbox is given up, in one text for people.
    pub(super) fn evidence(&self, event: Event) -> String {
        let mut parts = vec![];
        if event == Event::TimeUp {
            parts.push(format!("no hello from the agent within {:?}", self.deps.times.boot));
        }
        if !self.record.note.is_empty() {
            parts.push(self.record.note.clone());
        }
        if let (Event::AgentRefused, Some(agent)) = (event, self.deps.driver.agent()) {
            parts.push(format!("guests get the agent {agent}"));
        }
        let id = self.record.id;
        // Not what the note says already.
        let refusals = self.deps.link.refusals(id).into_iter().filter(|refused| !self.record.note.contains(refused));
        parts.extend(refusals.map(|refused| format!("refused: {refused}")));
        let console = self.deps.driver.console_tail(id, CONSOLE_LINES);
        if console.is_empty() {
            parts.push("the console is empty".into());
        } else {
            parts.push(format!("console:\n{console}"));
        }
        parts.join("; ")
    }
}

/// Reason of the condition, for programs.
pub(super) const CRASH_LOOP: &str = "CrashLoop";

/// Why a sandbox whose main process was given up is in `Error`.
pub(super) fn crash_loop(record: &Record) -> String {
    let policy = match record.spec.restart {
        RestartPolicy::Never => "never",
        RestartPolicy::OnFailure => "on-failure",
        RestartPolicy::Always => "always",
    };
    let code = record.machine.main_exit.unwrap_or_default();
    format!(
        "the main process ended {} times in a row soon after its start, the last time with code {code}; restart policy \
         {policy} gave it up; `openshell vm console {name}` may tell why, `openshell vm start {name}` starts it again",
        record.main.crash_loop.max(1),
        name = record.name,
    )
}

/// What kept the vmm from starting, for programs.
pub(super) fn failure_reason(exit: &ExitRecord) -> String {
    let Ended::Failed(failure) = &exit.ended else { return String::new() };
    let reason = match failure.kind {
        FailureKind::Spec => DriverReason::VmmSpec,
        FailureKind::AlreadyRunning => DriverReason::VmmAlreadyRunning,
        FailureKind::Libkrunfw => DriverReason::Libkrunfw,
        FailureKind::Kvm => DriverReason::Kvm,
        FailureKind::Jail => DriverReason::Jail,
        FailureKind::Libkrun => DriverReason::Libkrun,
    };
    reason.name()
}

/// How a vmm ended, for people. A record of another boot says nothing about this one.
pub(super) fn describe(exit: Option<&ExitRecord>) -> String {
    let Some(exit) = exit else {
        return "the vmm ended and left no exit record (keeper killed, or host restarted)".into();
    };
    let how = match &exit.ended {
        Ended::Exited(code) => format!("the vmm exited with code {code}"),
        Ended::Signalled(signal) => format!("the vmm was killed by signal {signal}"),
        Ended::Killed => "the vmm was ended by the gateway".into(),
        Ended::Failed(failure) => format!("the vmm did not start: {}; {}", failure.message, failure.remedy),
    };
    match exit.stderr.trim() {
        "" => how,
        words => format!("{how}; its last words: {words}"),
    }
}
