//! Failures of each kind, with the remedy that belongs to it.

use std::fmt::Display;

use proto::vmm::{Failure, FailureKind};

/// The spec is wrong: a bug of the caller, or a file that went away between its check and ours.
pub(crate) fn spec(message: impl Display) -> Failure {
    let remedy = "check the paths in the gateway's configuration, and that all programs are of one version";
    Failure { kind: FailureKind::Spec, message: message.to_string(), remedy: remedy.to_owned() }
}

/// A step of the jail failed.
pub(crate) fn jail(act: impl Display, cause: impl Display) -> Failure {
    Failure {
        kind: FailureKind::Jail,
        message: format!("failed to {act}: {cause}"),
        remedy: "run the gateway as root with all capabilities, or allow unprivileged user namespaces \
                 (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, and \
                 kernel.apparmor_restrict_unprivileged_userns=0 where it exists)"
            .to_owned(),
    }
}

/// `/dev/kvm` is missing, not allowed or does not work.
pub(crate) fn kvm(message: impl Display, remedy: &str) -> Failure {
    Failure { kind: FailureKind::Kvm, message: message.to_string(), remedy: remedy.to_owned() }
}

/// libkrun refused something.
pub(crate) fn libkrun(act: impl Display, cause: impl Display) -> Failure {
    Failure {
        kind: FailureKind::Libkrun,
        message: format!("libkrun failed to {act}: {cause}"),
        remedy: "see the last lines of the vmm's standard error in the exit record".to_owned(),
    }
}
