use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

fn made() -> (tempfile::TempDir, Certificates) {
    let temp = tempfile::tempdir().unwrap();
    let certificates = Certificates::load_or_create(&temp.path().join("tls")).unwrap();
    (temp, certificates)
}

/// What a client of this identity says, or nothing for one without.
fn client(trust: &ClientIdentity, identity: Option<&ClientIdentity>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let Some(identity) = identity else { return builder.with_no_client_auth() };
    let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(identity.key.expose_secret().as_bytes()).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

/// Whether a byte comes through.
async fn meet(server: &Certificates, client: ClientConfig, name: &str) -> bool {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.server.clone());
    let serving = async {
        let mut stream = acceptor.accept(theirs).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.shutdown().await.ok()
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = async {
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, ours).await.ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()
    };
    let (served, connected) = tokio::join!(serving, connecting);
    served.is_some() && connected.is_some()
}

#[tokio::test]
async fn only_a_certificate_of_this_gateway_gets_in() {
    let (_one, one) = made();
    let (_two, two) = made();
    for name in ["localhost", "127.0.0.1", "dev.openshell.localhost", "host.docker.internal"] {
        assert!(meet(&one, client(&one.client, Some(&one.client)), name).await, "{name}");
    }
    assert!(!meet(&one, client(&one.client, Some(&one.client)), "example.org").await);
    assert!(!meet(&one, client(&one.client, None), "localhost").await);
    assert!(!meet(&one, client(&one.client, Some(&two.client)), "localhost").await);
    assert!(!meet(&one, client(&two.client, Some(&one.client)), "localhost").await);
}

#[test]
fn made_once_then_left_alone() {
    let (temp, made) = made();
    let dir = temp.path().join("tls");
    let again = Certificates::load_or_create(&dir).unwrap();
    assert_eq!(made.client.certificate, again.client.certificate);
    for name in FILES {
        assert_eq!(fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
    }
    assert!(!format!("{again:?}").contains("PRIVATE"), "{again:?}");
}

#[test]
fn incomplete_foreign_and_exposed_are_refused() {
    for name in FILES {
        let (temp, _) = made();
        let dir = temp.path().join("tls");
        fs::remove_file(dir.join(name)).unwrap();
        let error = Certificates::load_or_create(&dir).unwrap_err();
        assert_eq!(error, KeyError::Partial { dir, secrets: Secrets::Certificates, missing: name.into() });
    }
    let (temp, _) = made();
    let (other, _) = made();
    fs::copy(other.path().join("tls").join(SERVER_KEY), temp.path().join("tls").join(SERVER_KEY)).unwrap();
    let error = Certificates::load_or_create(&temp.path().join("tls")).unwrap_err();
    assert!(matches!(error, KeyError::Foreign { .. }), "{error}");
    let (temp, _) = made();
    let key = temp.path().join("tls").join(CLIENT_KEY);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Certificates::load_or_create(&temp.path().join("tls")).unwrap_err();
    assert!(matches!(error, KeyError::Exposed { .. }), "{error}");
}
