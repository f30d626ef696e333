//! Who a handler works for. The guard has let the request through, and put the principal into its extensions.

use tonic::{Request, Status};

use super::services::Api;
use crate::identity::principal::{Principal, Transport};
use crate::sandbox::task::Handle;

impl Api {
    /// The sandbox that a request comes from.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        match request.extensions().get::<Principal>() {
            Some(Principal::Sandbox { id, .. }) => {
                self.registry.get(*id).ok_or_else(|| Status::not_found("the sandbox is gone"))
            }
            _ => Err(Status::permission_denied("only a sandbox may call this")),
        }
    }

    /// The sandbox that a request is about: for a sandbox itself, whichever way it names itself; for users any.
    pub(super) fn subject<T>(&self, request: &Request<T>, rpc: &str, reference: &str) -> Result<Handle, Status> {
        if let Some(Principal::User { .. }) = request.extensions().get() {
            return self.find(reference);
        }
        let caller = self.caller(request)?;
        self.own(&caller, rpc, reference)?;
        Ok(caller)
    }

    /// Refuses a sandbox that names another one.
    pub(super) fn own(&self, caller: &Handle, rpc: &str, reference: &str) -> Result<(), Status> {
        if reference.is_empty() || reference == caller.name || reference == caller.id.to_string() {
            return Ok(());
        }
        Err(self.supervisors.refusals.cross_sandbox(caller.id, rpc))
    }
}

/// The caller, for audit lines.
pub(super) fn who<T>(request: &Request<T>) -> String {
    match request.extensions().get::<Principal>() {
        Some(Principal::User { uid }) => format!("uid {uid} by {}", way(request)),
        Some(Principal::Sandbox { id, .. }) => format!("sandbox {id}"),
        Some(Principal::Anonymous) | None => "nobody".into(),
    }
}

/// By which way a user is known.
pub(super) fn way<T>(request: &Request<T>) -> &'static str {
    match request.extensions().get::<Transport>() {
        Some(Transport::LocalUser { .. }) => "local",
        Some(Transport::Certificate) => "certificate",
        Some(Transport::Vm { .. }) | None => "sandbox",
    }
}
