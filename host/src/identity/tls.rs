//! The certificates of the TLS listener on disk: a CA of this gateway's own, a certificate for the server and one for
//! the users of this machine. Sandboxes have none: their transport tells who they are, and their token proves it.
//!
//! Like the signing keys the directory appears whole or not at all, and is only ever read after.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::secret_dir::{KeyError, Readers, SecretDir, Secrets};

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const SERVER_CERTIFICATE: &str = "server.crt";
const SERVER_KEY: &str = "server.key";
const CLIENT_CERTIFICATE: &str = "client.crt";
const CLIENT_KEY: &str = "client.key";
const FILES: [&str; 6] = [CA_CERTIFICATE, CA_KEY, SERVER_CERTIFICATE, SERVER_KEY, CLIENT_CERTIFICATE, CLIENT_KEY];

/// By what names the server is reached: from this machine, and from containers on it.
pub const SERVER_NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "*.openshell.localhost",
    "host.docker.internal",
    "host.containers.internal",
    "host.openshell.internal",
];

/// The clock of a client may be behind.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years: what would be gained by less is lost by the day on which nobody can reach the gateway. Whoever wants
/// new ones removes the directory.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What a user of the TLS listener needs, in PEM.
pub struct ClientIdentity {
    /// Whom to trust.
    pub ca: String,
    /// The user's certificate.
    pub certificate: String,
    /// Its key.
    pub key: SecretString,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity")
    }
}

/// What the directory holds.
#[derive(Debug)]
pub struct Certificates {
    /// For the listener: asks every client for a certificate of this CA.
    pub server: Arc<ServerConfig>,
    /// For the users of this machine.
    pub client: ClientIdentity,
}

impl Certificates {
    /// Reads the directory, or makes it where there is none. The caller holds the lock of the state directory.
    ///
    /// # Errors
    /// [`KeyError`]: incomplete, not this gateway's, exposed to others, or unreadable.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        let dir = SecretDir { path: dir, secrets: Secrets::Certificates };
        match dir.check(&FILES) {
            Err(KeyError::Missing { .. }) => create(dir)?,
            checked => checked?,
        }
        load(dir)
    }
}

fn load(dir: SecretDir<'_>) -> Result<Certificates, KeyError> {
    let foreign = |name: &str, what: String| dir.foreign(name, what);
    let public = |name| dir.read(name, Readers::Anybody).map(|pem| pem.expose_secret().to_owned());
    let secret = |name| dir.read(name, Readers::Owner);
    let certificate = |name: &'static str, pem: &str| {
        CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|cause| foreign(name, format!("is not a certificate in PEM: {cause}")))
    };
    let ca_pem = public(CA_CERTIFICATE)?;
    let ca = certificate(CA_CERTIFICATE, &ca_pem)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|cause| foreign(CA_CERTIFICATE, format!("is not a certificate of a CA: {cause}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|cause| foreign(CA_CERTIFICATE, format!("cannot verify clients: {cause}")))?;
    let chain = vec![certificate(SERVER_CERTIFICATE, &public(SERVER_CERTIFICATE)?)?];
    let key = PrivateKeyDer::from_pem_slice(secret(SERVER_KEY)?.expose_secret().as_bytes())
        .map_err(|cause| foreign(SERVER_KEY, format!("is not a private key in PEM: {cause}")))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| foreign(SERVER_KEY, format!("cannot be used: {cause}")))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|cause| foreign(SERVER_CERTIFICATE, format!("does not belong to server.key: {cause}")))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    let client_certificate = public(CLIENT_CERTIFICATE)?;
    certificate(CLIENT_CERTIFICATE, &client_certificate)?;
    let client = ClientIdentity { ca: ca_pem, certificate: client_certificate, key: secret(CLIENT_KEY)? };
    Ok(Certificates { server: Arc::new(server), client })
}

fn create(dir: SecretDir<'_>) -> Result<(), KeyError> {
    let made = make().map_err(|cause| KeyError::Io {
        act: "make certificates for",
        path: dir.path.into(),
        cause: cause.to_string(),
    })?;
    let files: Vec<_> = FILES.into_iter().zip(made.iter().map(|pem| pem.expose_secret().as_bytes())).collect();
    dir.create(&files)
}

/// In the order of [`FILES`].
fn make() -> Result<[SecretString; 6], rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = params("OpenShell gateway CA", &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key)?.pem();
    let ca_pem = ca_key.serialize_pem();
    let issuer = Issuer::new(ca, ca_key);
    let leaf = |name: &str, names: &[&str], purpose: ExtendedKeyUsagePurpose| {
        let key = KeyPair::generate()?;
        let mut leaf = params(name, names)?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![purpose];
        leaf.use_authority_key_identifier_extension = true;
        Ok::<_, rcgen::Error>([leaf.signed_by(&key, &issuer)?.pem(), key.serialize_pem()])
    };
    let [server, server_key] = leaf("OpenShell gateway", &SERVER_NAMES, ExtendedKeyUsagePurpose::ServerAuth)?;
    let [client, client_key] = leaf("OpenShell user", &[], ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok([ca_certificate, ca_pem, server, server_key, client, client_key].map(SecretString::from))
}

fn params(name: &str, names: &[&str]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + LIFETIME).into();
    Ok(params)
}

#[cfg(test)]
mod tests;
