//! TLS to a gateway: its certificate has to be signed by the authority in the identity directory. The agent has no
//! certificate of its own; its token says who it is.

use std::io;
use std::path::Path;
use std::sync::Arc;

use proto::{budget, layout};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret as _;

use crate::token::reader::read_listed;

pub(super) fn trusting_authority_in(identity: &Path) -> io::Result<Arc<ClientConfig>> {
    let failed = |cause: &dyn std::fmt::Display| {
        io::Error::other(format!("{} in {} cannot be used: {cause}", layout::CA_FILE, identity.display()))
    };
    let pem = read_listed(identity, layout::CA_FILE, budget::CA_MAX).map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.expose_secret()) {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    if roots.is_empty() {
        return Err(failed(&"there is no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = versions.map_err(|error| failed(&error))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
