//! Refusals with what programs can read of them, beside the code and the message for people: `google.rpc` error
//! details, as gRPC libraries show them.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// In whose words a reason is.
const DOMAIN: &str = "openshell";
/// After which it is worth trying again what failed for a moment.
const AGAIN: Duration = Duration::from_secs(1);

/// A field of the request breaks a rule: `InvalidArgument`.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = ErrorDetails::with_bad_request_violation(field, message.clone());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// Refused for a reason that is one word.
pub fn because(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, [] as [(String, String); 0]);
    Status::with_error_details(code, message, details)
}

/// Not now: soon it may work.
pub fn not_now(code: Code, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(AGAIN)))
}

/// The one word of a refusal that has one.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_back() {
        let status = because(Code::FailedPrecondition, "Kvm", "no KVM");
        assert_eq!((reason(&status).as_deref(), status.message()), (Some("Kvm"), "no KVM"));
        assert_eq!(reason(&Status::internal("x")), None);
        let violations = invalid("name", "name: too long").get_details_bad_request().unwrap().field_violations;
        assert_eq!((violations[0].field.as_str(), violations.len()), ("name", 1));
        let again = not_now(Code::Unavailable, "no session").get_details_retry_info().unwrap();
        assert_eq!(again.retry_delay, Some(AGAIN));
    }
}
