//! Where the gateway is.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};

/// `vsock://2:5100` or `unix:///path`.
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
}

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Endpoint {
    /// One connection. Over vsock it succeeds even where nobody listens: only an answer proves a peer.
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Vsock { cid, port } => Box::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("endpoint `{}` is neither vsock://CID:PORT nor unix:///PATH", text.escape_debug());
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse().map_err(|_| bad()),
            false => Err(bad()),
        };
        if let Some(address) = text.strip_prefix("vsock://") {
            let (cid, port) = address.split_once(':').ok_or_else(bad)?;
            return Ok(Self::Vsock { cid: number(cid)?, port: number(port)? });
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(Self::Unix(path.into())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for text in ["vsock://2:5100", "unix:///run/gateway.sock"] {
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
            "VSOCK://2:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
