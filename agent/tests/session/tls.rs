//! TLS in front of a gateway's socket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// A listener with a certificate, and the authority that signed it.
pub(crate) struct Front {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    authority: String,
}

impl Front {
    /// Its certificate is for this host.
    pub(crate) async fn new(host: &str) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self { listener: Arc::new(listener), address, acceptor, authority: authority.pem() }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Carries what comes to a socket. Counts the connections that the other end broke off in the handshake.
    pub(crate) fn serve(&self, socket: &Path) -> watch::Receiver<usize> {
        let (refusals, count) = watch::channel(0);
        let (listener, acceptor, socket) = (self.listener.clone(), self.acceptor.clone(), PathBuf::from(socket));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, socket, refusals) = (acceptor.clone(), socket.clone(), refusals.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return refusals.send_modify(|count| *count += 1);
                    };
                    let mut behind = UnixStream::connect(socket).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut behind).await);
                });
            }
        });
        count
    }
}
