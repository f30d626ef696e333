//! Who a request is.
//!
//! A transport decides who a caller *can* be, a token whether it is. There is no fallthrough: on the transport of a
//! sandbox a request is that sandbox or nobody, on the socket of the local user it is the user or refused.

use std::sync::Arc;

use http::{HeaderMap, header::AUTHORIZATION};
use uuid::Uuid;

use super::{claims::Claims, refusal::Refusal, verify::Verifier};

/// Who a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Somebody on this machine who may do everything that users may.
    User {
        /// By the socket's peer credentials; the gateway's own for a certificate, which only that user can read.
        uid: u32,
    },
    /// A sandbox, by transport and token.
    Sandbox {
        /// Which.
        id: Uuid,
        /// Its token's claims.
        claims: Arc<Claims>,
    },
    /// Nobody: allowed nothing but Health.
    Anonymous,
}

/// The way by which a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The gateway's own unix socket.
    LocalUser {
        /// By peer credentials.
        uid: u32,
    },
    /// The TLS listener, which lets in nobody without a certificate of this gateway.
    Certificate,
    /// The unix socket that one VM's vsock port leads to.
    Vm {
        /// Whose.
        sandbox_id: Uuid,
    },
}

/// Who a request is, from the way it came and the bearer it brought.
///
/// `owner` is the gateway's own uid, `now` in seconds since the epoch; `floor` gives the lowest accepted generation of
/// a sandbox, nothing if there is no such sandbox (any more).
pub fn authenticate(
    transport: Transport,
    bearer: Option<&str>,
    owner: u32,
    verifier: &Verifier,
    now: u64,
    floor: &dyn Fn(Uuid) -> Option<u64>,
) -> Result<Principal, Refusal> {
    match (transport, bearer) {
        (Transport::LocalUser { .. } | Transport::Certificate, Some(_)) => Err(Refusal::BearerFromUser),
        (Transport::LocalUser { uid }, None) if uid == owner || uid == 0 => Ok(Principal::User { uid }),
        (Transport::LocalUser { uid }, None) => Err(Refusal::OtherUser { uid }),
        (Transport::Certificate, None) => Ok(Principal::User { uid: owner }),
        (Transport::Vm { .. }, None) => Ok(Principal::Anonymous),
        (Transport::Vm { sandbox_id }, Some(token)) => {
            let claims = verifier.verify(token, now)?;
            if claims.sandbox_id != sandbox_id {
                return Err(Refusal::OtherSandbox { transport: sandbox_id, token: claims.sandbox_id });
            }
            let floor = floor(sandbox_id).ok_or(Refusal::NoRecord { sandbox_id })?;
            if claims.generation < floor {
                return Err(Refusal::BelowFloor { generation: claims.generation, floor });
            }
            Ok(Principal::Sandbox { id: sandbox_id, claims })
        }
    }
}

/// The bearer that a request brought, if any. What is there but cannot be read is refused, so that a broken bearer
/// never passes as none.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::Authorization);
    }
    let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).filter(|token| !token.is_empty());
    token.map(Some).ok_or(Refusal::Authorization)
}

#[cfg(test)]
mod tests;
