//! The host of an https endpoint, and its addresses.
//!
//! Names are looked up in `/etc/hosts` alone. The agent is a static program: `getaddrinfo` would load the image's
//! name service modules, which may be of another libc, into PID 1. Whoever configures an endpoint by name writes the
//! name into that file, or names an address.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustls::pki_types::{DnsName, ServerName};

use crate::sys::image_file;

const HOSTS: &str = "/etc/hosts";

/// An address or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Written out; an IPv6 address stands in brackets.
    Address(IpAddr),
    /// As its certificate has it.
    Name(DnsName<'static>),
}

impl Host {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(address) = text.strip_prefix('[') {
            return Some(Self::Address(IpAddr::V6(address.strip_suffix(']')?.parse().ok()?)));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Address(IpAddr::V4(address)));
        }
        Some(Self::Name(DnsName::try_from(text.to_owned()).ok()?))
    }

    /// Whom the certificate has to be for.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        match self {
            Self::Address(address) => ServerName::from(*address),
            Self::Name(name) => ServerName::DnsName(name.clone()),
        }
    }

    /// Where to connect; never nowhere.
    pub(super) fn addresses(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
        let name = match self {
            Self::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
            Self::Name(name) => name.as_ref(),
        };
        let hosts = image_file::read(Path::new(HOSTS), image_file::MAX)?;
        let found = addresses_of(name, &String::from_utf8_lossy(&hosts));
        if found.is_empty() {
            return Err(io::Error::other(format!("{name} is not in {HOSTS}, the only place where the agent looks")));
        }
        Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }
}

/// In the order of the file.
fn addresses_of(name: &str, hosts: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    let addresses = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|other| other.eq_ignore_ascii_case(name)).then_some(address)
    });
    addresses.collect()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::addresses_of;

    #[test]
    fn names_are_found_where_they_stand_and_nowhere_else() {
        let hosts = "127.0.0.1 localhost # gateway.example\n192.0.2.1\tother Gateway.Example\n\n\
            2001:db8::1 gateway.example\nnonsense gateway.example\n192.0.2.2\n";
        let found = addresses_of("gateway.example", hosts);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.1", "2001:db8::1"]);
        assert!(addresses_of("nobody.example", hosts).is_empty());
    }
}
