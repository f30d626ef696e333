//! The TCP listener of users with an SDK: where it listens, how it is registered, who gets in.

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::StartError;
use crate::api::listeners::{Serving, TcpUsers, serve_tcp};
use crate::config::{GatewayConfig, Listen};
use crate::identity::tls::Certificates;
use crate::registration::{Registration, register};

/// Where the SDK looks for a gateway.
const USUAL_ADDRESS: &str = "127.0.0.1:17670";

/// A bound TCP listener, and whether it speaks clear text.
pub(super) async fn bind(config: &GatewayConfig) -> Result<Option<(TcpListener, bool)>, StartError> {
    match config.listen {
        Listen::Off => Ok(None),
        Listen::At { address, clear } => match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some((listener, clear))),
            Err(cause) => Err(StartError::Socket(format!(
                "failed to listen on {address}: {cause}; choose another address with openshell.gateway.listen, or `off`"
            ))),
        },
        Listen::Usual { clear } => match TcpListener::bind(USUAL_ADDRESS).await {
            Ok(listener) => Ok(Some((listener, clear))),
            // Another user's gateway, mostly. The command line does not need it.
            Err(error) => {
                tracing::warn!(%error, "no TCP listener on {USUAL_ADDRESS}, so the SDK will not find this gateway; \
                    choose an address with openshell.gateway.listen");
                Ok(None)
            }
        },
    }
}

/// For ever, also where there is no listener.
pub(super) async fn serve(
    listener: Option<(TcpListener, bool)>,
    config: &GatewayConfig,
    certificates: &Certificates,
    serving: Serving,
) {
    let address = listener.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
    let (Some((listener, clear)), Some(address)) = (listener, address) else { return std::future::pending().await };
    if clear {
        tracing::warn!(%address, "TLS IS DISABLED: users with an SDK speak CLEAR TEXT here; only this user's processes get in");
    } else {
        tracing::info!(%address, "listening for users with a certificate");
    }
    if let Some(registry) = &config.registry_dir {
        let client = (!clear).then_some(&certificates.client);
        let registration = Registration { registry, name: &config.name, state_dir: &config.state_dir, address, client };
        if let Err(error) = register(&registration) {
            tracing::warn!(error, "the SDK will not find this gateway by its name");
        }
    }
    let users = match clear {
        true => TcpUsers::Loopback,
        false => TcpUsers::Certificate(TlsAcceptor::from(certificates.server.clone())),
    };
    serve_tcp(listener, users, serving).await;
}
