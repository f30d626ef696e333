//! Where the gateway is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::boot::BootSpec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_vsock::{VsockAddr, VsockStream};

use self::host::Host;

mod host;
mod tls;

/// `vsock://2:5100`, `unix:///path` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// From a microVM.
    Vsock {
        /// Context id of the host.
        cid: u32,
        /// The port that is mapped to the gateway's socket.
        port: u32,
    },
    /// On the same kernel.
    Unix(PathBuf),
    /// Over a network.
    Https {
        /// Whom its certificate has to be for.
        host: Host,
        /// Its port.
        port: u16,
    },
}

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Endpoint {
    /// One connection. Over vsock it succeeds even where nobody listens: only an answer proves a peer. The certificate
    /// authority of an https endpoint stands in the identity directory, and is read again each time.
    pub(crate) async fn connect(&self, identity: &Path) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Vsock { cid, port } => Box::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Https { host, port } => {
                let config = tls::trusting_authority_in(identity)?;
                let stream = TcpStream::connect(&*host.addresses(*port)?).await?;
                stream.set_nodelay(true)?;
                Box::new(tokio_rustls::TlsConnector::from(config).connect(host.server_name(), stream).await?)
            }
        })
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            let text = text.escape_debug();
            format!("endpoint `{text}` is neither vsock://CID:PORT nor unix:///PATH nor https://HOST:PORT")
        };
        if let Some(address) = text.strip_prefix("vsock://") {
            let (cid, port) = address.split_once(':').ok_or_else(bad)?;
            return Ok(Self::Vsock { cid: number(cid).ok_or_else(bad)?, port: number(port).ok_or_else(bad)? });
        }
        if let Some(address) = text.strip_prefix("https://") {
            let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
            return Ok(Self::Https { host: Host::parse(host).ok_or_else(bad)?, port: number(port).ok_or_else(bad)? });
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(Self::Unix(path.into())),
            _ => Err(bad()),
        }
    }
}

/// Digits and nothing else: no sign, no blank.
fn number<T: FromStr>(digits: &str) -> Option<T> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// All places where the gateway may be, in the order in which they are tried. The control connection looks for it; a
/// clone shows the data connection where it was found.
#[derive(Debug, Clone)]
pub struct Endpoints {
    all: Arc<[Endpoint]>,
    current: Arc<AtomicUsize>,
}

impl Endpoints {
    /// Those of a boot spec.
    ///
    /// # Errors
    /// The first that is none.
    pub fn of(spec: &BootSpec) -> Result<Self, String> {
        let texts = std::iter::once(&spec.endpoint).chain(&spec.endpoints);
        Ok(texts.map(|text| text.parse()).collect::<Result<Vec<_>, _>>()?.into())
    }

    /// The one to try now, or that works.
    pub fn current(&self) -> &Endpoint {
        &self.all[self.current.load(Ordering::Relaxed) % self.all.len()]
    }

    /// It did not work. True where all have been tried now, and the next one is the first.
    pub(crate) fn give_up_current(&self) -> bool {
        let next = (self.current.load(Ordering::Relaxed) + 1) % self.all.len();
        self.current.store(next, Ordering::Relaxed);
        next == 0
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    /// Never of an empty list: a boot spec has one at least.
    fn from(all: Vec<Endpoint>) -> Self {
        assert!(!all.is_empty(), "there is no endpoint");
        Self { all: all.into(), current: Arc::default() }
    }
}

impl From<Endpoint> for Endpoints {
    fn from(only: Endpoint) -> Self {
        vec![only].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for text in [
            "vsock://2:5100",
            "unix:///run/gateway.sock",
            "https://gateway.example:443",
            "https://127.0.0.1:17670",
            "https://[2001:db8::1]:17670",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "vsock://",
            "vsock://2",
            "vsock://2:",
            "vsock://:1",
            "vsock://2:+1",
            "vsock://2:1/",
            "vsock://2:4294967296",
            "unix://",
            "unix://run",
            "unix:///a\0b",
            "https://gateway",
            "https://:443",
            "https://gateway:65536",
            "https://gateway:443/",
            "https://user@gateway:443",
            "https://2001:db8::1:443",
            "http://gateway:80",
            "VSOCK://2:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn endpoints_take_turns_and_one_that_works_stays() {
        let [first, second] = ["unix:///a", "unix:///b"].map(|text| text.parse::<Endpoint>().unwrap());
        let endpoints = Endpoints::from(vec![first.clone(), second.clone()]);
        let seen_elsewhere = endpoints.clone();
        assert_eq!(endpoints.current(), &first);
        assert!(!endpoints.give_up_current());
        assert_eq!((endpoints.current(), seen_elsewhere.current()), (&second, &second));
        assert!(endpoints.give_up_current());
        assert_eq!(seen_elsewhere.current(), &first);
        assert!(Endpoints::from(first).give_up_current());
    }
}
