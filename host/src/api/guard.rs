//! In front of every RPC: who is calling, and may they?

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::faults;
use crate::identity::guard::{Denial, permits, rule};
use crate::identity::principal::{Principal, Transport, authenticate, bearer};
use crate::identity::refusal::{PUBLIC_REFUSAL, Refusal};
use crate::identity::verify::Verifier;
use crate::rotation::clock::Clock;
use crate::rotation::leases::Lease;
use crate::rotation::receipts::Receipts;
use crate::sandbox::registry::Registry;
use crate::session::agent::{AgentVersion, FORMER_SECRET, give_up};
use crate::session::refusals::Refusals;

/// How long a request of a sandbox may take until its answer begins.
const ANSWER: Duration = Duration::from_secs(15);

/// The RPC with which an agent begins.
const SESSION: &str = "/openshell.v1.OpenShell/ConnectSupervisor";

/// What authentication works with.
pub struct Authority {
    /// The gateway's own user.
    pub owner: u32,
    /// Tolerance for `exp`.
    pub leeway: Duration,
    /// Checks tokens.
    pub verifier: Verifier,
    /// Knows which sandboxes exist, and their floors.
    pub registry: Registry,
    /// Learns which generations are presented.
    pub receipts: Arc<Receipts>,
    /// Learns what is refused.
    pub refusals: Arc<Refusals>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
}

/// A service behind the guard, for one connection.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    authority: Arc<Authority>,
    transport: Transport,
    lease: Option<Lease>,
}

impl<S> Guarded<S> {
    /// `lease` is that of the connection, where it is a sandbox's.
    pub fn new(inner: S, authority: Arc<Authority>, transport: Transport, lease: Option<Lease>) -> Self {
        Self { inner, authority, transport, lease }
    }

    /// The principal that may make this request, or the answer to one who may not.
    fn admit(&self, request: &Request<Incoming>) -> Result<Principal, Status> {
        let path = request.uri().path();
        let rule = rule(path).ok_or_else(|| Status::unimplemented(format!("{path} is not served by this gateway")))?;
        let principal = self.authenticate(request).map_err(|refusal| {
            self.refused(path, refusal.reason());
            Status::unauthenticated(PUBLIC_REFUSAL)
        })?;
        // Log lines present the token with a Sync, too.
        let by_sync = path.ends_with("/Sync") || path.ends_with("/PushSandboxLogs");
        if !(by_sync && faults::hit(faults::SYNC_UNHEARD)) {
            self.heard(&principal);
        }
        permits(rule, &principal).map_err(|denial| {
            self.refused(path, &denial.to_string());
            if denial == Denial::Unauthenticated && path == SESSION {
                self.without_token(request.headers());
            }
            match denial {
                Denial::Unauthenticated => Status::unauthenticated(PUBLIC_REFUSAL),
                Denial::UsersOnly | Denial::SandboxesOnly => Status::permission_denied(format!("{path}: {denial}")),
            }
        })?;
        Ok(principal)
    }

    fn authenticate(&self, request: &Request<Incoming>) -> Result<Principal, Refusal> {
        let Authority { owner, verifier, registry, clock, .. } = &*self.authority;
        let floor = |id| registry.floor(id);
        let bearer = bearer(request.headers())?;
        authenticate(self.transport, bearer, *owner, verifier, clock.now().unix(), &floor)
    }

    /// A token that was accepted extends the lease of its connection, and shows that its generation has arrived.
    fn heard(&self, principal: &Principal) {
        let Principal::Sandbox { id, claims } = principal else { return };
        if let Some(lease) = &self.lease {
            lease.extend(claims, self.authority.leeway, self.authority.clock.now().wall);
        }
        let receipt = self.authority.receipts.presented(*id, claims.generation, Instant::now());
        if let Some(delay) = receipt {
            faults::crash(faults::AFTER_RECEIPT);
            tracing::info!(sandbox = %id, generation = claims.generation, jti = %claims.jti,
                delay_us = delay.as_micros() as u64, "audit: first presentation");
        }
    }

    /// An agent of this protocol shows a token or says nothing. Only on its way up does that end a sandbox: later,
    /// whoever can reach this socket from in there would have a switch that turns it off.
    fn without_token(&self, headers: &HeaderMap) {
        let Transport::Vm { sandbox_id } = self.transport else { return };
        let Some(handle) = self.authority.registry.get(sandbox_id) else { return };
        if handle.view().phase().is_booting() {
            let agent = AgentVersion::read(|key| headers.get(key)?.to_str().ok());
            give_up(&handle, agent.without_token(headers.contains_key(FORMER_SECRET)));
        }
    }

    fn refused(&self, path: &str, reason: &str) {
        match self.transport {
            Transport::Vm { sandbox_id } => {
                if let Some(lease) = &self.lease {
                    lease.refused();
                }
                self.authority.refusals.note(sandbox_id, format!("{path}: {reason}"), Instant::now());
            }
            Transport::LocalUser { uid } => tracing::warn!(uid, path, reason, "audit: refused"),
            Transport::Certificate => tracing::warn!(path, reason, "audit: refused a user with a certificate"),
        }
    }
}

impl<S> Service<Request<Incoming>> for Guarded<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        match self.admit(&request) {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                request.extensions_mut().insert(self.transport);
                let answer = self.inner.call(request);
                if !matches!(self.transport, Transport::Vm { .. }) {
                    return Box::pin(answer);
                }
                // A guest that announces a message and does not send it holds memory here.
                Box::pin(async move {
                    let late =
                        || Status::deadline_exceeded(format!("no complete request within {ANSWER:?}")).into_http();
                    timeout(ANSWER, answer).await.unwrap_or_else(|_| Ok(late()))
                })
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}
