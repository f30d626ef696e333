//! Why a sandbox is given up, and how its compute ended.

use proto::vmm::{Ended, ExitRecord, FailureKind};

use super::Owner;
use crate::sandbox::decide::Event;
use crate::sandbox::driver::DriverReason;

/// How much of the console goes into the evidence of a failure.
const CONSOLE_LINES: usize = 12;

impl Owner {
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
