//! The exit codes of all programs of this workspace; `docs/exit-codes.md` explains them to users.

macro_rules! exit_codes {
    ($($(#[doc = $meaning:literal])+ $name:ident = $code:literal,)+) => {
        /// Why a program ended. The exit code of a command that ran in a sandbox is passed through instead.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ExitCode {
            $($(#[doc = $meaning])+ $name = $code,)+
        }

        impl ExitCode {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What it means, in one line.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($meaning,)+).trim_ascii_start(),)+
                }
            }
        }
    };
}

exit_codes! {
    /// Done as asked.
    Ok = 0,
    /// Failed for a reason that has no code of its own; the message says which.
    Failed = 1,
    /// The command line, a request's value or the configuration is wrong; all mistakes are listed.
    Usage = 2,
    /// No such sandbox, image or other thing.
    NotFound = 3,
    /// The name is taken.
    AlreadyExists = 4,
    /// The sandbox is in a phase in which this cannot be done, or it was changed by somebody else meanwhile.
    WrongPhase = 5,
    /// The sandbox did not come up, or is in Error; its evidence is printed.
    SandboxError = 6,
    /// The gateway does not let the caller do this.
    Refused = 7,
    /// No gateway answers, or it stopped answering, or the sandbox has no session at the moment.
    GatewayUnavailable = 8,
    /// Two programs of different versions do not understand each other.
    VersionMismatch = 9,
    /// The vmm was handed a document that it does not accept.
    VmmSpec = 20,
    /// Another keeper runs this microVM already.
    VmmAlreadyRunning = 21,
    /// libkrunfw.so.5, the guest kernel, cannot be loaded.
    Libkrunfw = 22,
    /// /dev/kvm is missing, not allowed, or does not work.
    Kvm = 23,
    /// The jail cannot be built: neither root nor user namespaces, or a step failed.
    Jail = 24,
    /// libkrun refused the configuration.
    Libkrun = 25,
    /// The agent cannot be used: no static program for this machine, or of another protocol.
    Agent = 26,
    /// Another gateway holds the state directory.
    StateLocked = 40,
    /// The runtime directory is not a tmpfs, not one's own, open to others, or cannot be made.
    RuntimeDir = 41,
    /// The state directory is not one's own, open to others, or not writable.
    StateDir = 42,
    /// The signing keys are missing, half-written, unreadable, or not those of this gateway.
    Keys = 43,
    /// The store is damaged or unreadable.
    StoreCorrupt = 44,
    /// The store was written by a newer version.
    StoreNewer = 45,
    /// The gateway's socket cannot be made.
    Socket = 46,
    /// A program that belongs to this one is missing or cannot be run.
    ProgramMissing = 47,
    /// A deadline passed; the message says what was waited for.
    Timeout = 124,
    /// The stream of a command broke before its exit code arrived.
    StreamLost = 125,
    /// Ended by a hangup of the terminal (SIGHUP).
    HungUp = 129,
    /// Ended by Ctrl-C (SIGINT).
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

impl ExitCode {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// By number, for the exit status of another program of this workspace.
    pub fn of_code(code: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|exit| i32::from(exit.code()) == code)
    }

    /// By the reason of a condition or of a refusal, where it has a code of its own: the variant's name.
    pub fn of_reason(reason: &str) -> Option<Self> {
        let named = |exit: &&Self| format!("{exit:?}") == reason;
        Self::ALL.iter().filter(|exit| exit.code() >= Self::VmmSpec.code()).find(named).copied()
    }

    /// The reason under which [`Self::of_reason`] finds it.
    pub fn reason(self) -> String {
        format!("{self:?}")
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_lists_exactly_these() {
        let text = include_str!("../../../docs/exit-codes.md");
        let documented = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| code"));
        let wanted = ExitCode::ALL.iter().map(|exit| format!("| {} | {} |", exit.code(), exit.meaning()));
        assert_eq!(documented.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }

    #[test]
    fn codes_are_distinct_and_found_again() {
        for exit in ExitCode::ALL {
            assert_eq!(ExitCode::of_code(i32::from(exit.code())), Some(*exit));
        }
        assert_eq!(ExitCode::of_reason("Kvm"), Some(ExitCode::Kvm));
        assert_eq!(ExitCode::of_reason(&ExitCode::Jail.reason()), Some(ExitCode::Jail));
        assert_eq!(ExitCode::of_reason("Ok"), None);
    }
}
